"""The cluster lock on a real API server: contention, staleness by the observer's clock, loss and release."""

from __future__ import annotations

import asyncio
import subprocess

import pytest
from tests.contract.control_plane import ControlPlane

from kubeworker.core.cluster import kube_views
from kubeworker.core.sharding.shard import Shard
from kubeworker.errors import LockHeld
from kubeworker.flow.events import Event, Note
from kubeworker.flow.run_lock import NAMESPACE, RunLock, died_here, identity
from kubeworker.io.kube import Kube

pytestmark = pytest.mark.timeout(60)


async def admin(plane: ControlPlane) -> Kube:
    return await Kube.connect(plane.kubeconfig, (plane.endpoint,), plane.ca_cert)


def lock(kube: Kube, name: str, holder: str, events: list[Event], *, stale: float = 3, renew: float = 0.3) -> RunLock:
    return RunLock(kube, events.append, name=name, holder=holder, stale=stale, renew=renew)


async def holder_of(kube: Kube, name: str) -> str:
    found = await kube.get("Lease", name, namespace=NAMESPACE)
    return kube_views.lease(found).holder if found else "none"


async def test_a_living_holder_keeps_others_out_and_release_lets_them_in(control_plane: ControlPlane) -> None:
    events: list[Event] = []
    async with await admin(control_plane) as kube:
        async with lock(kube, "living", "elsewhere/1", events):
            assert await holder_of(kube, "living") == "elsewhere/1"
            with pytest.raises(LockHeld, match="elsewhere/1"):
                await lock(kube, "living", "elsewhere/2", events).__aenter__()
            assert [event.text[:8] for event in events if isinstance(event, Note)] == ["held by "]
        assert await holder_of(kube, "living") == ""
        async with asyncio.timeout(1), lock(kube, "living", "elsewhere/2", events):
            assert await holder_of(kube, "living") == "elsewhere/2"


async def test_a_lock_that_does_not_change_is_taken_over(control_plane: ControlPlane) -> None:
    loop = asyncio.get_running_loop()
    events: list[Event] = []
    async with await admin(control_plane) as kube:
        dead = lock(kube, "stale", "elsewhere/dead", events, renew=3600)
        await dead.__aenter__()
        began = loop.time()
        async with lock(kube, "stale", "elsewhere/next", events, stale=1.5):
            assert 1.5 <= loop.time() - began < 4
            assert await holder_of(kube, "stale") == "elsewhere/next"
            await dead.__aexit__(None, None, None)
            assert await holder_of(kube, "stale") == "elsewhere/next", "a late release must not take another's lock"


async def test_a_dead_process_of_this_machine_holds_nothing(control_plane: ControlPlane) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    events: list[Event] = []
    gone = f"{identity().rpartition('/')[0]}/{ended.pid}-12345"
    assert died_here(gone)
    assert not died_here(identity())
    assert not died_here(f"another-host/{gone.partition('/')[2]}")
    async with await admin(control_plane) as kube:
        await lock(kube, "dead", gone, events, renew=3600).__aenter__()
        async with asyncio.timeout(1), lock(kube, "dead", "elsewhere/next", events, stale=60):
            assert await holder_of(kube, "dead") == "elsewhere/next"


async def test_a_lost_lock_stops_the_run(control_plane: ControlPlane) -> None:
    events: list[Event] = []

    async def robbed(kube: Kube) -> None:
        async with lock(kube, "lost", "elsewhere/first", events):
            found = await kube.get("Lease", "lost", namespace=NAMESPACE)
            assert found is not None
            await kube.replace({**found, "spec": {**found["spec"], "holderIdentity": "elsewhere/thief"}})
            await asyncio.sleep(30)

    async with await admin(control_plane) as kube:
        with pytest.raises(LockHeld, match="taken over by elsewhere/thief"):
            await robbed(kube)
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()
        assert await holder_of(kube, "lost") == "elsewhere/thief"


async def test_of_many_at_once_exactly_one_gets_it(control_plane: ControlPlane) -> None:
    events: list[Event] = []
    inside: list[str] = []

    async def contend(kube: Kube, holder: str) -> None:
        async with lock(kube, "many", holder, events):
            inside.append(holder)
            await asyncio.sleep(3)

    async with await admin(control_plane) as kube:
        outcomes = await asyncio.gather(
            *(contend(kube, f"elsewhere/{number}") for number in range(5)), return_exceptions=True
        )
    assert len(inside) == 1
    assert sum(isinstance(outcome, LockHeld) for outcome in outcomes) == 4


