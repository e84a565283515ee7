"""Values made with `@frozen` behave as a frozen dataclass's do."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError, dataclass, field, fields, replace
from typing import Any

import pytest

from kubeworker.core.frozen import frozen


@frozen
class Port:
    """One with all kinds of fields."""

    number: int
    name: str = "http"
    secret: str = field(default="", repr=False)
    seen: list[str] = field(default_factory=list, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """The same, made by dataclasses alone."""

    number: int
    name: str = "http"
    secret: str = field(default="", repr=False)
    seen: list[str] = field(default_factory=list, compare=False)


@frozen
class Nothing:
    """One without fields."""


@frozen
class Text:
    """One with a single field."""

    text: str


def test_values_of_equal_fields_are_equal_and_hash_alike() -> None:
    assert Port(number=80, seen=["a"]) == Port(number=80, seen=["b"])
    assert hash(Port(number=80)) == hash(Port(number=80, name="http"))
    assert Port(number=80) != Port(number=81)
    assert len({Nothing(), Nothing(), Text(text="a"), Text(text="a"), Text(text="b")}) == 3


def test_values_of_other_classes_are_never_equal() -> None:
    plain: Any = Plain(number=80)
    assert plain != Port(number=80)
    assert Text(text="a") != "a"  # type: ignore[comparison-overlap]


def test_a_value_can_be_neither_changed_nor_extended() -> None:
    port: Any = Port(number=80)
    for name in ("number", "nothing"):
        with pytest.raises(FrozenInstanceError, match=name):
            setattr(port, name, 1)
        with pytest.raises(FrozenInstanceError, match=name):
            delattr(port, name)
    assert not hasattr(port, "__dict__")


def test_repr_is_a_dataclasses_and_hides_what_it_should() -> None:
    assert repr(Port(number=80, secret="xyz")) == repr(Plain(number=80, secret="xyz")).replace("Plain", "Port")
    assert repr(Nothing()) == "Nothing()"


def test_each_value_has_a_default_of_its_own_making() -> None:
    assert Port(number=1).seen is not Port(number=1).seen


@pytest.mark.parametrize("given", [{}, {"number": 1, "other": 2}])
@pytest.mark.parametrize("kind", [Port, Plain])
def test_missing_and_unknown_fields_are_refused(kind: Any, given: dict[str, int]) -> None:
    with pytest.raises(TypeError, match=r"number|other"):
        kind(**given)


@pytest.mark.parametrize("kind", [Port, Plain])
def test_fields_are_given_by_name(kind: Any) -> None:
    with pytest.raises(TypeError, match="positional"):
        kind(1)


def test_dataclasses_and_match_know_it() -> None:
    changed = replace(Port(number=80), name="web")
    assert [each.name for each in fields(changed)] == [each.name for each in fields(Plain)]
    match changed:
        case Port(number=number, name="web"):
            assert number == 80
        case _:
            pytest.fail("not matched")


def test_a_copy_is_equal() -> None:
    port = Port(number=80, secret="xyz", seen=["a"])
    deep = copy.deepcopy(port)
    assert (deep, deep.seen) == (port, ["a"])
    assert deep.seen is not port.seen
    assert copy.copy(port) == port


def test_a_method_that_the_class_has_itself_stays() -> None:
    @frozen
    class Own:
        text: str

        def __repr__(self) -> str:
            return self.text

    assert repr(Own(text="as it is")) == "as it is"
