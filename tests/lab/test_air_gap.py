"""A node from a bundle alone: the control host's commands run where nothing but the lab's machines can be reached."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from tests.lab.conftest import COMMAND, MakeLab, kubeworker
from tests.lab.operate import kubectl, until

from kubeworker.lab import LabState

pytestmark = pytest.mark.timeout(400)

NODE = "k8s-02"


@dataclass(frozen=True)
class CutOff:
    """A network namespace of the control host's with one link, to the lab's bridge, and no other way out."""

    name: str

    def run(self, *command: str | Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ip", "netns", "exec", self.name, *map(str, command)],
            env=os.environ | (environment or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def tried(self) -> int:
        """Packets that something here sent to any address but the lab's, and datagrams, as name lookups are.

        On loopback there is TCP of the commands' own: they reach nodes' ports through ports that they forward.
        """
        links = json.loads(ip("-netns", self.name, "-statistics", "-json", "link", "show", "dev", SINK))
        names, counts = (line.split() for line in self.run("grep", "^Udp:", "/proc/net/snmp").stdout.splitlines())
        packets: int = links[0]["stats64"]["tx"]["packets"]
        return packets + int(counts[names.index("OutDatagrams")])


SINK = "sink"
"""Takes every packet that is not for the lab, and lets none go on."""


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def cut_off(lab: LabState) -> Iterator[CutOff]:
    """The namespace, and its end. Every address has a route there, so that what is tried is counted."""
    name, outside = f"kw-air-{os.getpid()}", f"kwair{os.getpid()}"
    here = CutOff(name)
    for left in re.findall(r"^kw-air-(\d+)", ip("netns", "list"), re.MULTILINE):
        if not Path(f"/proc/{left}").exists():  # a session that was killed
            ip("netns", "delete", f"kw-air-{left}")
    ip("netns", "add", name)
    try:
        # IPv6 would send packets of its own accord.
        ipv6 = "/proc/sys/net/ipv6/conf/all/disable_ipv6"
        assert here.run("sh", "-c", f"[ ! -e {ipv6} ] || echo 1 > {ipv6}").returncode == 0
        ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", outside, "master", lab.bridge, "up")
        ip("-netns", name, "link", "add", SINK, "type", "veth", "peer", "name", "sunk")
        ip("-netns", name, "address", "add", f"{lab.gateway.rpartition('.')[0]}.250/24", "dev", "eth0")
        for link in ("lo", "eth0", "sunk"):
            ip("-netns", name, "link", "set", link, "up")
        # Without ARP a packet leaves at once for whatever address.
        ip("-netns", name, "link", "set", SINK, "arp", "off", "up")
        ip("-netns", name, "route", "add", "default", "dev", SINK)
        yield here
    finally:
        # The links go with it.
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def away_from(lab: LabState, folder: Path) -> Path:
    """A control host's folder as its operator carries it to the site: cluster.yaml and keys, no lock, no images."""
    folder.mkdir()
    for path in (lab.ca, lab.ca_key, lab.kubeconfig, lab.ssh_identity, lab.known_hosts):
        (folder / path.name).write_bytes(path.read_bytes())
        (folder / path.name).chmod(0o600)
    document = yaml.safe_load(lab.cluster_yaml.read_text())
    document["artifacts"] = {"sources": ["cache"]}
    document["nodes"] = [each for each in document["nodes"] if each["name"] == NODE]
    (folder / "cluster.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return folder / "cluster.yaml"


def test_a_node_comes_up_from_a_bundle_with_the_control_hosts_network_cut_off(
    make_lab: MakeLab, tmp_path: Path
) -> None:
    lab = make_lab("air")
    bundle = tmp_path / "site.tar.gz"
    packed = kubeworker("artifacts", "bundle", bundle, "-f", lab.cluster_yaml)
    assert packed.returncode == 0, packed.stderr
    sha256 = packed.stdout.split()[-1]
    site = away_from(lab, tmp_path / "site")
    cache = tmp_path / "cache"
    alone = {"XDG_CACHE_HOME": str(cache), "HOME": str(tmp_path), "GOFLAGS": "-mod=mod", "GOPROXY": "off"}

    with cut_off(lab) as here:

        def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
            return here.run(COMMAND, *words, "-f", site, environment=alone)

        nothing = command("apply", "--yes")
        assert nothing.returncode == 1
        assert "artifacts import BUNDLE" in nothing.stderr

        damaged = bytearray(bundle.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        (tmp_path / "damaged.tar.gz").write_bytes(damaged)
        refused = command("artifacts", "import", tmp_path / "damaged.tar.gz")
        assert refused.returncode == 1
        assert "it is damaged" in refused.stderr
        assert not (site.parent / "kubeworker.lock").exists()
        assert not (site.parent / "images").exists()
        assert not list((cache / "kubeworker/store").iterdir())

        imported = command("artifacts", "import", bundle, "--sha256", sha256)
        assert imported.returncode == 0, imported.stderr
        assert "still missing" not in imported.stdout
        assert {path.name for path in (site.parent / "images").iterdir()} >= {"pause.tar", "busybox.tar"}

        applied = command("apply", "--yes")
        assert applied.returncode == 0, applied.stdout + applied.stderr
        plan = command("plan", "--json")
        assert json.loads(plan.stdout)["changes"] == 0, plan.stdout
        verified = command("verify")
        assert verified.returncode == 0, verified.stdout + verified.stderr

        assert here.tried() == 0
        # Both are counted: one try each, which stays inside too.
        assert here.run("timeout", "1", "bash", "-c", "echo > /dev/tcp/192.0.2.1/443").returncode != 0
        tried = here.tried()
        assert tried > 0
        here.run("bash", "-c", "echo > /dev/udp/127.0.0.1/53")
        assert here.tried() > tried

    ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
    until(lambda: kubectl(lab, "get", "node", NODE, f"-o={ready}") == "True", "the node is Ready", seconds=60)
    assert kubectl(lab, "get", "nodes", "-o=name") == f"node/{NODE}"
