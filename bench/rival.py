"""The rivals, as their users would run them: their own programs, in a virtual environment of their own."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import tool
from bench.machines import Fleet, each_machine
from bench.payload import Payload
from bench.tool import BenchFailed, Stopped, Timed, run
from kubeworker.io.whole_file import write_atomically

_HERE = Path(__file__).parent
_SCRIPTS = _HERE / "rivals"
_REQUIREMENTS = _HERE / "requirements.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where a rival runs and what it deploys."""

    fleet: Fleet
    payload: Payload
    venv: Path
    work: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """One of them."""

    name: str
    deploy: Callable[[Setting], None]
    needs_python: bool = False
    """On the nodes: /usr/bin/python3 with its whole standard library."""


def ensure_venv(work: Path) -> Path:
    """The virtual environment with the locked versions, made once."""
    venv = work / "rivals-venv"
    stamp, wanted = venv / "complete", _REQUIREMENTS.read_text()
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(venv, ignore_errors=True)
        run([sys.executable, "-m", "venv", str(venv)])
        run([str(venv / "bin/pip"), "install", "--quiet", "--require-hashes", "-r", str(_REQUIREMENTS)])
        stamp.write_text(wanted)
    return venv


def versions() -> dict[str, str]:
    """What the lock file has of each."""
    pins = dict(line.split()[0].split("==") for line in _REQUIREMENTS.read_text().splitlines() if "==" in line)
    return {name: pins[name] for name in ("ansible-core", "mitogen", "pyinfra")}


# ---------------------------------------------------------------------------------------------------------------
# The guide's shell loop


def _guide(setting: Setting) -> None:
    folder = setting.work / "guide"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "environment.sh").write_text(_environment(setting))
    run(["bash", str(_SCRIPTS / "guide/deploy.sh"), str(folder)])


