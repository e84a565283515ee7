"""What `status` says of a node that people have worked on: each change named, and who has made it."""

from __future__ import annotations

import base64
import ipaddress
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.lab.operate import Operator, kubectl, sh, until

from kubeworker.lab import LabState

pytestmark = pytest.mark.timeout(300)

NODE = "k8s-02"
ONLY = ("--node", NODE)
DROPIN = "/etc/systemd/system/kube-proxy.service.d/10-mine.conf"
CSR = "status-test"
CERT_DIR = "/etc/kubernetes/cert"
MOMENT = r"20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"

Finding = dict[str, str]


@pytest.fixture(scope="module")
def operator(lab: LabState) -> Operator:
    found = Operator(lab=lab, file=lab.cluster_yaml)
    found.apply(*ONLY)
    return found


@pytest.fixture
def healed(operator: Operator) -> Iterator[LabState]:
    """Whatever a test leaves: its own files go, and apply does the rest."""
    yield operator.lab
    sh(operator.lab, NODE, f"rm -rf {DROPIN} /etc/kubernetes/old-key.pem")
    kubectl(operator.lab, "delete", "--ignore-not-found", "csr", CSR)
    kubectl(operator.lab, "delete", "--ignore-not-found", "clusterrolebinding", "kubelet-bootstrap")
    operator.apply(*ONLY)


