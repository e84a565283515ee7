"""`init`: a commented cluster.yaml, made from the models: always the fields and defaults of this version."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from kubeworker.core import desired
from kubeworker.core.desired import Registry
from kubeworker.core.formats import nginx
from kubeworker.core.guide import environment_sh
from kubeworker.core.guide import inputs as guide_inputs
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import FileError, GuideFileError, reason
from kubeworker.flow.field_docs import FieldDoc, as_yaml, field_docs, first_paragraph

HEAD = """\
# What kubeworker needs to know of a cluster and its worker nodes.
# Lines that begin with `#` and no space are fields with their defaults: take the `#` away (and that of the group
# above) to set one. Paths are relative to this file. docs/reference.md has the same as a table.
"""

GUIDES_CA = Path("/opt/k8s/work")
"""Where the guide makes ca.pem and ca-key.pem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What the template is filled in with."""

    values: Mapping[str, Any]
    """By field. What has no default must be here; any other field that is here is no comment any more."""
    nodes: tuple[tuple[str, str], ...]
    """Name and address; the first is written out with every field."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """By field: a further comment."""
    head: tuple[str, ...] = ()
    """Comments for the top of the file."""


EXAMPLES = Answers(
    values={
        "cluster.apiservers": ["172.31.39.151:6443", "172.31.32.72:6443"],
        "cluster.cluster_cidr": "172.30.0.0/16",
        "cluster.service_cidr": "10.254.0.0/16",
        "cluster.dns_service_ip": "10.254.0.2",
    },
    nodes=(("k8s-01", "172.31.39.151"), ("k8s-02", "172.31.32.72")),
)
"""The guide's own values for what has no default."""


def write(path: Path, registry: Registry, answers: Answers = EXAMPLES) -> None:
    """Write the template. InputError: the file is there already (it is never overwritten), or can't be written."""
    text = template(registry, answers)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        hint = "edit it, or name another file with --out"
        raise FileError("exists already and is not overwritten", subject=str(path), hint=hint) from error
    except OSError as error:
        hint = "name a file in a folder that you can write to with --out"
        raise FileError(f"can't be written: {reason(error)}", subject=str(path), hint=hint) from error


def from_guide(path: Path, registry: Registry, *, environment: Path, kube_nginx_conf: Path | None) -> tuple[str, ...]:
    """Write what the guide's environment.sh says, `profile: guide`; returns remarks on what was kept out, a line each.

    The file is read, never run. InputError: a file can't be read, or what is needed can't be told from it.
    """
    text = _text(environment)
    if "\r\n" in text:
        hint = f"take the carriage returns out: sed -i 's/\\r$//' {environment}"
        raise GuideFileError(
            "has Windows line ends, and bash would take them into every value", subject=str(environment), hint=hint
        )
    servers = (str(kube_nginx_conf), _api_servers(kube_nginx_conf)) if kube_nginx_conf is not None else None
    inputs = guide_inputs.from_environment(environment_sh.read(text), subject=str(environment), servers=servers)
    ca, where = _ca(path, environment)
    answers = Answers(
        values={**inputs.values, **ca},
        nodes=inputs.nodes,
        notes={**inputs.notes, "cluster.ca": where},
        head=(f"Made from {environment}.", *inputs.remarks),
    )
    desired.validate_components(ClusterFile.model_validate(yaml.safe_load(template(registry, answers))), registry)
    write(path, registry, answers)
    return inputs.remarks


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()  # not read_text, which hides carriage returns
    except UnicodeDecodeError as error:
        raise GuideFileError("not a UTF-8 text file", subject=str(path), hint="save it as UTF-8") from error
    except OSError as error:
        raise GuideFileError(
            f"can't be read: {reason(error)}", subject=str(path), hint="check the path and its mode"
        ) from error


def _api_servers(path: Path) -> tuple[str, ...]:
    try:
        statements = nginx.parse(_text(path))
    except ValueError as error:
        hint = "kube-nginx -t says what is wrong with it"
        raise GuideFileError(f"is no nginx configuration: {error}", subject=str(path), hint=hint) from error
    return guide_inputs.api_servers(statements, subject=str(path))


