"""`init`: a commented cluster.yaml, made from the models: always the fields and defaults of this version."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kubeworker.core.component import Component
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import InputError
from kubeworker.flow.field_docs import FieldDoc, as_yaml, field_docs, first_paragraph

HEAD = """\
# What kubeworker needs to know of a cluster and its worker nodes.
# Lines that begin with `#` and no space are fields with their defaults: take the `#` away (and that of the group
# above) to set one. Paths are relative to this file. docs/reference.md has the same as a table.
"""

EXAMPLES: Mapping[str, Any] = {
    "cluster.apiservers": ["172.31.39.151:6443", "172.31.32.72:6443"],
    "cluster.cluster_cidr": "172.30.0.0/16",
    "cluster.service_cidr": "10.254.0.0/16",
    "cluster.dns_service_ip": "10.254.0.2",
    "nodes.name": "k8s-01",
    "nodes.address": "172.31.39.151",
}
"""The guide's own values for what has no default."""

SECOND_NODE = "  - {name: k8s-02, address: 172.31.32.72}"


def write(path: Path, registry: Sequence[Component[Any]]) -> None:
    """Write the template. InputError: the file is there already (it is never overwritten), or can't be written."""
    text = template(registry)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        hint = "edit it, or name another file with --out"
        raise InputError("exists already and is not overwritten", subject=str(path), hint=hint) from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        hint = "name a file in a folder that you can write to with --out"
        raise InputError(f"can't be written: {reason}", subject=str(path), hint=hint) from error


def template(registry: Sequence[Component[Any]]) -> str:
    """The text of a cluster.yaml that is valid as it stands and shows every field."""
    lines = [HEAD]
    for field in field_docs(ClusterFile):
        if field.name == "components":
            lines += [*_comment(field.text, 0), "#components:"]
            for component in registry:
                lines += [f"  #{component.name}:", *_fields(component.config, component.name, 4, commented=True)]
        else:
            lines += _field(field, field.name, 0, commented=not field.required)
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _fields(model: type[BaseModel], path: str, indent: int, *, commented: bool) -> Iterator[str]:
    for field in field_docs(model):
        yield from _field(field, f"{path}.{field.name}", indent, commented=commented or not field.required)


def _field(field: FieldDoc, path: str, indent: int, *, commented: bool) -> Iterator[str]:
    margin, mark = " " * indent, "#" if commented else ""
    group = first_paragraph(field.model) if field.model and field.shape != "value" else ""
    yield from _comment(field.text or group, indent)
    if field.model and field.shape == "list" and field.required:
        yield f"{margin}{field.name}:"
        yield from _items(field.model, path, indent + 2)
    elif field.model and field.shape == "group":
        yield f"{margin}{mark}{field.name}:"
        yield from _fields(field.model, path, indent + 2, commented=commented)
    else:
        value = as_yaml(EXAMPLES[path]) if field.required else field.default
        yield f"{margin}{mark}{field.name}: {value}"


def _items(model: type[BaseModel], path: str, indent: int) -> Iterator[str]:
    """A list's first item with every field, then a short one."""
    margin = " " * indent
    lines = tuple(_fields(model, path, indent + 2, commented=False))
    first = next(index for index, line in enumerate(lines) if not line.lstrip().startswith("#"))
    yield from lines[:first]
    yield f"{margin}- {lines[first].lstrip()}"
    yield from lines[first + 1 :]
    yield SECOND_NODE


def _comment(text: str, indent: int) -> Iterator[str]:
    margin = " " * indent + "# "
    yield from textwrap.wrap(text, width=110, initial_indent=margin, subsequent_indent=margin)
