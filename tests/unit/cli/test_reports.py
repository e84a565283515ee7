import io
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from rich.console import Console

from kubeworker.cli.report_apply import ApplyDocument, NodeResult, print_result
from kubeworker.cli.report_csr import print_requests
from kubeworker.cli.report_status import print_status, whose
from kubeworker.cli.report_token import print_revoked, print_tokens
from kubeworker.cli.report_verify import print_verdicts
from kubeworker.core.certificates.csr import SERVING_SIGNER, CsrView, Pending
from kubeworker.core.certificates.expiry import Expiry, State
from kubeworker.core.certificates.issuing import Halted
from kubeworker.core.cluster.token_listing import TokenView
from kubeworker.core.drift import NOTHING_YET, Drift
from kubeworker.core.node.running_script import ProxiedServer
from kubeworker.core.outlook import Prospect
from kubeworker.core.verify.checks import NodeReport, Verdict, VerifyReport
from kubeworker.errors import NodeError, NodeUnreachable
from kubeworker.flow.csr import Listed
from kubeworker.flow.status import FleetStatus, NodeLine
from kubeworker.flow.tokens import Listed as TokenListed
from kubeworker.flow.tokens import Revoked


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


def test_what_a_node_fetched_itself_stands_beside_what_was_sent() -> None:
    text = applied(result("k8s-01", actions=3, uploaded=1_000_000, pulled=70_000_000), result("k8s-02", pulled=5_000))
    assert "1 MB, 70 MB pulled" in text
    assert " 5 kB pulled" in text


def test_an_apply_that_sent_nothing_has_no_column_for_it() -> None:
    text = applied(result("k8s-01", actions=3), result("k8s-02"))
    assert [line.split() for line in text.splitlines()[:2]] == [
        ["NODE", "STATUS", "CHANGES", "SECONDS"],
        ["k8s-01", "ok", "3", "1.2"],
    ]


def test_a_failed_apply_names_the_node_the_reason_and_the_way_out() -> None:
    error = {
        "id": "action",
        "type": "ActionFailed",
        "subject": "k8s-02",
        "message": "gate\n  journal",
        "hint": "look",
    }
    text = applied(result("k8s-01", actions=3), result("k8s-02", "failed", error=error))
    assert "k8s-02: gate [action]\n  journal\n  hint: look\n" in text
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


NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


def lasting(days: float, state: State = "good", *, rotates: bool = False) -> Expiry:
    return Expiry(ends=NOW + timedelta(days=days), left=timedelta(days=days), rotates=rotates, state=state)


CA = lasting(3650)


def status(*nodes: NodeLine, ca: Expiry = CA, trouble: str = "") -> str:
    fleet = FleetStatus(nodes=nodes, ca=ca, trouble=trouble)
    return shown(lambda screen: print_status(screen, fleet))


def test_status_is_one_line_for_a_healthy_node() -> None:
    node = NodeLine(
        name="k8s-01",
        ready="Ready",
        kubelet="1.33.3",
        runtime="2.1.3",
        units={"kubelet.service": "active", "containerd.service": "active"},
        certificates={"kubelet.client_cert": lasting(10 / 1440, rotates=True), "kube_proxy.client_cert": lasting(364)},
        servers=(
            ProxiedServer(address="10.0.0.1:6443", ready=True, answer="200", since=0.0),
            ProxiedServer(address="10.0.0.2:6443", ready=False, answer="refused", since=0.0),
        ),
        drift=0,
    )
    line = " ".join(status(node).splitlines()[1].split())
    assert line == "k8s-01 Ready 1.33.3 2.1.3 2 active 1 of 2 10 min, renewed by itself (kubelet.client_cert) none"


@pytest.mark.parametrize(
    ("worst", "says"),
    [
        (lasting(0.1, "overdue", rotates=True), "2 h, not renewed in time (kubelet.client_cert)"),
        (lasting(-1, "expired", rotates=True), "expired (kubelet.client_cert)"),
    ],
)
def test_status_tells_of_the_certificate_that_is_worst_off_first(worst: Expiry, says: str) -> None:
    certificates = {"kubelet.client_cert": worst, "kube_proxy.client_cert": lasting(0.01, "soon")}
    assert says in status(NodeLine(name="a", certificates=certificates))
    assert NodeLine(name="a", certificates=certificates).as_json()["expiry"]["kubelet.client_cert"] == {
        "ends": worst.ends.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "rotates": True,
        "state": worst.state,
        "days": worst.days,
        "rotation": "late",
    }


