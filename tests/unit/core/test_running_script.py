"""The text that `status` runs on a node, in real shells over files of the test's own."""

from __future__ import annotations

import base64
import os
import subprocess
from pathlib import Path

import pytest
from tests.unit.shells import SHELLS

from kubeworker.core.node import running_script
from kubeworker.core.node.running_script import OpenSecret, ProxiedServer, parse
from kubeworker.core.outlook import Running

KEY = "-----BEGIN EC PRIVATE KEY-----\nMHc\n-----END EC PRIVATE KEY-----\n"
KUBECONFIG = "apiVersion: v1\nkind: Config\nclusters: []\n"


def secrets(folder: Path, shell: str) -> tuple[OpenSecret, ...]:
    text = running_script.script(bin_dir="/nowhere", folders=(str(folder),))
    done = subprocess.run([shell, "-c", text], capture_output=True, text=True, check=False)
    return parse(line for line in done.stdout.splitlines() if line.startswith(running_script.WORD)).secrets


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("content", "mode", "found"),
    [
        (KEY, 0o644, True),
        (KEY, 0o640, True),
        (KEY, 0o602, True),
        (KEY, 0o600, False),
        (KEY, 0o400, False),
        (KUBECONFIG, 0o644, True),
        ("users:\n- user:\n    token: abc\n", 0o644, True),
        ("-----BEGIN CERTIFICATE-----\nMHc\n-----END CERTIFICATE-----\n", 0o644, False),
        ("kind: KubeletConfiguration\n", 0o644, False),
    ],
)
def test_keys_and_kubeconfigs_that_others_may_read_are_found(
    content: str, mode: int, shell: str, tmp_path: Path, *, found: bool
) -> None:
    path = tmp_path / "pki" / "a b.pem"
    path.parent.mkdir()
    path.write_text(content)
    path.chmod(mode)
    seen = secrets(tmp_path, shell)
    # Every file of another user than root is somebody else's.
    expected = found or (content == KEY and os.geteuid() != 0)
    assert [(each.path, each.mode) for each in seen] == ([(str(path), mode)] if expected else [])


def test_the_answer_is_read_and_nonsense_passed_over() -> None:
    deprecations = base64.b64encode(b'[{"id": "x", "message": "The `mirrors` property is deprecated"}]').decode()
    seen = parse(
        [
            "look\tserver\t10.0.0.1:6443\tready\t200\t1700000000",
            "look\tserver\t10.0.0.2:6443\tlost\ttimeout\t1700000060",
            "look\tserver\tcut off",
            "look\tflags\tconfig v node-ip ",
            "look\ttold\tkubelet: flag --x has been deprecated",
            "look\tconfig\t3",
            "look\tconfig\t1",
            "look\tkey\tbin_dir",
            "look\tkey\tmetrics",
            f"look\tdeprecations\t{deprecations}",
            "look\tmode\tipvs",
            "look\tsomething\telse",
        ]
    )
    assert seen.servers == (
        ProxiedServer(address="10.0.0.1:6443", ready=True, answer="200", since=1700000000.0),
        ProxiedServer(address="10.0.0.2:6443", ready=False, answer="timeout", since=1700000060.0),
    )
    assert seen.running == Running(
        proxy_mode="ipvs",
        containerd_config=3,
        containerd_keys=frozenset({"bin_dir", "metrics"}),
        kubelet_flags=frozenset({"config", "v", "node-ip"}),
        told=("kubelet: flag --x has been deprecated", "containerd: The `mirrors` property is deprecated"),
    )
