"""One run at a time per node: a Lease in kube-system that the run holds and renews.

A run over the fleet holds one, and none may begin while a run over a part of it (`--shard`) holds its own; runs over
different parts go side by side, and none of them begins while a run over the fleet goes on. Each takes its own Lease
before it looks at the others', so that of two that begin at once at most one goes on.

Clocks of two control hosts are never compared: a lock is stale when this observer has seen it unchanged for 60 s of
its own clock, or when its holder was a process of this very machine that is gone.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kubeworker.core.cluster import kube_views
from kubeworker.core.cluster.kube_views import LeaseStatus
from kubeworker.core.sharding.shard import FLEET, Shard, is_shard
from kubeworker.errors import ApiConflict, ApiError, ApiNotFound, ApiUnreachable, LockHeld
from kubeworker.flow.events import Note, Reporter, Warning_
from kubeworker.io.kube import Kube

NAMESPACE = "kube-system"
STALE_SECONDS = 60.0
RENEW_SECONDS = 10.0


class RunLock:
    """`async with RunLock(kube, report):` holds the cluster's lock; LockHeld where another living run has it.

    A lock that is taken over meanwhile (this process was stopped for a minute, say) cancels the body and raises
    LockHeld. While no kube-apiserver answers, the body goes on: the nodes' own locks still hold.
    """

    def __init__(
        self,
        kube: Kube,
        report: Reporter,
        *,
        shard: Shard | None = None,
        name: str = "",
        holder: str = "",
        stale: float = STALE_SECONDS,
        renew: float = RENEW_SECONDS,
    ) -> None:
        """`stale` and `renew` in seconds; `holder` is this process unless a test says otherwise.

        `shard`: the part of the fleet that the run works on; None: any node of it. `name`: another Lease, for tests.
        """
        self._kube = kube
        self._report = report
        self._name = name or (shard.lease if shard else FLEET)
        self._shard = shard
        self._holder = holder or identity()
        self._stale = stale
        self._renew = renew
        self._lease: dict[str, Any] = {}
        self._task: asyncio.Task[None] | None = None
        self._body: asyncio.Task[Any] | None = None
        self._lost: LockHeld | None = None
        self._noted: dict[str, str] | None = None
        self.waited = False
        """Whether another run had the lock first, or since `look`: what was planned before may be out of date."""

    async def look(self) -> None:
        """Note, before anything is planned, which runs have had the locks so far, and whether one has them now."""
        try:
            leases = await self._leases()
        except ApiError:
            self.waited = True  # nobody knows
            return
        self._noted = self._versions(leases)
        self.waited = any(lease.holder and not died_here(lease.holder) for lease in leases)

    async def __aenter__(self) -> Self:
        """Take the lock; waits at most `stale` seconds for a holder that may be dead."""
        former = await self._acquire()
        self._body = asyncio.current_task()
        # Renewed from now on: two that look at each other's would both take the other for dead, and go on.
        self._task = asyncio.create_task(self._keep())
        try:
            # None of the others can begin from here on; one that has begun since `look` has another version by now.
            leases = await self._leases()
            if self._noted is not None:
                self.waited = self.waited or self._versions(leases) | {self._name: former} != self._noted
            for lease in leases:
                if self._excludes(lease.name) and lease.holder:
                    await self._freed(lease.name)
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """Give the lock back, whatever happened; say LockHeld if it was lost."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._lost is not None:
            if self._body is not None and kind is asyncio.CancelledError:
                self._body.uncancel()
            raise self._lost from error
        await self._release()

    async def _leases(self) -> list[LeaseStatus]:
        """This run's own, and those of runs that it may not go beside."""
        found: Sequence[dict[str, Any] | None]
        if self._shard is None:
            found = await self._kube.list("Lease", namespace=NAMESPACE)
        else:
            # All that a part's own account may read.
            found = [await self._kube.get("Lease", name, namespace=NAMESPACE) for name in (self._name, FLEET)]
        leases = [kube_views.lease(each) for each in found if each is not None]
        return [lease for lease in leases if lease.name == self._name or self._excludes(lease.name)]

    def _versions(self, leases: Iterable[LeaseStatus]) -> dict[str, str]:
        return {self._name: ""} | {lease.name: lease.resource_version for lease in leases}

    def _excludes(self, lease: str) -> bool:
        return lease == FLEET if self._shard is not None else is_shard(lease)

    async def _acquire(self) -> str:
        """Become the holder; the version that the Lease had before, empty where there was none."""
        while True:
            found = await self._freed(self._name)
            if await self._take(found):
                return kube_views.lease(found).resource_version if found is not None else ""

    async def _freed(self, name: str) -> dict[str, Any] | None:
        """The Lease of that name (None: there is none) once no living run holds it; LockHeld if one does."""
        loop = asyncio.get_running_loop()
        seen, since = "", loop.time()
        while True:
            found = await self._kube.get("Lease", name, namespace=NAMESPACE)
            if found is None:
                return None
            lease = kube_views.lease(found)
            if not lease.holder or died_here(lease.holder) or (seen and loop.time() - since >= self._stale):
                return found
            if seen and lease.resource_version != seen:
                raise LockHeld(
                    f"another run works on this cluster: {lease.holder}",
                    subject=f"Lease {NAMESPACE}/{name}",
                    hint="wait until it is done; a run that died is noticed after a minute",
                )
            self.waited = True
            if not seen:
                seen, since = lease.resource_version, loop.time()
                self._report(
                    Note(
                        subject=f"Lease {NAMESPACE}/{name}",
                        text=f"held by {lease.holder}; looking for up to {self._stale:.0f} s whether that run is alive",
                    )
                )
            await asyncio.sleep(min(1.0, self._stale / 10))

    async def _take(self, found: dict[str, Any] | None) -> bool:
        """Become the holder; False if somebody else was quicker."""
        now = _now()
        document = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": NAMESPACE} if found is None else found["metadata"],
            "spec": {
                "holderIdentity": self._holder,
                "leaseDurationSeconds": max(1, round(self._stale)),
                "acquireTime": now,
                "renewTime": now,
            },
        }
        try:
            write = self._kube.create if found is None else self._kube.replace
            self._lease = await write(document)
        except (ApiConflict, ApiNotFound):
            return False
        return True

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._renew)
            try:
                await self._renew_once()
            except LockHeld as error:
                self._lost = error
                assert self._body is not None
                self._body.cancel()
                return
            except ApiError as error:
                text = f"the lock can't be renewed now ({error.message}); the nodes' own locks still hold"
                self._report(Warning_(subject=f"Lease {NAMESPACE}/{self._name}", text=text))

    async def _renew_once(self) -> None:
        document = {**self._lease, "spec": {**self._lease["spec"], "renewTime": _now()}}
        try:
            self._lease = await self._kube.replace(document)
        except (ApiConflict, ApiNotFound) as error:
            found = await self._kube.get("Lease", self._name, namespace=NAMESPACE)
            holder = kube_views.lease(found).holder if found is not None else "nobody: it was deleted"
            if found is None or holder != self._holder:
                raise LockHeld(
                    f"this run's lock was taken over by {holder}",
                    subject=f"Lease {NAMESPACE}/{self._name}",
                    hint="run again once the other one is done; what was not finished is finished then",
                ) from error
            # A renewal whose answer was lost, or an edit that left the holder alone: go on from what is there.
            self._lease = found

    async def _release(self) -> None:
        try:
            # A renewal that was cut short may have been written all the same: then the lease is newer, and still ours.
            for _ in range(2):
                try:
                    await self._kube.replace({**self._lease, "spec": {**self._lease["spec"], "holderIdentity": ""}})
                    return
                except ApiConflict:
                    found = await self._kube.get("Lease", self._name, namespace=NAMESPACE)
                    if found is None or kube_views.lease(found).holder != self._holder:
                        return  # it is another's already
                    self._lease = found
        except ApiNotFound:
            return
        except ApiUnreachable as error:
            text = f"the lock was not given back ({error.message}); the next run on another machine waits a minute"
            self._report(Warning_(subject=f"Lease {NAMESPACE}/{self._name}", text=text))


def identity() -> str:
    """This process, so that another one on this machine can tell whether it is still there.

    Host name, boot, pid namespace, pid and start time: a pid alone comes back, and another container has other pids.
    """
    return f"{_machine()}/{os.getpid()}-{_started(os.getpid())}"


def died_here(holder: str) -> bool:
    """The holder was a process of this machine, boot and pid namespace, and it is gone."""
    machine, _, process = holder.rpartition("/")
    pid, _, started = process.partition("-")
    return machine == _machine() and pid.isdigit() and _started(int(pid)) != started


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    namespace = Path("/proc/self/ns/pid").readlink().name.strip("pid:[]")
    return f"{socket.gethostname()}/{boot}-{namespace}"


def _started(pid: int) -> str:
    """Clock ticks since boot at which the process started (proc(5), stat field 22); empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
