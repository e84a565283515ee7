"""The approver that nobody watches, for real: as a pod in the cluster, and as a unit of systemd's on a machine.

Neither has anything but the rights in the manifest, and no tool runs on the control host meanwhile. The image is made
here (`lab/approver_image.py`).
"""

from __future__ import annotations

import base64
import json
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from tests.contract.kubelets import serving_request
from tests.lab.operate import COMMAND, kubectl, sh, until

from kubeworker.core.certificates import approver
from kubeworker.core.certificates.csr import KEYS_RECORD
from kubeworker.lab import LabState, approver_image
from kubeworker.lab.state import cache_folder

pytestmark = pytest.mark.timeout(300)

NODE, OTHER = "worker-01", "k8s-02"
ACCOUNT = f"system:serviceaccount:{approver.NAMESPACE}:{approver.NAME}"
SERVING = "kubernetes.io/kubelet-serving"
HASTY = {"periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 2}
"""In place of the manifest's own patience of a minute, so that this test does not take one. The path is its own."""
LEFT_OUT = "iptables -{} FORWARD -s {} -p tcp --dport 6443 -j REJECT --reject-with tcp-reset"


@dataclass(frozen=True, kw_only=True)
class Approver:
    """The running pod."""

    lab: LabState

    def status(self) -> dict[str, Any]:
        pods = json.loads(kubectl(self.lab, "-n=kube-system", "get", "pods", f"-l={label()}", "-o=json"))["items"]
        (pod,) = [each for each in pods if "deletionTimestamp" not in each["metadata"]]
        return dict(pod["status"])

    def container(self) -> dict[str, Any]:
        (found,) = self.status().get("containerStatuses", [{"ready": False, "restartCount": 0}])
        return dict(found)

    def events(self) -> list[dict[str, Any]]:
        """What it has said so far; kubelet's log of it, not fetched through the kubelet whose certificate changes."""
        lines = sh(self.lab, NODE, f"cat /var/log/pods/kube-system_{approver.NAME}-*/approver/*.log")
        texts = [line.split(" ", 3)[3] for line in lines.splitlines()]
        return [json.loads(text) for text in texts if text.startswith("{")]

    def said(self, word: str) -> bool:
        return any(word in each.get("text", "") for each in self.events())

    def decisions(self) -> dict[str, str]:
        """By request: "approved", or the rule that it breaks."""
        found = [each for each in self.events() if each["event"] == "csr-decision"]
        return {each["name"]: each["rule"] or each["decision"] for each in found}

    def pid(self) -> int:
        """Of its only process, as its node sees it."""
        return int(sh(self.lab, NODE, "pgrep -f '^/usr/bin/python3 -I /usr/bin/kubeworker csr approve'"))


def label() -> str:
    return f"app.kubernetes.io/name={approver.NAME}"


@pytest.fixture(scope="module")
def running(deployed: LabState) -> Iterator[Approver]:
    """Its image in the node's containerd; then the manifest as a user applies it, held to that node."""
    lab = deployed
    archive = lab.machine_folder(lab.machine(NODE)) / "data/kubeworker.tar"
    approver_image.write(archive, lambda _: None)
    sh(lab, NODE, "/opt/k8s/bin/ctr -n k8s.io images import /data/kubeworker.tar; rm /data/kubeworker.tar")
    command = [str(COMMAND), "csr", "service", "--kind=deployment", f"--image={approver_image.REFERENCE}"]
    printed = subprocess.run(
        [*command, "-f", str(lab.cluster_yaml)], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    objects = list(yaml.safe_load_all(printed))
    pod = objects[-1]["spec"]["template"]["spec"]
    pod["nodeSelector"] = {"kubernetes.io/hostname": NODE}
    pod["containers"][0]["livenessProbe"] |= HASTY
    kubectl(lab, "apply", "-f=-", stdin=yaml.safe_dump_all(objects))
    try:
        kubectl(lab, "-n=kube-system", "rollout", "status", f"deployment/{approver.NAME}", "--timeout=90s")
        yield Approver(lab=lab)
    finally:
        # The record of issued keys is the cluster's, whoever approves.
        mine = [each for each in objects if each["metadata"]["name"] != KEYS_RECORD]
        kubectl(lab, "delete", "--wait=true", "--timeout=60s", "-f=-", stdin=yaml.safe_dump_all(mine))
        sh(lab, NODE, f"/opt/k8s/bin/crictl rmi {approver_image.REFERENCE}")


def requests(lab: LabState) -> dict[str, dict[str, Any]]:
    """Requests for serving certificates, by name."""
    listed = json.loads(kubectl(lab, "get", "csr", "-o=json"))["items"]
    return {each["metadata"]["name"]: each for each in listed if each["spec"]["signerName"] == SERVING}


def forged(lab: LabState) -> str:
    """The name of a request by the node itself for a certificate that holds for another one too."""
    sans = [x509.DNSName(each) for each in (NODE, OTHER)]
    request = serving_request(NODE, lab.machine(NODE).address, sans=sans)
    who = (f"--as=system:node:{NODE}", "--as-group=system:nodes", "--as-group=system:authenticated")
    return kubectl(lab, "create", *who, "-f=-", "-o=jsonpath={.metadata.name}", stdin=json.dumps(request))


def ask_anew(lab: LabState) -> None:
    """The node's kubelet has lost its serving certificate, and asks for one."""
    sh(lab, NODE, "rm /etc/kubernetes/cert/kubelet-server-current.pem; systemctl restart kubelet")


def shown(lab: LabState) -> bytes:
    """The certificate (DER) that is seen at the kubelet's port."""
    try:
        text = ssl.get_server_certificate((lab.machine(NODE).address, 10250), timeout=2)
    except OSError:
        return b""
    return ssl.PEM_cert_to_DER_cert(text)


def issued(request: dict[str, Any]) -> bytes:
    text = base64.b64decode(request["status"].get("certificate", ""))
    return x509.load_pem_x509_certificate(text).public_bytes(serialization.Encoding.DER) if text else b""


def is_served(running: Approver, *, after: dict[str, dict[str, Any]]) -> None:
    """A request that is newer than these is approved by the pod, issued, and seen at the node's port, also by it."""
    lab = running.lab

    def done() -> bool:
        new = {name: each for name, each in requests(lab).items() if name not in after}
        good = {name for name, each in new.items() if each["spec"]["username"] == f"system:node:{NODE}"}
        there = shown(lab)
        return any(
            issued(new[name]) == there != b""
            and running.decisions().get(name) == "approved"
            and running.said(f"{name}: {lab.machine(NODE).address}:10250 shows it")
            for name in good
        )

    until(done, "the new certificate is approved, issued and shown", seconds=30)


def test_a_kubelet_is_given_a_serving_certificate_by_the_pod_alone_and_a_forger_none(running: Approver) -> None:
    lab = running.lab
    before = requests(lab)
    name = forged(lab)

    ask_anew(lab)
    is_served(running, after=before)

    until(lambda: running.decisions().get(name) == "serving.san_dns", "it names the rule")
    assert not requests(lab)[name]["status"].get("conditions")
    kubectl(lab, "delete", "csr", name)


def test_the_pod_is_confined(running: Approver) -> None:
    lab, pid = running.lab, running.pid()
    fields = dict(line.split(":\t", 1) for line in sh(lab, NODE, f"cat /proc/{pid}/status").splitlines())
    assert fields["Uid"].split() == fields["Gid"].split() == [approver_image.USER] * 4
    assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    mounts = [line.split(" ") for line in sh(lab, NODE, f"cat /proc/{pid}/mountinfo").splitlines()]
    options = {each[4]: each[5].split(",") for each in mounts}
    for path in ("/", approver.FOLDER, approver.ACCOUNT):
        assert "ro" in options[path], path
    assert sh(lab, NODE, f"stat -Lc '%a %u' /proc/{pid}/root{approver.ACCOUNT}/token") == f"600 {approver_image.USER}"
    # Nothing else is in its container, and no program that could start more.
    assert sh(lab, NODE, f"ls /proc/{pid}/root/bin").split() == ["kubeworker", "python3", "python3.11"]
    assert sh(lab, NODE, f"cat /proc/{pid}/task/{pid}/children") == ""


def allowed(lab: LabState, verb: str, group: str, resource: str, **more: str) -> bool:
    """Whether the API server lets the pod's ServiceAccount do it."""
    attributes = {"verb": verb, "group": group, "resource": resource, "namespace": approver.NAMESPACE, **more}
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{approver.NAMESPACE}", "system:authenticated"]
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": ACCOUNT, "groups": groups, "resourceAttributes": attributes},
    }
    return kubectl(lab, "create", "-f=-", "-o=jsonpath={.status.allowed}", stdin=json.dumps(review)) == "true"


def test_its_service_account_may_approve_for_that_signer_and_no_more(running: Approver) -> None:
    # Verb by verb against a real API server's audit log: tests/contract/test_approver.py.
    lab, group = running.lab, "certificates.k8s.io"
    assert allowed(lab, "approve", group, "signers", name=SERVING)
    assert not allowed(lab, "approve", group, "signers", name="kubernetes.io/kube-apiserver-client-kubelet")
    assert not allowed(lab, "sign", group, "signers", name=SERVING)
    for verb, group, resource in (
        ("get", "", "secrets"),
        ("create", "", "pods"),
        ("create", "", "serviceaccounts/token"),
        ("patch", "", "nodes"),
        ("*", "*", "*"),
    ):
        assert not allowed(lab, verb, group, resource), (verb, resource)


def test_it_lives_through_a_time_without_the_api_and_goes_on(running: Approver) -> None:
    lab, before = running.lab, requests(running.lab)
    address, started = running.status()["podIP"], running.container()["restartCount"]
    sh(lab, NODE, LEFT_OUT.format("I", address))
    try:
        until(lambda: running.said("no kube-apiserver answers"), "it says so")
    finally:
        sh(lab, NODE, LEFT_OUT.format("D", address))
    until(lambda: running.said("the API answers again"), "it says that too")
    ask_anew(lab)
    is_served(running, after=before)
    assert running.container()["restartCount"] == started


def test_one_that_is_stuck_is_started_anew(running: Approver) -> None:
    lab, started = running.lab, running.container()["restartCount"]
    sh(lab, NODE, f"kill -STOP {running.pid()}")

    def fresh() -> bool:
        now = running.container()
        return bool(now["restartCount"] > started and now["ready"])

    until(fresh, "its kubelet sees it", seconds=60)


# ---------------------------------------------------------------------------------------------------------------
# The other kind: a unit of systemd's

UNIT = f"{approver.NAME}.service"
HOME = "/srv/kubeworker"
# Python and kubeworker come as a layer below the machine's own /usr: a plain Debian server has none.
INSTALL = f"""\
set -e
mount -t overlay overlay -o lowerdir=/usr:/data/approver/usr /usr
useradd --system --home-dir {HOME} kubeworker
install -d -m 0700 -o kubeworker {HOME}
cd {HOME}
cp /etc/kubernetes/cert/ca.pem .
cat > cluster.yaml <<'EOF'
%s
EOF
cat > kubeconfig <<'EOF'
%s
EOF
chmod 0600 kubeconfig
chown kubeworker kubeconfig
kubeworker csr service --kind systemd -f {HOME}/cluster.yaml > /etc/systemd/system/{UNIT}
systemd-analyze verify --man=no /etc/systemd/system/{UNIT}
systemctl daemon-reload
systemctl start {UNIT}
"""
HASTIER = f"""\
mkdir -p /run/systemd/system/{UNIT}.d
printf '[Service]\\nWatchdogSec=5\\nRestartSec=1\\n' > /run/systemd/system/{UNIT}.d/test.conf
systemctl daemon-reload
systemctl restart {UNIT}
"""
REMOVE = f"""\
systemctl stop {UNIT}
rm -rf /etc/systemd/system/{UNIT} /run/systemd/system/{UNIT}.d {HOME}
systemctl daemon-reload
userdel kubeworker
umount --lazy /usr
rm -r /data/approver
"""


@pytest.fixture
def unit(running: Approver) -> Iterator[None]:
    """It runs on the node, with a token of the ServiceAccount and the certificate of the CA; the pod is away."""
    lab = running.lab
    kubectl(lab, "-n=kube-system", "scale", f"deployment/{approver.NAME}", "--replicas=0")
    kubectl(lab, "-n=kube-system", "wait", "--for=delete", "pod", f"-l={label()}", "--timeout=30s")
    place = lab.machine_folder(lab.machine(NODE)) / "data/approver"
    shutil.copytree(approver_image.ensure_base(cache_folder() / "images", lambda _: None), place, symlinks=True)
    approver_image.place_own(place)
    config = json.loads(kubectl(lab, "-n=kube-system", "get", "configmap", approver.NAME, "-o=json"))["data"]
    token = kubectl(lab, "-n=kube-system", "create", "token", approver.NAME)
    kubeconfig = yaml.safe_load(config["kubeconfig"].replace(f"{approver.ACCOUNT}/ca.crt", f"{HOME}/ca.pem"))
    kubeconfig["users"][0]["user"] = {"token": token}
    cluster = yaml.safe_load(config["cluster.yaml"])
    cluster["cluster"] |= {"ca": {"cert": "ca.pem"}, "kubeconfig": "kubeconfig"}
    try:
        sh(lab, NODE, INSTALL % (yaml.safe_dump(cluster), yaml.safe_dump(kubeconfig)))
        yield
    finally:
        sh(lab, NODE, REMOVE)


def properties(lab: LabState, *names: str) -> dict[str, str]:
    lines = sh(lab, NODE, f"systemctl show --property={','.join(names)} {UNIT}").splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_as_a_unit_it_is_ready_when_started_approves_as_another_user_and_is_watched(
    running: Approver, unit: None
) -> None:
    lab, before = running.lab, requests(running.lab)
    assert properties(lab, "ActiveState", "User") == {"ActiveState": "active", "User": "kubeworker"}
    name = forged(lab)

    ask_anew(lab)

    def said() -> str:
        return sh(lab, NODE, f"journalctl --no-pager -o cat -u {UNIT}")

    def done() -> bool:
        new = [each for each in requests(lab).values() if each["metadata"]["name"] not in {*before, name}]
        return any(issued(each) == shown(lab) != b"" for each in new) and "serving.san_dns" in said()

    until(done, "approved and shown, and the forged one left", seconds=30)
    assert not requests(lab)[name]["status"].get("conditions")
    kubectl(lab, "delete", "csr", name)

    # The unit's own patience is five minutes.
    sh(lab, NODE, HASTIER)
    first = properties(lab, "MainPID")
    sh(lab, NODE, f"kill -STOP {first['MainPID']}")
    anew = {"NRestarts": "1", "ActiveState": "active"}
    until(lambda: properties(lab, *anew) == anew, "systemd sees it", seconds=40)
    assert properties(lab, "MainPID") != first
    sh(lab, NODE, f"systemctl stop {UNIT}")
    assert properties(lab, "Result", "ExecMainStatus") == {"Result": "success", "ExecMainStatus": "0"}