def ask_for_another_address(lab: LabState) -> None:
    """A request for the node's serving certificate that no approver lets through: the address is another node's."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:nodes")]
    name += [x509.NameAttribute(NameOID.COMMON_NAME, f"system:node:{NODE}")]
    address = x509.IPAddress(ipaddress.ip_address(lab.machine("k8s-01").address))
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(name))
    request = request.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    pem = request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    document = {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": CSR},
        "spec": {
            "request": base64.b64encode(pem).decode(),
            "signerName": "kubernetes.io/kubelet-serving",
            "usages": ["digital signature", "server auth"],
        },
    }
    who = (f"--as=system:node:{NODE}", "--as-group=system:nodes", "--as-group=system:authenticated")
    kubectl(lab, "create", "-f", "-", *who, stdin=json.dumps(document))


def look(operator: Operator) -> tuple[int, dict[str, Any]]:
    done = operator.run("status", "--json", *ONLY)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def findings(document: dict[str, Any]) -> dict[tuple[str, str], Finding]:
    (node,) = document["nodes"]
    found = (*node["findings"], *document["cluster"], *document["control_host"])
    return {(each["kind"], each["subject"]): each for each in found}


def test_each_change_is_named_with_who_made_it_and_apply_heals_them_all(healed: LabState, operator: Operator) -> None:
    lab = healed
    assert look(operator)[0] == 0, operator.run("status", *ONLY).stdout

    ask_for_another_address(lab)
    client = sh(lab, NODE, f"readlink -f {CERT_DIR}/kubelet-client-current.pem")
    sh(
        lab,
        NODE,
        f"""
        echo '# by hand' >> /etc/crictl.yaml
        echo '# by hand' >> /etc/kubernetes/kube-proxy-config.yaml
        cp /bin/true /opt/k8s/bin/nerdctl.new && mv /opt/k8s/bin/nerdctl.new /opt/k8s/bin/nerdctl
        systemctl disable -q kube-proxy
        systemctl stop kube-nginx-probe
        mkdir -p {DROPIN.rpartition("/")[0]} && printf '[Service]\\nEnvironment=MINE=1\\n' > {DROPIN}
        chmod 0644 {client}
        chmod 0640 /etc/kubernetes/kubelet.kubeconfig
        cp {client} /etc/kubernetes/old-key.pem && chmod 0604 /etc/kubernetes/old-key.pem
        """,
    )
    lab.ca_key.chmod(0o644)

    def changed(document: dict[str, Any]) -> None:
        components = document["components"]
        components["kubelet"]["max_pods"] = 99
        components["kube_proxy"]["config"]["conntrack"]["tcpCloseWaitTimeout"] = "30m"
        document["cluster"]["apiservers"].append(f"{lab.machine('worker-01').address}:6443")

    try:
        with operator.changed(changed) as other:
            until(lambda: _request(look(other)[1]) is not None, "a serving request that is stuck", seconds=40)
            others = [{"kind": "Group", "name": "others", "apiGroup": "rbac.authorization.k8s.io"}]
            kubectl(lab, "patch", "clusterrolebinding", "kubelet-bootstrap", "-p", json.dumps({"subjects": others}))
            kubectl(lab, "delete", "clusterrolebinding", "kube-apiserver:kubelet-apis")
            code, document = look(other)
            for_people = other.run("status", *ONLY)
    finally:
        lab.ca_key.chmod(0o600)

    assert code == for_people.returncode == 2
    found = findings(document)
    by_hand = {
        ("file", "/etc/crictl.yaml"): "content differs",
        ("binary", "/opt/k8s/bin/nerdctl"): "content differs",
        ("enable", "kube-proxy.service"): "is disabled",
        ("start", "kube-nginx-probe.service"): "is inactive (dead)",
        ("dropin", DROPIN): "a drop-in of kube-proxy.service that is not this tool's is new or changed",
        ("mode", client): "a key that others may read",
        ("mode", "/etc/kubernetes/kubelet.kubeconfig"): "mode or owner differs",
        ("secret", "/etc/kubernetes/old-key.pem"): "a key or kubeconfig with mode 0604 root:root",
        ("secret", str(lab.ca_key)): "a key or kubeconfig with mode 0644, of user 0",
    }
    for key, what in by_hand.items():
        assert (found[key]["who"], found[key]["what"]) == ("node", what), key
        assert key[0] == "enable" or re.fullmatch(MOMENT, found[key]["since"]), found[key]
    assert "-# by hand" in found["file", "/etc/crictl.yaml"]["diff"]
    assert "chmod 0600 /etc/kubernetes/old-key.pem" in found["secret", "/etc/kubernetes/old-key.pem"]["fix"]

    not_applied = found["file", "/etc/kubernetes/kubelet-config.yaml"]
    assert (not_applied["who"], not_applied["by"]) == ("input", "cluster.yaml")
    assert "+maxPods: 99" in not_applied["diff"]
    both = found["file", "/etc/kubernetes/kube-proxy-config.yaml"]
    assert (both["who"], both["by"]) == ("both", "cluster.yaml")
    assert re.fullmatch(MOMENT, both["since"])

    patched = found["replace-object", "ClusterRoleBinding kubelet-bootstrap"]
    assert (patched["who"], patched["by"]) == ("cluster", "kubectl-patch")
    assert re.fullmatch(MOMENT, patched["since"])
    deleted = found["create-object", "ClusterRoleBinding kube-apiserver:kubelet-apis"]
    assert (deleted["who"], deleted["by"]) == ("cluster", "")
    assert deleted["what"].startswith("deleted; the API keeps no record")
    listed = found["apiservers", f"{lab.machine('worker-01').address}:6443"]
    assert listed["what"].startswith("is in cluster.apiservers, and not among the EndpointSlices")

    request = _request(document)
    assert request is not None
    assert request["what"].startswith("pending, serving.")
    (node,) = document["nodes"]
    rotations = {name: each["rotation"] for name, each in node["expiry"].items()}
    assert rotations["kubelet.serving_cert"] == "stuck"
    assert rotations["kubelet.client_cert"] == "works"
    # Restarts that follow from what is named are no differences of their own.
    assert not {kind for kind, _ in found} & {"restart", "reload", "daemon-reload"}
    assert "changed on the node at 20" in for_people.stdout
    assert "by kubectl-patch" in for_people.stdout
    _no_secret(lab, for_people.stdout + json.dumps(document))

    kubectl(lab, "delete", "csr", CSR)
    sh(lab, NODE, found["secret", "/etc/kubernetes/old-key.pem"]["fix"])
    operator.apply(*ONLY)
    assert sh(lab, NODE, f"stat -c %a {client} /etc/kubernetes/kubelet.kubeconfig") == "600\n600"
    quiet = operator.run("status", "--quiet", *ONLY)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    # The drop-in is an input like others from now on: named, and no fault.
    (node,) = look(operator)[1]["nodes"]
    assert f"kube-proxy.service has a drop-in that is not this tool's: {DROPIN}" in node["notes"]


def test_without_a_record_nobody_is_blamed(healed: LabState, operator: Operator) -> None:
    """A node that an older version has set up."""
    sh(healed, NODE, "echo '# by hand' >> /etc/crictl.yaml; mv /var/lib/kubeworker/applied /var/lib/kubeworker/away")
    code, document = look(operator)
    found = findings(document)["file", "/etc/crictl.yaml"]
    assert (code, found["who"], document["nodes"][0]["applied"]["when"]) == (2, "unknown", "")
    # The next apply that changes something writes the records of all stages, those with nothing to do too.
    operator.apply(*ONLY)
    written = sh(healed, NODE, "cd /var/lib/kubeworker && ls applied && ls -l applied/kubelet && rm -r away")
    assert {"containerd", "host", "kube_nginx", "kube_proxy", "kubelet"} <= set(written.split())
    assert "-rw------- 1 root root" in written
    assert look(operator)[0] == 0


def test_what_runs_is_held_against_the_horizon(operator: Operator) -> None:
    done = operator.run("status", "--horizon", *ONLY)
    assert done.returncode == 0, done.stdout
    assert "ended: kubernetes 1.33 gets no more fixes" in done.stdout
    assert "source: containerd RELEASES.md" in done.stdout
    later = operator.run("status", "--against", "1.36.0", *ONLY)
    assert "unsupported: containerd 2.1.3 with kubernetes 1.36" in later.stdout
    assert "unsupported: kubelet 1.36.0 at kube-apiserver 1.33.3" in later.stdout


def _request(document: dict[str, Any]) -> Finding | None:
    return next((each for each in document["nodes"][0]["findings"] if each["kind"] == "request"), None)


def _no_secret(lab: LabState, said: str) -> None:
    for path in (lab.ca_key, lab.kubeconfig):
        for line in Path(path).read_text().split():
            assert len(line) < 60 or line not in said
