"""Certificates that rotate while nobody is there: a controller-manager that signs for ten minutes only.

kube-controller-manager backdates by 5 minutes and kubelet renews when 70 to 90 % have passed, so both certificates of a
node are new 5.5 to 8.5 minutes after they were signed. The test waits for that once, and looks at everything around it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from tests.lab.conftest import MakeLab
from tests.lab.operate import COMMAND, Operator, kubectl, sh, starts

from kubeworker.lab import LabState

pytestmark = pytest.mark.timeout(900)

NODE = "k8s-01"
ROTATED_WITHIN = 8.5 * 60
"""Seconds after signing: 90 % of 15 minutes, 5 of which lie before."""
KINDS = ("client", "server")


def certificate(lab: LabState, kind: str) -> x509.Certificate:
    """What kubelet uses for this kind now."""
    text = sh(lab, NODE, f"openssl x509 -in /etc/kubernetes/cert/kubelet-{kind}-current.pem")
    return x509.load_pem_x509_certificate(text.encode())


def certificates(lab: LabState) -> dict[str, int]:
    """Serial numbers by kind."""
    return {kind: certificate(lab, kind).serial_number for kind in KINDS}


@contextmanager
def approver(lab: LabState, log: Path) -> Iterator[None]:
    """`csr approve --watch`, as a service of the operator's would run it."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [COMMAND, "csr", "approve", "--watch", "--json-events", "-f", lab.cluster_yaml],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=output,
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0, log.read_text()


def decisions(log: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in log.read_text().splitlines()]
    return [each for each in events if each["event"] == "csr-decision"]


def line_of(operator: Operator) -> dict[str, Any]:
    done = operator.run("status", "--node", NODE, "--json")
    assert done.returncode == 0, done.stderr
    (line,) = json.loads(done.stdout)["nodes"]
    return dict(line)


def without_ca_key(document: dict[str, Any]) -> None:
    document["cluster"]["ca"]["key"] = "not-here.pem"


def states(line: dict[str, Any]) -> dict[str, str]:
    return {name: each["state"] for name, each in line["expiry"].items()}


def approvals(lab: LabState) -> set[tuple[str, str, str]]:
    """(signer, reason of the approval, who asked) of each request that a certificate was issued for."""
    requests = json.loads(kubectl(lab, "get", "csr", "-o=json"))["items"]
    return {
        (each["spec"]["signerName"], each["status"]["conditions"][0]["reason"], each["spec"]["username"])
        for each in requests
        if each["status"].get("certificate")
    }


ALL_GOOD = {"kubelet.client_cert": "good", "kubelet.serving_cert": "good", "kube_proxy.client_cert": "good"}


def test_both_certificates_of_a_kubelet_rotate_unattended_and_the_next_plan_is_empty(
    make_lab: MakeLab, tmp_path: Path
) -> None:
    lab = make_lab("rotate", signing_duration="10m")
    operator = Operator(lab=lab, file=lab.cluster_yaml)
    applied = operator.run("apply", "--yes", "--node", NODE)
    assert applied.returncode == 0, applied.stdout + applied.stderr
    signed = time.monotonic()
    first, running = certificates(lab), starts(lab, NODE)
    lifetime = certificate(lab, "server").not_valid_after_utc - certificate(lab, "server").not_valid_before_utc
    assert lifetime.total_seconds() == 15 * 60

    # Ten minutes are nothing to cry about while kubelet is in time. Whoever only looks needs no CA key.
    with operator.changed(without_ca_key) as looker:
        line = line_of(looker)
    assert states(line) == ALL_GOOD
    assert line["certificates"]["kubelet.client_cert"] == 0, "whole days"

    log = tmp_path / "approver.log"
    with approver(lab, log):
        # No status, plan or verify in between: nobody is there.
        while any(first[kind] == serial for kind, serial in certificates(lab).items()):
            assert time.monotonic() - signed < ROTATED_WITHIN + 60, log.read_text()
            time.sleep(5)
        assert operator.plan("--node", NODE)["changes"] == 0
        checked = operator.run("verify", "--node", NODE, "--json")
        assert checked.returncode == 0, checked.stdout
    verdicts = {each["id"]: each for each in json.loads(checked.stdout)["nodes"][0]["checks"]}
    assert verdicts["kubelet.serving_cert_in_use"]["detail"].endswith(f"{newest_serving(lab)}'s")
    assert states(line_of(operator)) == ALL_GOOD
    assert starts(lab, NODE) == running, "nothing was restarted"

    node = f"system:node:{NODE}"
    client, serving = "kubernetes.io/kube-apiserver-client-kubelet", "kubernetes.io/kubelet-serving"
    assert {(client, "AutoApproved", node), (serving, "KubeworkerApproved", node)} <= approvals(lab)
    assert {each["signer"] for each in decisions(log) if each["decision"] == "approved"} == {serving}
    config = sh(lab, NODE, "cat /etc/kubernetes/kubelet.kubeconfig")
    assert config.count("/etc/kubernetes/cert/kubelet-client-current.pem") == 2


def newest_serving(lab: LabState) -> str:
    template = "{range .items[*]}{.spec.signerName} {.metadata.name}{'\\n'}{end}".replace("'", '"')
    listed = kubectl(lab, "get", "csr", "--sort-by=.metadata.creationTimestamp", f"-o=jsonpath={template}")
    names = [line.split()[1] for line in listed.splitlines() if line.startswith("kubernetes.io/kubelet-serving ")]
    return names[-1]
