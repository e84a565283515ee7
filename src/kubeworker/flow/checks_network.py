"""verify's checks of a network plugin with agents: the agents themselves, and real traffic through what they made."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from kubeworker.core.cluster.kube_views import PodStatus
from kubeworker.core.model import AgentCommand, AgentKnowsPods, AgentReady, Traffic
from kubeworker.core.verify import objects as verify_objects
from kubeworker.core.verify.checks import Verdict, failed, passed
from kubeworker.core.verify.objects import NAMESPACE, PORT, Role, Run, traffic_client
from kubeworker.errors import ApiError, NodeError
from kubeworker.flow import charts
from kubeworker.flow.charts import Agents
from kubeworker.flow.checks_cluster import Shared
from kubeworker.flow.checks_http import SETTLE_SECONDS
from kubeworker.flow.polling import settled
from kubeworker.io.fleet import Failed, Ok, fan_out
from kubeworker.io.kube import Kube
from kubeworker.io.node import Node
from kubeworker.io.objects import Objects
from kubeworker.io.pod_exec import pod_exec

PODS_SECONDS = 30.0
"""How long the pods may take to run, all at once."""
POLICY_SECONDS = 15.0
"""How long a policy may take to be in force."""
ANSWER_SECONDS = 10.0
"""Three attempts of two seconds, and the way there and back."""

_LIMIT = 16


# ---------------------------------------------------------------------------------------------------------------
# Agents


class AgentsView:
    """One answer of the API about a DaemonSet for all nodes, read again at most once a second."""

    def __init__(self, kube: Kube) -> None:
        """Nothing is read before the first `get`."""
        self._kube = kube
        self._shared: dict[tuple[str, str], Shared[Agents]] = {}

    async def get(self, namespace: str, daemon_set: str) -> Agents:
        """An answer that is less than a second old."""
        read = partial(charts.look_at, self._kube, namespace, daemon_set, None)
        return await self._shared.setdefault((namespace, daemon_set), Shared(read)).get()


async def agent_ready(check: AgentReady, node: str, view: AgentsView) -> Verdict:
    """The verdict on the node's agent, asked again for a moment while it is not Ready."""

    async def look() -> Verdict:
        agents = await view.get(check.namespace, check.daemon_set)
        if node in agents.ready:
            return passed(check, f"pod {agents.pods[node]} is Ready")
        return failed(check, agents.troubles.get(node) or f"no pod of {check.daemon_set} on this node")

    return await settled(look, seconds=SETTLE_SECONDS)


async def agent_command(check: AgentCommand, node: str, kube: Kube, view: AgentsView) -> Verdict:
    """The verdict on what the agent says of itself."""
    agents = await view.get(check.namespace, check.daemon_set)
    pod = agents.pods.get(node)
    if pod is None:
        return failed(check, f"not tried: no pod of {check.daemon_set} on this node")
    try:
        said, status = await pod_exec(kube, check.namespace, pod, check.command, container=check.container)
    except ApiError as error:
        return failed(check, f"in pod {pod}: {error.message}")
    text = said.strip()[:300]
    if status != 0 or check.contains not in said:
        return failed(check, f"`{' '.join(check.command)}` in pod {pod} ended with {status}: {text}")
    return passed(check, text.splitlines()[0] if text else "")


