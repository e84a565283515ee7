"""What is seen of a lab while one case of a drill runs: by its clients, of nodes' proxies, of Nodes and Leases."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kubeworker.core.api_proxy import failover
from kubeworker.core.api_proxy.failover import Sessions
from kubeworker.core.cluster import kube_views
from kubeworker.errors import LabError
from kubeworker.lab.admin_api import AdminApi
from kubeworker.lab.drill_client import Clients
from kubeworker.lab.drill_look import Look, Lookout, sessions
from kubeworker.lab.state import Machine

LOOK_SECONDS = 0.25
"""Between two looks at the nodes' proxies."""
ASK_SECONDS = 1.0
"""Between two questions for Nodes and Leases."""
STEADY_SECONDS = 2.0
"""So long the clients must have been answered without a failure to be well again."""
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
NODES = "/api/v1/nodes"


@dataclass(slots=True, kw_only=True)
class Watch:
    """Grows with every turn, a few of them a second. Times are of time.monotonic() where no epoch is named."""

    control_plane: tuple[Machine, ...]
    lookout: Lookout
    clients: Clients
    asked: AdminApi
    """The kube-apiserver that is asked for Nodes and Leases: one that nothing befalls."""
    spreads: list[tuple[float, Sessions]] = field(default_factory=list)
    workers: dict[str, dict[int, float]] = field(default_factory=dict)
    """By node, when each of kube-nginx's workers began (by pid), in seconds since the epoch."""
    renewals: dict[str, set[float]] = field(default_factory=dict)
    """By node, when its lease was renewed, in seconds since the epoch."""
    answered: float = 0.0
    """When Nodes and Leases were seen last, in seconds since the epoch."""
    not_ready: set[str] = field(default_factory=set)
    _last: Look | None = None
    _next_ask: float = 0.0

    def turn(self) -> None:
        """Look and ask once, when it is time."""
        if self._last is not None:
            time.sleep(max(0.0, self._last.at + LOOK_SECONDS - time.monotonic()))
        self.clients.read()
        look = self.lookout.look()
        if self._last is not None:
            self.spreads.append((look.at, sessions(self._last, look, self.control_plane)))
        self._last = look
        for node, processes in look.workers.items():
            known = self.workers.setdefault(node, {})
            known.update({pid: since for pid, since in processes.items() if pid not in known})
        if time.monotonic() >= self._next_ask:
            self._next_ask = time.monotonic() + ASK_SECONDS
            # On a host as busy as a lab's, an answer may be late now and then.
            with contextlib.suppress(LabError):
                self._ask()

    def until(self, holds: Callable[[], bool], *, at_most: float, at_least: float = 0.0) -> bool:
        """Go on until that is so; whether it became so in time."""
        begin = time.monotonic()
        while True:
            self.turn()
            passed = time.monotonic() - begin
            if passed >= at_least and holds():
                return True
            if passed > at_most:
                return False

    def spread(self) -> Sessions:
        """How the sessions of all nodes are spread now."""
        return self.spreads[-1][1]

    def even_for(self, seconds: float, since: float) -> bool:
        """Whether no API server has been over its share for so long, at some time after `since`."""
        begin = failover.even_since(self.spreads, since)
        return begin is not None and time.monotonic() - begin >= seconds

    def reloads(self, node: str, since: float) -> tuple[float, ...]:
        """When its kube-nginx reloaded (workers began), after that moment; both in seconds since the epoch."""
        return tuple(sorted(began for began in self.workers.get(node, {}).values() if began > since))

    def well_since(self, fault: float) -> bool:
        """Whether both clients are well, and every node has renewed its lease since then (seconds since the epoch)."""
        renewed = all(max(self.renewals.get(node, {0.0})) > fault for node in self.lookout.nodes)
        return renewed and self.clients.told.steady(time.monotonic() - STEADY_SECONDS)

    def _ask(self) -> None:
        leases = self.asked.items(LEASES)
        nodes = self.asked.items(NODES)
        self.answered = time.time()
        for lease in map(kube_views.lease, leases):
            if lease.name in self.lookout.nodes and lease.renewed:
                self.renewals.setdefault(lease.name, set()).add(lease.renewed.timestamp())
        unready = {node.name for node in map(kube_views.node, nodes) if not node.ready}
        self.not_ready |= unready & set(self.lookout.nodes)
