"""What `apply` promises, on real machines: it does what the plan shows and no more, and finishes what was cut short."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from tests.lab import operate
from tests.lab.operate import Operator, changes, kubectl, restarted, sh, starts, until

from kubeworker.core.certificates import pki
from kubeworker.flow import credentials
from kubeworker.lab import LabState

pytestmark = pytest.mark.timeout(180)

NODES = ("k8s-01", "k8s-02", "worker-01")
CONFIG = "/etc/kubernetes/kubelet-config.yaml"


@pytest.fixture
def operator(deployed: LabState) -> Iterator[Operator]:
    """Finds the nodes as described, and leaves them so."""
    someone = Operator(lab=deployed, file=deployed.cluster_yaml)
    yield someone
    someone.apply()


def lease_holder(lab: LabState) -> str:
    return kubectl(lab, "-n=kube-system", "get", "lease", "kubeworker", "-o=jsonpath={.spec.holderIdentity}")


def bootstrap_tokens(lab: LabState) -> str:
    kind = "type=bootstrap.kubernetes.io/token"
    return kubectl(lab, "-n=kube-system", "get", "secrets", f"--field-selector={kind}", "-o=name")


def max_pods(number: int) -> operate.Change:
    def change(document: dict[str, Any]) -> None:
        document["components"]["kubelet"]["max_pods"] = number

    return change


# ---------------------------------------------------------------------------------------------------------------
# No more than needed


def test_a_second_apply_changes_nothing_and_restarts_nothing(operator: Operator) -> None:
    lab = operator.lab
    before = {name: (starts(lab, name), operate.files(lab, name)) for name in NODES}

    printed = operator.apply()

    assert "No changes: 3 nodes as described" in printed
    assert {name: (starts(lab, name), operate.files(lab, name)) for name in NODES} == before
    assert operator.plan()["changes"] == 0
    assert operator.plan("--rehash")["changes"] == 0


@contextmanager
def pod(lab: LabState, node: str) -> Iterator[Callable[[], str]]:
    """A running pod on the node; the function tells its container's id, start and restarts."""
    spec = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"steady-{node}"},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{"operator": "Exists"}],
            "containers": [
                {
                    "name": "main",
                    "image": "docker.io/library/busybox:lab",
                    "imagePullPolicy": "Never",
                    "command": ["sleep", "1000000"],
                }
            ],
        },
    }
    kubectl(lab, "apply", "-f", "-", stdin=json.dumps(spec))
    kubectl(lab, "wait", "--for=condition=Ready", f"pod/steady-{node}", "--timeout=60s")
    state = "{.status.containerStatuses[0]['containerID','restartCount','state.running.startedAt']}"
    yield lambda: kubectl(lab, "get", "pod", f"steady-{node}", f"-o=jsonpath={state}")
    kubectl(lab, "delete", "pod", f"steady-{node}", "--wait=false", "--force")


def test_one_kubelet_setting_restarts_kubelet_alone_and_no_pod(operator: Operator) -> None:
    lab = operator.lab
    with pod(lab, "worker-01") as running, operator.changed(max_pods(111)) as changed:
        container = running()
        before = {name: starts(lab, name) for name in NODES}

        planned = changed.plan()
        for name in NODES:
            assert changes(planned, name) == [("file", CONFIG), ("restart", "kubelet.service")]
        file, restart = planned["nodes"][0]["actions"]
        assert "-maxPods: 220\n+maxPods: 111" in file["diff"]
        assert restart["reason"] == "kubelet-config.yaml changes"
        assert planned["changes"] == 6

        printed = changed.apply()

        assert "restarts: kubelet on k8s-01, k8s-02, worker-01" in printed
        assert all(restarted(before[name], starts(lab, name)) == {"kubelet"} for name in NODES)
        assert running() == container
        assert kubectl(lab, "get", "node", "worker-01", "-o=jsonpath={.status.capacity.pods}") == "111"
        assert changed.plan()["changes"] == 0


def test_registry_mirrors_change_without_a_restart(operator: Operator) -> None:
    def mirror(hosts: list[str]) -> operate.Change:
        def change(document: dict[str, Any]) -> None:
            document["components"]["containerd"]["mirrors"] = {"docker.io": hosts}

        return change

    lab, hosts_toml = operator.lab, "/etc/containerd/certs.d/docker.io/hosts.toml"
    before = starts(lab, "worker-01")
    with operator.changed(mirror(["https://mirror.example"])) as changed:
        planned = changed.plan()
        assert ("file", hosts_toml) in changes(planned, "worker-01")
        assert {kind for kind, _ in changes(planned, "worker-01")} <= {"directory", "file"}
        assert "restarts nothing" in changed.apply()
    with operator.changed(mirror([])) as changed:
        assert changes(changed.plan(), "worker-01") == [("remove", hosts_toml)]
        changed.apply()
    assert starts(lab, "worker-01") == before


