"""An attack suite on the approval of certificates, against real kube-apiservers and a real kube-controller-manager.

Each attack of `csr_attacks.py` is sent by the one who would make it. The same requests then meet the command of the
guide, `kubectl get csr | grep Pending | awk '{print $1}' | xargs kubectl certificate approve`. The table is in
docs/security.md; `scripts/attacks` prints it, and writes it there with --write.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.contract.control_plane import ControlPlane, Processes, start_apiserver
from tests.contract.csr_attacks import (
    APISERVER,
    ASKERS,
    ATTACKS,
    INVENTORY,
    JOINING,
    NODE,
    NODES,
    RULES,
    STOLEN,
    TOKENS,
    VICTIM,
    Asker,
    Attack,
    client,
    serving,
)
from tests.contract.kubelets import admin, cluster_of, node_document, planned, until

from kubeworker.core.certificates import csr
from kubeworker.core.certificates.csr import KEYS_RECORD
from kubeworker.core.cluster import bootstrap_token
from kubeworker.core.cluster.bootstrap_token import BootstrapToken
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import ApiConflict, ApiError, CredentialsError
from kubeworker.flow.csr import knowledge
from kubeworker.flow.join import apply_cluster
from kubeworker.io.kube import Kube

pytestmark = pytest.mark.timeout(180)

COMMAND = Path(sys.executable).with_name("kubeworker")
PAGE = Path(__file__).parents[2] / "docs" / "security.md"
WRITE = "KUBEWORKER_WRITE_ATTACKS"
"""Set by `scripts/attacks --write`: the table is written into the page, not compared with it."""
GUIDE = "kubectl get csr | grep Pending | awk '{print $1}' | xargs kubectl certificate approve"
SECRET = "0123456789abcdef"
PATH_OF = "/apis/certificates.k8s.io/v1/certificatesigningrequests/{}/status"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one attack."""

    attack: Attack
    name: str = ""
    """The request; empty where the API server did not take it."""
    answer: str = ""
    """What the API server said to the step that it refused."""
    broken: tuple[str, ...] = ()
    """Every rule that it breaks."""
    after_tool: str = ""
    """The request's state after `kubeworker csr approve`."""
    after_guide: str = ""
    """And after the guide's command."""


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """All attacks, and the controls that hold every rule."""

    outcomes: Mapping[str, Outcome]
    controls: tuple[str, ...]
    """Good requests, among the forged ones when the approver ran."""
    approved: tuple[str, ...]
    """What `kubeworker csr approve` said it approved."""
    pending: Mapping[str, str]
    """What it said it left, with the rule."""
    issued: tuple[str, ...]
    """Controls that came to be certificates."""
    refused_after: float
    """Seconds from the deletion of a token that was in use until the API server no more took it."""


# ---------------------------------------------------------------------------------------------------------------
# The attackers


RBAC = "rbac.authorization.k8s.io"


