"""The fields of cluster.yaml as documentation, read off the models: the `init` template and docs/reference.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from kubeworker.core.spec import ControlHostPath
from kubeworker.io.field_texts import field_texts


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldDoc:
    """One field: how it is written in YAML and what it means."""

    name: str
    kind: str
    """text, number, list of text, `a` or `b`, ..."""
    required: bool
    default: str
    """As YAML writes it; empty where the field is required or is a group of fields."""
    text: str
    """The field's docstring, on one line."""
    model: type[BaseModel] | None
    """The model of a group of fields, of a list's items, or somewhere inside the value."""
    shape: Literal["value", "group", "list"]
    """group: the field is a `model`; list: a list of them."""


def field_docs(model: type[BaseModel]) -> Iterator[FieldDoc]:
    """The fields of a model in their order."""
    texts = field_texts(model)
    for name, field in model.model_fields.items():
        shape = _shape(field.annotation)
        required = field.is_required()
        yield FieldDoc(
            name=name,
            kind=_kind(field.annotation, marks=tuple(field.metadata)),
            required=required,
            default="" if required or shape == "group" else as_yaml(field.get_default(call_default_factory=True)),
            text=texts.get(name, ""),
            model=_model_in(field.annotation),
            shape=shape,
        )


def first_paragraph(model: type[BaseModel]) -> str:
    """A model's docstring, on one line."""
    return " ".join((model.__doc__ or "").split("\n\n", maxsplit=1)[0].split())


def as_yaml(value: Any) -> str:
    """A value as YAML writes it in one line."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _shape(annotation: Any) -> Literal["value", "group", "list"]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "group"
    if origin is tuple and _shape(arguments[0]) == "group":
        return "list"
    return _shape(arguments[0]) if origin is Annotated else "value"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for each in get_args(annotation) if (found := _model_in(each))), None)


_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", NoneType: "null"}


def _kind(annotation: Any, *, marks: tuple[Any, ...] = ()) -> str:
    if any(isinstance(mark, ControlHostPath) for mark in marks):
        return "path on the control host"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0], marks=annotation.__metadata__)
    if origin is Literal:
        return " or ".join(f"`{each}`" for each in arguments)
    if origin is tuple:
        return f"list of {_kind(arguments[0])}"
    if origin is dict:
        return f"map of text to {_kind(arguments[1])}"
    if origin in {Union, UnionType}:
        return " or ".join(_kind(each) for each in arguments)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "fields"
    return _WORDS.get(annotation, "anything")
