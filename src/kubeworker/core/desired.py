"""The desired state of a node: every component's stage, computed from cluster.yaml and what is known of the cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

from pydantic import ValidationError

from kubeworker.core.applied import inputs_digest
from kubeworker.core.artifacts.artifact import Artifact
from kubeworker.core.cluster.kube_views import NodeStatus
from kubeworker.core.component import Archive, Component, ConfigT, Context, Credentials, Facts
from kubeworker.core.model import (
    UNKNOWN,
    Blob,
    Check,
    NodeState,
    Origin,
    RequireCommand,
    Requirement,
    RequireSwapOff,
    RequireSysctl,
    Stage,
)
from kubeworker.core.nearest import meant
from kubeworker.core.spec import ClusterFile, NodeSpec
from kubeworker.core.stage_memo import StageMemo
from kubeworker.errors import SpecError

Registry = Sequence[Component[Any]]
"""`kubeworker.components.discover()`: components in the order in which their stages are carried out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What one node's desired state is computed from, beside what is seen of the live cluster."""

    cluster: ClusterFile
    registry: Registry
    blobs: Mapping[str, Blob]
    archives: Mapping[str, Archive]
    local_files: Mapping[str, bytes] = field(repr=False)
    credentials: Credentials
    """This node's: the bootstrap token is its own."""
    tool: str = ""
    """The tool's own version."""
    memo: StageMemo = field(default_factory=StageMemo, repr=False, compare=False)
    """What was computed for this cluster, these blobs, archives and files before."""

    def state(self, node: NodeSpec, facts: Facts) -> NodeState:
        """The node's desired state under these facts."""
        state = desired(
            self.cluster,
            node,
            registry=self.registry,
            blobs=self.blobs,
            archives=self.archives,
            local_files=self.local_files,
            credentials=self.credentials,
            facts=facts,
            memo=self.memo,
        )
        return replace(state, origin=Origin(tool=self.tool, inputs=inputs_digest(self.cluster, node)))


def validate_components(cluster: ClusterFile, registry: Registry) -> None:
    """SpecError: an unknown component, a wrong field, what a component can't be set up for, paths that collide."""
    _known_components(cluster.components, registry, "")
    _validate(cluster, cluster.nodes[0].model_copy(update={"components": {}}), registry)
    for index, node in _with_own_settings(cluster):
        field = f"nodes.{index}."
        _known_components(node.components, registry, field)
        try:
            _validate(cluster, node, registry)
        except SpecError as error:
            if not error.subject.startswith("components."):
                raise
            raise SpecError(error.message, subject=field + error.subject, hint=error.hint) from error


def _with_own_settings(cluster: ClusterFile) -> Iterator[tuple[int, NodeSpec]]:
    """Nodes with settings of their own, with their place in the file; of several with the same ones the first."""
    known: list[dict[str, Any]] = [{}]
    for index, node in enumerate(cluster.nodes):
        if node.components not in known:
            known.append(node.components)
            yield index, node


def _known_components(given: Mapping[str, Any], registry: Registry, field: str) -> None:
    known = {component.name: component for component in registry}
    for name, settings in given.items():
        if name not in known:
            raise SpecError(
                f"there is no component {name!r}",
                subject=f"{field}components.{name}",
                hint=meant(name, known),
            )
        for setting in known[name].cluster_wide if field else ():
            if setting in settings:
                raise SpecError(
                    "holds for the whole cluster",
                    subject=f"{field}components.{name}.{setting}",
                    hint=f"set it in components.{name}",
                )


def _validate(cluster: ClusterFile, node: NodeSpec, registry: Registry) -> None:
    seen = cluster.as_seen_by(node)
    for component in registry:
        settings = config(component, seen)
        if component.enabled(seen):
            component.validate(seen, settings)
    # Nodes with the same settings have the same paths; what fills them is of no account here.
    desired(
        cluster,
        node,
        registry=registry,
        blobs={artifact.name: UNKNOWN for artifact in _each(seen, registry, lambda component: component.artifacts)},
        archives={
            path: Archive(references=(), blob=UNKNOWN)
            for path in _each(seen, registry, lambda component: component.archives)
        },
        local_files={},
        credentials=Credentials(ca_cert=b""),
        facts=Facts(),
    )


