"""`explain`: the knowledge read from the package, with the fields of cluster.yaml and the values of one cluster."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from kubeworker.core import explain
from kubeworker.core.desired import Registry
from kubeworker.core.explain import Entry, Knowledge
from kubeworker.core.settings import settings, without_positions
from kubeworker.core.spec import ClusterFile, Paths
from kubeworker.errors import SpecError
from kubeworker.flow import render
from kubeworker.flow.field_docs import FieldDoc, field_docs
from kubeworker.io import cluster_file

GUIDE = "guide.yaml"
"""The guide's files as settings; written by scripts/explanations."""

_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """An entry with what the models and a cluster say of it."""

    entry: Entry
    guide: str
    field: str = ""
    """What the models say of the field that moves it."""
    here: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Of a key: each value in this cluster, and the nodes that have it."""

    def as_json(self) -> dict[str, Any]:
        """The machine-readable form."""
        entry = self.entry
        return {
            "kind": entry.kind,
            "name": entry.name,
            "file": entry.file,
            "what": entry.what,
            "why": entry.why,
            "component": entry.component,
            "made_by": made_by(entry),
            "option": entry.option,
            "field": self.field,
            "guide": self.guide,
            "values": [{"value": value, "nodes": list(nodes)} for value, nodes in self.here],
            "way_out": entry.way_out,
            "source": entry.source,
        }


def made_by(entry: Entry) -> str:
    """FILE: FUNCTION of this program that makes it."""
    if entry.made_by and entry.component:
        return f"components/{entry.component}.py: {entry.made_by}"
    return {"preflight": "core/preflight", "action": "core/actions.py", "error": "errors.py"}.get(entry.kind, "")


def load(paths: Paths) -> Knowledge:
    """Everything that can be explained, for a cluster with these places."""
    folder = importlib.resources.files("kubeworker") / "explanations"
    documents = {each.name: yaml.load(each.read_text("utf-8"), _Loader) for each in sorted(folder.iterdir(), key=str)}  # noqa: S506 - a safe loader
    guide = documents.pop(GUIDE)
    return explain.knowledge(documents.values(), guide, paths)


def cluster_of(path: Path | None, default: Path, registry: Registry) -> ClusterFile | None:
    """The cluster whose values are shown: the named file's, else the default one's where that is there and right.

    SpecError: the named one is wrong. The default one may be what an error is asked about.
    """
    if path is not None:
        return cluster_file.load(path, registry)
    try:
        return cluster_file.load(default, registry) if default.is_file() else None
    except SpecError:
        return None


def explained(
    knowledge: Knowledge, entries: Sequence[Entry], registry: Registry, cluster: ClusterFile | None
) -> Iterator[Explained]:
    """The entries with all that is known of them."""
    rendered = _rendered(cluster, registry) if cluster and any(entry.kind == "key" for entry in entries) else {}
    for entry in entries:
        moved_by = field(entry.option, registry)
        yield Explained(
            entry=entry,
            guide=knowledge.guides(entry),
            field=moved_by.text if moved_by else "",
            here=tuple(_here(entry, rendered)),
        )


def field(option: str, registry: Registry) -> FieldDoc | None:
    """What the models say of a field: `components.kubelet.max_pods`; None where there is none of that name."""
    names = option.partition(":")[0].split(".") if option else []
    configs = {component.name: component.config for component in registry}
    model: type[BaseModel] | None = ClusterFile
    if names[:1] == ["components"] and len(names) > 1:
        model, names = configs.get(names[1]), names[2:]
    found: FieldDoc | None = None
    for name in names:
        found = next((each for each in field_docs(model) if each.name == name), None) if model else None
        if found is None:
            return None
        model = found.model
    return found


def _rendered(cluster: ClusterFile, registry: Registry) -> Mapping[str, Mapping[str, Mapping[str, str]]]:
    """By node and path, the settings that are no secrets; positions in lists left out."""
    return {
        node.name: {
            file.path: {
                without_positions(key): value for key, value in settings(file.path, file.content.decode()).items()
            }
            for file in render.files(render.offline_state(cluster, registry, node.name))
            if not file.secret
        }
        for node in cluster.nodes
    }


def _here(
    entry: Entry, rendered: Mapping[str, Mapping[str, Mapping[str, str]]]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    if entry.kind != "key" or entry.shared:
        return
    pattern = re.compile(".*".join(map(re.escape, entry.name.split("*"))))
    found: dict[str, list[str]] = {}
    for node, files in rendered.items():
        for key, value in files.get(entry.file, {}).items():
            if pattern.fullmatch(key):
                found.setdefault(value or "there", []).append(node)
    for value, nodes in found.items():
        yield value, tuple(nodes)
