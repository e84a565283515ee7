"""Both READMEs, followed to the letter: a clean clone, their own commands, and Ready nodes at the end.

Where a reader has values of their own (paths, addresses, networks) stand the lab's, whose machines are the real ones.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.clean_clone import ROOT, clean_clone
from tests.lab.operate import kubectl

from kubeworker import lab as labs
from kubeworker.lab import LabState

pytestmark = pytest.mark.timeout(600)

THEIRS = {"plan": 2}
"""Exit codes that the READMEs name: something would change."""


def block(readme: str, mark: str, language: str = "sh") -> str:
    """What stands in a README below `<!-- mark -->`."""
    found = re.findall(rf"<!-- {re.escape(mark)} -->\n```{language}\n(.*?)```", (ROOT / readme).read_text(), re.DOTALL)
    assert len(found) == 1, (readme, mark)
    return str(found[0])


class Reader:
    """Somebody in a clean clone, with the cluster's kubeconfig and SSH keys where the READMEs say."""

    def __init__(self, clone: Path) -> None:
        self.clone = clone
        self.home = clone.parent / "home"
        self.home.mkdir()
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.environment = {
            **os.environ,
            "HOME": str(self.home),
            # Of the machine, not of the reader: what was downloaded and built before.
            "XDG_CACHE_HOME": str(caches),
            "PIP_CACHE_DIR": os.environ.get("PIP_CACHE_DIR") or str(caches / "pip"),
            "KUBEWORKER_LABS": str(labs_folder()),
        }
        self.environment.pop("SSH_AUTH_SOCK", None)

    def types(self, line: str, code: int = 0) -> str:
        """One line of a README, in a shell."""
        done = subprocess.run(
            ["sh", "-c", line],
            cwd=self.clone,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=540,
            check=False,
        )
        assert done.returncode == code, f"$ {line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def follows(self, commands: str) -> str:
        """A block of a README; what its last line said. Asked `apply`'s question, the reader says yes."""
        said = ""
        for line in commands.splitlines():
            command = line.partition("  #")[0].rstrip()
            name = command.rpartition("kubeworker ")[2].split(" ")[0]
            said = self.types(command + " --yes" * (name == "apply"), THEIRS.get(name, 0))
        return said

    def knows(self, lab: LabState) -> None:
        """Kubeconfig and keys of this cluster."""
        for source, place, mode in (
            (lab.kubeconfig, ".kube/config", 0o600),
            (lab.ssh_identity, ".ssh/id_ed25519", 0o600),
            (lab.known_hosts, ".ssh/known_hosts", 0o644),
        ):
            (self.home / place).parent.mkdir(mode=0o700, exist_ok=True)
            shutil.copyfile(source, self.home / place)
            (self.home / place).chmod(mode)


def labs_folder() -> Path:
    """Where the lab of `make demo` lies here: a developer's own `demo` is not touched."""
    return Path.home() / ".local/state/kubeworker" / f"readme-{os.getpid()}"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    for left in labs_folder().parent.glob("readme-*"):  # of a session that was killed
        if not Path(f"/proc/{left.name.partition('-')[2]}").exists():
            labs.down("demo", labs=left)
            shutil.rmtree(left)
    try:
        yield Reader(clean_clone(tmp_path_factory.mktemp("reader") / "kubeworker"))
    finally:
        labs.down("demo", labs=labs_folder())
        shutil.rmtree(labs_folder(), ignore_errors=True)


def test_make_demo_ends_with_two_ready_nodes(reader: Reader) -> None:
    said = reader.follows(block("README.md", "run: demo"))
    header, *rows = block("README.md", "output: status", "").splitlines()
    assert header in said
    for row in rows:
        node, ready, *_rest = row.split()
        assert re.search(rf"^{node} +{ready} ", said, re.MULTILINE), said
    labs.down("demo", labs=labs_folder())


@pytest.fixture(scope="module")
def cluster(reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabState]:
    """A control plane, and two machines that are no nodes yet: one for each README."""
    name = f"test-{os.getpid()}-readme"
    try:
        lab = labs.up(name, workers=0)
        reader.knows(lab)
        yield lab
    finally:
        labs.down(name)


