"""`verify` on real machines: each check sees its own thing broken, and nothing that verify makes stays behind."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.lab.breaks import BREAKS, PRELUDE, Break
from tests.lab.operate import Operator, kubectl, sh, until

from kubeworker import lab as labs
from kubeworker.lab import LabState, Machine

pytestmark = pytest.mark.timeout(600)

MADE_BY_VERIFY = ("--selector=app.kubernetes.io/managed-by=kubeworker-verify", "--all-namespaces", "-o=name")


@pytest.fixture(scope="module")
def operator(deployed: LabState) -> Operator:
    return Operator(lab=deployed, file=deployed.cluster_yaml)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one `verify --json` said."""

    code: int
    passed: int
    failed: int
    checks: Mapping[str, Mapping[str, tuple[str, str]]]
    """(status, detail) by node and check id."""

    def failures(self, node: str) -> set[str]:
        return {check for check, (status, _) in self.checks[node].items() if status == "failed"}

    def detail(self, node: str, check: str) -> str:
        return self.checks[node][check][1]


def verify(operator: Operator, *arguments: str) -> Seen:
    done = operator.run("verify", "--json", *arguments)
    document: dict[str, Any] = json.loads(done.stdout)
    assert set(document) == {"passed", "failed", "nodes"}
    return Seen(
        code=done.returncode,
        passed=document["passed"],
        failed=document["failed"],
        checks={
            node["name"]: {check["id"]: (check["status"], check["detail"]) for check in node["checks"]}
            for node in document["nodes"]
        },
    )


def test_a_healthy_fleet_passes_every_check(operator: Operator) -> None:
    seen = verify(operator)
    assert [seen.failures(node) for node in seen.checks] == [set()] * len(operator.lab.machines)
    assert (seen.code, seen.failed) == (0, 0)
    assert seen.passed == sum(len(checks) for checks in seen.checks.values())


def test_every_check_has_a_break_and_every_break_a_check(operator: Operator) -> None:
    seen = verify(operator)
    ids = {check for checks in seen.checks.values() for check in checks}
    assert {check for check in ids if not any(case.covers(check) for case in BREAKS)} == set()
    assert [case.title for case in BREAKS if not any(map(case.covers, ids))] == []


