"""Options that several commands share, written once. Only cyclopts is imported here: `--help` stays fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from cyclopts import Parameter

DEFAULT_FILE = Path("cluster.yaml")

File: TypeAlias = Annotated[Path, Parameter(name=["--file", "-f"], negative="")]
"""`-f FILE`: the cluster file; paths in it are relative to it."""

Json: TypeAlias = Annotated[bool, Parameter(name="--json", negative="", show_default=False)]
"""`--json`: one JSON document on standard output."""

JsonEvents: TypeAlias = Annotated[bool, Parameter(name="--json-events", negative="", show_default=False)]
"""`--json-events`: progress as JSON lines on standard error."""

Yes: TypeAlias = Annotated[bool, Parameter(name=["--yes", "-y"], negative="", show_default=False)]
"""`--yes`: don't ask."""

Nodes: TypeAlias = Annotated[tuple[str, ...], Parameter(name=["--node", "-n"], negative="", consume_multiple=False)]
"""`--node NAME`, repeatable: only these nodes."""

Shard: TypeAlias = Annotated[str, Parameter(name="--shard", negative="", show_default=False)]
"""`--shard I/N`: only this part of the fleet."""

Compare: TypeAlias = Annotated[bool, Parameter(name="--compare")]
"""`--no-compare` takes it away."""

Quiet: TypeAlias = Annotated[bool, Parameter(name=["--quiet", "-q"], negative="", show_default=False)]
"""`--quiet`: no progress, and no result where all is well."""

Plain: TypeAlias = Annotated[bool, Parameter(name="--plain", negative="", show_default=False)]
"""`--plain`: progress as plain lines, as it is where standard error is no terminal."""

Html: TypeAlias = Annotated[Path | None, Parameter(name="--html", negative="")]
"""`--html FILE`: the report as one HTML file too."""

Flag: TypeAlias = Annotated[bool, Parameter(negative="", show_default=False)]
"""A flag without a `--no-` twin."""


def form(*, quiet: bool, plain: bool) -> Literal["auto", "plain", "quiet"]:
    """How progress is told."""
    return "quiet" if quiet else "plain" if plain else "auto"
