"""A first deploy with all binaries, beside the same bytes as one tar through ssh, and beside the rivals."""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bench import floors, payload, rival, tool
from bench.machines import Fleet, Say, each_machine, reset
from bench.payload import Item, Payload
from bench.result import Row, ratio
from bench.rival import Rival, Setting
from bench.tool import BenchFailed, Phases, Timed
from kubeworker.components import discover, kubelet
from kubeworker.core.artifacts import tar_stream
from kubeworker.core.certificates import kubeconfig
from kubeworker.core.cluster import bootstrap_token
from kubeworker.core.model import NodeState
from kubeworker.core.spec import API_PROXY
from kubeworker.errors import LabError
from kubeworker.io import cluster_file
from kubeworker.io.blob_store import BlobStore
from kubeworker.lab.admin_api import AdminApi

WORKLOAD = "first-deploy"
TOOL, FLOOR = "kubeworker apply", "the same bytes as one tar through ssh"
LEAST = 4.0
"""How many times as long as kubeworker the guide's loop and Ansible should take at least."""
_APPROVE = "bench-approve-bootstrap"


def measure(fleet: Fleet, work: Path, repeat: int, say: Say) -> tuple[list[Row], Payload]:
    """The tool and the floor by turns; and what rivals have to deploy, as the tool left it."""
    taken: list[tuple[Timed, Phases]] = []
    floor: list[Timed] = []
    laid = None
    uploaded = 0
    for number in range(1, repeat + 1):
        phases = Phases()
        sizes: list[int] = []
        timed = tool.timed(lambda phases=phases, sizes=sizes: sizes.extend(_apply(fleet, phases)))  # type: ignore[misc]
        taken.append((timed, phases))
        uploaded = max(sizes)
        tool.converged(fleet.cluster_file)
        laid = laid or _payload(fleet, work)
        reset(fleet, laid.units, laid.paths)
        archive = floors.archive(*_members(laid), work / "floor.tar.gz")
        at_once = cluster_file.load(fleet.cluster_file, discover()).ssh.uploads
        floor.append(
            tool.timed(lambda: floors.tar_streams(fleet.lab, fleet.machines, archive, at_once=at_once))  # noqa: B023
        )
        archive.unlink()
        each_machine(fleet.lab, fleet.machines, lambda _: "rm -rf /opt/bench-floor")
        say(f"first deploy, {number} of {repeat}: {timed.seconds:.1f} s, floor {floor[-1].seconds:.1f} s")
    assert laid is not None
    return rows(len(fleet.machines), taken, floor, uploaded), laid


def rows(n: int, taken: Sequence[tuple[Timed, Phases]], floor: Sequence[Timed], uploaded: int) -> list[Row]:
    """As rows."""
    bare = Row(
        workload=WORKLOAD,
        what=FLOOR,
        n=n,
        kind="floor",
        seconds=tuple(each.seconds for each in floor),
        note="compressed beforehand, as the tool keeps it; unpacked, and no more than that",
    )
    row = Row(
        workload=WORKLOAD,
        what=TOOL,
        n=n,
        seconds=tuple(timed.seconds for timed, _ in taken),
        note="until all nodes have joined with certificates and are Ready; rivals end when their services are started",
        measured={
            "uploaded_mb_per_node": round(uploaded / 1e6, 1),
            "seconds_until_the_first_upload": round(min(phases.first for _, phases in taken), 2),
        },
    )
    # What the floor does too, and only that: from the first byte until the last file is unpacked.
    received = Row(
        workload=WORKLOAD,
        what=f"{TOOL}, from the first byte until every node has all binaries",
        n=n,
        seconds=tuple(phases.received - phases.first for _, phases in taken),
        note="sent, unpacked, and hashed as well; the floor neither hashes nor syncs",
    )
    started = Row(
        workload=WORKLOAD,
        what=f"{TOOL}, until every unit is started and healthy",
        n=n,
        seconds=tuple(phases.started for _, phases in taken),
        note="where rivals end, who wait for no health; then come podCIDRs, serving certificates and Ready",
    )
    times = ratio(row, bare)
    return [
        replace(row, ratios={FLOOR: times}, aim="at most 1.15 x the floor", met=times <= 1.15),
        replace(started, ratios={FLOOR: ratio(started, bare)}),
        replace(received, ratios={FLOOR: ratio(received, bare)}),
        bare,
    ]


