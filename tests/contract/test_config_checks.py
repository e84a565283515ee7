"""Rendered config against the real binaries' own checkers, as the node runs them before anything goes live.

That a good file passes proves what is rendered; that a typo and a wrong type fail proves each check's rules.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.unit import samples
from tests.unit.authority import authority

from kubeworker.core.component import Credentials, Facts
from kubeworker.core.model import Binary, ConfigCheck, NodeState
from kubeworker.core.spec import ClusterFile

CHECKS = {
    "kubelet --config": "kubelet",
    "kube-proxy --write-config-to": "kube_proxy",
    "containerd config dump": "containerd",
}
"""The checks of files that an operator's `config` is merged over."""


@dataclass(frozen=True)
class Answer:
    output: str
    status: int
    check: ConfigCheck

    @property
    def rejected(self) -> bool:
        return any(text in self.output for text in self.check.reject)

    @property
    def passed(self) -> bool:
        """The verdict that ConfigCheck's fields describe."""
        return not self.rejected and (self.check.expect in self.output if self.check.expect else self.status == 0)


@dataclass(frozen=True)
class Site:
    """A node's files below a folder of their own, and its binaries."""

    folder: Path
    binaries: Path

    def spec(self, **changes: Any) -> ClusterFile:
        paths = {"bin_dir": str(self.folder / "k8s/bin"), "containerd_dir": str(self.folder / "containerd")}
        node = {
            "name": "k8s-01",
            "address": "127.0.0.1",
            "labels": {"example.org/role": "db"},
            "taints": ["k=y:NoSchedule"],
        }
        return samples.cluster(**({"paths": paths, "nodes": [node]} | changes))

    def state(self, spec: ClusterFile) -> NodeState:
        return samples.state(spec, facts=Facts(), credentials=Credentials(ca_cert=authority()[0]))

    def run(self, state: NodeState, name: str, texts: Mapping[str, str] | None = None) -> Answer:
        """The check of that name over the node's files, some of them with another text."""
        (check,) = (each for stage in state.stages for each in stage.config_checks if each.name == name)
        places: dict[str, Path] = {}
        for stage in state.stages:
            for directory in stage.directories:
                if directory.path.startswith(str(self.folder)):
                    Path(directory.path).mkdir(parents=True, exist_ok=True)
            for binary in stage.binaries:
                places[binary.path] = self.binaries / Path(binary.path).name
        for path, file in samples.files(state).items():
            places[path] = self.folder / "candidates" / path.lstrip("/")
            places[path].parent.mkdir(parents=True, exist_ok=True)
            places[path].write_text((texts or {}).get(path, file.content.decode()))
        tmp = self.folder / "tmp"
        tmp.mkdir(exist_ok=True)

        def placed(match: re.Match[str]) -> str:
            return str(tmp if match[1] == "tmp" else places[match[1]])

        command = [re.sub(r"\{(tmp|/[^}]*)\}", placed, word) for word in check.command]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60, cwd=tmp
        )
        return Answer(done.stdout + done.stderr, done.returncode, check)


@pytest.fixture
def site(tmp_path: Path, binaries: Path) -> Site:
    return Site(tmp_path, binaries)


@pytest.mark.parametrize("profile", ["default", "guide"])
@pytest.mark.parametrize("name", [*CHECKS, "kube-nginx -v", "kube-nginx -t"])
def test_what_is_rendered_passes(site: Site, name: str, profile: str) -> None:
    answer = site.run(site.state(site.spec(profile=profile)), name)
    assert answer.passed, answer


