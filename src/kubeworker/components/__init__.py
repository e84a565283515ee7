"""The components that make a worker node: one file each, found by itself, none knowing another."""

from __future__ import annotations

import importlib
import pkgutil
from graphlib import TopologicalSorter
from typing import Any

from kubeworker.core.component import Component


def discover() -> tuple[Component[Any], ...]:
    """Every component of this package, each after those that it names in `after`."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    found: dict[str, Component[Any]] = {module.COMPONENT.name: module.COMPONENT for module in modules}
    order: TopologicalSorter[str] = TopologicalSorter()
    for name in sorted(found):
        order.add(name, *found[name].after)
    return tuple(found[name] for name in order.static_order())
