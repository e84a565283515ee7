"""Certificate signing requests: list them with their verdicts, approve those that hold every rule."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from kubeworker.core import durations
from kubeworker.core.certificates import csr, issuing
from kubeworker.core.certificates.csr import Approve, CsrView, Inventory, Knowledge, Pending, Verdict
from kubeworker.core.certificates.issuing import Halted
from kubeworker.core.cluster.bootstrap_token import BOOTSTRAP_USER
from kubeworker.core.cluster.kube_views import NodeStatus
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import ApiConflict, ApiError, ApiNotFound, ApiUnreachable, CredentialsError
from kubeworker.flow import csr_shown
from kubeworker.flow.csr_shown import Compared, Comparison, Look
from kubeworker.flow.events import CsrDecision, Note, Reporter, Warning_
from kubeworker.flow.polling import POLL_SECONDS
from kubeworker.io.kube import Kube

COMPARE_SECONDS = 10.0
"""How long `csr approve` waits for nodes to show what it approved."""
PATIENCE_SECONDS = 3.0
"""A broken rule is reported when it has stood this long: a serving request may be a moment older than its Node."""
RENEWAL_SECONDS = 20.0
"""A renewal that kube-controller-manager left pending is reported when it has waited this long: leaders change."""

Kinds: TypeAlias = frozenset[csr.Kind]
BOTH: Kinds = frozenset({"serving", "client"})
SERVING_ONLY: Kinds = frozenset({"serving"})
"""What an approver that nobody watches needs: client requests come while `apply` runs, which looks at them itself. It
reads no tokens, and so needs no right to Secrets."""

Tokens = Mapping[str, str]
"""Node by id of each bootstrap token that this tool has made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One request in `csr list`."""

    request: CsrView
    verdict: Verdict | Halted | None
    """None where it was decided, and all is well with it."""
    age: float = 0.0
    """Seconds since it was made, by this host's clock."""

    def as_json(self) -> dict[str, Any]:
        """The stable machine-readable form; `rule`, `detail` and `hint` are empty unless something stops it."""
        stopped = self.verdict if isinstance(self.verdict, Pending | Halted) else None
        return {
            "name": self.request.name,
            "node": self.request.node,
            "signer": self.request.signer,
            "requester": self.request.username,
            "created": self.request.created,
            "age": round(self.age),
            "state": self.request.state,
            "approvable": isinstance(self.verdict, Approve),
            "rule": stopped.rule if stopped else "",
            "detail": stopped.detail if stopped else "",
            "hint": stopped.hint if isinstance(stopped, Halted) else "",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Approved:
    """What one `csr approve` did."""

    approved: tuple[CsrView, ...]
    left: tuple[Listed, ...]
    """Kubelets' requests that stay pending, each with its broken rule."""
    compared: tuple[Compared, ...] = ()
    """What the nodes show on their ports since then, where it was looked at."""

    @property
    def well(self) -> bool:
        """Nothing stays pending, and no node shows another certificate than its own."""
        return not self.left and all(each.status != "another" for each in self.compared)

    def as_json(self) -> dict[str, Any]:
        """The stable machine-readable form."""
        return {
            "approved": [{"name": each.name, "node": each.node, "signer": each.signer} for each in self.approved],
            "pending": [each.as_json() for each in self.left],
            "compared": [each.as_json() for each in self.compared],
        }


async def connect(cluster: ClusterFile) -> Kube:
    """The cluster's API, as cluster.yaml says how."""
    files = cluster.cluster
    return await Kube.connect(Path(files.kubeconfig), files.apiservers, Path(files.ca.cert))


async def listing(kube: Kube, cluster: ClusterFile) -> tuple[Listed, ...]:
    """Every request in the cluster, oldest first: each pending one judged, each that gets no certificate explained."""
    requests = await kube.csrs()
    known = await knowledge(kube, cluster, requests)
    now = datetime.now(UTC)
    leader = await _leader(kube) if any(each.conditions and not each.certificate for each in requests) else ""

    def verdict(request: CsrView) -> Verdict | Halted | None:
        if request.pending:
            return csr.judge(request, known)
        return issuing.halted(request, durations.since(request.decided, now), leader)

    return tuple(
        Listed(request=each, verdict=verdict(each), age=durations.since(each.created, now)) for each in requests
    )


async def knowledge(kube: Kube, cluster: ClusterFile, requests: Iterable[CsrView]) -> Knowledge:
    """What these requests are judged against, as it is now."""
    nodes, tokens, remembered = await asyncio.gather(kube.nodes(), kube.token_owners(), kube.known_keys())
    return Knowledge(
        inventory=csr.inventory(cluster),
        issued_keys=csr.owners(csr.joined_keys(remembered, csr.issued_keys(requests))),
        node_addresses=_addresses(nodes),
        tokens=tokens,
    )


async def approve(
    kube: Kube, cluster: ClusterFile, report: Reporter, *, kinds: Kinds = BOTH, look: Look | None = None
) -> Approved:
    """Approve once what holds every rule; then compare what the nodes show, if there is a way to look at them."""
    comparison = Comparison(cluster=cluster, look=look, patience=COMPARE_SECONDS) if look else None
    desk = Desk(
        kube=kube, inventory=csr.inventory(cluster), report=report, nodes=None, kinds=kinds, comparison=comparison
    )
    seen = await desk.look()
    compared: list[Compared] = []
    while comparison and comparison.waiting:
        await asyncio.sleep(POLL_SECONDS)
        compared += await comparison.round(await kube.csrs())
    for each in compared:
        csr_shown.told(each, report)
    return Approved(approved=seen.approved, left=seen.left, compared=tuple(compared))


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one look at the desk saw and did."""

    requests: tuple[CsrView, ...] = ()
    nodes: Mapping[str, NodeStatus] = field(default_factory=dict)
    """The Nodes that exist, among those that matter for the requests and tokens looked at."""
    approved: tuple[CsrView, ...] = ()
    left: tuple[Listed, ...] = ()
    """Kubelets' requests that stay pending."""
    renewals: tuple[Listed, ...] = ()
    """Nodes' renewals of client certificates that kube-controller-manager has not approved (yet)."""
    decided: tuple[CsrView, ...] = ()
    """Decided and without a certificate (yet); of each node and purpose the newest request only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why a node has no certificate at this moment."""

    text: str
    hint: str
    final: bool = False
    """Waiting alone won't help."""


@dataclass(kw_only=True)
class Desk:
    """Where requests are judged and approved. It remembers keys, since the API forgets requests after an hour.

    It may stand for months (`csr approve --watch`): what it remembers does not grow with time.
    """

    kube: Kube
    inventory: Inventory
    report: Reporter
    nodes: Collection[str] | None
    """Only requests of these nodes matter; None: of all nodes."""
    rejoining: frozenset[str] = frozenset()
    kinds: Kinds = BOTH
    comparison: Comparison | None = None
    """Where certificates of approved requests are looked for on the nodes; None: nobody looks."""
    troubles: dict[str, Trouble] = field(default_factory=dict)
    """By node, as the last round saw it."""
    _record: dict[str, tuple[str, ...]] | None = None
    """The cluster's record of keys."""
    _keys: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The record, and the keys of the requests that the API still has."""
    _waiting: dict[tuple[str, str], float] = field(default_factory=dict)
    """When (request, broken rule) was first seen; kept while the request exists."""
    _reported: set[tuple[str, str]] = field(default_factory=set)
    _said: set[str] = field(default_factory=set)
    """Troubles with the API that were reported since it last answered."""

    async def round(self, tokens: Tokens | None = None) -> Seen | None:
        """Look once, and report; trouble with the API is reported too, not raised: None then."""
        try:
            seen = await self.look(tokens)
            leader = await _leader(self.kube) if seen.decided else ""
        except (ApiError, CredentialsError) as error:
            self.say(error)
            return None
        if self._said:
            self._said.clear()
            self.report(Note(subject="certificates", text="the API answers again: requests are looked at"))
        self._forget(seen)
        if self.comparison:
            for each in await self.comparison.round(seen.requests):
                csr_shown.told(each, self.report)
        self.troubles = dict(self._troubles(seen, leader, tokens or {}))
        return seen

    async def look(self, tokens: Tokens | None = None) -> Seen:
        """Approve what holds every rule. `tokens`: None: whatever there are, read if they matter."""
        requests = await self.kube.csrs()
        await self._learn(requests)
        pending = [each for each in requests if each.pending]
        if tokens is None:
            asked = "client" in self.kinds and any(csr.kind(each) == "client" for each in pending)
            tokens = await self.kube.token_owners() if asked else {}
        concerning = [each for each in pending if self._concerns(each, tokens)]
        concerned = {each.node for each in concerning} | set(tokens.values())
        # Only names of cluster.yaml are asked for: a request may name anything.
        present = {node.name: node for node in await self.kube.nodes(concerned & self.inventory.nodes.keys())}
        approved: list[CsrView] = []
        left: list[Listed] = []
        used = csr.token_keys(each for each in requests if "Approved" in each.conditions)
        for request in concerning:
            verdict: Verdict | None = csr.judge(request, self._knowledge(tokens, present))
            if isinstance(verdict, Approve):
                verdict = await self._approve(request)
            match verdict:
                case Pending():
                    left.append(Listed(request=request, verdict=verdict))
                case Approve():
                    approved.append(request)
                    self._second_key(request, used)
                case None:
                    pass
        return Seen(
            requests=requests,
            nodes=present,
            approved=tuple(approved),
            left=tuple(each for each in left if csr.kind(each.request) != "renewal"),
            renewals=tuple(each for each in left if csr.kind(each.request) == "renewal"),
            decided=tuple(
                each
                for each in issuing.newest(requests)
                if each.conditions and not each.certificate and self._concerns(each, tokens)
            ),
        )

    def say(self, error: ApiError | CredentialsError) -> None:
        """Report trouble with the API, each kind once until it answers again."""
        text = str(error)
        if text not in self._said:
            self._said.add(text)
            self.report(Warning_(subject="certificates", text=f"requests can't be looked at now: {text}"))

    def _troubles(self, seen: Seen, leader: str, tokens: Tokens) -> Iterator[tuple[str, Trouble]]:
        """What stops whom now; each is reported once when it has stood for a while, by this process's own clock."""
        for each in (*seen.left, *seen.renewals):
            if isinstance(broken := each.verdict, Pending):
                patience = RENEWAL_SECONDS if each in seen.renewals else PATIENCE_SECONDS
                if self._is_due(each.request, broken.rule, patience):
                    self._decision(each.request, "pending", broken)
                text = f"{each.request.name} is pending: {broken.rule}: {broken.detail}"
                yield _owner(each.request, tokens), Trouble(text=text, hint=_SEE_WHY)
        for request in seen.decided:
            since = self._since(request, "decided")
            halted = issuing.halted(request, asyncio.get_running_loop().time() - since, leader)
            if halted is not None:
                text = f"{request.name}: {halted.rule}: {halted.detail}"
                if self._is_due(request, "decided", 0):
                    self.report(Warning_(subject=request.node, text=f"{text}. {halted.hint}"))
                yield _owner(request, tokens), Trouble(text=text, hint=halted.hint, final=True)

    def _since(self, request: CsrView, rule: str) -> float:
        return self._waiting.setdefault((request.name, rule), asyncio.get_running_loop().time())

    def _is_due(self, request: CsrView, rule: str, patience: float) -> bool:
        """Once: when it has stood that long."""
        key = (request.name, rule)
        due = key not in self._reported and asyncio.get_running_loop().time() - self._since(request, rule) >= patience
        if due:
            self._reported.add(key)
        return due

    def _forget(self, seen: Seen) -> None:
        """What is not there any more need not be remembered."""
        names = {each.name for each in seen.requests}
        self._waiting = {key: since for key, since in self._waiting.items() if key[0] in names}
        self._reported = {key for key in self._reported if key[0] in names}

    def _concerns(self, request: CsrView, tokens: Tokens) -> bool:
        """A kubelet's, for one of these nodes or by one of these tokens (whatever name it asks for)."""
        kind = csr.kind(request)
        if kind not in self.kinds and kind != "renewal":
            return False
        ours = {BOOTSTRAP_USER + token for token in tokens}
        return self.nodes is None or request.node in self.nodes or request.username in ours

    def _knowledge(self, tokens: Tokens, present: Mapping[str, NodeStatus]) -> Knowledge:
        return Knowledge(
            inventory=self.inventory,
            issued_keys=csr.owners(self._keys),
            node_addresses=_addresses(present.values()),
            tokens=tokens,
            rejoining=self.rejoining,
        )

    def _second_key(self, request: CsrView, used: dict[str, frozenset[str]]) -> None:
        """Warn of two keys approved for one token. It is no rule: a kubelet that starts anew makes a new key."""
        for user, keys in csr.token_keys([request]).items():
            if used.get(user, keys) != keys:
                text = (
                    f"{request.name} is the second key that was approved for its bootstrap token: kubelet was started "
                    "anew before it had the first certificate, or somebody else holds the token"
                )
                self.report(Warning_(subject=request.node, text=text))
            used[user] = used.get(user, frozenset()) | keys

    async def _approve(self, request: CsrView) -> Verdict | None:
        """None: decided or deleted meanwhile, so that the next look sees it as it is."""
        try:
            await self.kube.approve(request, message=f"every rule of kubeworker holds for {request.node}")
        except (ApiConflict, ApiNotFound):
            return None
        except ApiUnreachable:
            raise
        except ApiError as error:
            # One that the API does not let through must not hold up those behind it.
            return Pending(rule="approval.refused", detail=error.message)
        self._decision(request, "approved")
        if self.comparison:
            self.comparison.expect(request)
        await self._keep({request.node: (csr.request_key(request),)})
        return Approve()

    async def _learn(self, requests: Iterable[CsrView]) -> None:
        """Know the keys of the record and of the requests that the API still has."""
        if self._record is None:
            self._record = await self.kube.known_keys()
        self._keys = self._record
        await self._keep(csr.issued_keys(requests))

    async def _keep(self, keys: csr.Keys) -> None:
        """Know these keys too, and write what is new into the cluster's record."""
        self._keys = csr.joined_keys(self._keys, keys)
        record = self._record or {}
        kept = csr.kept_keys(csr.joined_keys(record, keys))
        new = {node: several for node, several in kept.items() if record.get(node) != several}
        if new:
            await self.kube.remember_keys(new)
            self._record = kept

    def _decision(
        self, request: CsrView, decision: Literal["approved", "pending"], broken: Pending | None = None
    ) -> None:
        self.report(
            CsrDecision(
                name=request.name,
                node=request.node,
                signer=request.signer,
                decision=decision,
                rule=broken.rule if broken else "",
                detail=broken.detail if broken else "",
            )
        )


_SEE_WHY = "every request with the rule that stops it: kubeworker csr list"


async def _leader(kube: Kube) -> str:
    return issuing.leader(await kube.lease(issuing.LEADER), datetime.now(UTC))


def _owner(request: CsrView, tokens: Tokens) -> str:
    """The node that is meant: that of the token which asked, else the one whose name is asked for."""
    return tokens.get(request.username.removeprefix(BOOTSTRAP_USER), request.node)


def _addresses(nodes: Iterable[NodeStatus]) -> dict[str, frozenset[str]]:
    return {node.name: frozenset(address for _, address in node.addresses) for node in nodes}
