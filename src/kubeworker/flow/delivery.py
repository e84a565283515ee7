"""How artifacts get to a node: sent by this host as one stream (push), or fetched by the node from a mirror (pull)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kubeworker.core import desired, limit
from kubeworker.core.artifacts import tar_stream
from kubeworker.core.model import Blob
from kubeworker.core.node import node_script, pull_script
from kubeworker.errors import NodeError, NodeUnreachable
from kubeworker.flow import artifacts
from kubeworker.flow.events import Transfer, Waiting, Warning_
from kubeworker.flow.session import Session
from kubeworker.io.fleet import Slot, Slots
from kubeworker.io.node import Node

FIRST_UPLOADS = 4
"""How many nodes are sent to at once before anything is known of the line."""
MOVES = 4_000_000
"""Bytes: an upload that has come so far makes room for another."""

_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """What came to one node."""

    uploaded: int = 0
    """Compressed bytes that this host sent."""
    pulled: int = 0
    """Bytes of the artifacts that the node fetched itself, as they are on its disk."""


class Delivery:
    """Of one run: what several nodes lack is compressed once (ADR 2), and as many are sent to as the line bears."""

    def __init__(self, session: Session) -> None:
        """Nothing is sent yet."""
        self._session = session
        self._uploads = Slots(limit.starting(ceiling=session.cluster.ssh.uploads, first=FIRST_UPLOADS))
        self._preparing = asyncio.Lock()
        self._ready: set[Blob] = set()

    async def prepare(self, missing: Collection[Blob]) -> None:
        """Have the bytes that nodes lack, compressed, before anything is changed; nodes that pull need none of that."""
        if self._session.cluster.artifacts.delivery == "push":
            await self._compress(missing)

    async def deliver(self, connection: Node, blobs: Sequence[Blob]) -> Delivered:
        """Have these in the node's store. Raises ActionFailed, or an ArtifactError where this host has not got them."""
        if not blobs:
            return Delivered()
        if self._session.cluster.artifacts.delivery == "push":
            return Delivered(uploaded=await self._push(connection, blobs))
        found = await self._pull(connection, blobs)
        left = [blob for blob in blobs if blob.sha256 in found.missed]
        if left:
            reasons = "; ".join(dict.fromkeys(found.missed.values()))
            what = f"{len(left)} of {len(blobs)} artifacts did not come from {self._mirror}: {reasons}"
            self._session.report(Warning_(subject=connection.name, text=f"{what}; they are sent over SSH"))
            await self._compress(left)
        return Delivered(
            uploaded=await self._push(connection, left) if left else 0,
            pulled=sum(blob.size for blob in blobs if blob.sha256 in found.got),
        )

    @property
    def _mirror(self) -> str:
        return pull_script.base_url(self._session.cluster.artifacts.mirror or "")

    async def _compress(self, wanted: Collection[Blob]) -> None:
        async with self._preparing:
            missing = set(wanted) - self._ready
            if not missing:
                return
            session = self._session
            await artifacts.resolve(
                session.request.cluster_file,
                session.cluster,
                desired.artifacts(session.cluster, session.registry),
                report=session.report,
                store=session.store,
            )
            async with asyncio.TaskGroup() as group:
                for blob in sorted(missing, key=lambda blob: -blob.size):
                    group.create_task(asyncio.to_thread(session.store.tar_member, blob))
            self._ready |= missing

    async def _push(self, connection: Node, blobs: Sequence[Blob]) -> int:
        """As one stream, the largest first; its compressed size."""
        blobs = sorted(blobs, key=lambda blob: -blob.size)
        bin_dir = self._session.cluster.paths.bin_dir
        if self._uploads.full:
            self._session.report(Waiting(node=connection.name, what="a turn to be sent its artifacts"))
        async with self._uploads.slot() as slot:
            members = [self._session.store.tar_member(blob) for blob in blobs]
            total, seconds = sum(member.stat().st_size for member in members), _upload_seconds(blobs)
            try:
                result = await connection.run(
                    node_script.receive_script(bin_dir, blobs),
                    stdin=_stream(members, self._told(connection.name, total, slot)),
                    timeout=seconds,
                )
            except NodeUnreachable:
                raise
            except NodeError as error:
                slot.lost()  # it took too long: with fewer at once each has more of the line
                raise NodeError(
                    f"{total / 1e6:.0f} MB of artifacts did not get there within {seconds:.0f} s",
                    subject=connection.name,
                    hint="is the line slow, or does it lose packets? Run apply again: what arrived whole is kept; "
                    "or have the node fetch from a mirror near it (artifacts.delivery: pull)",
                ) from error
        node_script.verdict(connection.name, None, status=result.status, stdout=result.stdout, stderr=result.stderr)
        return total

    def _told(self, node: str, total: int, slot: Slot) -> Callable[[int], None]:
        done, moves = 0, False

        def sent(number: int) -> None:
            nonlocal done, moves
            done += number
            self._session.report(Transfer(subject="artifacts", done=done, total=total, node=node))
            if not moves and done >= min(MOVES, total):
                moves = True
                slot.gained()

        return sent

    async def _pull(self, connection: Node, blobs: Sequence[Blob]) -> pull_script.Pulled:
        sizes = {blob.sha256: blob.size for blob in blobs}
        done, total = 0, sum(sizes.values())

        def on_line(line: str) -> None:
            nonlocal done
            if sum_ := pull_script.progress(line):
                done += sizes.get(sum_, 0)
                self._session.report(Transfer(subject="artifacts", done=done, total=total, node=connection.name))

        result = await connection.run(
            pull_script.pull_script(
                self._session.cluster.paths.bin_dir, blobs, self._session.cluster.artifacts.mirror or ""
            ),
            timeout=pull_script.pull_seconds(blobs),
            on_line=on_line,
        )
        node_script.verdict(connection.name, None, status=result.status, stdout=result.stdout, stderr=result.stderr)
        return pull_script.pulled(result.stdout, blobs)


def _upload_seconds(blobs: Iterable[Blob]) -> float:
    """A minute, and what a line of 1 MB/s takes: slower ones are better served by a mirror."""
    return 60 + sum(blob.size for blob in blobs) / 1e6


async def _stream(members: Sequence[Path], sent: Callable[[int], None]) -> AsyncIterator[bytes]:
    for member in members:
        with member.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
                sent(len(chunk))
    yield tar_stream.END
