"""A local lab: throw-away real machines with a real control plane, for demonstrations and tests.

`up` boots machines (systemd-nspawn, or user-mode-linux: real systemd, real sshd) with the guide's topology and writes
the cluster.yaml, CA and admin kubeconfig that the tool then uses. The rest of the tool knows nothing of the lab.
"""

from kubeworker.lab.kinds import run
from kubeworker.lab.lifecycle import apiserver_ready, down, find, names, prepare, renew, running, up
from kubeworker.lab.ssh import command as ssh_command
from kubeworker.lab.state import LabState, Machine

__all__ = [
    "LabState",
    "Machine",
    "apiserver_ready",
    "down",
    "find",
    "names",
    "prepare",
    "renew",
    "run",
    "running",
    "ssh_command",
    "up",
]
