"""`preflight` where a machine's clock, swap and modules are its own: on the full-kernel machine.

It runs before the machine is a node, whose modules would be loaded already.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from tests.lab.operate import Operator, sh

from kubeworker.lab import LabState

pytestmark = pytest.mark.timeout(300)

NODE = "fk-01"

MAKE = r"""
set -e
modprobe overlay 2> /dev/null || :
fallocate -l 16M /swapfile && chmod 600 /swapfile && mkswap -q /swapfile && swapon /swapfile
echo '/swapfile none swap sw 0 0' >> /etc/fstab
echo '[zram0]' > /etc/systemd/zram-generator.conf
printf '[Swap]\nWhat=/other\n' > /etc/systemd/system/other.swap
modules=/lib/modules/$(uname -r)
mkdir -p /run/empty && mount --bind /run/empty "$modules"
date -s "+1 hour" > /dev/null
"""
UNDO = r"""
date -s "-1 hour" > /dev/null
umount "/lib/modules/$(uname -r)"
swapoff /swapfile; sed -i '/swapfile/d' /etc/fstab
rm -f /swapfile /etc/systemd/zram-generator.conf /etc/systemd/system/other.swap
"""


@pytest.fixture
def faulty(kernel_lab: LabState) -> Iterator[Operator]:
    try:
        sh(kernel_lab, NODE, MAKE)
        yield Operator(lab=kernel_lab, file=kernel_lab.cluster_yaml)
    finally:
        sh(kernel_lab, NODE, UNDO)


def test_clock_swap_and_modules_of_its_own_are_found(faulty: Operator) -> None:
    done = faulty.run("preflight", "--json", "--no-api-token")
    assert done.returncode == 1, done.stdout + done.stderr
    document = json.loads(done.stdout)
    rows = {node["name"]: {row["id"]: row for row in node["checks"]} for node in document["nodes"]}
    own = rows[NODE]
    assert (own["swap"]["status"], "/swapfile" in own["swap"]["message"]) == ("failed", True)
    assert all(each in own["swap-boot"]["message"] for each in ("/swapfile", "zram-generator.conf", "other.swap"))
    assert (own["clock"]["status"], "ahead of" in own["clock"]["message"]) == ("failed", True)
    assert own["clock-fleet"]["status"] == "warning"
    assert any(row["status"] == "failed" for check, row in own.items() if check.startswith("module-"))
    other = rows["k8s-02"]
    assert other["clock"]["status"] == "host"
    # It changes nothing: what is wrong stays as it is until somebody mends it.
    assert "/swapfile" in sh(faulty.lab, NODE, "cat /proc/swaps")