def role(name: str, rules: Iterable[Mapping[str, Any]], *users: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A ClusterRole, and who has it."""
    metadata = {"name": f"csr-attacks-{name}"}
    return (
        {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "metadata": metadata, "rules": list(rules)},
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": metadata["name"]},
            "subjects": [{"apiGroup": RBAC, "kind": "User", "name": each} for each in users],
        },
    )


CSRS = {"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests"], "verbs": ["create", "get"]}
APPROVALS = {**CSRS, "resources": ["certificatesigningrequests/approval"], "verbs": ["update"]}
ROLES = (
    *role("ask", [CSRS], "mallory", "trudy", f"system:node:{NODE.name}", f"system:bootstrap:{TOKENS['token'][0]}"),
    *role("half", [APPROVALS], "trudy"),
)

SUBJECTS: Mapping[Asker, tuple[str, tuple[str, ...]]] = {
    "node": (f"system:node:{NODE.name}", ("system:nodes",)),
    "victim": (f"system:node:{VICTIM.name}", ("system:nodes",)),
    "moved": ("system:node:k8s-4", ("system:nodes",)),
    "absent": ("system:node:k8s-5", ("system:nodes",)),
    "stranger": ("system:node:k8s-99", ("system:nodes",)),
    "ungrouped-node": (f"system:node:{NODE.name}", ()),
    "user": ("mallory", ()),
    "half-approver": ("trudy", ()),
    "user-without-rights": ("nobody", ()),
    "ungrouped-token": (f"system:bootstrap:{TOKENS['token'][0]}", ()),
}


def token_of(asker: Asker) -> BootstrapToken:
    id_, node = TOKENS[asker]
    minutes = -1 if asker == "expired-token" else 15
    return BootstrapToken(id=id_, secret=SECRET, node=node, expires=datetime.now(UTC) + timedelta(minutes=minutes))


def token_document(asker: Asker) -> dict[str, Any]:
    document = bootstrap_token.document(token_of(asker))
    if asker == "foreign-token":
        document["metadata"]["labels"] = {}  # without ours it is nobody's of this tool's, whatever the rest says
    return document


@dataclass(kw_only=True)
class Attackers:
    """Their connections to either kube-apiserver."""

    plane: ControlPlane
    open_plane: ControlPlane
    """The one without NodeRestriction."""
    stack: AsyncExitStack
    connected: dict[tuple[Asker, bool], Kube] = field(default_factory=dict)

    async def of(self, attack: Attack) -> Kube:
        key = attack.asker, attack.node_restriction
        if key not in self.connected:
            plane = self.plane if attack.node_restriction else self.open_plane
            label = f"{attack.asker}-{attack.node_restriction}"
            if attack.asker in TOKENS:
                config = plane.token_kubeconfig(label, token_of(attack.asker).value)
            else:
                name, groups = SUBJECTS[attack.asker]
                config = plane.kubeconfig_for(label, common_name=name, organizations=groups)
            self.connected[key] = await self.stack.enter_async_context(await Kube.connect(config, (), plane.ca_cert))
        return self.connected[key]


# ---------------------------------------------------------------------------------------------------------------
# The campaign


async def attempt(attack: Attack, attackers: Attackers, kube: Kube, known: csr.Knowledge) -> Outcome:
    """Make the attack; what of it the API server took stays there."""
    try:
        attacker = await attackers.of(attack)
        if attack.step == "recreate":
            return await recreated(attack, attacker, kube, known)
        made = await attacker.create(attack.request.document())
    except (ApiError, CredentialsError) as error:
        return Outcome(attack=attack, answer=str(error))
    name = made["metadata"]["name"]
    try:
        match attack.step:
            case "create-then-deny":
                await kube.request("PUT", approval_path(name), subject=name, body=decided(made, "Denied"))
            case "create-then-revoke":
                await kube.delete_token(token_of(attack.asker))
            case "approve-own":
                await attacker.approve(csr.view(made), message="by myself")
            case "issue-own":
                status = {"certificate": made["spec"]["request"]}
                body = {**made, "status": status}
                await attacker.request("PUT", PATH_OF.format(name), subject=name, body=body)
            case "approve-denied":
                body = decided(made, "Denied")
                denied = await kube.request("PUT", approval_path(name), subject=name, body=body)
                await kube.request("PUT", approval_path(name), subject=name, body=decided(denied, "Denied", "Approved"))
            case "replace-spec":
                other = replace(attack.request, common_name=f"system:node:{VICTIM.name}").document()
                stored = await kube.replace({**made, "spec": {**made["spec"], "request": other["spec"]["request"]}})
                answer = "the request is the old one" if stored["spec"] == made["spec"] else ""
                await kube.delete("CertificateSigningRequest", name)
                return Outcome(attack=attack, answer=answer)
            case _:
                pass
    except ApiError as error:
        await kube.delete("CertificateSigningRequest", name)
        return Outcome(attack=attack, answer=str(error))
    return Outcome(attack=attack, name=name)


async def recreated(attack: Attack, attacker: Kube, kube: Kube, known: csr.Knowledge) -> Outcome:
    """Another request under the name of one that was read and judged; the approval that was meant for that one."""
    name = attack.request.name
    await attacker.create(replace(serving(NODE), name=name).document())
    (read,) = [each for each in await kube.csrs() if each.name == name]
    assert csr.judge(read, known) == csr.Approve(), "the one that was judged held every rule"
    await kube.delete("CertificateSigningRequest", name)
    await attacker.create(attack.request.document())
    try:
        await kube.approve(read, message="it held every rule")
    except ApiConflict as error:
        return Outcome(attack=attack, name=name, answer=str(error))
    return Outcome(attack=attack, name=name)


def approval_path(name: str) -> str:
    return f"/apis/certificates.k8s.io/v1/certificatesigningrequests/{name}/approval"


def decided(document: Mapping[str, Any], *types: str) -> dict[str, Any]:
    conditions = [{"type": each, "status": "True", "reason": "Test"} for each in types]
    return {**document, "status": {"conditions": conditions}}


async def refused_after(plane: ControlPlane, kube: Kube) -> float:
    """Delete a token whose holder has just used it; seconds until it is refused."""
    loop, token = asyncio.get_running_loop(), token_of("token")
    config = plane.token_kubeconfig("deleted-token", token.value)
    await (await Kube.connect(config, (), plane.ca_cert)).close()
    await kube.delete_token(token)
    began = loop.time()

    async def refused() -> bool:
        try:
            await (await Kube.connect(config, (), plane.ca_cert)).close()
        except CredentialsError as error:
            return "401" in error.message
        return False

    await until(refused, seconds=30)
    return loop.time() - began


async def states(kube: Kube) -> dict[str, str]:
    return {each.name: each.state for each in await kube.csrs()}


def kubeworker(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *map(str, words)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )


def guide(plane: ControlPlane, binaries: Path) -> None:
    """The guide's command, word by word."""
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "KUBECONFIG": str(plane.kubeconfig)}
    subprocess.run(["bash", "-c", GUIDE], env=environment, check=True, capture_output=True, timeout=60)