# ---------------------------------------------------------------------------------------------------------------
# Broken things. Each machine gets a break of its own, then one verify looks at all of them.


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a case expected, and what verify saw, by node."""

    expected: Mapping[str, set[str]]
    failures: Mapping[str, set[str]]
    details: Mapping[str, str]


class Broken:
    """A break that is in force on one machine (or on all), until it is healed."""

    def __init__(self, lab: LabState, machine: Machine, case: Break, folder: Path) -> None:
        self._lab, self._machine, self._case, self._folder = lab, machine, case, folder
        self._peer = next(each for each in reversed(lab.machines) if each != machine)
        self._apiserver = next(each for each in lab.control_plane if each != machine)

    def start(self) -> None:
        if "csr.yaml" in self._case.broken:
            (self._folder / "csr.yaml").write_text(serving_request(self._machine))
        self._run(self._case.broken)

    def heal(self) -> None:
        self._run(self._case.heal)

    def expected(self) -> set[str]:
        names = {"PEER": self._peer.name, "APISERVER": f"{self._apiserver.address}:6443"}
        return {check.format(**names) for check in (self._case.id, *self._case.also)}

    def result(self, seen: Seen) -> Result:
        everywhere = self._case.control == "cluster"
        nodes = [node.name for node in self._lab.machines] if everywhere else [self._machine.name]
        return Result(
            expected={node: self.expected() for node in nodes},
            failures={node: seen.failures(node) for node in nodes},
            details={check: seen.detail(nodes[0], check) for check in seen.failures(nodes[0])},
        )

    def _run(self, script: str) -> None:
        variables = {
            "NODE": self._machine.name,
            "ADDRESS": self._machine.address,
            "PEER": self._peer.name,
            "PEER_ADDRESS": self._peer.address,
            "APISERVER": self._apiserver.address,
            "SERVERS": " ".join(f"https://{server}" for server in self._lab.apiservers),
        }
        settings = "".join(f"{name}='{value}'\n" for name, value in variables.items())
        if not self._case.control:
            done = labs.run(self._lab, self._machine, PRELUDE + settings + script)
            assert done.returncode == 0, f"{self._machine.name}: {script}\n{done.stdout}{done.stderr}"
            return
        lab = self._lab
        ssh = f"ssh -i {lab.ssh_identity} -o UserKnownHostsFile={lab.known_hosts} root@{self._machine.address}"
        control = (
            f'kubectl() {{ "{lab.folder}/bin/kubectl" --kubeconfig="{lab.kubeconfig}" "$@"; }}\n'
            f'on_node() {{ {ssh} "$1"; }}\nTMP={self._folder}\n'
        )
        done = subprocess.run(
            ["sh", "-c", PRELUDE + settings + control + script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"


def serving_request(machine: Machine) -> str:
    """A request as this node's kubelet makes it."""
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:nodes"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"system:node:{machine.name}"),
        ]
    )
    names = x509.SubjectAlternativeName([x509.DNSName(machine.name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(names, critical=False)
    pem = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(
        serialization.Encoding.PEM
    )
    document = {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": f"kw-break-{machine.name}"},
        "spec": {
            "request": base64.b64encode(pem).decode(),
            "signerName": "kubernetes.io/kubelet-serving",
            "usages": ["digital signature", "server auth"],
        },
    }
    return yaml.safe_dump(document)


def rounds(cases: list[Break], size: int) -> Iterator[tuple[Break, ...]]:
    """Cases that are broken at the same time, one on each machine; what breaks the cluster is broken alone.

    Slow ones go together: verify waits for them once.
    """
    yield from ((case,) for case in cases if case.control == "cluster")
    single = sorted((case for case in cases if case.control != "cluster"), key=lambda case: case.slow)
    while single:
        yield tuple(single[:size])
        single = single[size:]


def play(operator: Operator, cases: tuple[Break, ...]) -> dict[str, Result | AssertionError]:
    """Break, look, heal. An error stands for the result where breaking or healing failed."""
    lab = operator.lab
    errors: dict[str, AssertionError] = {}
    with tempfile.TemporaryDirectory() as temporary:
        things = {}
        for case, machine in zip(cases, lab.machines, strict=False):
            folder = Path(temporary) / machine.name
            folder.mkdir()
            things[case] = Broken(lab, machine, case, folder)
        try:
            everywhere(errors, {case: thing.start for case, thing in things.items()})
            seen = verify(operator)
        except AssertionError as error:
            errors = {case.title: error for case in things}
        finally:
            everywhere(errors, {case: thing.heal for case, thing in things.items()})
    return {case.title: errors.get(case.title) or thing.result(seen) for case, thing in things.items()}


def everywhere(errors: dict[str, AssertionError], work: Mapping[Break, Callable[[], None]]) -> None:
    """Do it on all machines at once; the first error of each case is kept."""
    with ThreadPoolExecutor() as pool:
        for case, future in {case: pool.submit(each) for case, each in work.items()}.items():
            error = future.exception()
            if isinstance(error, AssertionError):
                errors.setdefault(case.title, error)
            elif error is not None:
                raise error


@pytest.fixture(scope="module")
def results(operator: Operator, request: pytest.FixtureRequest) -> dict[str, Result | AssertionError]:
    """The results of all cases that this run was asked for."""
    specs = [
        item.callspec
        for item in request.session.items
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
    ]
    asked = [case for spec in specs if isinstance(case := spec.params.get("case"), Break)]
    found: dict[str, Result | AssertionError] = {}
    for cases in rounds(asked, len(operator.lab.machines)):
        found |= play(operator, cases)
    return found


@pytest.mark.parametrize("case", BREAKS, ids=lambda case: case.title)
def test_a_broken_thing_fails_its_check_and_no_unrelated_one(
    results: Mapping[str, Result | AssertionError], case: Break
) -> None:
    result = results[case.title]
    if isinstance(result, AssertionError):
        raise result
    assert result.failures == result.expected, result.details


def test_all_that_was_broken_is_whole_again(results: Mapping[str, Result | AssertionError], operator: Operator) -> None:
    assert results
    assert verify(operator).failed == 0
    assert operator.plan()["changes"] == 0


# ---------------------------------------------------------------------------------------------------------------
# Outages


def test_a_stopped_unit_is_reported_with_its_last_journal_lines(operator: Operator) -> None:
    lab, (node, *others) = operator.lab, [machine.name for machine in operator.lab.machines]
    sh(lab, node, "systemctl stop kube-proxy")
    try:
        seen = verify(operator)
    finally:
        sh(lab, node, "systemctl start kube-proxy")
    state, *journal = seen.detail(node, "kube_proxy.unit").splitlines()
    assert state.startswith("kube-proxy.service is inactive (dead)")
    assert any("Stopp" in line for line in journal)
    assert seen.code == 1
    assert all(seen.failures(other) == set() for other in others)


def test_a_running_binary_that_was_replaced_fails_only_where_the_bytes_differ(operator: Operator) -> None:
    lab, (node, *_) = operator.lab, [machine.name for machine in operator.lab.machines]
    binary = "/opt/k8s/bin/kube-proxy"
    sh(lab, node, f"ln {binary} {binary}.kw && cp -p {binary} {binary}.new && mv -f {binary}.new {binary}")
    try:
        same = verify(operator).failures(node)
        sh(lab, node, f"cp -p {binary} {binary}.new && echo >> {binary}.new && mv -f {binary}.new {binary}")
        other = verify(operator).failures(node)
    finally:
        sh(lab, node, f"mv -f {binary}.kw {binary}")
    assert same == set()
    assert other == {"kube_proxy.unit"}


def test_an_unreachable_node_fails_as_such_and_the_others_are_still_verified(operator: Operator) -> None:
    lab, node = operator.lab, operator.lab.machines[-1].name
    sh(lab, node, "systemctl stop ssh.socket ssh.service 2>/dev/null || systemctl stop ssh")
    try:
        seen = verify(operator)
    finally:
        sh(lab, node, "systemctl start ssh")
    assert seen.code == 4
    assert seen.failures(node) == set(seen.checks[node])
    assert all(detail.startswith("unreachable: ") for _, detail in seen.checks[node].values())
    assert all(seen.failures(machine.name) == set() for machine in lab.machines[:-1])


def test_without_an_api_the_nodes_own_checks_are_still_made(operator: Operator, tmp_path: Path) -> None:
    nowhere = tmp_path / "kubeconfig"
    document = yaml.safe_load(operator.lab.kubeconfig.read_text())
    document["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    nowhere.write_text(yaml.safe_dump(document))

    def cut_off(spec: dict[str, Any]) -> None:
        spec["cluster"] |= {"apiservers": ["127.0.0.1:1"], "kubeconfig": str(nowhere)}

    with operator.changed(cut_off) as other:
        seen = verify(other)
    assert seen.code == 1
    for node in seen.checks:
        untried = {check for check in seen.failures(node) if seen.detail(node, check).startswith("not tried: ")}
        assert {"node.ready", "pod.run", "kubelet.token"} <= untried
        # The one apiserver that this cluster.yaml names is nowhere.
        assert seen.failures(node) - untried == {"kube_nginx.apiserver.127.0.0.1:1"}
        assert {"kubelet.unit", "kubelet.anonymous", "service.kubernetes"}.isdisjoint(seen.failures(node))


# ---------------------------------------------------------------------------------------------------------------
# What verify makes


def made(lab: LabState) -> str:
    return kubectl(lab, "get", "pods,serviceaccounts,clusterrolebindings", *MADE_BY_VERIFY)


def test_nothing_that_verify_made_stays(operator: Operator) -> None:
    assert verify(operator).code == 0
    assert made(operator.lab) == ""


def test_nothing_stays_after_an_interrupt_either(operator: Operator) -> None:
    with operator.start("verify") as process:
        until(lambda: "pod/" in made(operator.lab), "a pod of verify's")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert made(operator.lab) == ""


def test_only_the_nodes_asked_for_are_verified_and_the_report_is_one_html_file(
    operator: Operator, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    node = operator.lab.machines[0].name
    done = operator.run("verify", "--node", node, "--html", str(page))
    assert done.returncode == 0
    text = page.read_text()
    assert f'id="{node}"' in text
    assert "service.kubernetes" in text
    assert operator.lab.machines[1].name not in text.replace(f"bridge_cni.route.{operator.lab.machines[1].name}", "")


def test_status_has_a_line_for_each_node(operator: Operator) -> None:
    done = operator.run("status", "--json")
    assert done.returncode == 0
    nodes = json.loads(done.stdout)["nodes"]
    assert [node["name"] for node in nodes] == [machine.name for machine in operator.lab.machines]
    for node in nodes:
        assert (node["ready"], node["kubelet"], node["containerd"], node["drift"]) == ("Ready", "1.33.3", "2.1.3", 0)
        assert set(node["units"].values()) == {"active"}
        assert min(node["certificates"].values()) > 0