def shard_lock(kube: Kube, index: int, holder: str) -> RunLock:
    part = Shard(index=index, count=3)
    return RunLock(kube, lambda _: None, shard=part, holder=holder, stale=3, renew=0.3)


async def test_parts_go_side_by_side_and_shut_out_a_run_over_the_fleet_and_the_other_way_round(
    control_plane: ControlPlane,
) -> None:
    async with await admin(control_plane) as kube:
        whole = RunLock(kube, lambda _: None, holder="elsewhere/fleet", stale=3, renew=0.3)
        async with shard_lock(kube, 0, "elsewhere/0"), shard_lock(kube, 2, "elsewhere/2"):
            with pytest.raises(LockHeld, match="elsewhere/2"):
                await shard_lock(kube, 2, "elsewhere/again").__aenter__()
            with pytest.raises(LockHeld, match="elsewhere/0"):
                await whole.__aenter__()
            assert await holder_of(kube, "kubeworker") == "", "one that was turned away holds nothing"
        async with RunLock(kube, lambda _: None, holder="elsewhere/fleet", stale=3, renew=0.3):
            with pytest.raises(LockHeld, match="elsewhere/fleet"):
                await shard_lock(kube, 1, "elsewhere/1").__aenter__()
            assert await holder_of(kube, "kubeworker-shard-1") == ""
        async with asyncio.timeout(2), shard_lock(kube, 1, "elsewhere/1"):
            assert await holder_of(kube, "kubeworker-shard-1") == "elsewhere/1"
        for index in range(3):
            await kube.delete("Lease", f"kubeworker-shard-{index}", namespace=NAMESPACE)


@pytest.mark.parametrize("late", [Shard(index=1, count=3), None], ids=["part", "fleet"])
async def test_a_run_that_looks_whether_another_is_dead_is_seen_alive_meanwhile(
    control_plane: ControlPlane, late: Shard | None
) -> None:
    looking = asyncio.Event()

    def report(event: Event) -> None:
        if isinstance(event, Note):
            looking.set()

    async with await admin(control_plane) as kube:
        part = Shard(index=0, count=3)
        dead = RunLock(kube, lambda _: None, shard=part, holder="elsewhere/dead", renew=3600)
        await dead.__aenter__()
        first = RunLock(kube, report, holder="elsewhere/first", stale=2, renew=1)
        entered = asyncio.create_task(first.__aenter__())
        await looking.wait()
        with pytest.raises(LockHeld, match="elsewhere/first"):
            await RunLock(kube, lambda _: None, shard=late, holder="elsewhere/late", stale=2, renew=1).__aenter__()
        await entered
        assert await holder_of(kube, "kubeworker") == "elsewhere/first"
        await first.__aexit__(None, None, None)
        await dead.__aexit__(None, None, None)
        for index in range(2):
            await kube.delete("Lease", f"kubeworker-shard-{index}", namespace=NAMESPACE)


PART = Shard(index=0, count=3)


@pytest.mark.parametrize(
    ("late", "quick", "noticed"),
    [
        (None, None, True),
        (None, PART, True),
        (PART, None, True),
        (PART, PART, True),
        (PART, Shard(index=1, count=3), False),
    ],
    ids=["fleet-fleet", "fleet-part", "part-fleet", "part-part", "part-other"],
)
async def test_a_run_that_came_and_went_since_the_plan_was_made_is_noticed(
    control_plane: ControlPlane, *, late: Shard | None, quick: Shard | None, noticed: bool
) -> None:
    async with await admin(control_plane) as kube:
        planned = RunLock(kube, lambda _: None, shard=late, holder="elsewhere/late")
        await planned.look()
        async with RunLock(kube, lambda _: None, shard=quick, holder="elsewhere/quick") as meanwhile:
            assert not meanwhile.waited
        async with planned:
            assert planned.waited == noticed
        again = RunLock(kube, lambda _: None, shard=late, holder="elsewhere/late")
        await again.look()
        async with again:
            assert not again.waited
        for name in ("kubeworker", "kubeworker-shard-0", "kubeworker-shard-1"):
            await kube.delete("Lease", name, namespace=NAMESPACE)


async def test_a_plan_that_is_made_while_another_run_goes_on_is_made_again(control_plane: ControlPlane) -> None:
    async with await admin(control_plane) as kube:
        planned = lock(kube, "meanwhile", "elsewhere/late", [])
        async with lock(kube, "meanwhile", "elsewhere/early", [], renew=3600):
            await planned.look()
        async with planned:
            assert planned.waited
