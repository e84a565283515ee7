"""`apply`: carry out exactly what the plan shows, node by node, stage by stage; a node's failure stays its own."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from kubeworker.components import kubelet
from kubeworker.core import actions
from kubeworker.core.actions import StagePlan
from kubeworker.core.certificates import csr, issuing
from kubeworker.core.model import TlsEndpoint
from kubeworker.core.node import node_script
from kubeworker.errors import ActionFailed, ApiError, JoinFailed, KubeworkerError
from kubeworker.flow import chart_credentials, charts, credentials, join
from kubeworker.flow.csr import Desk, Trouble
from kubeworker.flow.csr_shown import ANOTHER_HINT, Comparison, place
from kubeworker.flow.delivery import Delivery
from kubeworker.flow.events import (
    ActionDone,
    ActionStarted,
    NodeDone,
    NodeOutcome,
    NodeQueued,
    NodeStarted,
    Note,
    Reporter,
    StageStarted,
    Waiting,
    Warning_,
    outcome_of,
)
from kubeworker.flow.pace import Pace
from kubeworker.flow.plan import NodePlan, Plan, make_plan
from kubeworker.flow.polling import asked_until, looked_until
from kubeworker.flow.readiness import RESTART_SECONDS, restarts_kubelet, unready
from kubeworker.flow.run_lock import RunLock
from kubeworker.flow.session import Request, Session, open_session
from kubeworker.io import https
from kubeworker.io.fleet import Failed, fan_out
from kubeworker.io.kube import Kube
from kubeworker.io.node import Node

ROUNDS = 3
"""A first apply takes two: what depends on a podCIDR follows once the node has registered."""

CERTIFICATE_SECONDS = 60
"""How long a kubelet that joined may take to get its serving certificate."""

PROXY_SECONDS = 40
"""How long a node's proxy may take to find an apiserver: nginx leaves one that it lost alone for 30 s."""