def desired(
    cluster: ClusterFile,
    node: NodeSpec,
    *,
    registry: Registry,
    blobs: Mapping[str, Blob],
    archives: Mapping[str, Archive],
    local_files: Mapping[str, bytes],
    credentials: Credentials,
    facts: Facts,
    memo: StageMemo | None = None,
) -> NodeState:
    """All stages of one node, in order. The set of paths named does not depend on `facts`.

    `memo` is one for all calls with the same cluster, blobs, archives and files. Raises SpecError when two components
    claim one path.
    """
    if memo is None or node.components:
        # Settings of the node's own are no part of what a memo knows stages by.
        memo = StageMemo()
    cluster = cluster.as_seen_by(node)
    stages: dict[str, Stage] = {}
    enabled = [component for component in registry if component.enabled(cluster)]
    for component in sorted(enabled, key=lambda component: component.gathers):
        context: Context[Any] = Context(
            cluster=cluster,
            node=node,
            config=_config(component, cluster, memo),
            blobs=blobs,
            archives=archives,
            local_files=local_files,
            credentials=credentials,
            facts=facts,
            needs=tuple(need for stage in stages.values() for need in stage.requirements) if component.gathers else (),
        )
        stages[component.name] = memo.stage(component, context)
    ordered = tuple(stages[component.name] for component in enabled)
    _one_owner(ordered)
    return NodeState(node=node.name, bin_dir=cluster.paths.bin_dir, stages=_without_fulfilled(ordered))


def _config(component: Component[ConfigT], cluster: ClusterFile, memo: StageMemo) -> ConfigT:
    known = memo.config(component)
    if known is None:
        known = config(component, cluster)
        memo.keep_config(component, known)
    return known


def artifacts(cluster: ClusterFile, registry: Registry) -> tuple[Artifact, ...]:
    """Every binary that the cluster's nodes need."""
    return _of_nodes(cluster, registry, lambda component: component.artifacts)


def tools(cluster: ClusterFile, registry: Registry) -> tuple[Artifact, ...]:
    """Every artifact that the control host needs for this cluster's charts."""
    return tuple(_each(cluster, registry, lambda component: component.tools))


def archives(cluster: ClusterFile, registry: Registry) -> tuple[str, ...]:
    """Paths, on the control host, of the image archives that nodes must have imported."""
    return _of_nodes(cluster, registry, lambda component: component.archives)


def local_files(cluster: ClusterFile, registry: Registry) -> tuple[str, ...]:
    """Paths, on the control host, of the files whose content goes into files on nodes."""
    return _of_nodes(cluster, registry, lambda component: component.local_files)


Item = TypeVar("Item")
Pick: TypeAlias = Callable[[Component[Any]], Callable[[ClusterFile, Any], tuple[Item, ...]]]
"""Which of a component's functions is asked."""


def _of_nodes(cluster: ClusterFile, registry: Registry, pick: Pick[Item]) -> tuple[Item, ...]:
    """What the components say, each thing once, of the file as any of its nodes sees it."""
    return tuple(dict.fromkeys(item for seen in _variants(cluster) for item in _each(seen, registry, pick)))


def _each(seen: ClusterFile, registry: Registry, pick: Pick[Item]) -> Iterator[Item]:
    for component in registry:
        if component.enabled(seen):
            yield from pick(component)(seen, config(component, seen))


def _variants(cluster: ClusterFile) -> tuple[ClusterFile, ...]:
    """The file as its nodes see it, once for each set of settings that at least one node has."""
    plain = (cluster,) if any(not node.components for node in cluster.nodes) else ()
    return (*plain, *(cluster.as_seen_by(node) for _, node in _with_own_settings(cluster)))