def test_a_kube_nginx_setting_is_reloaded_by_the_running_master(operator: Operator) -> None:
    def change(document: dict[str, Any]) -> None:
        document["components"]["kube_nginx"] = {"connect_timeout": 4}

    lab = operator.lab
    before = starts(lab, "worker-01")
    workers = sh(lab, "worker-01", "pgrep -P $(systemctl show -p MainPID --value kube-nginx)")
    with operator.changed(change) as changed:
        kinds = [kind for kind, _ in changes(changed.plan(), "worker-01")]
        assert kinds == ["file", "reload"]
        changed.apply()
        after = starts(lab, "worker-01")
        assert after == before
        assert sh(lab, "worker-01", "pgrep -P $(systemctl show -p MainPID --value kube-nginx)") != workers
        assert changed.plan()["changes"] == 0


def test_one_node_chosen_is_one_node_touched(operator: Operator) -> None:
    lab = operator.lab
    logins = "journalctl -q -u ssh -u sshd _COMM=sshd --no-pager | grep -c 'Accepted publickey' || :"
    before = {name: sh(lab, name, logins) for name in NODES}
    with operator.changed(max_pods(112)) as changed:
        changed.apply("--node", "worker-01")
        assert "maxPods: 112" in sh(lab, "worker-01", f"cat {CONFIG}")
    after = {name: sh(lab, name, logins) for name in NODES}
    assert {name for name in NODES if before[name] != after[name]} == {"worker-01"}
    assert "maxPods: 220" in sh(lab, "k8s-01", f"cat {CONFIG}")


# ---------------------------------------------------------------------------------------------------------------
# Drift is seen and healed