@pytest.mark.parametrize("mode", ["ipvs", "iptables", "nftables"])
def test_kube_proxy_takes_every_mode(site: Site, mode: str) -> None:
    spec = site.spec(components={"kube_proxy": {"mode": mode}})
    answer = site.run(site.state(spec), "kube-proxy --write-config-to")
    assert answer.passed, answer
    assert f"mode: {mode}" in (site.folder / "tmp/kube-proxy-config.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "config", "in_output"),
    [
        ("kubelet --config", {"maxPodz": 5}, "maxPodz"),
        ("kubelet --config", {"authentication": {"anonymos": {"enabled": True}}}, "anonymos"),
        ("kube-proxy --write-config-to", {"moode": "ipvs"}, "moode"),
        ("kube-proxy --write-config-to", {"ipvs": {"strictArp": True}}, "strictArp"),
        ("containerd config dump", {"debog": {"level": "debug"}}, "debog"),
        (
            "containerd config dump",
            {"plugins": {"io.containerd.cri.v1.runtime": {"containerd": {"default_runtim_name": "x"}}}},
            "default_runtim_name",
        ),
    ],
)
def test_a_typo_is_rejected_and_named(site: Site, name: str, config: dict[str, Any], in_output: str) -> None:
    spec = site.spec(components={CHECKS[name]: {"config": config}})
    answer = site.run(site.state(spec), name)
    assert answer.rejected, answer
    assert in_output in answer.output


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("kubelet --config", {"maxPods": "many"}),
        ("kubelet --config", {"evictionHard": ["memory"]}),
        ("kubelet --config", {"imageGCHighThresholdPercent": 900}),
        ("kubelet --config", {"kind": "KubeletConfig"}),
        ("kube-proxy --write-config-to", {"clientConnection": {"qps": "fast"}}),
        ("kube-proxy --write-config-to", {"detectLocalMode": "Guess"}),
        ("kube-proxy --write-config-to", {"healthzBindAddress": "nowhere:10256"}),
        ("containerd config dump", {"oom_score": "low"}),
        ("containerd config dump", {"version": 99}),
        ("containerd config dump", {"grpc": {"max_recv_message_size": "big"}}),
        (
            "containerd config dump",
            {"plugins": {"io.containerd.cri.v1.runtime": {"containerd": {"runtimes": "runc"}}}},
        ),
    ],
)
def test_a_wrong_type_or_value_fails(site: Site, name: str, config: dict[str, Any]) -> None:
    spec = site.spec(components={CHECKS[name]: {"config": config}})
    answer = site.run(site.state(spec), name)
    assert not answer.passed, answer


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("kube-nginx.conf", "least_conn;", "leest_conn;"),
        ("kube-nginx.conf", "worker_processes 1;", "worker_processes"),
        ("apiservers.conf", "6443", "644399"),
        ("apiservers.conf", "server", "# server"),
    ],
)
def test_a_broken_nginx_config_fails(site: Site, name: str, old: str, new: str) -> None:
    state = site.state(site.spec())
    path = f"{site.folder}/k8s/kube-nginx/conf/{name}"
    answer = site.run(state, "kube-nginx -t", {path: samples.text(state, path).replace(old, new)})
    assert not answer.passed, answer


def test_the_check_of_nginx_does_not_touch_the_list_in_use(site: Site) -> None:
    # The list that the configuration includes lies below /run, and need not be there yet.
    answer = site.run(site.state(site.spec()), "kube-nginx -t")
    assert answer.passed, answer
    assert not Path("/run/kube-nginx").exists()


def test_every_check_is_tried_here(site: Site) -> None:
    names = {check.name for stage in site.state(site.spec()).stages for check in stage.config_checks}
    # The last one is no program's own; tests/unit/components/test_containerd.py has it.
    assert names == {*CHECKS, "kube-nginx -v", "kube-nginx -t", "check of running containers"}


def test_kubelets_check_starts_nothing(site: Site) -> None:
    answer = site.run(site.state(site.spec()), "kubelet --config")
    assert answer.status != 0
    assert [path.name for path in (site.folder / "tmp").iterdir()] == []


def test_containerd_reads_what_was_meant(site: Site) -> None:
    spec = site.spec(components={"containerd": {"sandbox_image": "site.example/pause:1"}})
    output = site.run(site.state(spec), "containerd config dump").output
    assert "sandbox = 'site.example/pause:1'" in output
    assert "config_path = '/etc/containerd/certs.d'" in output
    assert "bin_dirs = ['/opt/cni/bin']" in output
    assert "SystemdCgroup = true" in output


@pytest.mark.parametrize("profile", ["default", "guide"])
def test_nerdctl_reads_its_file(site: Site, profile: str) -> None:
    path = site.folder / "nerdctl.toml"
    path.write_text(samples.text(site.state(site.spec(profile=profile)), "/etc/nerdctl/nerdctl.toml"))
    done = subprocess.run(
        [site.binaries / "nerdctl", "--address", site.folder / "no.sock", "images"],
        env={"NERDCTL_TOML": str(path), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    # It is strict about its file, and reads it before it looks for containerd.
    assert "failed to load nerdctl config" not in done.stderr
    assert "cannot access containerd socket" in done.stderr


@pytest.mark.parametrize("profile", ["default", "guide"])
def test_crictl_reads_its_file(site: Site, profile: str) -> None:
    path = site.folder / "crictl.yaml"
    path.write_text(samples.text(site.state(site.spec(profile=profile)), "/etc/crictl.yaml"))
    done = subprocess.run(
        [site.binaries / "crictl", "--config", path, "config", "--list"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert "unix:///run/containerd/containerd.sock" in done.stdout


def test_the_binaries_are_the_ones_that_nodes_get(site: Site) -> None:
    wanted = {
        Path(each.path).name
        for stage in site.state(site.spec(cni="bridge")).stages
        for each in stage.binaries
        if isinstance(each, Binary)
    }
    assert wanted <= {path.name for path in site.binaries.iterdir()}
