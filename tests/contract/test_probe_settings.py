"""The probe reads kernel settings whole: through a real sshd and the node's own shell, compared with the files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.contract.sshd import openssh
from tests.unit.core.engine_states import state
from tests.unit.shells import SHELLS

from kubeworker.core.model import RequireSysctl, Stage, Sysctl
from kubeworker.core.node import probe
from kubeworker.core.node.observed import parse
from kubeworker.io.node import Node, connect

KEYS = (
    "kernel.pid_max",
    "kernel.keys.root_maxbytes",
    "vm.max_map_count",
    # A list of numbers, between tabs.
    "net.ipv4.tcp_rmem",
    "kernel.ostype",
    # A slash first: dots are part of a name then (sysctl.d(5)).
    "net/ipv4/conf/lo/forwarding",
    "kernel.there_is_no_such_setting",
)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    with openssh(tmp_path / "ssh") as server:
        connected = await connect(server.node(), server.ssh())
        yield connected
        await connected.close()


def setting(key: str) -> str:
    return " ".join(Path(probe.sysctl_path(key)).read_text().split())


@pytest.mark.parametrize("shell", SHELLS)
async def test_a_setting_of_many_digits_or_words_is_read_whole(shell: str, node: Node, tmp_path: Path) -> None:
    stage = Stage(
        component="host",
        requirements=tuple(RequireSysctl(key=key, value="1", fix="") for key in KEYS),
        sysctls=(Sysctl(key="vm.overcommit_ratio", value="1"),),
    )
    text = probe.script(state(stage), home=str(tmp_path / "home"))
    answer = await node.run(f"exec {shell}", stdin=text.encode())
    *numbers, _missing = KEYS
    assert parse("n1", answer.stdout).sysctls == {key: setting(key) for key in (*numbers, "vm.overcommit_ratio")}
