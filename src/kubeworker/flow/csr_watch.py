"""`csr approve --watch`: approve renewals as they come, for months, unattended.

Whatever happens meanwhile is reported and lived through: API servers that are away, a kubeconfig that was renewed on
disk, a cluster.yaml that was edited.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from kubeworker.components import discover
from kubeworker.core.certificates import csr
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import ApiError, CredentialsError, InputError
from kubeworker.flow import csr_alive, csr_shown
from kubeworker.flow.csr import BOTH, Desk, Kinds, connect
from kubeworker.flow.csr_shown import Comparison
from kubeworker.flow.events import Note, Reporter, Warning_
from kubeworker.io import cluster_file
from kubeworker.io.kube import Kube

WATCH_SECONDS = 2.0
"""Between two looks."""


async def watch(
    path: Path,
    report: Reporter,
    *,
    kinds: Kinds = BOTH,
    compare: bool = True,
    turned: csr_alive.Turned = csr_alive.nobody,
) -> None:
    """Approve what holds every rule as it comes, until cancelled; a broken rule is reported once.

    `compare`: look at what the nodes show after each approval. `turned` is called after each look.

    Raises only at the start: InputError (cluster.yaml, kubeconfig) and ApiUnreachable. Later on the former cluster.yaml
    stays in force while a new one can't be read, and the API is tried again and again.
    """
    source = _Source(path=path)
    cluster = source.read()
    kube = await connect(cluster)
    comparison = Comparison(cluster=cluster, look=csr_shown.from_here(cluster)) if compare else None
    desk = Desk(
        kube=kube, inventory=csr.inventory(cluster), report=report, nodes=None, kinds=kinds, comparison=comparison
    )
    report(Note(subject="certificates", text=f"looking at requests of {len(cluster.nodes)} nodes, by {kube.server}"))
    try:
        while True:
            seen = await desk.round()
            turned(seen is not None)
            await asyncio.sleep(WATCH_SECONDS)
            changed = _changed(source, report)
            cluster = changed or cluster
            desk.inventory = csr.inventory(cluster)
            if changed is not None and comparison:
                comparison.cluster, comparison.look = changed, csr_shown.from_here(changed)
            if changed is not None or seen is None:
                desk.kube = kube = await _again(kube, cluster, desk)
    finally:
        await kube.close()


async def _again(kube: Kube, cluster: ClusterFile, desk: Desk) -> Kube:
    """A new connection, by the files as they are now; the old one where none can be had."""
    try:
        fresh = await connect(cluster)
    except (ApiError, CredentialsError) as error:
        desk.say(error)
        return kube
    await kube.close()
    return fresh


def _changed(source: _Source, report: Reporter) -> ClusterFile | None:
    """The new cluster.yaml, where it is another one and can be read."""
    if not source.is_new():
        return None
    try:
        cluster = source.read()
    except InputError as error:
        report(Warning_(subject=str(source.path), text=f"changed, and can't be used: {error}; the former one stays"))
        return None
    report(Note(subject=str(source.path), text=f"changed: {len(cluster.nodes)} nodes"))
    return cluster


@dataclass(kw_only=True)
class _Source:
    """cluster.yaml, and which one was read last."""

    path: Path
    _stamp: tuple[int, ...] = ()

    def read(self) -> ClusterFile:
        """Raises SpecError."""
        self._stamp = self._now()
        return cluster_file.load(self.path, discover())

    def is_new(self) -> bool:
        """Whether it is not the one that was read last."""
        return self._now() != self._stamp

    def _now(self) -> tuple[int, ...]:
        try:
            stat = self.path.stat()
        except OSError:
            return ()
        return stat.st_ino, stat.st_size, stat.st_mtime_ns
