"""What the rivals deploy: the very files that kubeworker leaves on its nodes, laid out for each rival's own means.

```
FOLDER/common/<path>          files that are the same on every node, binaries too
FOLDER/templates/<path>       one text for all nodes, with {{ node_name }} and {{ node_ip }}
FOLDER/nodes/<node>/<path>    what differs from node to node in another way
FOLDER/sums/<node>            sha256sum's list of all of them, to be checked on the node
FOLDER/manifest.json          the lists that playbooks and scripts go through
```
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from kubeworker.core.model import Blob, NodeState
from kubeworker.io.blob_store import BlobStore

Place = Literal["common", "templates", "nodes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One file of one node."""

    path: str
    mode: int
    stage: str
    """The component that it belongs to."""
    content: bytes = b""
    blob: str = ""
    """sha256 of a binary; its bytes lie in the control host's store."""

    @property
    def sha256(self) -> str:
        """Of the whole file."""
        return self.blob or hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """What is laid out, and what goes through it."""

    folder: Path
    places: Mapping[str, Place]
    """By path: where rivals take it from."""
    units: tuple[str, ...]
    paths: tuple[str, ...]
    blobs: tuple[Blob, ...]
    """The binaries of one node."""


def items(state: NodeState, extra: Iterable[Item] = ()) -> tuple[Item, ...]:
    """Every file of a node's desired state, in its order; `extra` comes in at the end of its stage."""
    return tuple(_items(state, tuple(extra)))


def _items(state: NodeState, extra: Sequence[Item]) -> Iterator[Item]:
    for stage in state.stages:
        name = stage.component
        for binary in stage.binaries:
            yield Item(path=binary.path, mode=binary.mode, stage=name, blob=binary.blob.sha256)
        for file in (*stage.files, *(unit.file for unit in stage.units)):
            yield Item(path=file.path, mode=file.mode, stage=name, content=file.content)
        for own in stage.kubeconfigs:
            if own.content:
                yield Item(path=own.path, mode=0o600, stage=name, content=own.content)
        yield from (item for item in extra if item.stage == name)


def template(contents: Mapping[str, str], addresses: Mapping[str, str]) -> str | None:
    """One text that gives each node's own when its name and address are put in; None where there is none."""
    first = next(iter(contents))
    text = contents[first].replace(addresses[first], "{{ node_ip }}").replace(first, "{{ node_name }}")
    if all(filled(text, name, addresses[name]) == content for name, content in contents.items()):
        return text
    return None


def filled(text: str, name: str, address: str) -> str:
    """What each rival's template engine makes of it."""
    return text.replace("{{ node_name }}", name).replace("{{ node_ip }}", address)


def lay_out(
    folder: Path,
    nodes: Mapping[str, tuple[Item, ...]],
    addresses: Mapping[str, str],
    state: NodeState,
    store: BlobStore,
) -> Payload:
    """Write it all; `state` is any node's, for directories and units."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    first = next(iter(nodes.values()))
    placed = [_lay_out(folder, item, nodes, addresses, store) for item in first]
    (folder / "sums").mkdir()
    for name, its in nodes.items():
        lines = "".join(f"{item.sha256}  {item.path}\n" for item in its)
        (folder / "sums" / name).write_text(lines)
    manifest = _manifest(first, placed, state)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return Payload(
        folder=folder,
        places={item.path: place for item, place in zip(first, placed, strict=True)},
        units=tuple(manifest["units"]),
        paths=tuple(item.path for item in first),
        blobs=tuple(dict.fromkeys(binary.blob for stage in state.stages for binary in stage.binaries)),
    )


def _lay_out(
    folder: Path,
    item: Item,
    nodes: Mapping[str, tuple[Item, ...]],
    addresses: Mapping[str, str],
    store: BlobStore,
) -> Place:
    each = {name: next(other for other in its if other.path == item.path) for name, its in nodes.items()}
    if item.blob:
        blob = store.root / "store" / f"sha256-{item.blob}"
        _hard_link(blob, folder / f"common{item.path}")
        return "common"
    if len({other.content for other in each.values()}) == 1:
        _write(folder / f"common{item.path}", item)
        return "common"
    text = template({name: other.content.decode() for name, other in each.items()}, addresses)
    if text is not None:
        _write(folder / f"templates{item.path}", replace(item, content=text.encode()))
        return "templates"
    for name, other in each.items():
        _write(folder / f"nodes/{name}{item.path}", other)
    return "nodes"


def _write(path: Path, item: Item) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(item.content)
    path.chmod(item.mode)


def _hard_link(blob: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(blob, path)
    except OSError:  # another file system
        shutil.copyfile(blob, path)


def _manifest(first: Sequence[Item], placed: Sequence[Place], state: NodeState) -> dict[str, Any]:
    directories = {each.path: each.mode for stage in state.stages for each in stage.directories}
    for item in first:
        directories.setdefault(item.path.rpartition("/")[0], 0o755)
    units = [unit for stage in state.stages for unit in stage.units]
    restarts: dict[str, list[str]] = {}
    for unit in units:
        for path in (*unit.restart_on, *unit.reload_on, *unit.read_at_start, unit.path):
            restarts.setdefault(path, []).append(unit.name)
    return {
        "directories": [
            {"path": path, "mode": f"{mode:04o}"}
            for path, mode in sorted(directories.items())
            if not path.startswith("/etc/systemd")
        ],
        "files": [
            {
                "path": item.path,
                "mode": f"{item.mode:04o}",
                "stage": item.stage,
                "place": place,
                "binary": bool(item.blob),
                "restarts": restarts.get(item.path, []),
            }
            for item, place in zip(first, placed, strict=True)
        ],
        "units": [unit.name for unit in units],
    }
