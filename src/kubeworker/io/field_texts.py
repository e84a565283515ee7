"""What a field of cluster.yaml is for: the docstring below it, read from its model's source where it is shown.

pydantic can keep these as descriptions (use_attribute_docstrings), but then reads the source of every model whenever
a command starts, for texts that only errors and the documentation show.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import textwrap
from collections.abc import Iterator, Mapping

from pydantic import BaseModel


@functools.cache
def field_texts(model: type[BaseModel]) -> Mapping[str, str]:
    """Each documented field's text on one line, by the field's name; fields of the model's bases too."""
    bases = (base for base in reversed(model.__mro__) if issubclass(base, BaseModel) and base is not BaseModel)
    return {name: text for base in bases for name, text in _own(base)}


def _own(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    for pair in itertools.pairwise(definition.body):
        match pair:
            case (ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text)))):
                yield name, " ".join(text.split())
            case _:
                pass