async def settled(kube: Kube) -> bool:
    """Whether the signer has looked at all that was approved."""
    approved = [each for each in await kube.csrs() if "Approved" in each.conditions]
    return all(each.certificate or "Failed" in each.conditions for each in approved)


def cluster(plane: ControlPlane) -> ClusterFile:
    made = cluster_of(plane, *INVENTORY)
    servers = made.cluster.model_copy(update={"apiservers": (plane.endpoint, f"{APISERVER}:6443")})
    return made.model_copy(update={"cluster": servers})


def cluster_yaml(plane: ControlPlane, folder: Path) -> Path:
    """The same as an operator has it, without the CA's key."""
    path = folder / "cluster.yaml"
    made = cluster(plane).cluster
    document = {
        "cluster": {
            "apiservers": list(made.apiservers),
            "cluster_cidr": made.cluster_cidr,
            "service_cidr": made.service_cidr,
            "dns_service_ip": made.dns_service_ip,
            "ca": {"cert": str(plane.ca_cert), "key": "not-here.pem"},
            "kubeconfig": str(plane.kubeconfig),
        },
        "nodes": [{"name": node.name, "address": node.address} for node in INVENTORY],
    }
    path.write_text(yaml.safe_dump(document))
    return path


@asynccontextmanager
async def prepared(plane: ControlPlane, kube: Kube) -> AsyncIterator[None]:
    """The cluster's objects, and their removal."""
    await apply_cluster(kube, (await planned(kube, cluster(plane))).actions, lambda _: None)
    for document in ROLES:
        await kube.create(document)
    for asker in TOKENS:
        await kube.create(token_document(asker))
    for name, addresses in NODES.items():
        document = node_document(name, addresses[0])
        document["status"]["addresses"] += [{"type": "ExternalIP", "address": each} for each in addresses[1:]]
        await kube.create(document)
    try:
        yield
    finally:
        for each in await kube.csrs():
            await kube.delete("CertificateSigningRequest", each.name)
        for document in ROLES:
            await kube.delete(document["kind"], document["metadata"]["name"])
        for view in await kube.token_views():
            await kube.delete_token(view)
        for node in await kube.nodes():
            await kube.delete("Node", node.name)
        await kube.delete("ConfigMap", KEYS_RECORD, namespace="kube-system")


