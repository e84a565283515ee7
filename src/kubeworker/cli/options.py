"""Options that several commands share, written once. Only cyclopts is imported here: `--help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from cyclopts import Parameter

if TYPE_CHECKING:
    from kubeworker.flow.session import Request

DEFAULT_FILE = Path("cluster.yaml")

File: TypeAlias = Annotated[Path, Parameter(name=["--file", "-f"], negative="")]
"""`-f FILE`: the cluster file; paths in it are relative to it."""

Json: TypeAlias = Annotated[bool, Parameter(name="--json", negative="", show_default=False)]
"""`--json`: one JSON document on standard output."""

Yes: TypeAlias = Annotated[bool, Parameter(name=["--yes", "-y"], negative="", show_default=False)]
"""`--yes`: don't ask."""

Nodes: TypeAlias = Annotated[tuple[str, ...], Parameter(name=["--node", "-n"], negative="", consume_multiple=False)]
"""`--node NAME`, repeatable: only these nodes."""

Compare: TypeAlias = Annotated[bool, Parameter(name="--compare")]
"""`--no-compare` takes it away."""

Quiet: TypeAlias = Annotated[bool, Parameter(name=["--quiet", "-q"], negative="", show_default=False)]
"""`--quiet`: no progress, and no result where all is well."""

Html: TypeAlias = Annotated[Path | None, Parameter(name="--html", negative="")]
"""`--html FILE`: the report as one HTML file too."""

Flag: TypeAlias = Annotated[bool, Parameter(negative="", show_default=False)]
"""A flag without a `--no-` twin."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressOptions:
    """How progress is told: the same for every command that has some."""

    quiet: Quiet = False
    """For cron: no progress; nothing where all is well, else what is not."""
    plain: Annotated[bool, Parameter(name="--plain", negative="", show_default=False)] = False
    """Progress as plain lines, as it is where standard error is no terminal."""
    json_events: Annotated[bool, Parameter(name="--json-events", negative="", show_default=False)] = False
    """Progress as JSON lines on standard error."""

    @property
    def form(self) -> Literal["auto", "plain", "quiet", "json"]:
        """The one that is asked for; of several the one that is for programs, then the one that says least."""
        return "json" if self.json_events else "quiet" if self.quiet else "plain" if self.plain else "auto"


PROGRESS = ProgressOptions()


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """Which nodes a run is about."""

    file: File = DEFAULT_FILE
    """The cluster file; paths in it are relative to it."""
    node: Nodes = ()
    """Only this node; may be given several times."""
    accept_new_host_keys: Flag = False
    """Pin the keys of hosts that known_hosts does not have yet."""

    def request(self) -> Request:
        """The same as the engine takes it."""
        from kubeworker.flow.session import Request

        return Request(cluster_file=self.file, nodes=self.node, accept_new_host_keys=self.accept_new_host_keys)


NODES = NodeOptions()


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions(NodeOptions):
    """What a plan is made of, also the one that `apply` carries out."""

    shard: Annotated[str, Parameter(name="--shard", negative="", show_default=False)] = ""
    """I/N, from 0/N to N-1/N: only this part of the fleet. Runs over different parts go side by side."""
    rehash: Flag = False
    """Hash every file on the nodes again, whatever their index says."""

    def request(self) -> Request:
        """The same as the engine takes it. UsageError: there is no such part."""
        from kubeworker.flow.session import request

        return request(
            self.file,
            nodes=self.node,
            shard=self.shard,
            rehash=self.rehash,
            accept_new_host_keys=self.accept_new_host_keys,
        )


PLAN = PlanOptions()