async def agent_knows_pods(check: AgentKnowsPods, node: str, kube: Kube, view: AgentsView) -> Verdict:
    """The verdict on pods that another network plugin made, before this one came: nobody routes to them any more."""
    agents = await view.get(check.namespace, check.daemon_set)
    pod = agents.pods.get(node)
    if pod is None:
        return failed(check, f"not tried: no pod of {check.daemon_set} on this node")
    try:
        own = await _own_network(kube, node)
        said, status = await pod_exec(kube, check.namespace, pod, check.command, container=check.container)
        known = set(said.split())
        # A pod that has just come, or just gone, is in one of the two answers only.
        unknown = own - known and (own & await _own_network(kube, node)) - known
    except ApiError as error:
        return failed(check, f"in pod {pod}: {error.message}")
    if status != 0:
        return failed(check, f"`{' '.join(check.command)}` in pod {pod} ended with {status}")
    if unknown:
        names = ", ".join(sorted(unknown)[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        text = f"made by another network plugin and without a network now: {names}; delete them to have them made anew"
        return failed(check, text)
    return passed(check, f"{len(own)} pods with a network of their own, all known to the agent")


async def _own_network(kube: Kube, node: str) -> set[str]:
    """NAMESPACE/NAME of the node's running pods that are not in the node's own network."""
    found = await kube.list("Pod", fields={"spec.nodeName": node})
    return {
        f"{each['metadata']['namespace']}/{each['metadata']['name']}"
        for each in found
        if not each["spec"].get("hostNetwork")
        and (each.get("status") or {}).get("phase") == "Running"
        and not each["metadata"].get("deletionTimestamp")
    }


# ---------------------------------------------------------------------------------------------------------------
# Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slot:
    """A place for one pod of each role. On a single node there are two, so that there is another pod to talk to."""

    node: str
    side: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What all the pods of a run reached."""

    trouble: str = ""
    """Why nothing could be tried at all."""
    not_running: Mapping[str, str] = field(default_factory=dict)
    """By node, why its pods don't run."""
    faults: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """By node and route, what went wrong; a route without a fault is good."""
    details: Mapping[tuple[str, str], str] = field(default_factory=dict)
    services: Mapping[str, str] = field(default_factory=dict)
    """By node, the ClusterIP of the Service whose pods are on other nodes."""


class TrafficRun:
    """The pods of one run and what they reached: made once, for all nodes, by the first who asks."""

    def __init__(self, kube: Kube, run: Run, image: str, nodes: Sequence[str]) -> None:
        """Nothing is made before the first `seen`."""
        self._kube, self._run, self._image = kube, run, image
        places = tuple(nodes) if len(nodes) > 1 else (nodes[0], nodes[0])
        self._slots = tuple(_Slot(node=node, side=index % 2) for index, node in enumerate(places))
        self._lock = asyncio.Lock()
        self._seen: Seen | None = None
        self._pods: dict[str, PodStatus] = {}

    async def seen(self) -> Seen:
        """Make the pods, let them talk, remove them."""
        async with self._lock:
            if self._seen is None:
                try:
                    self._seen = await self._talk()
                except ApiError as error:
                    self._seen = Seen(trouble=f"not tried: {error.message}")
            return self._seen

    async def _talk(self) -> Seen:
        made = [await self._kube.create(verify_objects.traffic_service(self._run, side)) for side in (0, 1)]
        addresses = [str(service["spec"]["clusterIP"]) for service in made]
        services = {slot.node: addresses[1 - slot.side] for slot in self._slots}
        documents = {
            self._name(slot, role): verify_objects.traffic_pod(self._run, slot.node, slot.side, role, self._image)
            for slot in self._slots
            for role in _ROLES
        }
        outcomes = await fan_out(tuple(documents), lambda name: self._kube.create(documents[name]), limit=_LIMIT)
        for outcome in outcomes.values():
            if isinstance(outcome, Failed):
                raise outcome.error
        not_running = await self._wait()
        ring = [slot for slot in self._slots if slot.node not in not_running]
        if len(ring) < 2:
            return Seen(not_running=not_running, services=services)
        pairs = [(slot, ring[(index + 1) % len(ring)]) for index, slot in enumerate(ring)]
        faults: dict[tuple[str, str], str] = {}
        details: dict[tuple[str, str], str] = {}
        for route in ("pod-to-pod", "pod-to-service"):
            asked = {
                here: (
                    self._name(here, "open"),
                    self._ip(there, "open") if route == "pod-to-pod" else services[here.node],
                    there,
                )
                for here, there in pairs
            }
            for here, (answer, there) in (await self._ask_all(asked)).items():
                key = here.node, route
                service = f"the Service's address {services[here.node]}:{PORT}"
                what = f"the pod on {there.node}" if route == "pod-to-pod" else service
                if answer:
                    faults.setdefault(key, f"a pod on {here.node} gets no answer of {what}: {answer}")
                details.setdefault(key, f"answered by {what}")
        faults |= await self._policy(pairs, details)
        return Seen(not_running=not_running, faults=faults, details=details, services=services)

    async def _wait(self) -> dict[str, str]:
        """Wait until all pods run; by node, what is wrong with one that does not."""
        loop = asyncio.get_running_loop()
        end = loop.time() + PODS_SECONDS
        names = {(slot, role): self._name(slot, role) for slot in self._slots for role in _ROLES}
        while True:
            found = await self._kube.pods(namespace=NAMESPACE, labels=self._run.labels)
            self._pods = {pod.name: pod for pod in found}
            late = {key: self._pods.get(name) for key, name in names.items() if not self._runs(self._pods.get(name))}
            if not late or loop.time() > end:
                return {
                    slot.node: (pod.waiting or f"{self._image}: {pod.phase}") if pod else "the pod was deleted"
                    for (slot, _), pod in late.items()
                }
            await asyncio.sleep(0.3)

    @staticmethod
    def _runs(pod: PodStatus | None) -> bool:
        return pod is not None and pod.ready and bool(pod.ip)

    async def _policy(
        self, pairs: Sequence[tuple[_Slot, _Slot]], details: dict[tuple[str, str], str]
    ) -> dict[tuple[str, str], str]:
        """A policy that lets open pods in and no other: before it all pass, under it only those."""
        refused = {here: (self._name(here, "guarded"), self._ip(there, "guarded"), there) for here, there in pairs}
        allowed = {here: (self._name(here, "open"), self._ip(there, "guarded"), there) for here, there in pairs}
        faults: dict[tuple[str, str], str] = {}
        for here, (answer, there) in (await self._ask_all(refused)).items():
            if answer:
                faults.setdefault(
                    (here.node, "policy"), f"not tried: without a policy the pod on {there.node} does not answer either"
                )
        api = Objects(self._kube)
        await api.apply(verify_objects.traffic_policy(self._run), force=True)
        loop = asyncio.get_running_loop()
        end = loop.time() + POLICY_SECONDS
        while True:
            answers = await self._ask_all(refused, seconds=1)
            passing = {here: there for here, (answer, there) in answers.items() if not answer}
            if not passing or loop.time() > end:
                break
        for here, there in passing.items():
            text = f"a pod that the CiliumNetworkPolicy does not name still gets an answer of the pod on {there.node}"
            faults.setdefault((here.node, "policy"), text)
        for here, (answer, there) in (await self._ask_all(allowed)).items():
            if answer:
                text = f"a pod that the CiliumNetworkPolicy allows gets no answer of the pod on {there.node}: {answer}"
                faults.setdefault((here.node, "policy"), text)
            details.setdefault((here.node, "policy"), f"the pod on {there.node}: one is let in, the other is not")
        return faults

    async def _ask_all(
        self, asked: Mapping[_Slot, tuple[str, str, _Slot]], *, seconds: int = 2
    ) -> dict[_Slot, tuple[str, _Slot]]:
        """By the slot that asks: "" where it got the run's id, else what it got; and whom it asked."""
        by_name = {pod: (slot, address) for slot, (pod, address, _) in asked.items()}
        outcomes = await fan_out(tuple(by_name), lambda pod: self._ask(pod, by_name[pod][1], seconds), limit=_LIMIT)
        results = {}
        for pod, outcome in outcomes.items():
            slot = by_name[pod][0]
            match outcome:
                case Ok(value=value):
                    results[slot] = value, asked[slot][2]
                case Failed(error=error):
                    results[slot] = error.message, asked[slot][2]
        return results

    async def _ask(self, pod: str, address: str, seconds: int) -> str:
        try:
            said, status = await pod_exec(
                self._kube, NAMESPACE, pod, traffic_client(address, PORT, seconds=seconds), timeout=ANSWER_SECONDS
            )
        except ApiError as error:
            return error.message
        if status == 127:
            return "the image has no nc: name another one with --image"
        if said.strip() == self._run.id:
            return ""
        return f"{address}:{PORT} answered {said.strip()[:80]!r}" if said.strip() else f"{address}:{PORT} is silent"

    def _name(self, slot: _Slot, role: Role) -> str:
        return verify_objects.traffic_pod_name(self._run, slot.node, slot.side, role)

    def _ip(self, slot: _Slot, role: Role) -> str:
        return self._pods[self._name(slot, role)].ip


_ROLES: tuple[Role, ...] = ("open", "guarded")


async def traffic(
    checks: Iterable[Traffic], name: str, node: Node, run: TrafficRun, run_id: str
) -> tuple[Verdict, ...]:
    """The verdicts on what a node's pods, and the node itself, reached."""
    seen = await run.seen()
    return tuple([await _traffic(check, name, node, seen, run_id) for check in checks])


async def _traffic(check: Traffic, name: str, node: Node, seen: Seen, run_id: str) -> Verdict:
    if seen.trouble:
        return failed(check, seen.trouble)
    if check.route == "node-to-service":
        address = seen.services[name]
        fault = await _from_node(node, address, run_id)
        what = f"the Service's address {address}:{PORT}"
        return (
            failed(check, f"the node gets no answer of {what}: {fault}") if fault else passed(check, f"{what} answers")
        )
    if name in seen.not_running:
        return failed(check, f"its pods do not run: {seen.not_running[name]}")
    key = name, check.route
    if key not in seen.details and key not in seen.faults:
        return failed(check, "not tried: no pod on another node runs")
    return failed(check, seen.faults[key]) if key in seen.faults else passed(check, seen.details[key])


async def _from_node(node: Node, address: str, run_id: str) -> str:
    """What is wrong with the Service's answer as the node sees it; "" where nothing is."""
    why = "it is silent"
    for _ in range(3):
        try:
            async with asyncio.timeout(ANSWER_SECONDS / 3), node.forward(address, PORT) as port:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    said = (await reader.read(200)).decode(errors="replace").strip()
                finally:
                    writer.close()
            if said == run_id:
                return ""
            why = f"it says {said!r}" if said else why
        except (OSError, TimeoutError, NodeError) as error:
            why = str(error) or "no answer in time"
        await asyncio.sleep(0.2)
    return why
