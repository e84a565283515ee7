"""`@frozen`: a dataclass with slots and keyword-only fields, cheap to define.

`dataclass(frozen=True)` writes and compiles six methods for each class, most of a millisecond. The two hundred classes
of a plan were a fifth of what the command costs, start to end. Here the classes share five of these methods, and the
sixth, `__init__`, is compiled for the first value. All else is the dataclass's own: fields(), replace(), match.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, FrozenInstanceError, dataclass, field, fields
from operator import attrgetter
from typing import Any, NoReturn, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """What `dataclass(frozen=True, slots=True, kw_only=True)` makes, hashable as long as its fields are."""
    made: Any = dataclass(init=False, repr=False, eq=False, slots=True, kw_only=True)(cls)
    compared = tuple(each.name for each in fields(made) if each.compare)
    equal, digest = _comparison(_key(compared))
    methods: dict[str, Callable[..., Any]] = {
        "__init__": _first_init(made),
        "__repr__": _repr,
        "__eq__": equal,
        "__hash__": digest,
        "__setattr__": _refuse,
        "__delattr__": _refuse,
        "__getstate__": _state,
        "__setstate__": _restore,
    }
    for name, method in methods.items():
        if name not in vars(cls):
            setattr(made, name, method)
    return made  # type: ignore[no-any-return]  # it is the class itself, made anew for its slots


def _key(names: tuple[str, ...]) -> Callable[[Any], object]:
    return attrgetter(*names) if names else lambda _self: ()


def _comparison(key: Callable[[Any], object]) -> tuple[Callable[[Any, object], bool], Callable[[Any], int]]:
    def __eq__(self: Any, other: object) -> bool:  # noqa: N807  # seen in tracebacks
        return key(self) == key(other) if other.__class__ is self.__class__ else NotImplemented

    def __hash__(self: Any) -> int:  # noqa: N807
        return hash(key(self))

    return __eq__, __hash__


def _first_init(cls: Any) -> Callable[..., None]:
    def __init__(self: Any, /, **values: Any) -> None:  # noqa: N807
        cls.__init__ = _init(cls)
        cls.__init__(self, **values)

    return __init__


def _init(cls: Any) -> Callable[..., None]:
    """As dataclasses writes it, but through each slot's own setter, which `_refuse` does not see."""
    names: dict[str, Any] = {"MISSING": MISSING}
    parameters, body = [], []
    for each in fields(cls):
        names[f"set_{each.name}"] = getattr(cls, each.name).__set__
        given = each.name
        if each.default_factory is not MISSING:
            names[f"make_{each.name}"] = each.default_factory
            parameters.append(f"{each.name}=MISSING")
            given = f"make_{each.name}() if {each.name} is MISSING else {each.name}"
        elif each.default is not MISSING:
            names[f"default_{each.name}"] = each.default
            parameters.append(f"{each.name}=default_{each.name}")
        else:
            parameters.append(each.name)
        body.append(f" set_{each.name}(self, {given})\n")
    star = ", *, " if parameters else ""
    exec(f"def __init__(self{star}{', '.join(parameters)}):\n{''.join(body) or ' pass'}", names)  # noqa: S102
    made: Callable[..., None] = names["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    return made


def _repr(self: Any) -> str:
    shown = ", ".join(f"{each.name}={getattr(self, each.name)!r}" for each in fields(self) if each.repr)
    return f"{type(self).__qualname__}({shown})"


def _refuse(_self: Any, name: str, *_value: Any) -> NoReturn:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _state(self: Any) -> list[Any]:
    return [getattr(self, each.name) for each in fields(self)]


def _restore(self: Any, state: list[Any]) -> None:
    for each, content in zip(fields(self), state, strict=True):
        object.__setattr__(self, each.name, content)
