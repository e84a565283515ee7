"""docs/preflight.md and the code name the same checks: rows are made of a machine that brings out every one."""

from __future__ import annotations

import re
from pathlib import Path

from tests.unit import samples
from tests.unit.core.engine_states import bare

from kubeworker.core.component import Facts
from kubeworker.core.model import NodeState
from kubeworker.core.node.observed import Disk, NodeAddress, Observed
from kubeworker.core.preflight import fleet as preflight_fleet
from kubeworker.core.preflight.requirements import preflight

ROOT = Path(__file__).parents[3]
CODE = ("requirements", "fleet", "kubelet", "survey_rows")


def told() -> set[str]:
    """The ids of the page's tables, with a word in capitals for what varies."""
    page = (ROOT / "docs/preflight.md").read_text("utf-8")
    rows = re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE)
    return {key for row in rows for key in re.findall(r"`([^`]+)`", row)}


def names(pattern: str, key: str) -> bool:
    return re.fullmatch(re.sub(r"[A-Z]{2,}", "[^ ]+", pattern.replace("PORT", "[0-9]+")), key) is not None


def made() -> set[str]:
    """The ids of all rows that a node of each kind of cluster gets."""
    values = ("net/netfilter/nf_conntrack_max:9", "fs/inotify/max_user_instances:9")
    observed = bare(
        survey={"value": values},
        addresses=(NodeAddress(address="172.31.39.151", link="eth0", mac="52:54:00:00:00:01"),),
        disks={path: Disk(path=path, mount="/", free=1, inodes=1) for path in ("/opt/k8s/bin", "/data/k8s/k8s")},
    )
    strict = {"kubelet": {"config": {"protectKernelDefaults": True}}}
    specs = [
        samples.cluster(cni="bridge", components=strict | {"kube_proxy": {"mode": "nftables"}}),
        samples.cluster(cni="cilium", components=strict),
    ]
    states = [samples.state(spec, facts=Facts(pod_cidr="172.30.0.0/24")) for spec in specs]
    return {row for state in states for row in _ids(state, observed)}


def _ids(state: NodeState, observed: Observed) -> set[str]:
    fleet = preflight_fleet.of({"k8s-01": observed}, {"k8s-01": "172.31.39.151"}, (0.0, 0.0, 0.0))
    rows = preflight(
        state, observed, fleet=fleet, control_time=observed.clock, architecture="amd64", address="172.31.39.151"
    )
    return {row.id for row in rows}


def test_the_page_names_every_check_that_is_made() -> None:
    assert {key for key in made() if not any(names(pattern, key) for pattern in told())} == set()


def test_every_check_that_the_page_names_is_made() -> None:
    keys = made()
    assert {pattern for pattern in told() if not any(names(pattern, key) for key in keys)} == set()


def test_no_id_in_the_code_is_left_out_of_the_page() -> None:
    """Those too that no machine above brings out."""
    source = "".join((ROOT / f"src/kubeworker/core/preflight/{name}.py").read_text("utf-8") for name in CODE)
    keys = re.findall(r'(?:\.(?:judge|judge_host|row)\(|_unique\(node,|key =|key, \w+ =)\s*f?"([^"]+)"', source)
    keys = [re.sub(r"\{[^}]*\}", "1", key) for key in keys]
    assert len(keys) > 25
    assert {key for key in keys if not any(names(pattern, key) for pattern in told())} == set()
