"""Stages that need not be computed again, because all that their component looked at is the same.

A run computes each node's state twice, before and after the node was looked at, and most of a fleet's state is the same
on every node. Which facts a component looks at is not declared but watched: a pure function that is given the same
values again, where it looked, gives the same stage.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any, TypeAlias

from kubeworker.core.component import Component, ConfigT, Context
from kubeworker.core.model import Stage

KEPT = 8192
"""Stages kept of one component; more begin anew. A thousand nodes have three each of the component with the most."""

_Name: TypeAlias = tuple[str, str]
"""What was looked at: ("facts", "joined")."""

_WATCHED = ("node", "facts", "credentials")
"""What differs between two contexts of one run; all else in them is the run's."""


class StageMemo:
    """The stages of one run: of one cluster.yaml, with its artifacts and files."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._configs: dict[str, Any] = {}
        self._stages: dict[str, dict[tuple[_Name, ...], dict[Hashable, Stage]]] = {}

    def config(self, component: Component[ConfigT]) -> ConfigT | None:
        """The component's settings, if they were kept."""
        return self._configs.get(component.name)

    def keep_config(self, component: Component[ConfigT], config: ConfigT) -> None:
        """They are the same for the whole run."""
        self._configs[component.name] = config

    def stage(self, component: Component[ConfigT], context: Context[ConfigT]) -> Stage:
        """The component's stage in this context: a known one, or a new one."""
        known = self._stages.setdefault(component.name, {})
        for names, stages in known.items():
            found = stages.get(_values(context, names))
            if found is not None:
                return found
        seen: dict[_Name, None] = {}
        watched: dict[str, Any] = {name: _Watched(name, getattr(context, name), seen) for name in _WATCHED}
        stage = component.stage(replace(context, **watched))
        names = tuple(seen)
        kept = known.setdefault(names, {})
        if len(kept) >= KEPT:
            kept.clear()
        try:
            kept[_values(context, names)] = stage
        except TypeError:
            del known[names]  # a map of labels, say, is no key: such a stage is computed each time
        return stage


class _Watched:
    """Stands for an object, and notes which of its attributes are looked at."""

    __slots__ = ("_name", "_object", "_seen")

    def __init__(self, name: str, watched: object, seen: dict[_Name, None]) -> None:
        self._name = name
        self._object = watched
        self._seen = seen

    def __getattr__(self, attribute: str) -> Any:
        self._seen[self._name, attribute] = None
        return getattr(self._object, attribute)


def _values(context: Context[Any], names: tuple[_Name, ...]) -> Hashable:
    # What the other components require is given to few, and looked at as a whole.
    return (context.needs, *(getattr(getattr(context, name), attribute) for name, attribute in names))
