"""`kubeworker lab`: a local lab of real machines with a real control plane. See docs/lab.md."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts
from cyclopts import Parameter

from kubeworker.cli.options import PROGRESS, Flag, Json, ProgressOptions

if TYPE_CHECKING:
    from kubeworker.lab import LabState

app = cyclopts.App(name="lab", help="A local lab: real machines with a real control plane.")

Name = Annotated[str, Parameter(name="--name", help="Which lab: several live side by side.")]
StateDir = Annotated[
    Path | None,
    Parameter(name="--state-dir", help="Where labs are kept; default: $KUBEWORKER_LABS, else the XDG state folder."),
]
Plugin = Literal["bridge", "cilium"]
DEFAULT = "default"


@app.command
def up(
    *,
    name: Name = DEFAULT,
    workers: Annotated[
        int | None, Parameter(help="Plain machines beside k8s-01 and k8s-02; default: as it is.")
    ] = None,
    full_kernel: Annotated[
        int | None, Parameter(help="Plain machines with a kernel of their own (fk-01, ...); default: as it is.")
    ] = None,
    cni: Annotated[
        Plugin | None,
        Parameter(help="Network plugin in the lab's cluster.yaml; default: as it is, bridge in a new lab."),
    ] = None,
    signing_duration: Annotated[
        str | None,
        Parameter(help="How long certificates of nodes last, such as 10m; default: as it is, a year in a new lab."),
    ] = None,
    state_dir: StateDir = None,
    progress: ProgressOptions = PROGRESS,
) -> None:
    """Boot the lab's machines and control plane; repairs a broken lab and leaves a running one alone."""
    from kubeworker import lab
    from kubeworker.cli.report import reporting

    with reporting(progress.form) as report:
        running = lab.up(
            name,
            workers=workers,
            full_kernel=full_kernel,
            cni=cni,
            signing_duration=signing_duration,
            labs=state_dir,
            report=report,
        )
    if not progress.quiet:
        _show(running)


@app.command
def prepare(
    *,
    cni: Annotated[Plugin, Parameter(help="cilium: also its commands and images, built from source.")] = "bridge",
    progress: ProgressOptions = PROGRESS,
) -> None:
    """Fill the caches (root file system, all binaries) without booting anything."""
    from kubeworker import lab
    from kubeworker.cli.report import reporting

    with reporting(progress.form) as report:
        lab.prepare(cni=cni, report=report)


@app.command
def image(out: Path, /, *, progress: ProgressOptions = PROGRESS) -> None:
    """Write an OCI archive with kubeworker in it, for `csr service --kind deployment`: no registry is needed.

    It is `registry.example.com/kubeworker:lab`, of Debian's Python and the libraries of this installation; it needs
    apt. Elsewhere, and for other names, there is packaging/Containerfile.

    Args:
        out: The archive's path: for components.containerd.preload_images, or `ctr -n k8s.io images import`.
    """
    from kubeworker.cli.output import check_writable
    from kubeworker.cli.report import reporting
    from kubeworker.lab import approver_image, host

    host.require_root()
    check_writable(out)
    with reporting(progress.form) as report:
        approver_image.write(out, report)


@app.command
def down(
    *,
    name: Name = DEFAULT,
    every: Annotated[Flag, Parameter(name="--all", help="Take down every lab in the state folder.")] = False,
    state_dir: StateDir = None,
    progress: ProgressOptions = PROGRESS,
) -> None:
    """Power the lab's machines off and remove all of it; the root file system stays cached."""
    from kubeworker import lab
    from kubeworker.cli.report import reporting

    with reporting(progress.form) as report:
        for each in lab.names(state_dir) if every else (name,):
            lab.down(each, labs=state_dir, report=report)


@app.command
def status(*, name: Name = DEFAULT, state_dir: StateDir = None, json: Json = False) -> None:
    """Tell which machines a lab has, where they are, and whether they are on."""
    from kubeworker import lab
    from kubeworker.cli.output import print_document

    found = lab.find(name, labs=state_dir)
    if json:
        print_document(_document(found))
    else:
        _show(found)


@app.command
def ssh(
    machine: str,
    /,
    *command: Annotated[str, Parameter(allow_leading_hyphen=True)],
    name: Name = DEFAULT,
    user: Annotated[str, Parameter(help="root, or ops (passwordless sudo).")] = "root",
    state_dir: StateDir = None,
) -> None:
    """Log in to a machine, or run a command there: `kubeworker lab ssh k8s-01 -- uptime`."""
    from kubeworker import lab

    found = lab.find(name, labs=state_dir)
    os.execvp("ssh", [*lab.ssh_command(found, found.machine(machine), user), *command])  # noqa: S606 (ssh takes over the terminal)


def _document(found: LabState) -> dict[str, Any]:
    from kubeworker import lab

    on = lab.running(found)
    return {
        "running": all(on.values()),
        "cluster_yaml": str(found.cluster_yaml),
        "kubeconfig": str(found.kubeconfig),
        "ca": str(found.ca),
        "machines": [
            {
                "name": machine.name,
                "address": machine.address,
                "roles": list(machine.roles),
                "kind": machine.kind,
                "running": on[machine.name],
            }
            for machine in found.machines
        ],
    }


def _show(found: LabState) -> None:
    document = _document(found)
    print(f"lab {found.name}: {'running' if document['running'] else 'not running'}")
    print(f"cluster file: {document['cluster_yaml']}")
    for machine in document["machines"]:
        power = "on" if machine["running"] else "off"
        print(f"  {machine['name']:<12} {machine['address']:<15} {power:<4} {_what(machine)}")


def _what(machine: dict[str, Any]) -> str:
    roles = ", ".join(machine["roles"])
    return f"{roles} ({machine['kind']})" if machine["kind"] != "nspawn" else roles
