"""Wrong inputs as a new user makes them, with what the command says of each: see test_messages.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

CLUSTER = """\
cluster:
  apiservers: [10.0.0.1:6443, 10.0.0.2:6443]
  cluster_cidr: 172.30.0.0/16
  service_cidr: 10.254.0.0/16
  dns_service_ip: 10.254.0.2
nodes:
  - {name: k8s-01, address: 10.0.0.11}
  - {name: k8s-02, address: 10.0.0.12}
"""


@dataclass(frozen=True)
class Bad:
    """One wrong input: what is typed, and what lies in the folder."""

    words: str
    """The command line after `kubeworker`."""
    files: dict[str, str] = field(default_factory=dict)
    cluster: str | None = CLUSTER
    prepare: Callable[[Path], None] | None = None

    def write(self, folder: Path) -> None:
        """Put the files there."""
        if self.cluster is not None:
            (folder / "cluster.yaml").write_text(self.cluster)
        for name, text in self.files.items():
            (folder / name).write_text(text)
        if self.prepare:
            self.prepare(folder)


def edited(before: str, after: str, words: str = "render --out out") -> Bad:
    """cluster.yaml with one thing changed."""
    assert before in CLUSTER, before
    return Bad(words, cluster=CLUSTER.replace(before, after, 1))


def with_lines(lines: str, words: str = "render --out out") -> Bad:
    """cluster.yaml with more lines at its end."""
    return Bad(words, cluster=f"{CLUSTER}{lines}\n")


COMMAND_LINES = (
    "aply",
    "xyz",
    "csr aprove",
    "lab upp",
    "plan --nodes k8s-01",
    "plan --node",
    "plan extra",
    "plan --json=3",
    "apply --serial many",
    "apply --serial 0",
    "apply --max-failures -1",
    "render",
    "csr service --kind deploymnt",
    "drill apiserver --case hun",
    "explain maxPosd",
    "explain zzzzzzzz",
    "init --kube-nginx-conf x",
    "status --against soon",
    "artifacts list --only kubelt",
    "lab status --name Not_A_Name",
    "lab status --name nowhere",
    "csr approve --watch --json",
    "csr approve --health-port 80",
    "csr service --kind deployment",
    "--plain plan",
    "lab up --cni calico",
    "lab up --workers -3",
    "render --out /proc/x",
    "artifacts bundle /nowhere/x.tgz",
    "job --image x --shards 2 --out /nowhere/x",
)

CLUSTER_FILES = {
    "no file": Bad("render --out out", cluster=None),
    "empty": Bad("render --out out", cluster=""),
    "a list": Bad("render --out out", cluster="- a\n"),
    "a tab": edited("nodes:", "\tnodes:"),
    "an open bracket": edited("nodes:", "nodes: ["),
    "twice": edited("nodes:", "nodes: []\nnodes:"),
    "unknown field": edited("cluster_cidr", "cluster_cdr"),
    "unknown field, nothing near": with_lines("wheels: 4"),
    "missing": edited("  service_cidr: 10.254.0.0/16\n", ""),
    "no nodes": edited("nodes:", "x: &x"),
    "not a CIDR": edited("172.30.0.0/16", "172.30.0.0/33"),
    "host bits": edited("172.30.0.0/16", "172.30.0.1/16"),
    "overlap": edited("172.30.0.0/16", "10.254.0.0/15"),
    "DNS outside": edited("10.254.0.2", "10.1.0.2"),
    "no port": edited("10.0.0.1:6443", "10.0.0.1"),
    "no address": edited("10.0.0.11", "k8s-01.example"),
    "node in the pods' network": edited("10.0.0.11", "172.30.1.1"),
    "same name": edited("k8s-02", "k8s-01"),
    "same address": edited("10.0.0.12", "10.0.0.11"),
    "bad name": edited("k8s-02", "K8S_02"),
    "bad taint": edited("address: 10.0.0.12", "address: 10.0.0.12, taints: [gpu]"),
    "bad label": edited("address: 10.0.0.12", "address: 10.0.0.12, labels: {'a b': c}"),
    "reserved label": edited("address: 10.0.0.12", "address: 10.0.0.12, labels: {node-role.kubernetes.io/worker: ''}"),
    "no effect of a wrong kind": edited("address: 10.0.0.12", "address: 10.0.0.12, labels: [a]"),
    "wrong choice": with_lines("cni: brigde"),
    "version with v": with_lines("versions: {kubernetes: v1.33.3}"),
    "version of two numbers": with_lines("versions: {kubernetes: 1.33}"),
    "relative path": with_lines("paths: {bin_dir: opt/bin}"),
    "unknown component": with_lines("components: {kubelt: {}}"),
    "unknown setting": with_lines("components: {kubelet: {max_pod: 10}}"),
    "not a number": with_lines("components: {kubelet: {max_pods: many}}"),
    "zero": with_lines("components: {kubelet: {max_pods: 0}}"),
    "a list for a map": with_lines("components: {kubelet: []}"),
    "kubelet's port": with_lines("components: {kubelet: {config: {port: http}}}"),
    "kube-proxy's mode": with_lines("components: {kube_proxy: {config: {mode: userspace}}}"),
    "kube-proxy's address": with_lines("components: {kube_proxy: {config: {metricsBindAddress: everywhere}}}"),
    "nftables too early": with_lines("versions: {kubernetes: 1.30.0}\ncomponents: {kube_proxy: {mode: nftables}}"),
    "proxy on the network": with_lines("components: {kube_nginx: {listen: '0.0.0.0:8443'}}"),
    "mirror without scheme": with_lines("components: {containerd: {mirrors: {docker.io: [mirror.example]}}}"),
    "mirror with a password": with_lines("components: {containerd: {mirrors: {docker.io: ['https://a:b@m.example']}}}"),
    "old mirrors": with_lines(
        "components: {containerd: {config: {plugins: {io.containerd.cri.v1.images: {registry: {mirrors: {a: 1}}}}}}}"
    ),
    "containerd 1": with_lines("versions: {containerd: 1.7.0}"),
    "Cilium's own field": with_lines("cni: cilium\ncomponents: {cilium: {values: {MTU: 1400}}}"),
    "Cilium's mask": with_lines("cni: cilium\ncomponents: {cilium: {pool_mask: 24}}"),
    "for one node only": edited("address: 10.0.0.12", "address: 10.0.0.12, components: {kubelet: {client_csr: auto}}"),
    "several at once": Bad(
        "render --out out",
        cluster=CLUSTER.replace("cluster_cidr", "cluster_cdr").replace("k8s-02", "k8s-01").replace(":6443", ""),
    ),
}

OTHER_FILES = {
    "render into a folder of something else": Bad("render --out .", files={"precious": ""}),
    "init over a file": Bad("init --out cluster.yaml"),
    "init into no folder": Bad("init --out no/such/cluster.yaml"),
    "no environment.sh": Bad("init --from-env environment.sh --out new.yaml"),
    "environment.sh with Windows line ends": Bad(
        "init --from-env environment.sh --out new.yaml", files={"environment.sh": "export A=b\r\n"}
    ),
    "environment.sh without nodes": Bad(
        "init --from-env environment.sh --out new.yaml", files={"environment.sh": "export CLUSTER_CIDR=1.2.3.4/16\n"}
    ),
    "lock file of another format": Bad("artifacts list", files={"kubeworker.lock": "format = 99\n"}),
    "lock file that is none": Bad("artifacts list", files={"kubeworker.lock": "{{{"}),
    "no bundle": Bad("artifacts import bundle.tar"),
    "a bundle that is none": Bad("artifacts import bundle.tar", files={"bundle.tar": "x"}),
    "publish below a file": Bad("artifacts publish cluster.yaml"),
    "publish where no file can be": Bad("artifacts publish /proc/self"),
    "no CA": Bad("plan"),
    "a CA that is none": Bad("plan", files={"ca.pem": "x", "ca-key.pem": "x"}),
    "unknown node": Bad("plan --node k8s-03"),
    "apply without a terminal": Bad("apply"),
}


def every() -> Iterator[tuple[str, Bad]]:
    """All of them, by a name."""
    yield from ((f"kubeworker {words}", Bad(words)) for words in COMMAND_LINES)
    yield from ((f"cluster.yaml: {name}", bad) for name, bad in CLUSTER_FILES.items())
    yield from OTHER_FILES.items()