Confirm = Callable[[Plan], Awaitable[bool]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How far and how fast."""

    serial: int = 0
    """Nodes in one batch; 0: all of them at once. The next batch starts when this one is healthy."""
    max_failures: int = 0
    """How many nodes may fail before no further batch is started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeResult:
    """What became of one node."""

    name: str
    status: NodeOutcome
    actions: int = 0
    """Actions carried out."""
    seconds: float = 0.0
    uploaded: int = 0
    """Compressed bytes of artifacts sent."""
    pulled: int = 0
    """Bytes of artifacts that the node fetched from the mirror itself."""
    error: KubeworkerError | None = None

    def as_json(self) -> dict[str, Any]:
        """The node as `apply --json` prints it."""
        return {
            "name": self.name,
            "status": self.status,
            "actions": self.actions,
            "seconds": round(self.seconds, 3),
            "uploaded": self.uploaded,
            "pulled": self.pulled,
            "error": self.error.as_json() if self.error else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyReport:
    """The outcome of a run, node by node."""

    plan: Plan
    """What was shown before anything was done."""
    nodes: tuple[NodeResult, ...]
    confirmed: bool = True
    objects: int = 0
    """Changes of the cluster's objects that were carried out."""

    @property
    def exit_code(self) -> int:
        """0 done or nothing to do, 1 something failed, 4 only unreachable nodes."""
        statuses = {node.status for node in self.nodes}
        if statuses & {"failed", "skipped"}:
            return 1
        return 4 if "unreachable" in statuses else 0

    def as_json(self) -> dict[str, Any]:
        """The machine-readable form."""
        return {
            "changes": self.plan.changes,
            "confirmed": self.confirmed,
            "nodes": [node.as_json() for node in self.nodes],
            "cluster": self.objects,
            "warnings": list(self.plan.warnings),
        }


async def apply(request: Request, options: Options, confirm: Confirm, report: Reporter) -> ApplyReport:
    """Plan, ask, execute. Where there is nothing to do, nothing is asked and nothing is touched."""
    async with open_session(request, report) as session:
        lock = RunLock(session.kube, report, shard=request.shard) if session.kube else None
        if lock:
            await lock.look()
        plan = await make_plan(session)
        if not plan.changes:
            return _nothing_done(plan)
        if not await confirm(plan):
            return _nothing_done(plan, confirmed=False)
        # With no apiserver up the nodes' own locks must do.
        async with lock or contextlib.nullcontext():
            if lock and lock.waited:
                # What the other run did is not in the plan that was shown.
                plan = await make_plan(session)
                if not plan.changes:
                    return _nothing_done(plan)
                if not await confirm(plan):
                    return _nothing_done(plan, confirmed=False)
            return await execute(session, plan, options)


def _nothing_done(plan: Plan, *, confirmed: bool = True) -> ApplyReport:
    return ApplyReport(plan=plan, nodes=tuple(_untouched(node) for node in plan.nodes), confirmed=confirmed)


async def execute(session: Session, plan: Plan, options: Options) -> ApplyReport:
    """Carry out a plan, then what it deferred, until nothing is left to do."""
    run = _Run(session=session, options=options, delivery=Delivery(session))
    run.results = {node.name: _untouched(node) for node in plan.nodes}
    for each in run.results.values():
        if each.error is not None:
            session.report(NodeDone(node=each.name, status=each.status, detail=each.error.message))
    async with AsyncExitStack() as stack:
        if plan.credential:
            credentials.write(session.request.cluster_file, session.proxy)
        for release in session.releases:
            chart_credentials.write(session.request.cluster_file, release.credentials)
        run.desk = await stack.enter_async_context(_approving(session, plan))
        run.group = await stack.enter_async_context(asyncio.TaskGroup())
        await run.rounds(plan)
        async with asyncio.TaskGroup() as ends:
            ends.create_task(run.finish(run.done(plan)))
            await run.stragglers(plan, ends)
    nodes = tuple(run.results[node.name] for node in plan.nodes)
    return ApplyReport(plan=plan, nodes=nodes, objects=run.objects)


def _only(plan: Plan, names: Collection[str]) -> Plan:
    return replace(plan, nodes=tuple(node for node in plan.nodes if node.name in names))


def _untouched(node: NodePlan) -> NodeResult:
    return NodeResult(name=node.name, status=outcome_of(node.error), error=node.error)


@asynccontextmanager
async def _approving(session: Session, plan: Plan) -> AsyncIterator[Desk | None]:
    """Certificates are approved beside the stages; tokens are taken back at the end, also of a cancelled run."""
    if session.kube is None:
        yield None
        return
    until = asyncio.Event()
    desk = Desk(
        kube=session.kube,
        inventory=csr.inventory(session.cluster),
        report=session.report,
        nodes=frozenset(node.name for node in plan.nodes),
        rejoining=plan.objects.rejoining,
    )
    async with asyncio.TaskGroup() as group:
        handed = session.handed is not None
        group.create_task(join.approve_while(desk, plan.objects.tokens, until, handed=handed))
        try:
            yield desk
        finally:
            until.set()


@dataclass(kw_only=True)
class _Run:
    """The state of one execution: what became of each node so far."""

    session: Session
    options: Options
    delivery: Delivery
    results: dict[str, NodeResult] = field(default_factory=dict)
    objects: int = 0
    """Changes of the cluster's objects so far."""
    failed: int = 0
    """Nodes that this execution failed on; those that were not fit to begin with say nothing of the change itself."""
    starts: dict[str, str] = field(default_factory=dict)
    """By node, when this execution started its kubelet anew, by the node's clock."""
    desk: Desk | None = None
    """Where certificates are approved meanwhile; it knows why a node has none. None while no apiserver is up."""
    group: asyncio.TaskGroup = field(default_factory=asyncio.TaskGroup)
    """Where nodes are worked on that the others no longer wait for."""
    pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        self.pace = Pace(going=self.going)

    def going(self) -> set[str]:
        """Nodes that nothing has stopped yet."""
        return {name for name, result in self.results.items() if result.status == "ok"}

    def stopped(self) -> set[str]:
        """The others."""
        return self.results.keys() - self.going()

    async def rounds(self, plan: Plan) -> None:
        """Carry it out, then what it deferred, until nothing is left to do on its nodes that keep pace."""
        names = {node.name for node in plan.nodes}
        current = plan
        for _ in range(ROUNDS):
            await self.carry_out(current)
            self.pace.fall_behind(names)
            names -= self.pace.behind | self.stopped()
            current = _only(current, names)
            await self.install(current)
            if not await self.facts_appeared(current):
                break
            current = await make_plan(self.session, apart=self.results.keys() - names)
            if not current.changes:
                break

    def done(self, plan: Plan) -> Plan:
        """Of its nodes, those that have had all their rounds."""
        return _only(plan, {node.name for node in plan.nodes} - self.pace.behind)

    async def finish(self, plan: Plan) -> None:
        """The health and the labels of the plan's nodes, which are done."""
        if self.session.kube and plan.nodes:
            await self.wait_healthy(self.session.kube, plan)
            await self.label(self.session.kube, plan)

    async def stragglers(self, plan: Plan, ends: asyncio.TaskGroup) -> None:
        """The same for nodes that the others did not wait for, as they come; then what these mean for the others."""
        came: set[str] = set()
        while self.pace.behind:
            arrived = await self.pace.caught_up()
            if arrived:
                await self.rounds(await make_plan(self.session, apart=self.results.keys() - arrived))
                ends.create_task(self.finish(self.done(_only(plan, arrived))))
            came |= arrived
        if came:
            # Routes lead to them.
            await self.rounds(await make_plan(self.session, apart=self.stopped()))

    async def carry_out(self, plan: Plan) -> None:
        """The cluster's objects, then the nodes, batch by batch."""
        if self.session.kube:
            self.objects += await join.apply_cluster(self.session.kube, plan.objects.actions, self.session.report)
        chosen = [node for node in plan.nodes if node.name in self.going() and node.stages]
        for node in chosen:
            self.session.report(NodeQueued(node=node.name, steps=node.changes))
        with self._waiting((node.name for node in chosen if node.blobs), "artifacts to be compressed"):
            await self.delivery.prepare({blob for node in chosen for blob in node.blobs})
        if not self.options.serial:
            await self._together(chosen)
            return
        size = self.options.serial
        for start in range(0, len(chosen), size):
            if self.failed > self.options.max_failures:
                self._skip(chosen[start:])
                return
            batch = chosen[start : start + size]
            ready = await self._ready(batch)
            await self._batch(batch)
            if start + size < len(chosen):
                await self._settle(ready)

    async def install(self, plan: Plan) -> None:
        """The charts' objects, once for all nodes, which now run what the agents need; then the agents themselves."""
        kube = self.session.kube
        if kube is None:
            return
        if self.failed > self.options.max_failures:
            if plan.charts.actions:
                text = f"{len(plan.charts.actions)} changes not started: {_nodes(self.failed)} failed"
                self.session.report(Warning_(subject="cluster", text=text))
            return
        self.objects += await charts.apply(kube, plan.charts.actions, self.session.report)
        touched = {node.name for node in plan.nodes if node.changes or plan.charts.actions} & self.going()
        for release in self.session.releases if touched else ():
            chart = release.chart
            with self._waiting(touched, f"{chart.component}'s agent to be Ready"):
                lame = await charts.wait(kube, chart, touched)
            for name, trouble in lame.items():
                text = f"{chart.component}'s agent on it is not Ready: {trouble}"
                hint = f"kubectl --namespace {chart.namespace} describe pod --selector k8s-app={chart.agent}"
                self._fail(name, JoinFailed(text, subject=name, hint=hint))

    async def _ready(self, batch: Sequence[NodePlan]) -> set[str]:
        """Those that are Ready now and whose kubelet is about to be restarted."""
        kube = self.session.kube
        names = {node.name for node in batch if not node.joining and restarts_kubelet(node)}
        if kube is None or not names or self.session.cluster.cni == "none":
            return set()
        seen = await looked_until(lambda: kube.nodes(names), lambda _: True, seconds=0)
        return set() if isinstance(seen, ApiError) else {node.name for node in seen if node.ready}

    async def _settle(self, ready: set[str]) -> None:
        """Nodes that were Ready are so again before the next batch begins: a unit's own gate does not see the node."""
        kube = self.session.kube
        names = ready & self.going()
        if kube is None or not names:
            return
        with self._waiting(names, _READY):
            away = await unready(lambda: kube.nodes(names), names, self.starts, seconds=RESTART_SECONDS)
        for name, error in away.items():
            self.failed += 1
            self._fail(name, error)

    async def _together(self, nodes: Sequence[NodePlan]) -> None:
        """All of them at once; one that hangs, or whose line is slow, is left to itself once others are done."""
        names = {node.name for node in nodes}
        self.pace.busy |= names
        self.group.create_task(self._batch(nodes))
        await self.pace.keep(names)

    async def _batch(self, nodes: Sequence[NodePlan]) -> None:
        plans = {node.name: node for node in nodes}

        async def work(name: str) -> None:
            try:
                await self._node(plans[name])
            except KubeworkerError as error:
                self._lose(plans[name], error)
            self.pace.leave(name)

        outcomes = await fan_out(tuple(plans), work, limit=self.session.cluster.ssh.concurrency)
        for name, outcome in outcomes.items():
            if isinstance(outcome, Failed):
                self._lose(plans[name], outcome.error)
                self.pace.leave(name)

    def _lose(self, plan: NodePlan, error: KubeworkerError) -> None:
        self.failed += 1
        self._fail(plan.name, self._explained(plan, error))

    async def _node(self, plan: NodePlan) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        before = self.results[plan.name]
        connection = self.session.connection(plan.name)
        self.session.report(NodeStarted(node=plan.name, what="apply"))
        try:
            came = await self.delivery.deliver(connection, plan.blobs)
            self._count(plan.name, uploaded=came.uploaded, pulled=came.pulled)
            left = {stage.component: stage for stage in plan.stages}
            for stage in plan.state.stages if plan.state else ():
                step = left.pop(stage.component, None)
                if step is not None:
                    await self._stage(connection, step)
                    self._count(plan.name, actions=len(step.actions))
                if left or step is not None:
                    await self._prove(connection, stage.tls_endpoints)
        finally:
            # A node that fails half-way has done something all the same.
            seconds = before.seconds + loop.time() - began
            self.results[plan.name] = replace(self.results[plan.name], seconds=seconds)
        self.session.report(NodeDone(node=plan.name, status="ok", seconds=seconds))

    def _trouble(self, name: str) -> Trouble | None:
        """Why the node has no certificate, as far as the desk knows at this moment."""
        return self.desk.troubles.get(name) if self.desk else None

    def _explained(self, plan: NodePlan, error: KubeworkerError) -> KubeworkerError:
        """With what stops a joining node's request, where something does: the node itself only sees that it waits."""
        trouble = self._trouble(plan.name)
        if trouble is None or not plan.joining or not isinstance(error, ActionFailed):
            return error
        headline, newline, rest = error.message.partition("\n")
        text = f"{headline}; {trouble.text}{newline}{rest}"
        return JoinFailed(text, subject=error.subject, hint="\n  ".join(filter(None, (trouble.hint, error.hint))))

    def _count(self, name: str, *, actions: int = 0, uploaded: int = 0, pulled: int = 0) -> None:
        before = self.results[name]
        self.results[name] = replace(
            before,
            actions=before.actions + actions,
            uploaded=before.uploaded + uploaded,
            pulled=before.pulled + pulled,
        )

    async def _stage(self, connection: Node, step: StagePlan) -> None:
        report, loop = self.session.report, asyncio.get_running_loop()
        report(StageStarted(node=connection.name, component=step.component))
        last = loop.time()

        def on_line(line: str) -> None:
            nonlocal last
            match node_script.progress(line):
                case (number, True):
                    action = step.actions[number]
                    now = loop.time()
                    report(
                        ActionDone(
                            node=connection.name,
                            kind=actions.kind(action),
                            subject=actions.subject(action),
                            seconds=now - last,
                        )
                    )
                    last = now
                case (number, False):
                    begun = step.actions[number]
                    kind, subject = actions.kind(begun), actions.subject(begun)
                    report(ActionStarted(node=connection.name, kind=kind, subject=subject))
                case None:
                    unit, when = node_script.started(line) or ("", "")
                    if unit == kubelet.UNIT:
                        self.starts[connection.name] = when

        result = await connection.run(
            node_script.stage_script(step),
            stdin=node_script.stage_input(step),
            timeout=node_script.stage_seconds(step),
            on_line=on_line,
        )
        node_script.verdict(connection.name, step, status=result.status, stdout=result.stdout, stderr=result.stderr)

    async def _prove(self, connection: Node, endpoints: Iterable[TlsEndpoint]) -> None:
        """The certificate behind an address, through the node, before any kubeconfig names that address."""
        for endpoint in endpoints:
            match await self._ask(connection, endpoint.address):
                case https.NoAnswer(reason=reason, untrusted=True):
                    raise ActionFailed(f"{endpoint.address}: {reason}", subject=connection.name, hint=endpoint.hint)
                case https.NoAnswer(reason=reason) if self.session.kube is None:
                    text = (
                        f"{endpoint.address}: {reason}; no kube-apiserver is up, so its certificate was not looked at"
                    )
                    self.session.report(Warning_(subject=connection.name, text=text))
                case https.NoAnswer(reason=reason):
                    servers = ", ".join(self.session.cluster.cluster.apiservers)
                    text = f"no kube-apiserver answers through {endpoint.address} on the node: {reason}"
                    hint = f"can the node reach {servers}? On it: journalctl -u kube-nginx"
                    raise ActionFailed(text, subject=connection.name, hint=hint)
                case https.Answer():
                    pass

    async def _ask(self, connection: Node, address: str) -> https.Answer | https.NoAnswer:
        """Any status will do: it is the certificate that is looked at, and a 401 comes after the handshake."""
        host, _, port = address.rpartition(":")
        context = https.tls_context(self.session.ca.pem)
        async with connection.forward(host, int(port)) as local:
            return await asked_until(
                lambda: https.get(f"https://{address}/readyz", port=local, context=context),
                lambda answer: isinstance(answer, https.Answer) or answer.untrusted,
                seconds=PROXY_SECONDS if self.session.kube else 0,
            )

    async def facts_appeared(self, plan: Plan) -> bool:
        """Whether another round is due: a node joined, or a podCIDR that something waits for is there now."""
        joined = any(node.joining for node in plan.nodes if node.name in self.going())
        waiting = {node.name for node in plan.nodes if node.deferred and node.name in self.going()}
        kube = self.session.kube
        # Only the bridge's files are made of it; with other plugins a Node need not have one.
        if kube and waiting and self.session.cluster.cni == "bridge":
            with self._waiting(waiting, "its podCIDR"):
                await looked_until(
                    lambda: kube.nodes(waiting),
                    lambda nodes: waiting <= {node.name for node in nodes if node.pod_cidr},
                    seconds=CERTIFICATE_SECONDS,
                )
        return joined or bool(waiting)

    async def wait_healthy(self, kube: Kube, plan: Plan) -> None:
        """Serving certificates of nodes that joined are there, and nodes with a network plugin are Ready."""
        touched = {node.name for node in plan.nodes if node.changes} & self.going()
        joined = {node.name for node in plan.nodes if node.joining} & touched
        if joined:
            await self._wait_served(kube, joined, plan)
            with self._waiting(joined & self.going(), "its kubelet to show that certificate"):
                await self._wait_shown(kube, joined & self.going())
        if self.session.cluster.cni == "none":
            if any(node.joining for node in plan.nodes if node.name in touched):
                self.session.report(Note(text="cni: none: nodes stay NotReady until you install a network plugin"))
            return
        names = touched & self.going()
        with self._waiting(names, _READY):
            away = await unready(lambda: kube.nodes(names), names, self.starts)
        for name, error in away.items():
            self._fail(name, error)

    async def _wait_served(self, kube: Kube, joined: set[str], plan: Plan) -> None:
        with self._waiting(joined, "its serving certificate"):
            unserved = await looked_until(
                lambda: _unserved(kube, joined, plan.objects.rejoining),
                lambda names: all((why := self._trouble(name)) and why.final for name in names),
                seconds=CERTIFICATE_SECONDS,
            )
        for name in sorted(joined if isinstance(unserved, ApiError) else unserved):
            why = _unknown(unserved) if isinstance(unserved, ApiError) else self._trouble(name) or _UNASKED
            self._fail(name, JoinFailed(f"it has no serving certificate: {why.text}", subject=name, hint=why.hint))

    async def _wait_shown(self, kube: Kube, names: set[str]) -> None:
        """What kubelet shows, seen on the node itself, is what was issued to it."""
        comparison = Comparison(cluster=self.session.cluster, look=self._shown)
        waiting, end = set(names), asyncio.get_running_loop().time() + 2 * comparison.patience

        async def all_told() -> bool:
            requests = await looked_until(kube.csrs, lambda _: True, seconds=CERTIFICATE_SECONDS)
            if isinstance(requests, ApiError):
                why = _unknown(requests)
                for name in sorted(waiting):
                    self._fail(name, JoinFailed(why.text, subject=name, hint=why.hint))
                return True
            # Read again each time: a node that joins again asks while its former request still looks like its newest.
            mine = (each for each in requests if each.certificate and each.node in waiting)
            comparison.expect_instead(issuing.newest(mine))
            if asyncio.get_running_loop().time() >= end:
                comparison.patience = 0  # one that asks again and again must not keep the run from its end
            for each in await comparison.round(requests):
                waiting.discard(each.request.node)
                if each.status != "shown":
                    name, text = each.request.node, f"{each.request.name}: {each.detail}"
                    self._fail(name, JoinFailed(text, subject=name, hint=ANOTHER_HINT))
            return not (waiting and comparison.waiting)

        if waiting:
            await asked_until(all_told, bool, seconds=math.inf)

    async def _shown(self, name: str) -> bytes | https.NoAnswer:
        async with self.session.connection(name).forward(*place(self.session.cluster, name)) as local:
            return await https.certificate("127.0.0.1", local)

    async def label(self, kube: Kube, plan: Plan) -> None:
        """Nodes that joined get their labels and taints."""
        # What the others lack was among the plan's own actions.
        joined = [node.name for node in plan.nodes if node.joining]
        if not joined:
            return
        try:
            await join.label_nodes(kube, self.session.cluster, joined, self.session.report)
        except ApiError as error:
            for name in sorted(set(joined) & self.going()):
                why = _unknown(error)
                text = f"its labels and taints may not be set: {why.text}"
                self._fail(name, JoinFailed(text, subject=name, hint=why.hint))

    @contextlib.contextmanager
    def _waiting(self, names: Iterable[str], what: str) -> Iterator[None]:
        """Tell of each of these what it waits for meanwhile."""
        names = sorted(names)
        for name in names:
            self.session.report(Waiting(node=name, what=what))
        try:
            yield
        finally:
            for name in names:
                self.session.report(Waiting(node=name, what=""))

    def _fail(self, name: str, error: KubeworkerError) -> None:
        status = outcome_of(error)
        self.results[name] = replace(self.results[name], status=status, error=error)
        self.session.report(NodeDone(node=name, status=status, detail=error.message))

    def _skip(self, nodes: Iterable[NodePlan]) -> None:
        for node in nodes:
            text = f"not started: {_nodes(self.failed)} failed, and --max-failures is {self.options.max_failures}"
            error = ActionFailed(text, subject=node.name, hint="mend them and run apply again, or --max-failures N")
            self.results[node.name] = replace(self.results[node.name], status="skipped", error=error)
            self.session.report(NodeDone(node=node.name, status="skipped", detail=text))


async def _unserved(kube: Kube, names: set[str], rejoining: frozenset[str]) -> set[str]:
    """Those of these nodes that wait for a serving certificate; one that joins again may still have a good one."""
    requests = issuing.newest(each for each in await kube.csrs() if csr.kind(each) == "serving")
    issued = {each.node for each in requests if each.certificate}
    waiting = {each.node for each in requests if not each.certificate}
    return names & ((names - issued - rejoining) | waiting)


_READY = "its Node to be Ready"

_UNASKED = Trouble(
    text="kubelet has asked for none",
    hint="it asks once its Node has an address; on the node: journalctl -u kubelet",
)


def _unknown(error: ApiError) -> Trouble:
    return Trouble(text=f"the API can't be asked: {error.message}", hint="run apply again once it answers")


def _nodes(number: int) -> str:
    return "1 node" if number == 1 else f"{number} nodes"