async def run(plane: ControlPlane, open_plane: ControlPlane, binaries: Path, folder: Path) -> Campaign:
    file = cluster_yaml(plane, folder)
    async with AsyncExitStack() as stack:
        kube = await stack.enter_async_context(admin(plane))
        await stack.enter_async_context(prepared(plane, kube))
        attackers = Attackers(plane=plane, open_plane=open_plane, stack=stack)

        async def good(asker: Asker, document: dict[str, Any]) -> str:
            attack = replace(ATTACKS[0], asker=asker, node_restriction=True)
            return str((await (await attackers.of(attack)).create(document))["metadata"]["name"])

        # The victim's certificate comes first: it is what makes its public key known.
        first = await good("victim", replace(serving(VICTIM), key=lambda: STOLEN).document())
        assert json.loads(kubeworker("csr", "approve", "--no-compare", "-f", file, "--json").stdout)["approved"]
        await until(partial(is_issued, kube, first))

        known = await knowledge(kube, cluster(plane), await kube.csrs())
        outcomes = [await attempt(attack, attackers, kube, known) for attack in ATTACKS]
        controls = [await good("node", serving(NODE).document()), await good("token", client(JOINING).document())]

        requests = await kube.csrs()
        known = await knowledge(kube, cluster(plane), requests)
        broken = {each.name: tuple(one.rule for one in csr.broken_rules(each, known)) for each in requests}

        done = json.loads(kubeworker("csr", "approve", "--no-compare", "-f", file, "--json").stdout)
        for control in controls:
            await until(partial(is_issued, kube, control))
        after_tool = await states(kube)

        async with asyncio.TaskGroup() as group:
            # kubectl asks 5 times a second at most, so this takes a while.
            group.create_task(asyncio.to_thread(guide, plane, binaries))
            refused = group.create_task(refused_after(plane, kube))
        await until(lambda: settled(kube), seconds=30)
        after_guide = await states(kube)
        return Campaign(
            outcomes={
                each.attack.id: replace(
                    each,
                    broken=broken.get(each.name, ()),
                    after_tool=after_tool.get(each.name, ""),
                    after_guide=after_guide.get(each.name, ""),
                )
                for each in outcomes
            },
            controls=tuple(controls),
            approved=tuple(each["name"] for each in done["approved"]),
            pending={each["name"]: each["rule"] for each in done["pending"]},
            issued=tuple(name for name in controls if after_tool[name] == "Approved,Issued"),
            refused_after=refused.result(),
        )


async def is_issued(kube: Kube, name: str) -> bool:
    return (await states(kube))[name] == "Approved,Issued"


@pytest.fixture(scope="module")
def campaign(
    control_plane: ControlPlane, binaries: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Campaign]:
    folder = tmp_path_factory.mktemp("attacks")
    processes = Processes(control_plane.directory)
    try:
        endpoint, _ = start_apiserver(
            binaries,
            control_plane.directory,
            processes,
            control_plane.etcd_url,
            admission="--disable-admission-plugins=NodeRestriction",
        )
        open_plane = replace(control_plane, server=f"https://{endpoint}", endpoint=endpoint)
        yield asyncio.run(run(control_plane, open_plane, binaries, folder))
    finally:
        processes.stop()


# ---------------------------------------------------------------------------------------------------------------
# What is asserted of it


@pytest.mark.parametrize("attack", [each for each in ATTACKS if each.rule], ids=str)
def test_an_attack_that_reaches_the_approver_breaks_one_rule_and_stays_pending(
    campaign: Campaign, attack: Attack
) -> None:
    outcome = campaign.outcomes[attack.id]
    assert outcome.name, outcome.answer
    assert outcome.broken == (attack.rule,)
    if attack.step == "create-then-deny":
        assert outcome.after_tool == "Denied"
        return
    assert outcome.after_tool == "Pending"
    if csr_of_a_kubelet(attack):
        assert campaign.pending[outcome.name] == attack.rule


