"""The Kubernetes API (hides lightkube): documents in, documents and values out, errors of our own.

One `Kube` talks to one kube-apiserver and moves on to another one of cluster.yaml when that one is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote

from kubeworker.core.certificates import csr
from kubeworker.core.certificates.csr import KEYS_RECORD, CsrView
from kubeworker.core.cluster import bootstrap_token, kube_views, token_listing
from kubeworker.core.cluster.bootstrap_token import BootstrapToken
from kubeworker.core.cluster.cluster_objects import OWNED_RECORD, ObjectAction
from kubeworker.core.cluster.kube_views import (
    Document,
    EndpointsStatus,
    LeaseStatus,
    NodeStatus,
    PodStatus,
    ServiceStatus,
)
from kubeworker.core.cluster.token_listing import TokenView
from kubeworker.errors import (
    ApiConflict,
    ApiError,
    ApiNotFound,
    ApiRefused,
    ApiUnreachable,
    Cause,
    CredentialsError,
)

if TYPE_CHECKING:
    from httpx2 import AsyncClient as AsyncHTTPClient
    from httpx2 import AsyncHTTPTransport, Auth
    from lightkube import AsyncClient
    from lightkube.config.kubeconfig import SingleConfig

CONNECT_SECONDS = 3.0
"""How long one kube-apiserver may take to answer before the next is tried."""
REQUEST_SECONDS = 15.0
FEW = 5
"""Up to so many Nodes are asked for one by one."""

Value = TypeVar("Value")

API_VERSIONS: Mapping[str, str] = {
    "CertificateSigningRequest": "certificates.k8s.io/v1",
    "CiliumNetworkPolicy": "cilium.io/v2",
    "ClusterRole": "rbac.authorization.k8s.io/v1",
    "ClusterRoleBinding": "rbac.authorization.k8s.io/v1",
    "ConfigMap": "v1",
    "DaemonSet": "apps/v1",
    "Deployment": "apps/v1",
    "EndpointSlice": "discovery.k8s.io/v1",
    "Event": "v1",
    "Lease": "coordination.k8s.io/v1",
    "Namespace": "v1",
    "Node": "v1",
    "Pod": "v1",
    "Role": "rbac.authorization.k8s.io/v1",
    "RoleBinding": "rbac.authorization.k8s.io/v1",
    "Secret": "v1",
    "Service": "v1",
    "ServiceAccount": "v1",
    "SubjectAccessReview": "authorization.k8s.io/v1",
    "TokenRequest": "authentication.k8s.io/v1",
}


_CUSTOM = {"CiliumNetworkPolicy": "ciliumnetworkpolicies"}
"""Kinds that the library has no class of, with their plural."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """How to speak to the kube-apiserver that is in use, for what lightkube does not do (exec)."""

    server: str
    """https://HOST:PORT"""
    tls: ssl.SSLContext = field(repr=False)
    authorization: str = field(repr=False)
    """The header's value, where the kubeconfig has a token; empty with a client certificate."""