def _environment(setting: Setting) -> str:
    """environment.sh with the guide's own variables, and the files of this cluster by the chapter that deploys them."""
    lab, payload = setting.fleet.lab, setting.payload
    manifest = read_manifest(payload)
    options = {
        "IdentitiesOnly": "yes",
        "IdentityFile": str(lab.ssh_identity),
        "UserKnownHostsFile": str(lab.known_hosts),
        "LogLevel": "ERROR",
    }
    words = ["-F", "none", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    chapters = {
        "NGINX": ("kube_nginx",),
        "CONTAINERD": ("containerd",),
        "KUBELET": ("kubelet",),
        "PROXY": ("kube_proxy",),
        "NETWORK": ("bridge_cni",),
    }
    arrays: dict[str, Sequence[str]] = {
        "NODE_NAMES": setting.fleet.names,
        "NODE_IPS": [each.address for each in setting.fleet.machines],
        "SSH_OPTIONS": words,
        "ALL_UNITS": manifest["units"],
    }
    known = [stage for stages in chapters.values() for stage in stages]
    for chapter, stages in chapters.items():
        mine = [file for file in manifest["files"] if file["stage"] in stages]
        arrays[f"{chapter}_BINARIES"] = [file["path"] for file in mine if file["binary"]]
        arrays[f"{chapter}_FILES"] = [file["path"] for file in mine if not file["binary"]]
        paths = {file["path"] for file in mine}
        arrays[f"{chapter}_UNITS"] = [unit for unit in manifest["units"] if f"/etc/systemd/system/{unit}" in paths]
    arrays["OTHER_FILES"] = [file["path"] for file in manifest["files"] if file["stage"] not in known]
    lines = [f"{name}=({shlex.join(values)})" for name, values in arrays.items()]
    lines.append(f"PAYLOAD={shlex.quote(str(payload.folder))}")
    lines.append(f"BINARIES={shlex.quote(shlex.join(each['path'] for each in manifest['files'] if each['binary']))}")
    lines.append(f"DIRECTORIES={shlex.quote(shlex.join(each['path'] for each in manifest['directories']))}")
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------------------------------------------------
# Ansible


def _ansible(setting: Setting, *, strategy: str) -> None:
    folder = setting.work / "ansible"
    folder.mkdir(parents=True, exist_ok=True)
    lab, manifest = setting.fleet.lab, read_manifest(setting.payload)
    hosts = {each.name: {"ansible_host": each.address} for each in setting.fleet.machines}
    common = {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(lab.ssh_identity),
        "ansible_ssh_common_args": f"-F none -o UserKnownHostsFile={lab.known_hosts} -o IdentitiesOnly=yes",
        "payload": str(setting.payload.folder),
        "manifest": manifest,
    }
    # Node facts for the templates, under the names that they use.
    for name, own in hosts.items():
        own |= {"node_name": name, "node_ip": own["ansible_host"]}
    inventory = {"nodes": {"hosts": hosts, "vars": common}}
    write_atomically(folder / "inventory.json", json.dumps(inventory).encode(), mode=0o600)
    environment = os.environ | {
        "ANSIBLE_CONFIG": str(_SCRIPTS / "ansible/ansible.cfg"),
        "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "ANSIBLE_HOME": str(folder / "home"),
        "BENCH_STRATEGY": strategy,
    }
    if strategy.startswith("mitogen"):
        environment["ANSIBLE_STRATEGY_PLUGINS"] = str(_mitogen_plugins(setting.venv))
    try:
        run(
            [
                str(setting.venv / "bin/ansible-playbook"),
                *("--inventory", str(folder / "inventory.json")),
                *("--forks", str(len(hosts))),
                str(_SCRIPTS / "ansible/playbook.yml"),
            ],
            env=environment,
        )
    finally:
        _end_masters()


def _mitogen_plugins(venv: Path) -> Path:
    (found,) = venv.glob("lib/python3*/site-packages/ansible_mitogen/plugins/strategy")
    return found


def _end_masters() -> None:
    """The connections that ControlPersist keeps: the next run makes its own."""
    for socket in Path("/tmp/kubeworker-bench-cp").glob("*"):
        subprocess.run(["ssh", "-O", "exit", "-S", str(socket), "node"], capture_output=True, check=False)


# ---------------------------------------------------------------------------------------------------------------
# pyinfra


def _pyinfra(setting: Setting) -> None:
    folder = setting.work / "pyinfra"
    folder.mkdir(parents=True, exist_ok=True)
    lab = setting.fleet.lab
    hosts: list[tuple[str, dict[str, Any]]] = [
        (each.name, {"ssh_hostname": each.address}) for each in setting.fleet.machines
    ]
    data = {
        "ssh_user": "root",
        "ssh_key": str(lab.ssh_identity),
        "ssh_known_hosts_file": str(lab.known_hosts),
        "ssh_strict_host_key_checking": "yes",
        "ssh_allow_agent": False,
        "ssh_look_for_keys": False,
        "ssh_config_file": "/dev/null",
        "payload": str(setting.payload.folder),
    }
    (folder / "inventory.py").write_text(f"nodes = ({hosts!r}, {data!r})\n")
    run(
        [
            str(setting.venv / "bin/pyinfra"),
            *("-y", "--parallel", str(len(hosts))),
            str(folder / "inventory.py"),
            str(_SCRIPTS / "pyinfra/deploy.py"),
        ],
        cwd=folder,
    )


# ---------------------------------------------------------------------------------------------------------------


def timed(setting: Setting, each: Rival) -> tuple[Timed, str]:
    """One run, proved; or how far it came within its limit, and a note that says so."""
    began = time.perf_counter()
    try:
        taken = tool.timed(lambda: each.deploy(setting))
    except Stopped:
        return Timed(seconds=time.perf_counter() - began, cpu=0), "stopped at the limit: it takes longer than that"
    prove(setting)
    return taken, ""


def read_manifest(payload: Payload) -> dict[str, Any]:
    """The lists that all of them go through."""
    manifest: dict[str, Any] = json.loads((payload.folder / "manifest.json").read_text())
    return manifest


def prove(setting: Setting) -> None:
    """BenchFailed unless every node has exactly the payload's files, by sha256, and every unit is active."""
    sums = {name: (setting.payload.folder / "sums" / name).read_text() for name in setting.fleet.names}

    units = shlex.join(setting.payload.units)

    def script(name: str) -> str:
        return f"""sha256sum --quiet --check - <<'SUMS' || exit 1
{sums[name]}SUMS
systemctl is-active {units} > /run/bench-active || {{ cat /run/bench-active; exit 1; }}
"""

    try:
        each_machine(setting.fleet.lab, setting.fleet.machines, lambda each: script(each.name))
    except Exception as error:
        raise BenchFailed(f"not the same files, or a unit is not active: {error}") from error


RIVALS = (
    Rival(name="guide's shell loop", deploy=_guide),
    Rival(name="Ansible", deploy=lambda setting: _ansible(setting, strategy="free"), needs_python=True),
    Rival(
        name="Ansible with mitogen",
        deploy=lambda setting: _ansible(setting, strategy="mitogen_free"),
        needs_python=True,
    ),
    Rival(name="pyinfra", deploy=_pyinfra),
)