UNITS = "/etc/systemd/system"
DAMAGES: dict[str, tuple[str, list[tuple[str, str]]]] = {
    # what somebody did on worker-01 -> the actions that a plan must show for it, and no others
    "files deleted, replaced, opened, given away, damaged in place; an image removed": (
        """
        chmod 0700 /etc/containerd
        printf x | dd of=/opt/k8s/bin/ctr bs=1 seek=4096 conv=notrunc status=none
        chown daemon /opt/k8s/bin/crictl
        rm /etc/crictl.yaml
        mv /etc/nerdctl/nerdctl.toml /etc/nerdctl/bak; ln -s bak /etc/nerdctl/nerdctl.toml
        /opt/k8s/bin/nerdctl -n k8s.io rmi -f docker.io/library/busybox:lab > /dev/null
        chmod 0644 /etc/kubernetes/kube-proxy.kubeconfig
        """,
        [
            ("mode", "/etc/containerd"),
            ("binary", "/opt/k8s/bin/ctr"),
            ("mode", "/opt/k8s/bin/crictl"),
            ("file", "/etc/crictl.yaml"),
            ("file", "/etc/nerdctl/nerdctl.toml"),
            ("image", "docker.io/library/busybox:lab"),
            ("mode", "/etc/kubernetes/kube-proxy.kubeconfig"),
        ],
    ),
    "inputs changed that nothing has read yet; a unit disabled": (
        # What runs was started with the good ones: they go back, and nothing needs a restart.
        f"""
        sed -i 's/maxPods: 220/maxPods: 221/' {CONFIG}
        systemctl disable -q kubelet
        cp /opt/k8s/bin/kube-proxy /opt/k8s/bin/x; echo >> /opt/k8s/bin/x; mv /opt/k8s/bin/x /opt/k8s/bin/kube-proxy
        sed -i 's/^RestartSec=5/RestartSec=6/' {UNITS}/kube-proxy.service
        """,
        [
            ("file", CONFIG),
            ("enable", "kubelet.service"),
            ("binary", "/opt/k8s/bin/kube-proxy"),
            ("file", f"{UNITS}/kube-proxy.service"),
            ("daemon-reload", "kube-proxy.service"),
        ],
    ),
    "inputs changed and read": (
        f"""
        sed -i 's/maxPods: 220/maxPods: 221/' {CONFIG}
        sed -i 's/^RestartSec=5/RestartSec=6/' {UNITS}/kube-proxy.service
        systemctl daemon-reload; systemctl restart kubelet kube-proxy
        """,
        [
            ("file", CONFIG),
            ("restart", "kubelet.service"),
            ("file", f"{UNITS}/kube-proxy.service"),
            ("daemon-reload", "kube-proxy.service"),
            ("restart", "kube-proxy.service"),
        ],
    ),
    "units stopped, one with what requires it": (
        "systemctl stop containerd kube-proxy",
        [
            ("start", "containerd.service"),
            # While containerd is down nobody knows what it has.
            ("image", "registry.k8s.io/pause:3.10"),
            ("image", "docker.io/library/busybox:lab"),
            ("start", "kubelet.service"),
            ("start", "kube-proxy.service"),
        ],
    ),
    "kubelet's own kubeconfig lost": (
        "rm /etc/kubernetes/kubelet.kubeconfig",
        [("file", "/etc/kubernetes/kubelet.kubeconfig"), ("restart", "kubelet.service")],
    ),
    "kubelet's own kubeconfig names another server": (
        "sed -i s,https://127.0.0.1:8443,https://127.0.0.1:6443, /etc/kubernetes/kubelet.kubeconfig",
        [("file", "/etc/kubernetes/kubelet.kubeconfig"), ("restart", "kubelet.service")],
    ),
    "the tool's own notes lost": (
        "rm -r /var/lib/kubeworker",
        [
            ("restart", f"{unit}.service")
            for unit in ("kube-nginx", "kube-nginx-probe", "containerd", "kubelet", "kubeworker-routes", "kube-proxy")
        ],
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_drift_shows_in_the_plan_and_is_healed(operator: Operator, damage: str) -> None:
    lab = operator.lab
    script, expected = DAMAGES[damage]
    sh(lab, "worker-01", f"set -e\n{script}")

    planned = operator.plan("--node", "worker-01")
    assert sorted(changes(planned, "worker-01")) == sorted(expected)
    assert all(action["reason"] for action in planned["nodes"][0]["actions"])
    operator.apply("--node", "worker-01")

    assert operator.plan("--node", "worker-01")["changes"] == 0
    assert operate.leftovers(lab, "worker-01") == ""
    units = "kubelet kube-proxy containerd kube-nginx kube-nginx-probe kubeworker-routes"
    up = sh(lab, "worker-01", f"systemctl is-active {units}")
    assert set(up.split()) == {"active"}


def test_a_drop_in_is_loaded_when_it_comes_and_when_it_goes(operator: Operator) -> None:
    lab, folder = operator.lab, f"{UNITS}/kube-proxy.service.d"
    expected = [("daemon-reload", "kube-proxy.service"), ("restart", "kube-proxy.service")]
    for script, mask in (
        (f"mkdir {folder}; printf '[Service]\\nUMask=027\\n' > {folder}/mine.conf", "0027"),
        (f"rm -r {folder}", "0022"),
    ):
        sh(lab, "worker-01", script)
        assert changes(operator.plan("--node", "worker-01"), "worker-01") == expected
        operator.apply("--node", "worker-01")
        assert operator.plan("--node", "worker-01")["changes"] == 0
        assert sh(lab, "worker-01", "systemctl show -p UMask --value kube-proxy") == mask


def test_a_damaged_blob_is_sent_again_and_an_intact_one_is_not(operator: Operator) -> None:
    lab = operator.lab
    sh(lab, "worker-01", "rm /opt/k8s/bin/nerdctl")
    (intact,) = (each for each in json.loads(applied(operator)) if each["name"] == "worker-01")
    assert (intact["actions"], intact["uploaded"]) == (1, 0)

    # The visible file is the store's by another name, so damage in place reaches both.
    sh(lab, "worker-01", "printf x | dd of=/opt/k8s/bin/nerdctl bs=1 seek=4096 conv=notrunc status=none")
    (damaged,) = (each for each in json.loads(applied(operator)) if each["name"] == "worker-01")
    assert damaged["actions"] == 1
    assert damaged["uploaded"] > 1_000_000
    sh(lab, "worker-01", "/opt/k8s/bin/nerdctl --version")


def applied(operator: Operator) -> str:
    done = operator.run("apply", "--yes", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.dumps(json.loads(done.stdout)["nodes"])


# ---------------------------------------------------------------------------------------------------------------
# Runs that are cut short

KILL_STAGE = rf"""
tries=0
again() {{ tries=$((tries + 1)); [ $tries -lt 2000 ] || exit 1; sleep 0.005; }}
# The stage's shell holds the node's lock long before it swaps the first file.
until holders=$(find /proc/[0-9]*/fd/9 -lname /var/lib/kubeworker/lock 2> /dev/null); [ -n "$holders" ]; do again; done
until grep -q 'maxPods: 113' {CONFIG}; do again; done
for fd in $holders; do pid=${{fd#/proc/}}; kill -9 "${{pid%%/*}}" 2> /dev/null; done
:
"""


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    """Read the command's progress until it says this."""
    assert process.stderr
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"it never said {text!r}")


def test_a_node_that_dies_between_writing_and_restarting_is_finished_by_the_next_run(operator: Operator) -> None:
    lab = operator.lab
    with operator.changed(max_pods(113)) as changed:
        before = starts(lab, "worker-01")
        killer = threading.Thread(target=sh, args=(lab, "worker-01", KILL_STAGE))
        killer.start()
        cut = changed.run("apply", "--yes", "--node", "worker-01")
        killer.join()
        assert cut.returncode == 1
        assert "the node's shell ended" in cut.stdout

        planned = changed.plan("--node", "worker-01")
        assert ("restart", "kubelet.service") in changes(planned, "worker-01")
        # Whether the operator goes on or takes the change back: nobody on the node is blamed.
        for cluster in (changed, operator):
            status = json.loads(cluster.run("status", "--json", "--node", "worker-01").stdout)
            assert {found["who"] for found in status["nodes"][0]["findings"]} == {"run"}
        changed.apply("--node", "worker-01")

        assert restarted(before, starts(lab, "worker-01")) == {"kubelet"}
        assert kubectl(lab, "get", "node", "worker-01", "-o=jsonpath={.status.capacity.pods}") == "113"
        assert operate.leftovers(lab, "worker-01") == ""
        assert changed.plan("--node", "worker-01")["changes"] == 0


def test_a_killed_command_leaves_a_whole_node_and_no_lock(operator: Operator) -> None:
    lab = operator.lab
    with operator.changed(max_pods(114)) as changed:
        process = changed.start("apply", "--yes", "--node", "worker-01")
        wait_for_line(process, f"file {CONFIG}")
        process.kill()
        process.wait()

        # Its lock is of a process that is gone, which shows at once; the node's own is held until its script ends.
        began = time.monotonic()
        changed.apply("--node", "worker-01")
        assert time.monotonic() - began < 30
        assert "maxPods: 114" in sh(lab, "worker-01", f"cat {CONFIG}")
        assert operate.leftovers(lab, "worker-01") == ""
        assert changed.plan("--node", "worker-01")["changes"] == 0
    operator.apply()
    assert lease_holder(lab) == ""


def test_two_runs_at_once_do_the_work_once(operator: Operator) -> None:
    lab = operator.lab
    before = starts(lab, "worker-01")
    with operator.changed(max_pods(118)) as changed:
        first, second = (changed.start("apply", "--yes", "--node", "worker-01") for _ in range(2))
        answers = [process.communicate(timeout=60) for process in (first, second)]
        assert [process.returncode for process in (first, second)] == [0, 0], answers
        printed = [output for output, _ in answers]
        assert sum("Applied: 2 changes" in text for text in printed) == 1, printed
        assert restarted(before, starts(lab, "worker-01")) == {"kubelet"}
        assert lease_holder(lab) == ""


def test_a_cut_upload_leaves_nothing_behind(operator: Operator) -> None:
    lab = operator.lab
    for name in ("kubelet", "containerd", "nerdctl"):
        sh(lab, "worker-01", f"rm /opt/k8s/bin/.store/sha256-$(sha256sum < /opt/k8s/bin/{name} | cut -c -64)")
        sh(lab, "worker-01", f"rm /opt/k8s/bin/{name}")
    process = operator.start("apply", "--yes", "--node", "worker-01")
    sh(lab, "worker-01", "until [ -e /opt/k8s/bin/.store/incoming ]; do sleep 0.005; done")
    process.kill()
    process.wait()
    until(lambda: operate.leftovers(lab, "worker-01") == "", "the node tidies up")
    operator.apply("--node", "worker-01")
    sh(lab, "worker-01", "/opt/k8s/bin/kubelet --version && /opt/k8s/bin/nerdctl --version")


def forget_membership(lab: LabState, name: str) -> None:
    """The node as if it had never joined: kubelet's credentials are gone."""
    sh(
        lab,
        name,
        "systemctl stop kubelet; rm -f /etc/kubernetes/kubelet.kubeconfig /etc/kubernetes/cert/kubelet-client*",
    )


def test_ctrl_c_gives_everything_back_and_the_next_run_finishes(operator: Operator) -> None:
    lab = operator.lab
    forget_membership(lab, "worker-01")
    process = operator.start("apply", "--yes", "--node", "worker-01")
    wait_for_line(process, "file /etc/kubernetes/kubelet-bootstrap.kubeconfig")
    assert bootstrap_tokens(lab)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)

    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "interrupted; what was not finished is finished by the next run" in errors
    assert bootstrap_tokens(lab) == ""
    assert lease_holder(lab) == ""

    operator.apply("--node", "worker-01")
    assert operator.plan()["changes"] == 0
    assert bootstrap_tokens(lab) == ""
    assert operate.leftovers(lab, "worker-01") == ""
    sh(lab, "worker-01", "! ls /etc/kubernetes/kubelet-bootstrap.kubeconfig 2> /dev/null")


# ---------------------------------------------------------------------------------------------------------------
# Secrets


def test_the_ca_key_is_on_no_node_and_no_secret_file_is_open_to_others(operator: Operator) -> None:
    line = operator.lab.ca_key.read_text().splitlines()[5]
    for name in NODES:
        places = "/etc /opt /root /tmp /run /var/lib/kubeworker /data/k8s/k8s"
        found = sh(operator.lab, name, f"grep -rlF '{line}' {places} 2> /dev/null || :")
        # The lab's controller-manager signs with it, on the machines of the control plane.
        assert set(found.splitlines()) <= ({"/etc/kubernetes/pki/ca-key.pem"} if name != "worker-01" else set())
        opened = sh(
            operator.lab, name, r"grep -rlE 'PRIVATE KEY|client-key-data|token:' /etc/kubernetes /etc/kubeworker"
        )
        modes = sh(operator.lab, name, f"stat -c '%a %U' -- {' '.join(opened.splitlines())}")
        assert set(modes.splitlines()) == {"600 root"}
    kept = credentials.directory(operator.file)
    assert {oct(path.stat().st_mode & 0o777) for path in kept.iterdir()} == {"0o600"}
    assert oct(kept.stat().st_mode & 0o777) == "0o700"


# ---------------------------------------------------------------------------------------------------------------
# kube-proxy's certificate


def keep_certificate(operator: Operator, *, days: int) -> None:
    """As if kube-proxy's certificate had been issued so long ago that this many days are left."""
    lab, now = operator.lab, datetime.now(UTC)
    ca = pki.load_ca(lab.ca.read_bytes(), lab.ca_key.read_bytes(), now=now, cert_subject="ca", key_subject="ca")
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    cert = pki.issue_client(
        ca,
        common_name="system:kube-proxy",
        names={"O": "k8s"},
        key=key,
        serial=x509.random_serial_number(),
        now=now,
        lifetime=timedelta(days=days),
    )
    status: Literal["renew"] = "renew"
    credentials.write(
        operator.file, credentials.KubeProxyCredential(cert=cert, key=pki.key_pem(key), status=status, reason="")
    )


def test_a_kube_proxy_certificate_is_renewed_a_month_before_its_end(operator: Operator) -> None:
    lab = operator.lab
    keep_certificate(operator, days=29)
    before = {name: starts(lab, name) for name in NODES}

    planned = operator.plan()
    (renewal,) = planned["cluster"]["actions"]
    assert (renewal["kind"], renewal["subject"]) == ("issue-certificate", "system:kube-proxy")
    assert "expires on" in renewal["reason"]
    for name in NODES:
        assert changes(planned, name) == [
            ("file", "/etc/kubernetes/kube-proxy.kubeconfig"),
            ("restart", "kube-proxy.service"),
        ]
    operator.apply()

    assert operator.plan()["changes"] == 0
    assert all(restarted(before[name], starts(lab, name)) == {"kube-proxy"} for name in NODES)
    kept = x509.load_pem_x509_certificate((credentials.directory(operator.file) / "kube-proxy.pem").read_bytes())
    assert kept.not_valid_after_utc - datetime.now(UTC) > timedelta(days=300)
