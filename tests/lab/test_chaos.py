"""A sample of `make chaos` (docs/failures.md): a first deploy that dies twice, and a link that is cut mid-upload."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.chaos import boundaries, faults, gate
from tests.chaos.gate import End
from tests.lab.operate import Operator, kubectl, sh

from kubeworker import lab as labs
from kubeworker.lab import LabState

pytestmark = pytest.mark.timeout(240)

NODE, OTHER = "worker-01", "k8s-01"


@pytest.fixture
def operator(deployed: LabState) -> Iterator[Operator]:
    """Finds the nodes as described, and leaves them so."""
    someone = Operator(lab=deployed, file=deployed.cluster_yaml)
    yield someone
    someone.apply()


def impatient(document: dict[str, Any]) -> None:
    """A connection counts as lost after four times two seconds; and something that every node gets."""
    document["ssh"]["keepalive"] = 2
    document["components"]["kubelet"]["max_pods"] = 119


def test_a_first_deploy_that_dies_twice_is_finished_and_no_file_is_ever_seen_half_written(operator: Operator) -> None:
    lab = operator.lab
    labs.renew(lab, NODE)
    kubectl(lab, "delete", "node", NODE)
    subject = boundaries.Subject(operator=operator, node=NODE, paths=boundaries.managed(operator, NODE))
    # Another two every day, the same two all day.
    seed = f"{datetime.now(UTC):%Y-%m-%d}"
    chance = random.Random(seed)
    # Before kubelet is up, so that enough is left for the second death.
    deaths: tuple[tuple[int, End], ...] = ((chance.randint(1, 48), "tool"), (chance.randint(1, 20), "node"))
    print(f"seed {seed}: {deaths}")

    case = boundaries.run(subject, gate.install(lab, NODE), *deaths)

    sh(lab, NODE, gate.REMOVE)
    assert case.faults == ()
    assert len(case.died) == 2
    assert (case.arrivals >= 34, case.late) == (True, 0)


def test_a_node_whose_link_is_cut_mid_upload_is_named_and_delays_nobody(operator: Operator) -> None:
    lab = operator.lab
    for name in ("kubelet", "containerd", "nerdctl"):
        sh(lab, NODE, f"rm /opt/k8s/bin/.store/sha256-$(sha256sum < /opt/k8s/bin/{name} | cut -c -64)")
        sh(lab, NODE, f"rm /opt/k8s/bin/{name}")
    (cut,) = (each for each in faults.FAULTS if each.name == "link cut during the upload")
    with operator.changed(impatient) as changed:
        with faults.befallen(lab, NODE, cut):
            ends, document = faults.watched(changed, OTHER, NODE)
        other, node = document["nodes"]
        assert (other["status"], node["status"]) == ("ok", "unreachable")
        assert "the connection was lost" in node["error"]["message"]
        assert node["error"]["hint"]
        assert ends[OTHER] < ends[NODE]
        # What holds the node's lock finds out by itself that nobody sends any more.
        changed.apply("--node", NODE)
        assert changed.plan("--node", NODE)["changes"] == 0
