"""The offline core of a plan for a thousand nodes: desired states, the probe's text, the comparison. No node, no API.

python -m bench.scale_core NODES CNI    one measurement, in this process, as JSON
"""

from __future__ import annotations

import base64
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace

from tests.unit.core.engine_states import after

from bench.result import Part, Row, circumstances
from kubeworker.components import discover
from kubeworker.core import desired
from kubeworker.core.component import Credentials, Facts, Peer
from kubeworker.core.desired import Inputs
from kubeworker.core.diff import diff
from kubeworker.core.model import Blob, NodeState
from kubeworker.core.node import probe
from kubeworker.core.node.observed import KubeletKubeconfig, Observed, SeenFile
from kubeworker.core.spec import ClusterFile

NODES = 1000
REPEAT = 5
LIMIT_SECONDS = 3.0
LIMIT_MB = 300
COMMAND = "python -m bench.scale_core {nodes} {cni}"


def measure(nodes: int, cni: str) -> dict[str, float]:
    """Seconds of each step over all nodes, and what the process took."""
    registry = discover()
    names = [f"node-{index:05d}" for index in range(nodes)]
    began = time.perf_counter()
    cluster = ClusterFile.model_validate(
        {
            "cluster": {
                "apiservers": ["192.168.0.1:6443", "192.168.0.2:6443", "192.168.0.3:6443"],
                "cluster_cidr": "172.16.0.0/12",
                "service_cidr": "10.254.0.0/16",
                "dns_service_ip": "10.254.0.2",
            },
            "cni": cni,
            "nodes": [
                {"name": name, "address": f"192.168.{1 + index // 250}.{1 + index % 250}"}
                for index, name in enumerate(names)
            ],
        }
    )
    desired.validate_components(cluster, registry)
    inputs = Inputs(
        cluster=cluster,
        registry=registry,
        blobs={each.name: Blob(sha256="a" * 64, size=1) for each in desired.artifacts(cluster, registry)},
        archives={},
        local_files={},
        # Of the size of real ones.
        credentials=Credentials(ca_cert=b"c" * 1300, kube_proxy_cert=b"p" * 1300, kube_proxy_key=b"k" * 1700),
    )
    cidrs = {name: f"172.{16 + index // 256}.{index % 256}.0/24" for index, name in enumerate(names)}
    peers = tuple(Peer(name=node.name, address=node.address, pod_cidr=cidrs[node.name]) for node in cluster.nodes)
    steps = dict.fromkeys(("states", "probe texts", "comparison"), 0.0)
    reading = time.perf_counter() - began
    changes = 0
    for node in cluster.nodes:
        facts = Facts(joined=True, pod_cidr=cidrs[node.name])
        if cni == "bridge":
            facts = replace(facts, peers=tuple(peer for peer in peers if peer.name != node.name))
        first = time.perf_counter()
        before = inputs.state(node, Facts())
        second = time.perf_counter()
        probe.script(before)
        third = time.perf_counter()
        state = inputs.state(node, facts)
        fourth = time.perf_counter()
        # What a converged node shows is no part of the core's work.
        observed = _converged(state)
        fifth = time.perf_counter()
        changes += sum(len(stage.actions) for stage in diff(state, observed))
        steps["comparison"] += time.perf_counter() - fifth
        steps["states"] += second - first + fourth - third
        steps["probe texts"] += third - second
    return {
        "seconds": reading + sum(steps.values()),
        "cluster.yaml": reading,
        **steps,
        "resident_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "changes": changes,
    }


def _converged(state: NodeState) -> Observed:
    """What a node shows on which everything is as it should be, kubelet's own kubeconfig too."""
    observed = after(state)
    for target in (each for stage in state.stages for each in stage.kubeconfigs):
        seen = SeenFile(path=target.path, kind="file", mode=0o600, owner="root:root", size=1, sha256="b" * 64)
        says = KubeletKubeconfig(server=target.server, ca_data=base64.b64encode(target.ca).decode())
        observed = replace(observed, files={**observed.files, target.path: seen}, kubelet_kubeconfig=says)
    return observed


def main() -> Part:
    """The part of `make bench`."""
    rows = [_row(NODES, cni) for cni in ("none", "bridge")]
    return Part(
        name="plan-core",
        rows=tuple(rows),
        about=circumstances(COMMAND.format(nodes=NODES, cni="none")),
    )


def _row(nodes: int, cni: str) -> Row:
    runs = [_in_a_process(nodes, cni) for _ in range(REPEAT)]
    measured = {key.replace(" ", "_"): round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
    seconds = tuple(run["seconds"] for run in runs)
    # A thousand nodes in one layer-2 segment are nobody's cluster: each has a route to each other, a million lines.
    judged = cni == "none"
    met = statistics.median(seconds) < LIMIT_SECONDS and measured["resident_mb"] < LIMIT_MB
    return Row(
        workload="plan-core",
        what="kubeworker's offline core" + ("" if judged else f", cni: {cni}"),
        n=nodes,
        seconds=seconds,
        aim=f"under {LIMIT_SECONDS:g} s, under {LIMIT_MB} MB resident" if judged else "",
        met=met if judged else None,
        measured={key: value for key, value in measured.items() if key not in {"seconds", "changes"}},
    )


def _in_a_process(nodes: int, cni: str) -> dict[str, float]:
    words = [sys.executable, "-m", "bench.scale_core", str(nodes), cni]
    done: dict[str, float] = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    if done["changes"]:
        raise RuntimeError(f"{done['changes']} changes where there are none")
    return done


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), sys.argv[2]), indent=1))
