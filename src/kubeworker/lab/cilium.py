"""Cilium in a lab, as values: what its images are built of, and the chart values that only a lab needs.

Real machines pull Cilium's images from quay.io. A lab has no way out, so it makes images with the same names of the
same source. What is in them that upstream's have not, and the other way round, stands in docs/lab.md.
"""

from __future__ import annotations

from typing import Any

from kubeworker.core.artifacts.artifact import Artifact, GoBuild, SourceEdit, cni_ldflags
from kubeworker.core.spec import Versions

MODULE = "github.com/cilium/cilium"
RECIPE = "cilium"

PACKAGES = (
    # What upstream's image has of its distribution (images/runtime/install-runtime-deps.sh, without the completion),
    # and the two programs that upstream builds itself: clang compiles the BPF programs, bpftool probes the kernel.
    "iproute2", "iptables", "ipset", "kmod", "ca-certificates", "jq", "procps", "mount", "clang-19", "bpftool",
)  # fmt: skip

_REVISION = "ee3ca4a7e998 2025-07-14T17:10:19Z"
"""Commit and time of v1.17.6, as the Go module proxy tells them; the commands report them beside the version."""

WITHOUT_MODULES = SourceEdit(
    package=f"{MODULE}/pkg/datapath/linux/modules",
    file="modules_linux.go",
    old="""\
	fModules, err := os.Open(loadedModulesFilepath)
	if err != nil {
""",
    new="""\
	fModules, err := os.Open(loadedModulesFilepath)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
""",
)
"""The agent ends where there is no /proc/modules, which is so on a kernel without CONFIG_MODULES (small virtual
machines, sandboxes); with this it finds no modules loaded, which is what is true there. Where the file is, nothing
changes. 1.18 no longer reads it."""

_COMMANDS = {
    # name in the image: package, and the arguments that make it tell its version
    "cilium-agent": ("daemon", ("--version",)),
    "cilium-operator-generic": ("operator", ("--version",)),
    "cilium-dbg": ("cilium-dbg", ("version",)),
    "cilium-cni": ("plugins/cilium-cni", ("--version",)),
    "cilium-health": ("cilium-health", ()),
    "cilium-health-responder": ("cilium-health/responder", ()),
    "cilium-mount": ("tools/mount", ()),
    "cilium-sysctlfix": ("tools/sysctlfix", ()),
}
OPERATOR = "cilium-operator-generic"
LOOPBACK = "loopback"
"""The agent's image brings this CNI plugin along and installs it where a node has none."""


def artifacts(versions: Versions) -> tuple[Artifact, ...]:
    """The commands in both images; one `go build` makes all of Cilium's."""
    ldflags = f"-s -w -X '{MODULE}/pkg/version.ciliumVersion={versions.cilium} {_REVISION}'"
    commands = (
        Artifact(
            name=name,
            version=versions.cilium,
            build=GoBuild(
                module=RECIPE,
                package=f"{MODULE}/{package}",
                ldflags=ldflags,
                # ipam_provider_operator is of the operator alone, and makes it cilium-operator-generic.
                tags="osusergo,ipam_provider_operator",
                edits=(WITHOUT_MODULES,),
            ),
            report=report,
            field="versions.cilium",
        )
        for name, (package, report) in _COMMANDS.items()
    )
    plugin = Artifact(
        name=LOOPBACK,
        version=versions.cni_plugins,
        build=GoBuild(
            module="cni",
            package="github.com/containernetworking/plugins/plugins/main/loopback",
            ldflags=cni_ldflags(versions.cni_plugins),
        ),
        field="versions.cni_plugins",
    )
    return (*commands, plugin)


def references(version: str) -> tuple[str, str]:
    """Names of the agent's and the operator's image, as upstream's."""
    return f"quay.io/cilium/cilium:v{version}", f"quay.io/cilium/operator-generic:v{version}"


_AGENT_CAPABILITIES = (
    "CHOWN", "KILL", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "SYS_MODULE", "SYS_ADMIN", "SYS_RESOURCE", "DAC_OVERRIDE",
    "FOWNER", "SETGID", "SETUID",
)  # fmt: skip
_CLEAN_CAPABILITIES = ("NET_ADMIN", "SYS_MODULE", "SYS_ADMIN", "SYS_RESOURCE")
"""The chart's defaults of securityContext.capabilities."""


def values(version: str, *, sys_resource: bool) -> dict[str, Any]:
    """Chart values for a lab's cluster.yaml; `sys_resource`: machines have CAP_SYS_RESOURCE."""
    agent, operator = references(version)

    def possible(names: tuple[str, ...]) -> list[str]:
        return [name for name in names if sys_resource or name != "SYS_RESOURCE"]

    return {
        # By tag: the digests that the chart names are those of upstream's images.
        "image": {"override": agent, "pullPolicy": "Never"},
        "operator": {
            "image": {"override": operator, "pullPolicy": "Never"},
            # Two never run on one node, and a lab may have one.
            "replicas": 1,
        },
        # cilium-envoy is a C++ program that nothing here builds; without it there are no layer-7 policies.
        "envoy": {"enabled": False},
        "l7Proxy": False,
        "securityContext": {
            "capabilities": {
                # Debian's bpftool insists on BPF and PERFMON, where upstream's is content with SYS_ADMIN.
                "ciliumAgent": [*possible(_AGENT_CAPABILITIES), "BPF", "PERFMON"],
                "cleanCiliumState": possible(_CLEAN_CAPABILITIES),
            }
        },
    }
