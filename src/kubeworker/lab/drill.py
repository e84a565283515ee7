"""`kubeworker drill apiserver`: what clients and nodes of a lab meet with when one of its kube-apiservers fails.

docs/failover.md says what each number contains.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kubeworker.core.api_proxy import failover
from kubeworker.core.api_proxy.failover import SPREAD_LIMIT, Case, Client, Drill, Proxy, Result, Sessions
from kubeworker.core.cluster import kube_views
from kubeworker.errors import LabError, UsageError
from kubeworker.flow.events import Note, Reporter
from kubeworker.lab import drill_client, drill_fault, host, lifecycle
from kubeworker.lab.admin_api import AdminApi
from kubeworker.lab.drill_client import Clients, Credentials, Told
from kubeworker.lab.drill_look import Lookout
from kubeworker.lab.drill_watch import NODES, Watch
from kubeworker.lab.kinds import run
from kubeworker.lab.state import LabState, Machine

QUIET_SECONDS = 3.0
"""How long nothing happens before a fault; and how long sessions must be even again to count as such."""
START_LIMIT = 30.0
"""Until the clients must be served."""
HOLD_AT_LEAST = 10.0
"""A fault lasts until both clients are well again and every kubelet has renewed its lease, but so long at least ..."""
HOLD_AT_MOST = 75.0
"""... and at most: who is not heard of is NotReady after 50 s (node-monitor-grace-period), which is seen 5 s later."""
RETURN_LIMIT = 90.0
"""Until the kube-apiserver must be ready again. What it last sent to etcd before packets were dropped is sent again
after up to twice as long as they were dropped."""
HEALTHY_LIMIT = 120.0
"""Until all nodes must be Ready before a case: a kubelet that was cut off may need a minute (reflector's back-off)."""


def apiserver(lab: LabState, cases: Sequence[Case], report: Reporter, *, node: str = "") -> Drill:
    """Each of the cases in turn, with clients on `node` (default: one without a kube-apiserver).

    The lab is whole afterwards, however this ends. LabError: it is not healthy to begin with.
    """
    host.require_root()
    with _alone(lab):
        drill_fault.heal(lab, report)
        lookout = Lookout(lab)
        proxy = _proxy(lookout, _client_node(lab, lookout, node))
        _until_healthy(lab, lookout)
        with drill_client.credentials(lab, report) as given:
            results = tuple(_case(lab, lookout, given, proxy, case, report) for case in cases)
    return Drill(lab=lab.name, proxy=proxy, nodes=lookout.nodes, results=results)


@contextlib.contextmanager
def _alone(lab: LabState) -> Iterator[None]:
    """One drill of a lab at a time."""
    with (lab.folder / "drill.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError("another drill is under way", subject=f"lab {lab.name}", hint="wait for its end") from None
        yield


def _client_node(lab: LabState, lookout: Lookout, wanted: str) -> str:
    if not lookout.nodes:
        hint = f"deploy it first: kubeworker apply -f {lab.cluster_yaml}"
        raise LabError("kube-nginx runs on none of its machines", subject=f"lab {lab.name}", hint=hint)
    if wanted and wanted not in lookout.nodes:
        hint = f"kube-nginx runs on {', '.join(lookout.nodes)}"
        raise UsageError("there is no such machine, or no kube-nginx on it", subject=wanted, hint=hint)
    plain = [name for name in lookout.nodes if not lab.machine(name).is_control_plane]
    return wanted or (plain or lookout.nodes)[0]


def _proxy(lookout: Lookout, node: str) -> Proxy:
    config = lookout.proxy_config(node)
    (listen,) = re.findall(r"^\s*listen ([^;]+);", config, re.MULTILINE)
    idle, answer = drill_client.ping(lookout.environment(node, "kubelet"))
    return Proxy(
        node=node,
        listen=listen,
        balance="hash" if re.search(r"^\s*hash ", config, re.MULTILINE) else "least_conn",
        probe=node in lookout.probed,
        ping_seconds=(idle, answer),
    )


def _until_healthy(lab: LabState, lookout: Lookout) -> None:
    end = time.monotonic() + HEALTHY_LIMIT
    while trouble := _trouble(lab, lookout):
        if time.monotonic() > end:
            hint = f"kubeworker lab up --name {lab.name} brings a lab back; kubeworker verify -f {lab.cluster_yaml}"
            raise LabError(f"it is not healthy: {trouble}", subject=f"lab {lab.name}", hint=hint)
        time.sleep(1)


def _trouble(lab: LabState, lookout: Lookout) -> str:
    """Why a case can't begin; empty if it can."""
    for machine in lab.control_plane:
        if not lifecycle.apiserver_ready(lab, machine):
            return f"the kube-apiserver on {machine.name} is not ready"
    for node in lookout.probed:
        if left_out := lookout.left_out(node, lab.control_plane):
            return f"{node} does not use the kube-apiserver on {', '.join(left_out)}"
    try:
        nodes = AdminApi(lab, lab.control_plane[0]).items(NODES)
    except LabError as error:
        return str(error)
    unready = set(lookout.nodes) - {node.name for node in map(kube_views.node, nodes) if node.ready}
    return f"not Ready: {', '.join(sorted(unready))}" if unready else ""


# ---------------------------------------------------------------------------------------------------------------
# One case


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moments:
    """When what happened, of time.monotonic()."""

    began: float
    fault: float
    released: float
    returned: float
    """It answered /readyz again."""
    ended: float


def _case(lab: LabState, lookout: Lookout, given: Credentials, proxy: Proxy, case: Case, report: Reporter) -> Result:
    _fresh(lab, lookout, report)
    _until_healthy(lab, lookout)
    began = time.monotonic()
    with drill_client.running(
        lab, given, pid=lookout.a_pid(proxy.node), server=proxy.listen, pings=proxy.ping_seconds
    ) as clients:
        _until_served(clients, proxy)
        victim = _behind(lab, clients)
        (*_, other) = (each for each in lab.control_plane if each != victim)
        watch = Watch(control_plane=lab.control_plane, lookout=lookout, clients=clients, asked=AdminApi(lab, other))
        watch.until(lambda: True, at_least=QUIET_SECONDS, at_most=QUIET_SECONDS)
        # The clients may have dialled anew meanwhile.
        if _behind(lab, clients) != victim:
            raise LabError("the kept connection was lost before anything was done", subject=proxy.node)
        report(Note(subject=victim.name, text=f"its kube-apiserver, which serves the kept connection, is {case} now"))
        before, fault, clock = watch.spread(), time.monotonic(), time.time()
        with drill_fault.befallen(lab, victim, case, report):
            watch.until(lambda: watch.well_since(clock), at_least=HOLD_AT_LEAST, at_most=HOLD_AT_MOST)
            during, released = watch.spread(), time.monotonic()
        if not watch.until(lambda: lifecycle.apiserver_ready(lab, victim), at_most=RETURN_LIMIT):
            raise LabError(f"its kube-apiserver is not ready {RETURN_LIMIT:.0f} s later", subject=victim.name)
        returned, clock = time.monotonic(), time.time()
        report(Note(subject=victim.name, text="its kube-apiserver is ready again; sessions are to come back"))
        watch.until(
            lambda: (
                watch.even_for(QUIET_SECONDS, returned) and all(watch.reloads(node, clock) for node in lookout.probed)
            ),
            at_most=SPREAD_LIMIT,
        )
    moments = _Moments(began=began, fault=fault, released=released, returned=returned, ended=time.monotonic())
    reloads = {node: watch.reloads(node, clock) for node in lookout.nodes}
    return _result(case, victim, watch, moments, before=before, during=during, reloads=reloads)


def _fresh(lab: LabState, lookout: Lookout, report: Reporter) -> None:
    """Where no probe does it, have sessions go where new ones go: those that an earlier case has moved would stay."""
    for node in sorted(set(lookout.nodes) - set(lookout.probed)):
        done = run(lab, lab.machine(node), "systemctl restart kube-nginx")
        if done.returncode != 0:
            raise LabError(f"kube-nginx was not restarted: {done.stderr.strip()}", subject=node)
        report(
            Note(subject=node, text="kube-nginx is restarted: without a probe, sessions stay where a case moved them")
        )


def _until_served(clients: Clients, proxy: Proxy) -> None:
    end = time.monotonic() + START_LIMIT
    # Their first requests may come before the API servers' authorizers have heard of their rights.
    while not (clients.told.servers and clients.told.steady(time.monotonic() - 1.0, answers=3)):
        if time.monotonic() > end:
            said = clients.told.errors("kept", 0.0) | clients.told.errors("dial", 0.0)
            raise LabError(f"{proxy.listen} does not serve the clients there: {said}", subject=proxy.node)
        time.sleep(0.1)
        clients.read()


def _behind(lab: LabState, clients: Clients) -> Machine:
    """The machine whose kube-apiserver the kept connection leads to."""
    address = clients.told.servers[-1][1].rpartition(":")[0]
    for machine in lab.control_plane:
        if machine.address == address:
            return machine
    raise LabError(f"the kept connection leads to {address}, none of its machines", subject=f"lab {lab.name}")


def _result(
    case: Case,
    victim: Machine,
    watch: Watch,
    moments: _Moments,
    *,
    before: Sessions,
    during: Sessions,
    reloads: dict[str, tuple[float, ...]],
) -> Result:
    even = failover.even_since(watch.spreads, moments.returned)
    return Result(
        case=case,
        apiserver=victim.name,
        held=moments.released - moments.fault,
        recovery=moments.returned - moments.released,
        kept=_client(watch.clients.told, "kept", moments),
        dial=_client(watch.clients.told, "dial", moments),
        watch=_watch_opened(watch.clients.told, moments),
        before=before,
        during=during,
        after=watch.spread(),
        even=None if even is None else even - moments.returned,
        leases={node: failover.oldest(times, watch.answered) for node, times in watch.renewals.items()},
        not_ready=tuple(sorted(watch.not_ready)),
        reloads=reloads,
    )


def _watch_opened(told: Told, moments: _Moments) -> float | None:
    opened = [at for at, error in told.watches if at > moments.fault and not error]
    return opened[0] - moments.fault if opened else None


def _client(told: Told, name: str, moments: _Moments) -> Client:
    answers = told.answers[name]
    return Client(
        gap=failover.longest_gap(answers, moments.fault, moments.released, moments.ended),
        after=failover.longest_pause(answers, moments.returned, moments.ended),
        noise=failover.longest_pause(answers, moments.began, moments.fault),
        errors=told.errors(name, moments.fault),
    )
