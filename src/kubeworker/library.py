"""kubeworker as a library: the verbs as typed async functions. `import kubeworker` has their names.

Nothing here prints, asks or ends the process; what goes on is told to `report`. Cancelling the task is Ctrl-C: what was
begun on a node is ended or put back, bootstrap tokens and test objects are removed, and CancelledError goes on its way.

What the verbs have in common:

    file: The cluster file.
    nodes: Only these, by name; empty: all.
    shard: "I/N", from "0/N" to "N-1/N": only this part of the fleet. Runs over different parts go side by side.
    rehash: Hash every file on the nodes again, whatever their index says.
    accept_new_host_keys: Pin the SSH keys of hosts that known_hosts does not have yet.
    report: Is told what goes on, from the task that runs the verb.

They raise InputError where something in the file, or that it names, can't be used, and ArtifactError, a kind of it,
where a binary can't be had from any source. A node that can't be reached, planned or changed is no exception: it has
its `error` in what is returned.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kubeworker.components import discover
from kubeworker.core.spec import ClusterFile
from kubeworker.core.verify.checks import VerifyReport
from kubeworker.errors import KubeworkerError
from kubeworker.flow import apply as apply_flow
from kubeworker.flow import plan as plan_flow
from kubeworker.flow import verify as verify_flow
from kubeworker.flow.apply import ApplyReport, Confirm
from kubeworker.flow.events import Reporter, silent
from kubeworker.flow.plan import Plan
from kubeworker.flow.session import request
from kubeworker.io.cluster_file import load


async def spec(file: str | os.PathLike[str]) -> ClusterFile:
    """Read and check a cluster file. Paths in it are made absolute, relative to it.

    Raises:
        SpecError: the file can't be read or is wrong; the subject is `FILE:LINE: FIELD`.
    """
    return load(Path(file), discover())


async def plan(
    file: str | os.PathLike[str],
    *,
    nodes: Sequence[str] = (),
    shard: str = "",
    rehash: bool = False,
    accept_new_host_keys: bool = False,
    report: Reporter = silent,
) -> Plan:
    """What would change on the nodes and in the cluster, and why. Changes nothing."""
    with only_error():
        asked = request(file, nodes=nodes, shard=shard, rehash=rehash, accept_new_host_keys=accept_new_host_keys)
        return await plan_flow.plan(asked, report)


async def apply(
    file: str | os.PathLike[str],
    *,
    nodes: Sequence[str] = (),
    shard: str = "",
    confirm: Confirm | None = None,
    serial: int = 0,
    max_failures: int = 0,
    rehash: bool = False,
    accept_new_host_keys: bool = False,
    report: Reporter = silent,
) -> ApplyReport:
    """Plan, and do exactly that. What was swapped in on a node that fails is put back.

    Args:
        confirm: Is shown the plan and says whether to go on; not asked where nothing is to do. None: go on.
        serial: Nodes in one batch; the next begins when this one is healthy. 0: all at once.
        max_failures: Nodes that may fail before no further batch is begun.

    Raises:
        LockHeld: another run works on this cluster.
        ApiError: the Kubernetes API refused or was lost in the middle; the next apply finishes.
    """
    options = apply_flow.Options(serial=serial, max_failures=max_failures)
    with only_error():
        asked = request(file, nodes=nodes, shard=shard, rehash=rehash, accept_new_host_keys=accept_new_host_keys)
        return await apply_flow.apply(asked, options, confirm or _go_on, report)


async def verify(
    file: str | os.PathLike[str],
    *,
    nodes: Sequence[str] = (),
    checks: Sequence[str] = (),
    image: str = "",
    deep: bool = False,
    accept_new_host_keys: bool = False,
    report: Reporter = silent,
) -> VerifyReport:
    """Prove on the live cluster that every node works, check by check. What it creates it removes.

    Args:
        checks: Only checks whose id begins with one of these (`kube_proxy.ipvs`); empty: all.
        image: For the test pods; it needs `sh`. Empty: the first preloaded one that is no pause image.
        deep: Also download an image through each registry's mirrors, on each node.
    """
    options = verify_flow.Options(
        nodes=tuple(nodes),
        checks=tuple(checks),
        image=image,
        deep=deep,
        accept_new_host_keys=accept_new_host_keys,
    )
    with only_error():
        registry = discover()
        return await verify_flow.verify(load(Path(file), registry), registry, options, report)


async def _go_on(_plan: Plan) -> bool:
    return True


@contextmanager
def only_error() -> Iterator[None]:
    """Steps run side by side, so that their errors come in groups: a group of one is that error."""
    try:
        yield
    except ExceptionGroup as group:
        match list(_leaves(group)):
            case [KubeworkerError() as error]:
                raise error from error.__cause__
            case _:
                raise


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _leaves(each)
        else:
            yield each