def checks(
    cluster: ClusterFile,
    node: NodeSpec,
    *,
    registry: Registry,
    archives: Mapping[str, Archive],
    credentials: Credentials,
    facts: Facts,
) -> tuple[Check, ...]:
    """Everything that `verify` proves of this node."""
    cluster = cluster.as_seen_by(node)
    return tuple(
        check
        for component in registry
        if component.enabled(cluster)
        for check in component.checks(
            Context(
                cluster=cluster,
                node=node,
                config=config(component, cluster),
                blobs={},
                archives=archives,
                local_files={},
                credentials=credentials,
                facts=facts,
            )
        )
    )


def warnings(cluster: ClusterFile, registry: Registry) -> tuple[str, ...]:
    """What a plan should warn of, whatever the nodes look like."""
    return _of_nodes(cluster, registry, lambda component: component.warnings)


def node_warnings(cluster: ClusterFile, registry: Registry, nodes: Sequence[NodeStatus]) -> tuple[str, ...]:
    """What a plan should warn of, seeing the cluster's Nodes."""
    return tuple(
        text
        for component in registry
        if component.enabled(cluster)
        for text in component.node_warnings(cluster, config(component, cluster), nodes)
    )


def paths(state: NodeState) -> tuple[str, ...]:
    """Every managed path of the node but directories: what the probe looks at."""
    return tuple(path for stage in state.stages for path in _paths(stage))


def config(component: Component[ConfigT], cluster: ClusterFile) -> ConfigT:
    """The component's settings in cluster.yaml, its defaults where nothing is set; SpecError for a wrong field."""
    given = cluster.components.get(component.name, {})
    try:
        return component.config.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in ("components", component.name, *first["loc"]))
        if first["type"] == "extra_forbidden":
            hint = meant(str(first["loc"][-1]), component.config.model_fields)
            raise SpecError("there is no such field", subject=where, hint=hint) from error
        message = str(first["msg"]).removeprefix("Value error, ")
        raise SpecError(message, subject=where) from error


def _one_owner(stages: Sequence[Stage]) -> None:
    owners: dict[str, str] = {}
    for stage in stages:
        for path in _paths(stage):
            if path in owners:
                raise _collision(f"{path} is claimed by {owners[path]} and by {stage.component}")
            owners[path] = stage.component
    modes: dict[str, int] = {}
    for stage in stages:
        for directory in stage.directories:
            if directory.path in owners:
                raise _collision(f"{directory.path} is a file of {owners[directory.path]} and a directory too")
            if modes.setdefault(directory.path, directory.mode) != directory.mode:
                raise _collision(f"{directory.path} is asked for twice, with different modes")


def _collision(message: str) -> SpecError:
    return SpecError(message, subject="paths", hint="give bin_dir, k8s_dir and containerd_dir places of their own")


def _paths(stage: Stage) -> Iterator[str]:
    for things in (stage.binaries, stage.files, stage.links, stage.absent, stage.deferred, stage.units):
        for thing in things:
            yield thing.path
    for unit in stage.absent_units:
        yield from (unit.path, *unit.paths)


def _without_fulfilled(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Requirements that the state itself brings about are no reason to refuse the node.

    RequireModule stays: that a module can be loaded at all is still to be found out. A command stays with the stage
    that installs its package: whether it has to is seen on the node.
    """
    sysctls = {sysctl.key for stage in stages for sysctl in stage.sysctls}
    packages = {package for stage in stages for package in stage.packages}
    swap_off = any(stage.swap_off for stage in stages)

    def open_(stage: Stage, need: Requirement) -> bool:
        match need:
            case RequireSysctl(key=key):
                return key not in sysctls
            case RequireCommand(package=package):
                return package in stage.packages or package not in packages
            case RequireSwapOff():
                return not swap_off
            case _:
                return True

    return tuple(
        replace(stage, requirements=tuple(need for need in stage.requirements if open_(stage, need)))
        for stage in stages
    )
