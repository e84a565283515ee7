"""The machine itself: what every other component needs of its kernel and packages, and fixes where asked.

Only kernel modules are loaded by default; of all else preflight names what is missing and the command that mends it.
"""

from __future__ import annotations

from pydantic import Field

from kubeworker.core.component import Component, ComponentConfig, Context
from kubeworker.core.horizon import CGROUP_V1, at_least
from kubeworker.core.model import (
    Absent,
    File,
    Module,
    RequireCgroup,
    RequireClock,
    RequireCommand,
    RequireDisk,
    RequireMachine,
    Requirement,
    RequireModule,
    RequireSwapOff,
    RequireSysctl,
    Stage,
    Sysctl,
)


class Config(ComponentConfig):
    """`components.host`: which shortcomings of a machine the tool may mend by itself."""

    disable_swap: bool = False
    """Turn swap off and keep it off; otherwise active swap is a preflight error."""
    load_modules: bool = True
    """Load the kernel modules that the components need, now and at boot (modules-load.d). Never in a container, whose
    kernel is its host's: there preflight names those that the host has not loaded. false: preflight asks only that
    they can be loaded."""
    sysctls: bool = False
    """Set the kernel settings that the components need, now and at boot (sysctl.d)."""
    packages: bool = False
    """Install the Debian packages of missing commands with apt-get."""
    max_clock_skew: float = Field(default=5, gt=0)
    """Seconds that a node's clock may differ from the control host's: a certificate signed here must be valid there."""
    min_memory_mib: int = Field(default=900, ge=0)
    """Memory, in MiB, below which a machine is warned of. kubelet alone reserves 612 MiB by default."""
    min_cpus: int = Field(default=1, ge=0)
    """Processors below which a machine is warned of."""
    min_free_gib: float = Field(default=1, ge=0)
    """Free space, in GiB, that must be left below each of `paths` after everything is installed."""


MODULES_FILE = "/etc/modules-load.d/90-kubeworker.conf"
SYSCTL_FILE = "/etc/sysctl.d/90-kubeworker.conf"

_FORWARD = RequireSysctl(
    key="net.ipv4.ip_forward",
    value="1",
    fix="sysctl -w net.ipv4.ip_forward=1 and a line in /etc/sysctl.d, or components.host: {sysctls: true}",
)
_OVERLAY = RequireModule(name="overlay", why="containerd's overlayfs snapshotter")
_COMMANDS = (
    RequireCommand(name="mount", package="mount"),
    RequireCommand(name="ip", package="iproute2"),
    RequireCommand(name="tar", package="tar"),
    RequireCommand(name="gzip", package="gzip"),
)


def _stage(context: Context[Config]) -> Stage:
    config = context.config
    own = _requirements(context)
    needs = (*own, *context.needs)
    container = context.facts.container
    modules = _modules(needs) if config.load_modules and not container else ()
    sysctls = _sysctls(needs) if config.sysctls else ()
    return Stage(
        component="host",
        requirements=_commands(own, needs) if config.packages else own,
        modules=modules,
        sysctls=sysctls,
        swap_off=config.disable_swap,
        packages=_packages(needs) if config.packages else (),
        files=_files(modules, sysctls),
        absent=_absent(container) if config.load_modules else (),
    )


def _commands(own: tuple[Requirement, ...], needs: tuple[Requirement, ...]) -> tuple[Requirement, ...]:
    """With everybody's commands, which the node is asked for: this stage installs those that it lacks."""
    return tuple(dict.fromkeys((*own, *(need for need in needs if isinstance(need, RequireCommand)))))


def _absent(container: str) -> tuple[Absent, ...]:
    # systemd-modules-load.service runs in a container that has CAP_SYS_MODULE, and would load them on its host.
    reason = f"the kernel of this {container} container is its host's"
    return (Absent(path=MODULES_FILE, reason=reason),) if container else ()


def _requirements(context: Context[Config]) -> tuple[Requirement, ...]:
    config, paths = context.config, context.cluster.paths
    free = int(config.min_free_gib * 2**30)
    # dict: two of the paths may be one.
    roots = tuple(dict.fromkeys((paths.bin_dir, paths.k8s_dir, paths.containerd_dir)))
    v1_refused = at_least(context.cluster.versions.kubernetes, CGROUP_V1.removed)
    return (
        RequireSwapOff(),
        RequireClock(skew=config.max_clock_skew),
        RequireCgroup(
            versions=(2,) if v1_refused else (1, 2),
            why=f"kubelet {context.cluster.versions.kubernetes} refuses cgroup v1 ({CGROUP_V1.source})"
            if v1_refused
            else "kubelet needs a mounted cgroup hierarchy",
        ),
        *(RequireDisk(path=path, free=free) for path in roots),
        RequireMachine(memory=config.min_memory_mib * 2**20, cpus=config.min_cpus),
        *_COMMANDS,
        _OVERLAY,
        _FORWARD,
    )


def _modules(needs: tuple[Requirement, ...]) -> tuple[Module, ...]:
    names = dict.fromkeys(need.name for need in needs if isinstance(need, RequireModule))
    return tuple(Module(name=name) for name in names)


def _sysctls(needs: tuple[Requirement, ...]) -> tuple[Sysctl, ...]:
    values = {need.key: need.value for need in needs if isinstance(need, RequireSysctl)}
    return tuple(Sysctl(key=key, value=value) for key, value in values.items())


def _packages(needs: tuple[Requirement, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(need.package for need in needs if isinstance(need, RequireCommand)))


def _files(modules: tuple[Module, ...], sysctls: tuple[Sysctl, ...]) -> tuple[File, ...]:
    files = []
    if modules:
        files.append(File(path=MODULES_FILE, content="".join(f"{module.name}\n" for module in modules).encode()))
    if sysctls:
        files.append(File(path=SYSCTL_FILE, content="".join(f"{s.key} = {s.value}\n" for s in sysctls).encode()))
    return tuple(files)


COMPONENT = Component(name="host", config=Config, stage=_stage, gathers=True)