class Kube:
    """A connection to the cluster as its administrator. Errors are ApiError and CredentialsError."""

    def __init__(self, candidates: Sequence[_Candidate], current: int) -> None:
        """Not called directly: see `connect`."""
        self._candidates = tuple(candidates)
        self._current = current
        self._moving = asyncio.Lock()

    @classmethod
    async def connect(cls, kubeconfig: Path, apiservers: Sequence[str], ca: Path) -> Self:
        """Try the kubeconfig's server, then each HOST:PORT of `apiservers` with the CA at `ca`; 3 s each.

        Raises CredentialsError (no kubeconfig, wrong CA, 401, 403) and ApiUnreachable, which names each one tried.
        """
        candidates = _candidates(kubeconfig, apiservers, ca)
        kube = cls(candidates, 0)
        try:
            await kube._choose(range(len(candidates)))
        except BaseException:
            await kube.close()
            raise
        return kube

    async def __aenter__(self) -> Self:
        """Use as a context manager closes the connections."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        for candidate in self._candidates:
            await candidate.close()

    @property
    def server(self) -> str:
        """https://HOST:PORT of the kube-apiserver in use."""
        return self._candidates[self._current].server

    async def endpoint(self) -> Endpoint:
        """How to speak to the kube-apiserver in use; the token is whatever the kubeconfig's way to one gives now."""
        candidate = self._candidates[self._current]
        with _translated("kube-apiserver", candidate.server):
            _, authorization = await candidate.readyz()
        return Endpoint(server=candidate.server, tls=candidate.tls(), authorization=authorization)

    # Objects in general. `kind` is one of API_VERSIONS.

    async def get(self, kind: str, name: str, *, namespace: str = "") -> dict[str, Any] | None:
        """The object, or None if there is none."""
        try:
            answer = await self._call(
                f"{kind} {name}",
                lambda client: client.get(_resource(kind), name, **_in(namespace)),
            )
        except ApiNotFound:
            return None
        return _document(kind, answer)

    async def list(
        self,
        kind: str,
        *,
        namespace: str = "",
        labels: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> tuple[dict[str, Any], ...]:
        """All objects of the kind that match; of all namespaces unless one is named."""
        from lightkube.core.resource import NamespacedResource

        resource = _resource(kind)
        scope = _in(namespace or ("*" if issubclass(resource, NamespacedResource) else ""))

        async def read(client: AsyncClient) -> list[Any]:
            listing = client.list(
                resource,
                chunk_size=500,
                labels=dict(labels) if labels else None,
                fields=dict(fields) if fields else None,
                **scope,
            )
            return [each async for each in listing]

        return tuple(_document(kind, each) for each in await self._call(f"the list of {kind}s", read))

    async def create(self, document: Document) -> dict[str, Any]:
        """Create; ApiConflict if it exists."""
        return await self._write(document, lambda client, each: client.create(each))

    async def replace(self, document: Document) -> dict[str, Any]:
        """Replace; ApiConflict if it was changed since it was read (metadata.resourceVersion)."""
        return await self._write(document, lambda client, each: client.replace(each))

    async def patch(self, document: Document) -> None:
        """Merge into the existing object (JSON merge patch): null removes, lists are replaced."""
        from lightkube.types import PatchType

        kind, metadata = document["kind"], document["metadata"]
        await self._call(
            f"{kind} {metadata['name']}",
            lambda client: client.patch(
                _resource(kind),
                metadata["name"],
                dict(document),
                patch_type=PatchType.MERGE,
                **_in(metadata.get("namespace", "")),
            ),
            again=False,
        )

    async def delete(self, kind: str, name: str, *, namespace: str = "", grace_seconds: int | None = None) -> bool:
        """Delete; False if there was nothing to delete."""
        try:
            await self._call(
                f"{kind} {name}",
                lambda client: client.delete(_resource(kind), name, grace_period=grace_seconds, **_in(namespace)),
            )
        except ApiNotFound:
            return False
        return True

    async def present(self, document: Document) -> dict[str, Any] | None:
        """The object of this one's kind and name as it is now, None if there is none."""
        metadata = document["metadata"]
        return await self.get(document["kind"], metadata["name"], namespace=metadata.get("namespace", ""))

    async def carry_out(self, action: ObjectAction) -> None:
        """Do what a plan shows; ApiConflict where the object is no longer what the plan saw. Deleting what is gone is
        done already.
        """
        document, metadata = action.document, action.document["metadata"]
        kind, name, namespace = document["kind"], metadata["name"], metadata.get("namespace", "")
        match action.verb:
            case "create":
                await self.create(document)
            case "replace":
                await self.replace(document)
            case "recreate":
                await self._delete_that(action)
                await self.create(document)
            case "delete":
                await self.delete(kind, name, namespace=namespace)
            case "patch":
                await (self._merge(document) if kind == "ConfigMap" else self.patch(document))
            case "apply":
                raise ValueError("server-side apply is io/objects.py's")

    async def _merge(self, document: Document) -> None:
        """Patch, or create where there is nothing to patch; of many at once one creates it, and the others patch."""
        try:
            await self.patch(document)
        except ApiNotFound:
            try:
                await self.create(document)
            except ApiConflict:
                await self.patch(document)

    async def _delete_that(self, action: ObjectAction) -> None:
        """Delete the object that the action was decided on; ApiConflict where another one has its place by now."""
        from lightkube.core.resource import api_info

        document, metadata = action.document, action.document["metadata"]
        namespace = f"namespaces/{metadata['namespace']}/" if "namespace" in metadata else ""
        name = f"{api_info(_resource(document['kind'])).plural}/{quote(metadata['name'], safe='')}"
        with contextlib.suppress(ApiNotFound):
            await self.request(
                "DELETE",
                f"{api_path(document['apiVersion'])}/{namespace}{name}",
                body=deletion(action.uid),
                content_type="application/json",
                subject=action.subject,
            )

    async def request(
        self, method: str, path: str, *, subject: str, body: Document | None = None, content_type: str = ""
    ) -> dict[str, Any]:
        """A request in the API's own terms, for what has no class here; the answer's JSON.

        Writes must be such that repeating one does no harm, since a lost kube-apiserver may have done it already.
        """
        return await self._call(
            subject,
            lambda _client: self._candidates[self._current].request(method, path, body=body, content_type=content_type),
        )

    async def version(self) -> str:
        """The kube-apiserver's version: 1.33.3"""
        answer = await self.request("GET", "/version", subject="the API server's version")
        return str(answer["gitVersion"]).removeprefix("v")

    # Nodes, leases, services.

    async def nodes(self, names: Collection[str] | None = None) -> tuple[NodeStatus, ...]:
        """The Nodes of these names that exist; None: all. A question about a few nodes does not cost a fleet."""
        if names is None or len(names) > FEW:
            found = tuple(map(kube_views.node, await self.list("Node")))
            return tuple(node for node in found if names is None or node.name in names)
        several = await asyncio.gather(*(self.node(name) for name in sorted(names)))
        return tuple(node for node in several if node is not None)

    async def node(self, name: str) -> NodeStatus | None:
        """One Node, None if there is none."""
        document = await self.get("Node", name)
        return kube_views.node(document) if document is not None else None

    async def lease(self, name: str, *, namespace: str = "kube-system") -> LeaseStatus | None:
        """A Lease; `kube-controller-manager` in kube-system names the controller-manager that leads."""
        document = await self.get("Lease", name, namespace=namespace)
        return kube_views.lease(document) if document is not None else None

    async def owned_record(self) -> dict[str, Any] | None:
        """The ConfigMap for `cluster_objects.owned_record`."""
        return await self.get("ConfigMap", OWNED_RECORD, namespace="kube-system")

    async def service(self, name: str, *, namespace: str = "default") -> ServiceStatus | None:
        """A Service."""
        document = await self.get("Service", name, namespace=namespace)
        return kube_views.service(document) if document is not None else None

    async def endpoints(self, service: str, *, namespace: str = "default") -> tuple[EndpointsStatus, ...]:
        """The EndpointSlices behind a Service."""
        labels = {"kubernetes.io/service-name": service}
        found = await self.list("EndpointSlice", namespace=namespace, labels=labels)
        return tuple(map(kube_views.endpoints, found))

    # Certificates and bootstrap tokens.

    async def csrs(self) -> tuple[CsrView, ...]:
        """All certificate signing requests, oldest first."""
        found = map(csr.view, await self.list("CertificateSigningRequest"))
        return tuple(sorted(found, key=lambda each: (each.created, each.name)))

    async def approve(self, request: CsrView, *, message: str) -> None:
        """Approve exactly the request that was read and judged; ApiConflict if it is not the same any more."""
        from lightkube.resources.certificates_v1 import CertificateSigningRequestApproval

        document = dict(request.document)
        condition = {
            "type": "Approved",
            "status": "True",
            "reason": "KubeworkerApproved",
            "message": message,
            "lastUpdateTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        document["status"] = {**(document.get("status") or {}), "conditions": [condition]}
        approval = CertificateSigningRequestApproval.from_dict(document)
        await self._call(
            f"CertificateSigningRequest {request.name}",
            lambda client: client.replace(approval, request.name),
            again=False,
        )

    async def known_keys(self) -> dict[str, tuple[str, ...]]:
        """By node, ids of the public keys that were issued to it, the newest last, as remembered in the cluster.

        kube-controller-manager removes an issued request after an hour; this record stays.
        """
        found = await self.get("ConfigMap", KEYS_RECORD, namespace="kube-system")
        data = (found or {}).get("data") or {}
        return {node: tuple(keys.split(",")) for node, keys in data.items()}

    async def remember_keys(self, keys: Mapping[str, Sequence[str]]) -> None:
        """Replace what `known_keys` tells of these nodes; `csr.kept_keys` of them are kept."""
        data = {node: ",".join(several) for node, several in csr.kept_keys(keys).items()}
        metadata = {"name": KEYS_RECORD, "namespace": "kube-system"}
        document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
        await self.carry_out(ObjectAction(verb="patch", document=document, reason="keys issued to kubelets"))

    async def tokens(self) -> tuple[BootstrapToken, ...]:
        """The bootstrap tokens that this tool has made and that still exist."""
        labels = {bootstrap_token.LABEL: bootstrap_token.MANAGER}
        secrets_found = await self.list("Secret", namespace=bootstrap_token.NAMESPACE, labels=labels)
        return tuple(token for each in secrets_found if (token := bootstrap_token.found(each)) is not None)

    async def token_owners(self) -> dict[str, str]:
        """Node by id of each of them: all that approval needs, so that no secret is held for long."""
        return {token.id: token.node for token in await self.tokens()}

    async def token_views(self) -> tuple[TokenView, ...]:
        """Every bootstrap token in the cluster, whoever made it; the secrets are dropped here."""
        fields = {"type": bootstrap_token.TYPE}
        found = await self.list("Secret", namespace=bootstrap_token.NAMESPACE, fields=fields)
        return tuple(token_listing.view(each) for each in found)

    async def delete_token(self, token: BootstrapToken | TokenView) -> bool:
        """Take a bootstrap token back; False if it was gone already."""
        return await self.delete("Secret", token.secret_name, namespace=bootstrap_token.NAMESPACE)

    async def allowed(
        self, *, user: str, groups: Iterable[str], verb: str, group: str, resource: str, subresource: str = ""
    ) -> bool:
        """Whether the cluster's authorizers would let this user do that (SubjectAccessReview)."""
        attributes = {"verb": verb, "group": group, "resource": resource, "subresource": subresource}
        answer = await self.create(
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SubjectAccessReview",
                "metadata": {},
                "spec": {"user": user, "groups": list(groups), "resourceAttributes": attributes},
            }
        )
        return bool((answer.get("status") or {}).get("allowed"))

    # Pods and ServiceAccounts, for verify.

    async def token_request(self, service_account: str, *, namespace: str, seconds: int = 600) -> str:
        """A fresh token of the ServiceAccount."""
        from lightkube.resources.core_v1 import ServiceAccountToken

        spec = {"expirationSeconds": seconds, "audiences": []}
        # lightkube looks at the namespace of the object's own metadata, which must be there.
        request = ServiceAccountToken.from_dict({"metadata": {}, "spec": spec})
        answer: Any = await self._call(
            f"token of ServiceAccount {namespace}/{service_account}",
            lambda client: client.create(request, service_account, namespace=namespace),
            again=False,
        )
        return str(answer.to_dict()["status"]["token"])

    async def pod(self, name: str, *, namespace: str = "default") -> PodStatus | None:
        """A Pod, None if there is none."""
        document = await self.get("Pod", name, namespace=namespace)
        return kube_views.pod(document) if document is not None else None

    async def pods(
        self, *, namespace: str = "", labels: Mapping[str, str] | None = None, node: str = ""
    ) -> tuple[PodStatus, ...]:
        """The Pods that match."""
        fields = {"spec.nodeName": node} if node else None
        return tuple(map(kube_views.pod, await self.list("Pod", namespace=namespace, labels=labels, fields=fields)))

    async def logs(self, name: str, *, namespace: str = "default", container: str = "", tail: int = 100) -> str:
        """The last lines of a Pod's log."""

        async def read(client: AsyncClient) -> str:
            lines = client.log(name, namespace=namespace, container=container or None, tail_lines=tail)
            return "".join([line async for line in lines])

        return await self._call(f"log of Pod {namespace}/{name}", read)

    async def events(self, name: str, *, namespace: str = "default") -> tuple[str, ...]:
        """What happened to an object: `reason: message`, oldest first."""
        found = await self.list("Event", namespace=namespace, fields={"involvedObject.name": name})
        ordered = sorted(found, key=lambda each: each.get("lastTimestamp") or each.get("eventTime") or "")
        return tuple(f"{each.get('reason')}: {each.get('message')}" for each in ordered)

    # How requests are made.

    async def _write(self, document: Document, send: Callable[[AsyncClient, Any], Awaitable[Any]]) -> dict[str, Any]:
        kind = document["kind"]
        resource = _resource(kind).from_dict(dict(document))
        name = document["metadata"].get("name", "")
        answer = await self._call(f"{kind} {name}".rstrip(), lambda client: send(client, resource), again=False)
        return _document(kind, answer)

    async def _call(
        self, subject: str, request: Callable[[AsyncClient], Awaitable[Value]], *, again: bool = True
    ) -> Value:
        """Make a request. With a lost kube-apiserver, move to another one and, if that does no harm, ask again.

        A write is repeated only where it can't have arrived (no connection); all else that fails is said.
        """
        import httpx2

        harmless = (httpx2.TransportError,) if again else (httpx2.ConnectError, httpx2.ConnectTimeout)
        used = self._current
        try:
            with _translated(subject, self.server):
                try:
                    return await request(self._candidates[used].client)
                except harmless:
                    await self._move_on(used)
                    return await request(self._candidates[self._current].client)
        except ApiUnreachable as error:
            raise ApiUnreachable(error.message, subject=subject, hint=error.hint) from error

    async def _move_on(self, lost: int) -> None:
        async with self._moving:
            if self._current == lost:
                count = len(self._candidates)
                await self._choose([(lost + step) % count for step in range(1, count + 1)])

    async def _choose(self, order: Iterable[int]) -> None:
        """Use the first candidate that answers."""
        troubles = []
        for index in order:
            candidate = self._candidates[index]
            trouble = await candidate.trouble()
            if not trouble:
                self._current = index
                return
            troubles.append(f"{candidate.server}: {trouble}")
        raise ApiUnreachable(
            f"no kube-apiserver answers ({'; '.join(troubles)})",
            hint="check cluster.apiservers and cluster.kubeconfig in cluster.yaml, and that the servers run",
        )


class _Candidate:
    """One kube-apiserver. What it takes to speak to it is made when it is first spoken to."""

    def __init__(self, kubeconfig: Path, config: SingleConfig) -> None:
        """`config` is the kubeconfig's context, for this server."""
        self.kubeconfig = kubeconfig
        self.config = config
        self.server: str = config.cluster.server.rstrip("/")

    @cached_property
    def connections(self) -> AsyncHTTPTransport:
        """HTTP/1.1: with HTTP/2 a kube-apiserver that says goodbye (GOAWAY: it stops, a 401, --goaway-chance) would end
        requests that it still answers, since httpx2 does not wait for these; a write would seem to have failed.
        """
        import httpx2

        return httpx2.AsyncHTTPTransport(verify=self.tls(), trust_env=False)

    @cached_property
    def client(self) -> AsyncClient:
        """The client of the library."""
        import httpx2
        from lightkube import AsyncClient

        with self._readable():
            return AsyncClient(
                config=self.config,
                timeout=httpx2.Timeout(REQUEST_SECONDS, connect=CONNECT_SECONDS),
                field_manager="kubeworker",
                # No proxy from the environment: the servers are reached directly, as the nodes are.
                trust_env=False,
                transport=self.connections,
            )

    def tls(self) -> ssl.SSLContext:
        """A new TLS context: each protocol (HTTP/2, WebSocket) sets up the context that it is given."""
        from lightkube.config.client_adapter import verify_cluster

        with self._readable():
            assert self.config.user is not None
            tls = verify_cluster(self.config.cluster, self.config.user, self.config.abs_file, trust_env=False)
        # cfssl's and kube-controller-manager's certificates lack extensions that Python >= 3.13 insists on by default.
        tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return tls

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """CredentialsError where a file that the kubeconfig names can't be used."""
        from lightkube.core.exceptions import ConfigError

        try:
            yield
        except (ConfigError, OSError, ssl.SSLError, ValueError) as error:
            raise CredentialsError(
                f"its CA, certificate or key can't be read: {error}",
                subject=str(self.kubeconfig),
                hint="check certificate-authority, client-certificate and client-key in the kubeconfig",
            ) from error

    async def close(self) -> None:
        """Close the connections, if there are any."""
        if "connections" in self.__dict__:
            await self.connections.aclose()

    async def trouble(self) -> str:
        """Empty if it is ready for us. CredentialsError where asking another server would not help."""
        import httpx2

        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                answer, _ = await self.readyz()
        except (httpx2.TransportError, TimeoutError) as error:
            if problem := _certificate_problem(error):
                raise CredentialsError(
                    f"{self.server} shows a certificate that the CA does not vouch for: {problem}",
                    subject=str(self.kubeconfig),
                    hint="check cluster.ca.cert in cluster.yaml and certificate-authority in the kubeconfig",
                ) from error
            return _reason(error)
        if answer in {401, 403}:
            raise _refused(self.kubeconfig, self.server, answer)
        return "" if answer == 200 else f"/readyz answers {answer}"

    async def readyz(self) -> tuple[int, str]:
        """The status that /readyz answers, and the Authorization header that was sent."""
        import httpx2

        # Closing this client would close the connections that lightkube's goes on to use.
        http = httpx2.AsyncClient(
            transport=self.connections, trust_env=False, timeout=CONNECT_SECONDS, auth=self._authentication
        )
        answer = await http.get(f"{self.server}/readyz")
        return answer.status_code, answer.request.headers.get("Authorization", "")

    @cached_property
    def _http(self) -> AsyncHTTPClient:
        import httpx2

        timeout = httpx2.Timeout(REQUEST_SECONDS, connect=CONNECT_SECONDS)
        return httpx2.AsyncClient(
            transport=self.connections, trust_env=False, timeout=timeout, auth=self._authentication
        )

    async def request(self, method: str, path: str, *, body: Document | None, content_type: str) -> dict[str, Any]:
        """The JSON that the server answers; httpx2's errors."""
        headers = {"Accept": "application/json"} | ({"Content-Type": content_type} if content_type else {})
        content = json.dumps(body).encode() if body is not None else None
        answer = await self._http.request(method, f"{self.server}{path}", content=content, headers=headers)
        answer.raise_for_status()
        document: dict[str, Any] = answer.json()
        return document

    @cached_property
    def _authentication(self) -> Auth | None:
        from lightkube.config.client_adapter import user_auth

        with self._readable():
            return user_auth(self.config.user)


def _candidates(kubeconfig: Path, apiservers: Sequence[str], ca: Path) -> tuple[_Candidate, ...]:
    config = _read_kubeconfig(kubeconfig)
    first = _Candidate(kubeconfig, config)
    servers = [f"https://{endpoint}" for endpoint in apiservers]
    others = [server for server in dict.fromkeys(servers) if server != first.server]
    pinned = [
        _Candidate(kubeconfig, config._replace(cluster=_pinned_cluster(server, ca)))
        for server in others
        if ca.is_file()
    ]
    return (first, *pinned)


def api_path(api_version: str) -> str:
    """Where the API has the kinds of this version."""
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"


def deletion(uid: str) -> dict[str, Any]:
    """The body of a deletion that is refused with a conflict where another object than that of `uid` is there."""
    return {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}


def _read_kubeconfig(path: Path) -> SingleConfig:
    import yaml
    from lightkube import KubeConfig
    from lightkube.core.exceptions import ConfigError

    where = path.expanduser()
    hint = "cluster.kubeconfig in cluster.yaml names the administrator's kubeconfig"
    if not where.is_file():
        raise CredentialsError("this kubeconfig does not exist", subject=str(where), hint=hint)
    try:
        # As KubeConfig.from_file does it, but for the loader: in Python alone it takes ten times as long (3.5 ms).
        loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        document = yaml.load(where.read_text(), Loader=loader)  # noqa: S506 (both are safe loaders)
        if not isinstance(document, dict):
            raise CredentialsError("this is no kubeconfig: it holds no map of fields", subject=str(where), hint=hint)
        config = KubeConfig.from_dict(document, fname=where).get()
    except (ConfigError, OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        text = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else str(error)
        raise CredentialsError(f"this is no usable kubeconfig: {text}", subject=str(where), hint=hint) from error
    if config is None or config.user is None:
        raise CredentialsError("its current context names no user", subject=str(where), hint=hint)
    return config


def _pinned_cluster(server: str, ca: Path) -> Any:
    from lightkube.config.models import Cluster

    return Cluster(server=server, certificate_auth=str(ca.resolve()))


def _resource(kind: str) -> Any:
    """Lightkube's class of that kind; Any, since its overloads ask for one that is known to the type checker."""
    from lightkube.core.resource_registry import resource_registry

    if kind in _CUSTOM:
        from lightkube.generic_resource import create_namespaced_resource

        group, _, version = API_VERSIONS[kind].partition("/")
        return create_namespaced_resource(group, version, kind, _CUSTOM[kind])
    return resource_registry.load(API_VERSIONS[kind], kind)


def _in(namespace: str) -> dict[str, Any]:
    return {"namespace": namespace} if namespace else {}


def _document(kind: str, answer: Any) -> dict[str, Any]:
    """Items of a list lack apiVersion and kind; a document always has them here."""
    document: dict[str, Any] = answer.to_dict()
    return {**document, "apiVersion": API_VERSIONS[kind], "kind": kind}


@contextlib.contextmanager
def _translated(subject: str, server: str) -> Iterator[None]:
    """Turn the library's errors into ours."""
    import httpx2
    from lightkube.core.exceptions import ConfigError

    try:
        yield
    except httpx2.HTTPStatusError as error:
        raise _api_error(subject, server, error.response, str(error)) from error
    except httpx2.TransportError as error:
        raise ApiUnreachable(
            f"{server}: {_reason(error)}",
            subject=subject,
            hint="is the kube-apiserver running and reachable from here?",
        ) from error
    except ConfigError as error:
        raise CredentialsError(str(error), subject=subject, hint="check the kubeconfig's user") from error


def _api_error(subject: str, server: str, response: Any, message: str) -> ApiError:
    said, causes = _status(response)
    message = said or message
    if causes and response.status_code in {409, 422}:
        hint = "somebody made or changed it at the same time: run again" if response.status_code == 409 else ""
        return ApiRefused(message, subject=subject, hint=hint, causes=causes)
    match response.status_code:
        case 401:
            return ApiError(
                f"{server} does not accept the kubeconfig's credentials (401)",
                subject=subject,
                hint="the client certificate or token may have expired, or was issued by another CA",
            )
        case 403:
            return ApiError(
                f"not allowed (403): {message}",
                subject=subject,
                hint="cluster.kubeconfig must be an administrator's (cluster-admin)",
            )
        case 404:
            return ApiNotFound(message, subject=subject)
        case 409:
            return ApiConflict(message, subject=subject, hint="somebody changed it at the same time: run again")
        case status:
            return ApiError(f"{message} ({status})", subject=subject)


def _status(response: Any) -> tuple[str, tuple[Cause, ...]]:
    """The message and the causes of the API's Status object; empty where the answer is none."""
    try:
        status = response.json()
        details = status.get("details") or {}
        causes = tuple(
            Cause(reason=each.get("reason") or "", message=each.get("message") or "", field=each.get("field") or "")
            for each in details.get("causes") or ()
        )
        return str(status.get("message") or ""), causes
    except (ValueError, AttributeError, TypeError, RuntimeError):
        # RuntimeError: the body of a stream was not read.
        return "", ()


def _refused(kubeconfig: Path, server: str, status: int) -> CredentialsError:
    if status == 401:
        return CredentialsError(
            f"{server} does not accept its credentials (401)",
            subject=str(kubeconfig),
            hint="the client certificate or token may have expired, or was issued by another CA than the cluster's",
        )
    return CredentialsError(
        f"{server} knows this user but allows it nothing (403)",
        subject=str(kubeconfig),
        hint="cluster.kubeconfig must be an administrator's (cluster-admin)",
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {CONNECT_SECONDS:.0f} s"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionRefusedError):
            return "refuses connections"
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__


def _certificate_problem(error: BaseException | None) -> str:
    """Why the server's certificate was not accepted; empty where the trouble is another."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return ""
