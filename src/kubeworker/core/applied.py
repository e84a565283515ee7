"""What the tool last put on a node, as the node itself keeps it: only for telling who has moved since. Pure.

After each stage that changed something the node has a record of what that stage asked for (`<home>/applied/COMPONENT`,
root's only). `status` compares three things by it: what was asked for then, what is asked for now, and what is there.
Nothing is ever decided by a record: what `apply` does is computed from the desired and the observed state alone, and a
node without a record is treated like any other; of its differences nobody can say whose they are.

Secrets are in it as hashes, for root's eyes: the file itself lies on the same node, and no more can be learned from its
hash than from it.

A line each: kind TAB value TAB note TAB subject. The first one is the head: format TAB seconds since the epoch TAB the
tool's version TAB digest of what cluster.yaml says of the node.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from kubeworker.core.model import Binary, Directory, File, KubeconfigTarget, Link, Origin, Stage
from kubeworker.core.spec import ClusterFile, NodeSpec

FORMAT = "kubeworker-applied 1"

Key: TypeAlias = tuple[str, str]
"""Kind and subject: ("file", "/etc/crictl.yaml"), ("unit", "kubelet.service")."""

Thing: TypeAlias = Directory | Binary | File | Link


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One thing that a stage asks for."""

    key: Key
    value: str = ""
    """What is compared: hash, mode and owner of a file, a setting's value."""
    note: str = ""
    """What is not: a binary's version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """One stage's record, as it was found on the node."""

    component: str
    when: float
    """Seconds since the epoch, by the node's clock."""
    origin: Origin
    items: Mapping[Key, Item] = field(default_factory=dict)


def inputs_digest(cluster: ClusterFile, node: NodeSpec) -> str:
    """What cluster.yaml says that may concern this node, as a hash: the same as long as that is the same.

    The other nodes are left out: what they contribute (routes) is a fact of the cluster, and a fleet that grows does
    not make each node's files come from another input.
    """
    seen = cluster.as_seen_by(node).model_copy(update={"nodes": (node,)})
    return hashlib.sha256(seen.model_dump_json().encode()).hexdigest()[:16]


def items(stage: Stage) -> tuple[Item, ...]:
    """What a stage asks for."""
    return tuple(_items(stage))


def text(stage: Stage) -> str:
    """The record without its head, which the node itself begins."""
    lines = ((each.key[0], each.value, each.note, each.key[1]) for each in _items(stage))
    return "".join("\t".join(_plain(word) for word in line) + "\n" for line in lines)


def parse(component: str, lines: Iterable[str]) -> Applied | None:
    """A record. None: it is none, or not whole enough to be one. Lines that are not understood are passed over."""
    head, *rest = list(lines) or [""]
    match head.split("\t"):
        case [word, when, tool, inputs] if word == FORMAT and when.isdigit():
            found = (line.split("\t", 3) for line in rest)
            known = (
                Item(key=(words[0], words[3]), value=words[1], note=words[2]) for words in found if len(words) == 4
            )
            return Applied(
                component=component,
                when=float(when),
                origin=Origin(tool=tool, inputs=inputs),
                items={each.key: each for each in known},
            )
        case _:
            return None


def file_value(sha256: str, mode: int, owner: str) -> str:
    """How a file with this content, mode and owner is written down."""
    return f"{sha256} {mode_value(mode, owner)}"


def mode_value(mode: int, owner: str) -> str:
    """How mode and owner of a directory are written down."""
    return f"{mode:04o} {owner}"


def link_value(target: str) -> str:
    """How a link's target is written down: it may hold anything."""
    return hashlib.sha256(target.encode("utf-8", "surrogateescape")).hexdigest()


def kubeconfig_value(server: str, ca_data: str) -> str:
    """How what is asked of kubelet's own kubeconfig is written down."""
    return hashlib.sha256(f"{server}\n{ca_data}".encode()).hexdigest()


def _items(stage: Stage) -> Iterator[Item]:
    if stage.swap_off:
        yield Item(key=("swap", "swap"))
    yield from (Item(key=("module", module.name)) for module in stage.modules)
    for sysctl in stage.sysctls:
        yield Item(key=("sysctl", sysctl.key), value=" ".join(sysctl.value.split()))
    units = (unit.file for unit in stage.units)
    things: Iterable[Thing] = (*stage.directories, *stage.binaries, *stage.files, *units, *stage.links)
    yield from map(_item, things)
    yield from map(_kubeconfig, stage.kubeconfigs)
    yield from (Item(key=("private", each.pattern)) for each in stage.private)
    yield from (Item(key=("absent", absent.path)) for absent in stage.absent)
    yield from (Item(key=("unit", unit.name)) for unit in stage.units)
    for absent_unit in stage.absent_units:
        if not absent_unit.waits_for:
            yield Item(key=("no-unit", absent_unit.name))
            yield from (Item(key=("absent", path)) for path in (absent_unit.path, *absent_unit.paths))
            yield from (Item(key=("leftover", each.name)) for each in absent_unit.leftovers)
    yield from (Item(key=("leftover", each.name)) for each in stage.leftovers)
    yield from (Item(key=("image", image.reference), value=image.archive.sha256) for image in stage.images)


def _item(thing: Thing) -> Item:
    match thing:
        case Directory(path=path, mode=mode, owner=owner):
            return Item(key=("directory", path), value=mode_value(mode, owner))
        case Binary(path=path, blob=blob, mode=mode, owner=owner, version=version):
            return Item(key=("binary", path), value=file_value(blob.sha256, mode, owner), note=version)
        case File(path=path, mode=mode, owner=owner):
            return Item(key=("file", path), value=file_value(thing.sha256, mode, owner))
        case Link(path=path, target=target):
            return Item(key=("link", path), value=link_value(target))


def _kubeconfig(target: KubeconfigTarget) -> Item:
    value = kubeconfig_value(target.server, base64.b64encode(target.ca).decode())
    return Item(key=("kubeconfig", target.path), value=value)


def _plain(word: str) -> str:
    """Nothing that would end a field or a line: no such name is known, and the record must stay readable."""
    return word.replace("\t", " ").replace("\n", " ")
