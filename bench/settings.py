"""What the bench's cluster.yaml files say differently from the lab's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kubeworker.lab import LabState


def without_images(document: dict[str, Any]) -> None:
    """No pod runs here, so none of the tools sends image archives."""
    document["components"]["containerd"].pop("preload_images", None)


def fleet_settings(lab: LabState, work: Path) -> Callable[[dict[str, Any]], None]:
    """What a cluster.yaml of machines without binaries has differently: stand-ins, no network plugin, no probe."""

    def change(document: dict[str, Any]) -> None:
        without_images(document)
        document["cni"] = "none"
        # Two questions a second from each of 50 machines would be this host's work, not the nodes'.
        document["components"]["kube_nginx"] = {"probe": False}
        document["artifacts"] |= {"sources": ["local", "cache", "build"], "local": str(work / "stand-ins" / lab.id)}
        document["ssh"]["concurrency"] = max(64, len(document["nodes"]))

    return change