def needed_here(lab: LabState) -> dict[str, Any]:
    """What a lab's machines need beyond what a README has its readers write."""
    document = yaml.safe_load(lab.cluster_yaml.read_text())
    containerd = document["components"]["containerd"]
    containerd["preload_images"] = [str(lab.folder / path) for path in containerd["preload_images"]]
    return {key: document[key] for key in ("versions", "artifacts", "components")}


def edit(reader: Reader, lab: LabState, changes: dict[str, Any]) -> None:
    """The reader's editor."""
    path = reader.clone / "cluster.yaml"
    document = yaml.safe_load(path.read_text())
    document["cluster"] |= changes.pop("cluster", {})
    path.write_text(yaml.safe_dump(document | changes | needed_here(lab), sort_keys=False))


def is_ready(lab: LabState, node: str) -> bool:
    condition = 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
    return kubectl(lab, "get", "node", node, f"-o={condition}") == "True"


def test_the_korean_readme_leads_from_environment_sh_to_a_ready_node(
    reader: Reader, cluster: LabState, tmp_path: Path
) -> None:
    readme, node = "README.ko.md", cluster.machine("k8s-01")
    document = yaml.safe_load(cluster.cluster_yaml.read_text())["cluster"]
    guide = (ROOT / "tests/guide/environment.sh").read_text()
    guide = re.sub(r"NODE_IPS=\(.*?\)", f"NODE_IPS=({node.address})", guide)
    guide = re.sub(r"NODE_NAMES=\(.*?\n\)", f"NODE_NAMES=({node.name})", guide, flags=re.DOTALL)
    guide = guide.replace("${NODE_IPS[1]}", node.address)
    for name, field in (("SERVICE_CIDR", "service_cidr"), ("CLUSTER_CIDR", "cluster_cidr")):
        guide = re.sub(rf'{name}="[^"]*"', f'{name}="{document[field]}"', guide)
    guide = re.sub(r'DNS_SVC_IP="[^"]*"', f'DNS_SVC_IP="{document["dns_service_ip"]}"', guide)
    (tmp_path / "environment.sh").write_text(guide)
    servers = "".join(f"server {each}; " for each in document["apiservers"])
    (tmp_path / "kube-nginx.conf").write_text(
        f"stream {{ upstream backend {{ {servers}}} server {{ listen 127.0.0.1:8443; proxy_pass backend; }} }}\n"
    )
    shutil.copy(cluster.ca, tmp_path / "ca.pem")
    shutil.copy(cluster.ca_key, tmp_path / "ca-key.pem")

    reader.follows(block(readme, "run: setup"))
    init = block(readme, "run: environment")
    reader.follows(init.replace("/opt/k8s/bin", str(tmp_path)).replace("/opt/k8s/work", str(tmp_path)))
    assert yaml.safe_load(block(readme, "edit: cluster.yaml", "yaml"))["cni"] == "cilium"
    edit(reader, cluster, {"cni": "bridge"})
    reader.follows(block(readme, "run: deploy"))
    assert is_ready(cluster, node.name)


def test_the_english_readme_leads_from_scratch_to_a_ready_node(
    reader: Reader, cluster: LabState, tmp_path: Path
) -> None:
    readme, node = "README.md", cluster.machine("k8s-02")
    for name in ("cluster.yaml", "kubeworker.lock"):
        (reader.clone / name).unlink(missing_ok=True)
    shutil.copy(cluster.ca, tmp_path / "ca.pem")
    shutil.copy(cluster.ca_key, tmp_path / "ca-key.pem")

    reader.follows(block(readme, "run: setup"))
    reader.follows(block(readme, "run: scratch").replace("/opt/k8s/work", str(tmp_path)))
    theirs = yaml.safe_load(block(readme, "edit: cluster.yaml", "yaml"))
    ours = yaml.safe_load(cluster.cluster_yaml.read_text())
    mine: dict[str, Any] = {"nodes": [{"name": node.name, "address": node.address}], "cni": "bridge"}
    mine["cluster"] = {key: ours["cluster"][key] for key in theirs["cluster"]}
    assert mine.keys() == theirs.keys()
    edit(reader, cluster, mine)
    reader.follows(block(readme, "run: deploy"))
    assert is_ready(cluster, node.name)
