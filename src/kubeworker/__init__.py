"""kubeworker turns plain Linux machines into Kubernetes worker nodes, from one control host, over SSH.

As a library: `spec`, `plan`, `apply` and `verify`, typed and async (docs/library.md). A name is loaded when it is used.
"""

# PEP 562: `import kubeworker` stays as cheap as it is for every start of the command.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from kubeworker import errors
    from kubeworker.core.spec import ClusterFile
    from kubeworker.core.verify.checks import NodeReport, Verdict, VerifyReport
    from kubeworker.errors import KubeworkerError
    from kubeworker.flow import events
    from kubeworker.flow.apply import ApplyReport, Confirm, NodeResult
    from kubeworker.flow.events import Event, Reporter
    from kubeworker.flow.plan import NodePlan, Plan
    from kubeworker.library import apply, plan, spec, verify

    __version__: str

__all__ = [
    "ApplyReport",
    "ClusterFile",
    "Confirm",
    "Event",
    "KubeworkerError",
    "NodePlan",
    "NodeReport",
    "NodeResult",
    "Plan",
    "Reporter",
    "Verdict",
    "VerifyReport",
    "__version__",
    "apply",
    "errors",
    "events",
    "plan",
    "spec",
    "verify",
]

_PLACES = {
    "ApplyReport": "flow.apply",
    "ClusterFile": "core.spec",
    "Confirm": "flow.apply",
    "Event": "flow.events",
    "KubeworkerError": "errors",
    "NodePlan": "flow.plan",
    "NodeReport": "core.verify.checks",
    "NodeResult": "flow.apply",
    "Plan": "flow.plan",
    "Reporter": "flow.events",
    "Verdict": "core.verify.checks",
    "VerifyReport": "core.verify.checks",
    "apply": "library",
    "plan": "library",
    "spec": "library",
    "verify": "library",
}
"""Name -> the module of this package that has it."""

_MODULES = {"errors": "errors", "events": "flow.events"}


if not TYPE_CHECKING:  # a type checker is to find a mistyped name

    def __getattr__(name: str) -> object:
        from importlib import import_module, metadata

        if name == "__version__":
            value: object = metadata.version("kubeworker")
        elif name in _MODULES:
            value = import_module(f"kubeworker.{_MODULES[name]}")
        elif name in _PLACES:
            value = getattr(import_module(f"kubeworker.{_PLACES[name]}"), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