def test_status_names_what_is_wrong() -> None:
    error = NodeUnreachable("connection refused", subject="b", hint="is sshd running?")
    text = status(
        NodeLine(name="a", ready="NotReady", units={"kubelet.service": "failed"}, certificates={"x": None}, drift=0),
        NodeLine(name="b", error=error),
        trouble="no kube-apiserver answers (https://10.1.0.1:6443: connection refused)",
    )
    for expected in (
        "kubelet failed",
        "missing: x",
        "b\n  connection refused [node-unreachable]\n  hint: is sshd running?",
        "no kube-apiserver answers",
    ):
        assert expected in text


EDITED = Drift(
    kind="file",
    subject="/etc/crictl.yaml",
    what="content differs",
    who="node",
    since="2026-11-25T07:00:00Z",
    diff="--- a\n+++ b\n-mine",
    fix="kubeworker apply",
)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "changed on the node at 2026-11-25T07:00:00Z"),
        ({"since": ""}, "changed on the node"),
        ({"who": "input", "by": "cluster.yaml"}, "not applied yet: cluster.yaml"),
        (
            {"who": "both", "by": "cluster.yaml"},
            "changed on the node at 2026-11-25T07:00:00Z; and not applied yet: cluster.yaml",
        ),
        ({"who": "run"}, "left by an apply that did not get to its end"),
        ({"who": "cluster", "by": "kubectl-edit"}, "changed in the cluster at 2026-11-25T07:00:00Z by kubectl-edit"),
        ({"who": "cluster"}, "in the cluster, since 2026-11-25T07:00:00Z"),
        ({"who": "cluster", "since": ""}, "in the cluster"),
        (
            {"who": "unknown", "since": ""},
            "whose change it is can't be told: the node has no record of what was applied",
        ),
    ],
)
def test_status_says_who_has_moved(change: dict[str, Any], says: str) -> None:
    assert whose(replace(EDITED, **change)) == says


def test_status_shows_each_difference_with_its_way_out() -> None:
    text = status(NodeLine(name="a", drifts=(EDITED,), applied="2026-11-25T06:00:00Z", tool="1.0", notes=("n",)))
    assert "a  last apply 2026-11-25T06:00:00Z by kubeworker 1.0\n  file /etc/crictl.yaml: content differs\n" in text
    assert "      -mine\n      fix: kubeworker apply\n  note: n\n" in text
    assert " 1: node" in text


def test_a_machine_before_its_first_apply_is_one_line() -> None:
    new = replace(EDITED, who="input", by=NOTHING_YET)
    text = status(NodeLine(name="a", drifts=(new,) * 70, drift=70))
    assert "  nothing was applied here yet: 70 changes" in text
    assert "/etc/crictl.yaml" not in text


def test_many_differences_are_counted() -> None:
    text = status(NodeLine(name="a", drifts=(EDITED,) * 20, drift=20))
    assert text.count("/etc/crictl.yaml") == 12
    assert "... and 8 more" in text


def test_quiet_status_leaves_out_nodes_in_order() -> None:
    fleet = FleetStatus(nodes=(NodeLine(name="good", notes=("n",)), NodeLine(name="bad", drifts=(EDITED,))), ca=CA)
    text = shown(lambda screen: print_status(screen, fleet, quiet=True))
    assert "bad" in text
    assert "good" not in text
    assert "note" not in text


def test_the_horizon_names_each_thing_once_with_its_nodes_and_source() -> None:
    ahead = Prospect(what="ipvs", state="deprecated", when="1.40 removes it", way_out="nftables", source="KEP-5495")
    nodes = (NodeLine(name="a", prospects=(ahead,)), NodeLine(name="b", prospects=(ahead,)), NodeLine(name="c"))
    text = shown(lambda screen: print_status(screen, FleetStatus(nodes=nodes, ca=CA), horizon=True))
    assert "  deprecated: ipvs (a, b)\n      1.40 removes it\n      way out: nftables\n      source: KEP-5495\n" in text


