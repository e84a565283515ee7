"""Texts that are kept are those of equal documents, and of no others."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

import pytest

from kubeworker.core.formats import memo, yaml
from kubeworker.core.formats.memo import remembered


def counted() -> tuple[list[Any], Any]:
    rendered: list[Any] = []

    @remembered
    def render(document: Mapping[str, Any]) -> str:
        rendered.append(document)
        return repr(document)

    return rendered, render


def test_an_equal_document_is_rendered_once() -> None:
    rendered, render = counted()
    shared = {"b": 1}
    assert render({"a": [shared, shared]}) == render({"a": [{"b": 1}, {"b": 1}]}) == "{'a': [{'b': 1}, {'b': 1}]}"
    assert len(rendered) == 1


@pytest.mark.parametrize("other", [{"b": 2, "a": 1}, {"a": 1.0, "b": 2}, {"a": True, "b": 2}, {"a": "1", "b": 2}])
def test_order_and_types_make_another_document(other: dict[str, Any]) -> None:
    rendered, render = counted()
    assert render({"a": 1, "b": 2}) != render(other)
    assert len(rendered) == 2


def test_what_is_no_plain_value_is_rendered_every_time() -> None:
    assert yaml.dump({"day": dt.date(2026, 11, 25)}) == "day: 2026-11-25\n"


def test_no_more_than_so_many_are_kept() -> None:
    rendered, render = counted()
    for number in (*range(memo.KEPT + 1), 0):
        render({"number": number})
    assert len(rendered) == memo.KEPT + 2