def csr_of_a_kubelet(attack: Attack) -> bool:
    """Whether `csr approve` has to do with it: other signers' and renewals are not its work."""
    return attack.rule not in {"other.signer", "client.renewal"}


@pytest.mark.parametrize("attack", [each for each in ATTACKS if each.api], ids=str)
def test_an_attack_that_the_api_server_stops_is_stopped_by_what_the_table_says(
    campaign: Campaign, attack: Attack
) -> None:
    outcome = campaign.outcomes[attack.id]
    assert outcome.name == ""
    assert outcome.answer
    assert attack.says in outcome.answer


def test_good_requests_among_them_are_approved_and_issued_and_nothing_else(campaign: Campaign) -> None:
    assert sorted(campaign.approved) == sorted(campaign.controls)
    assert sorted(campaign.issued) == sorted(campaign.controls)


def test_a_request_that_was_exchanged_under_its_name_is_not_the_one_that_was_approved(campaign: Campaign) -> None:
    assert "Precondition failed: UID" in campaign.outcomes["serving-recreated"].answer


def test_a_deleted_token_is_refused_as_soon_as_the_api_server_forgets_that_it_took_it(campaign: Campaign) -> None:
    # 10 s: TokenSuccessCacheTTL (pkg/kubeapiserver/options/authentication.go); a busy machine may be late.
    assert campaign.refused_after < 15


def test_every_rule_has_an_attack_that_breaks_it_alone() -> None:
    source = Path(csr.__file__).read_text("utf-8")
    words = set(re.findall(r'yield "(\w+)"', source)) | {"renewal", "signer"}
    assert {rule.partition(".")[2] for rule in RULES} == words - {"signature"}
    assert {attack.rule for attack in ATTACKS if attack.rule} == RULES.keys()
    assert len({each.id for each in ATTACKS}) == len(ATTACKS)
    assert len([each for each in ATTACKS if each.rule]) >= 20


def test_the_table_in_the_docs_is_what_happened(campaign: Campaign) -> None:
    begin, end = "<!-- attacks: scripts/attacks --write -->\n", "<!-- end of attacks -->"
    page = PAGE.read_text("utf-8")
    before, _, rest = page.partition(begin)
    found, _, after = rest.partition(end)
    wanted = table(campaign)
    print(wanted)
    if os.environ.get(WRITE):
        PAGE.write_text(f"{before}{begin}{wanted}{end}{after}", "utf-8")
        return
    assert found == wanted, "run scripts/attacks --write"


def table(campaign: Campaign) -> str:
    """Markdown: each attack, what stopped it, and what the guide's command makes of it."""
    outcomes = campaign.outcomes.values()
    reached = [each for each in outcomes if each.name]
    passed = [each for each in reached if each.after_guide.startswith("Approved")]
    got = [each for each in passed if each.after_guide.endswith("Issued")]
    summary = (
        f"{len(outcomes)} attacks: {len(reached)} reach the approver, which approves none; the API server stops "
        f"{len(outcomes) - len(reached)}. The guide's command approves {len(passed)} of the {len(reached)}; "
        f"{len(got)} of these become certificates, the others kube-controller-manager's signer refuses."
    )
    lines = [
        summary,
        "",
        "| attack | who makes it | stopped by | rule of 13 | the guide's command |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [f"| {' | '.join(row(each))} |" for each in outcomes]
    return "\n".join([*lines, ""])


def row(outcome: Outcome) -> tuple[str, ...]:
    attack = outcome.attack
    door = "" if attack.node_restriction else ", at an apiserver without NodeRestriction"
    stopped = f"rule `{attack.rule}`" if attack.rule else f"API server: {attack.api}"
    if attack.step == "recreate":
        stopped += "; the approval of the one that was judged: API server, precondition on the UID (rule 12)"
    what = {
        "Approved,Issued": "**issued**",
        "Approved,Failed": "approved; the signer refuses it",
        "Denied": "not listed as Pending",
        "": "does not get there",
    }[outcome.after_guide]
    return attack.what, f"{ASKERS[attack.asker]}{door}", stopped, RULES.get(attack.rule, ""), what