def test_certificates_are_shown_with_their_rotation() -> None:
    certificates = {"kubelet.client_cert": lasting(100, rotates=True), "kube_proxy.client_cert": lasting(40), "x": None}
    fleet = FleetStatus(nodes=(NodeLine(name="a", certificates=certificates),), ca=CA)
    lines = shown(lambda screen: print_status(screen, fleet, certificates=True)).splitlines()
    table = [
        " ".join(line.split()) for line in lines[lines.index(next(each for each in lines if "ROTATION" in each)) :]
    ]
    assert table[1:] == [
        "a kubelet.client_cert 2027-03-05 12:00 100 days works: kubelet renews it",
        "a kube_proxy.client_cert 2027-01-04 12:00 40 days renewed by apply, 30 days before",
        "a x missing",
        "the cluster's CA 2036-11-22 12:00 3650 days yours",
    ]


@pytest.mark.parametrize(
    ("nodes", "more", "code"),
    [
        ((NodeLine(name="a"),), {}, 0),
        ((NodeLine(name="a", drifts=(EDITED,)),), {}, 2),
        ((NodeLine(name="a"),), {"cluster": (EDITED,)}, 2),
        ((NodeLine(name="a"),), {"control_host": (EDITED,)}, 2),
        ((NodeLine(name="a", drifts=(EDITED,)),), {"trouble": "no API"}, 4),
        ((NodeLine(name="a", error=NodeUnreachable("x")),), {}, 4),
        ((NodeLine(name="a", error=NodeUnreachable("x")), NodeLine(name="b", error=NodeError("y"))), {}, 1),
    ],
)
def test_the_exit_code_of_status_is_for_cron(nodes: tuple[NodeLine, ...], more: dict[str, Any], code: int) -> None:
    assert FleetStatus(nodes=nodes, ca=CA, **more).exit_code == code


def csr_listed(verdict: Pending | Halted | None, **change: Any) -> Listed:
    request = CsrView(
        name="csr-1", signer=SERVING_SIGNER, username="system:node:w1", request=b"", conditions=("Approved",)
    )
    return Listed(request=replace(request, **change), verdict=verdict, age=130)


def test_a_request_is_shown_with_who_asks_its_age_and_what_stops_it_and_each_way_out_once() -> None:
    unissued = Halted(rule="signer.unissued", detail="approved and never issued", hint="give it a key")
    broken = Pending(rule="serving.san_dns", detail="x is not the name of w1")
    rows = (csr_listed(unissued), csr_listed(unissued, name="csr-2"), csr_listed(broken), csr_listed(None))
    text = shown(lambda screen: print_requests(screen, rows))
    first = " ".join(text.splitlines()[1].split())
    assert first.startswith("csr-1 w1 kubelet-serving system:node:w1 2 min Approved signer.unissued: approved and")
    assert "serving.san_dns: x is not the name of w1" in text
    assert text.count("hint: give it a key") == 1
    document = rows[0].as_json()
    assert (document["rule"], document["hint"], document["age"]) == ("signer.unissued", "give it a key", 130)


def test_tokens_are_shown_with_their_node_their_time_and_their_maker() -> None:
    mine = TokenView(id="abc234", secret_name="bootstrap-token-abc234", node="w1", maker="kubeworker", ours=True)
    other = TokenView(id="kub3ad", secret_name="bootstrap-token-kub3ad", maker="kubeadm", description="by hand")
    rows = (
        TokenListed(token=mine, state="joined", seconds_left=600),
        TokenListed(token=other, state="valid", seconds_left=None),
        TokenListed(token=replace(other, fault="no such id"), state="unusable", seconds_left=None),
    )
    lines = [" ".join(line.split()) for line in shown(lambda screen: print_tokens(screen, rows)).splitlines()]
    assert lines[1:] == [
        "abc234 w1 10 min valid, though its node has joined kubeworker",
        "kub3ad for ever valid kubeadm by hand",
        "kub3ad unusable: no such id kubeadm by hand",
    ]
    done = Revoked(tokens=(mine,), gone=("w2",))
    text = shown(lambda screen: print_revoked(screen, done))
    assert text == "revoked abc234 (w1)\nw2: no token, nothing to do\n1 token revoked\n"