def _ca(path: Path, environment: Path) -> tuple[dict[str, str], str]:
    """The CA's files beside environment.sh, else where the guide makes them, as cluster.yaml names them."""
    for folder in (environment.absolute().parent, GUIDES_CA):
        if all((folder / name).is_file() for name in ("ca.pem", "ca-key.pem")):
            here = folder.resolve() == path.absolute().parent.resolve()
            prefix = "" if here else f"{folder}/"
            return {"cluster.ca.cert": f"{prefix}ca.pem", "cluster.ca.key": f"{prefix}ca-key.pem"}, ""
    where = f"ca.pem and ca-key.pem lie neither beside {environment} nor in {GUIDES_CA}: name their places here."
    return {}, where


# ---------------------------------------------------------------------------------------------------------------


def template(registry: Registry, answers: Answers = EXAMPLES) -> str:
    """The text of a cluster.yaml that is valid as it stands and shows every field."""
    return _Template(registry=registry, answers=answers).text()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Template:
    registry: Registry
    answers: Answers

    def text(self) -> str:
        lines = [HEAD, *(line for text in self.answers.head for line in _comment(text, 0))]
        lines += [""] if self.answers.head else []
        for each in field_docs(ClusterFile):
            if each.name == "components":
                lines += self._components(each)
            else:
                lines += self._field(each, each.name, 0, commented=not each.required)
            lines.append("")
        return "\n".join(lines).rstrip() + "\n"

    def _components(self, group: FieldDoc) -> Iterator[str]:
        yield from _comment(group.text, 0)
        yield f"{self._mark('components', commented=True)}components:"
        for component in self.registry:
            path = f"components.{component.name}"
            yield f"  {self._mark(path, commented=True)}{component.name}:"
            yield from self._fields(component.config, path, 4, commented=True)

    def _fields(self, model: type[BaseModel], path: str, indent: int, *, commented: bool) -> Iterator[str]:
        for each in field_docs(model):
            yield from self._field(each, f"{path}.{each.name}", indent, commented=commented or not each.required)

    def _field(self, each: FieldDoc, path: str, indent: int, *, commented: bool) -> Iterator[str]:
        margin = " " * indent
        group = first_paragraph(each.model) if each.model and each.shape != "value" else ""
        yield from _comment(each.text or group, indent)
        yield from _comment(self.answers.notes.get(path, ""), indent)
        mark = self._mark(path, commented=commented)
        if each.model and each.shape == "list" and each.required:
            yield f"{margin}{each.name}:"
            yield from self._items(each.model, path, indent + 2)
        elif each.model and each.shape == "group":
            yield f"{margin}{mark}{each.name}:"
            yield from self._fields(each.model, path, indent + 2, commented=bool(mark))
        else:
            given = path in self.answers.values
            yield f"{margin}{mark}{each.name}: {as_yaml(self.answers.values[path]) if given else each.default}"

    def _mark(self, path: str, *, commented: bool) -> str:
        """`#`, unless an answer stands here or further down."""
        given = any(name == path or name.startswith(f"{path}.") for name in self.answers.values)
        return "#" if commented and not given else ""

    def _items(self, model: type[BaseModel], path: str, indent: int) -> Iterator[str]:
        """The list's first item with every field, then a short one for each further node."""
        margin = " " * indent
        (name, address), *others = self.answers.nodes
        first = replace(self, answers=replace(self.answers, values={f"{path}.name": name, f"{path}.address": address}))
        lines = tuple(first._fields(model, path, indent + 2, commented=False))
        at = next(index for index, line in enumerate(lines) if not line.lstrip().startswith("#"))
        yield from lines[:at]
        yield f"{margin}- {lines[at].lstrip()}"
        yield from lines[at + 1 :]
        for name, address in others:
            yield f"{margin}- {{name: {as_yaml(name)}, address: {as_yaml(address)}}}"


def _comment(text: str, indent: int) -> Iterator[str]:
    margin = " " * indent + "# "
    yield from textwrap.wrap(text, width=110, initial_indent=margin, subsequent_indent=margin)
