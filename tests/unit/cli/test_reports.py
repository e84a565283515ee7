import io
from collections.abc import Callable
from typing import cast

from rich.console import Console

from kubeworker.cli.report_apply import ApplyDocument, NodeResult, print_result
from kubeworker.cli.report_status import print_status
from kubeworker.cli.report_verify import print_verdicts
from kubeworker.core.checks import NodeReport, Verdict, VerifyReport
from kubeworker.errors import NodeUnreachable
from kubeworker.flow.status import FleetStatus, NodeLine


def shown(draw: Callable[[Console], None]) -> str:
    text = io.StringIO()
    draw(Console(file=text, width=200, markup=False))
    return text.getvalue()


def result(name: str, status: str = "ok", actions: int = 0, **more: object) -> NodeResult:
    node = {"name": name, "status": status, "actions": actions, "seconds": 1.25, "uploaded": 0, "error": None}
    return cast("NodeResult", node | more)


def applied(*nodes: NodeResult) -> str:
    document: ApplyDocument = {"changes": 3, "nodes": list(nodes), "warnings": []}
    return shown(lambda screen: print_result(screen, document))


def test_an_apply_ends_with_a_table_and_one_line() -> None:
    text = applied(result("k8s-01", actions=3, uploaded=70_000_000), result("k8s-02"))
    assert [line.split() for line in text.splitlines()[:2]] == [
        ["NODE", "STATUS", "CHANGES", "SENT", "SECONDS"],
        ["k8s-01", "ok", "3", "70", "MB", "1.2"],
    ]
    assert text.splitlines()[-1] == "Applied: 3 changes on 1 node"


def test_a_failed_apply_names_the_node_the_reason_and_the_way_out() -> None:
    error = {"type": "ActionFailed", "subject": "k8s-02", "message": "gate\n  journal", "hint": "look"}
    text = applied(result("k8s-01", actions=3), result("k8s-02", "failed", error=error))
    assert "k8s-02: gate\n  journal\n  hint: look\n" in text
    assert text.splitlines()[-1].endswith("; not done: k8s-02 (run apply again once that is fixed)")


FAILED = Verdict(id="kubelet.unit", status="failed", detail="inactive (dead)\nlast line of the journal")
PASSED = Verdict(id="kubelet.port", status="passed", detail="10250 on *")


def test_verify_shows_what_failed_and_counts_the_rest() -> None:
    report = VerifyReport(nodes=(NodeReport(name="a", checks=(FAILED, PASSED)), NodeReport(name="b", checks=(PASSED,))))
    text = shown(lambda screen: print_verdicts(screen, report))
    assert "failed  kubelet.unit: inactive (dead)\n          last line of the journal\n" in text
    assert "kubelet.port" not in text
    assert text.splitlines()[-1] == "2 checks passed, 1 failed"
    assert "kubelet.port: 10250 on *" in shown(lambda screen: print_verdicts(screen, report, passed=True))


def status(*nodes: NodeLine, ca_days: int = 3650, trouble: str = "") -> str:
    fleet = FleetStatus(nodes=nodes, ca_days=ca_days, trouble=trouble)
    return shown(lambda screen: print_status(screen, fleet))


def test_status_is_one_line_for_a_healthy_node() -> None:
    node = NodeLine(
        name="k8s-01",
        ready="Ready",
        kubelet="1.33.3",
        runtime="2.1.3",
        units={"kubelet.service": "active", "containerd.service": "active"},
        certificates={"kubelet.client_cert": 364, "kube_proxy.client_cert": 20},
        drift=0,
    )
    line = status(node).splitlines()[1]
    assert " ".join(line.split()) == "k8s-01 Ready 1.33.3 2.1.3 2 active 20 days (kube_proxy.client_cert) none"


def test_status_names_what_is_wrong() -> None:
    error = NodeUnreachable("connection refused", subject="b", hint="is sshd running?")
    text = status(
        NodeLine(name="a", ready="NotReady", units={"kubelet.service": "failed"}, certificates={"x": None}, drift=3),
        NodeLine(name="b", error=error),
        ca_days=3,
        trouble="no kube-apiserver answers (https://10.1.0.1:6443: connection refused)",
    )
    for expected in (
        "kubelet failed",
        "missing: x",
        "3 changes",
        "b: connection refused\n  hint: is sshd running?",
        "no kube-apiserver answers",
        "CA lasts 3 more days",
    ):
        assert expected in text