def measure_rival(setting: Setting, each: Rival, tools: Row, say: Say) -> Row:
    """One rival on machines as after their first boot; they are so again afterwards."""
    say(f"first deploy: {each.name} ...")
    try:
        taken, note = rival.timed(setting, each)
    finally:
        reset(setting.fleet, setting.payload.units, setting.payload.paths)
    times = round(taken.seconds / tools.median, 1)
    say(f"first deploy: {each.name} {taken.seconds:.1f} s, {times} x kubeworker")
    aimed = each.name in {"guide's shell loop", "Ansible"}
    return Row(
        workload=WORKLOAD,
        what=each.name,
        n=len(setting.fleet.machines),
        seconds=(taken.seconds,),
        kind="rival",
        ratios={tools.what: times},
        aim=f"kubeworker at least {LEAST:g} x faster" if aimed else "",
        met=times >= LEAST if aimed else None,
        note=note,
    )


def let_rivals_join(fleet: Fleet) -> None:
    """The guide's binding: whoever has a bootstrap token is given a client certificate. Rivals approve nothing."""
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": _APPROVE},
        "subjects": [{"kind": "Group", "name": "system:bootstrappers", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {
            "kind": "ClusterRole",
            "name": "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
            "apiGroup": "rbac.authorization.k8s.io",
        },
    }
    _create(fleet, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding)


# ---------------------------------------------------------------------------------------------------------------


def _apply(fleet: Fleet, phases: Phases) -> list[int]:
    done = tool.apply_once(fleet.cluster_file, report=phases.hear)
    if not all(node.uploaded for node in done.nodes):
        raise BenchFailed("not every node was sent something: it was no first deploy")
    return [node.uploaded for node in done.nodes]


def _payload(fleet: Fleet, work: Path) -> Payload:
    states = {node.name: node.state for node in tool.look(fleet.cluster_file).nodes if node.state is not None}
    nodes = {name: _joining(fleet, name, state) for name, state in states.items()}
    addresses = {each.name: each.address for each in fleet.machines}
    return payload.lay_out(work / "payload-deploy", nodes, addresses, next(iter(states.values())), BlobStore.default())


def _joining(fleet: Fleet, name: str, state: NodeState) -> tuple[Item, ...]:
    """What the node has, but with a bootstrap token in the place of what kubelet made of one."""
    until = dt.datetime.now(dt.UTC) + dt.timedelta(hours=2)
    token = bootstrap_token.make(secrets.token_bytes(bootstrap_token.RANDOM_BYTES), node=name, expires=until)
    secret = bootstrap_token.document(token, profile="guide")
    # Without the tool's own marks: its next run would take the token for one that it made itself.
    secret["metadata"] = {key: secret["metadata"][key] for key in ("name", "namespace")}
    _create(fleet, "/api/v1/namespaces/kube-system/secrets", secret)
    content = kubeconfig.with_token(
        server=f"https://{API_PROXY}", ca=fleet.lab.ca.read_bytes(), user="kubelet-bootstrap", token=token.value
    )
    bootstrap = Item(path=kubelet.BOOTSTRAP, mode=0o600, stage="kubelet", content=content)
    return tuple(item for item in payload.items(state, (bootstrap,)) if item.path != kubelet.KUBECONFIG)


def _create(fleet: Fleet, path: str, document: Mapping[str, object]) -> None:
    status, answer = AdminApi(fleet.lab, fleet.lab.control_plane[0]).ask("POST", path, document)
    if status not in {201, 409}:
        raise LabError(f"{path}: {answer.get('message', status)}", subject="the lab's API")


def _members(laid: Payload) -> tuple[list[Path], bytes]:
    store = BlobStore.default()
    return [store.tar_member(blob) for blob in laid.blobs], tar_stream.END
