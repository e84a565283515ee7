"""The way into a machine for people and tests: OpenSSH with the lab's key and the lab's known hosts, nothing else."""

from __future__ import annotations

from kubeworker.lab.state import LabState, Machine


def command(lab: LabState, machine: Machine, user: str = "root") -> list[str]:
    """The beginning of an ssh command line; what is to run there may follow."""
    options = {
        "IdentitiesOnly": "yes",
        "IdentityFile": str(lab.ssh_identity),
        "UserKnownHostsFile": str(lab.known_hosts),
        "StrictHostKeyChecking": "yes",
        "LogLevel": "ERROR",
    }
    words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    return ["ssh", "-F", "none", *words, f"{user}@{machine.address}"]
