"""`kubeworker job`: what runs over parts of the fleet inside the cluster are given, and what came of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from kubeworker.components import discover, kube_proxy, kubelet
from kubeworker.core import desired
from kubeworker.core.cluster import cluster_objects
from kubeworker.core.formats import yaml
from kubeworker.core.sharding import handed, job
from kubeworker.core.sharding.handed import Handed
from kubeworker.core.sharding.job import Parcel
from kubeworker.core.sharding.shard import Shard
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import ApiUnreachable, CredentialsError, InputError, UsageError
from kubeworker.flow import artifacts, credentials, join
from kubeworker.flow.session import connect_kube
from kubeworker.io import cluster_file, local_files, oci_archive
from kubeworker.io.blob_store import BlobStore
from kubeworker.io.kube import Kube

LOG_LINES = 1_000_000


async def render(file: Path, *, image: str, shards: int) -> str:
    """The manifest; it holds secrets. Makes a bootstrap token for each node that has no Node object yet.

    UsageError or InputError: what the pods would fail on is said here.
    """
    registry = discover()
    cluster = cluster_file.load(file, registry)
    _fit(cluster, shards)
    now = datetime.now(UTC)
    ca = credentials.load_ca(cluster, now=now)
    lifetime = timedelta(days=desired.config(kube_proxy.COMPONENT, cluster).certificate_days)
    proxy = credentials.NO_KUBE_PROXY
    if any(kube_proxy.deployed_on(node, cluster) for node in cluster.nodes):
        proxy = credentials.kube_proxy(file, ca, now=now, lifetime=lifetime)
        if proxy.status != "kept":
            credentials.write(file, proxy)
    wanted = desired.artifacts(cluster, registry)
    pinned = artifacts.pinned(file, cluster, wanted)
    if missing := [each.name for each in wanted if each.name not in pinned]:
        raise InputError(f"not pinned: {', '.join(missing)}", subject=str(artifacts.lock_path(file)), hint=_FETCH)
    reached = await connect_kube(cluster)
    if isinstance(reached, ApiUnreachable):
        raise reached
    async with reached as kube:
        read = await join.read_cluster(kube, cluster)
    present = {node.name for node in read.nodes}
    planned = join.decide(read, cluster, [node.name for node in cluster.nodes if node.name not in present], now)
    client_csr = desired.config(kubelet.COMPONENT, cluster).client_csr_for(cluster)
    bindings = cluster_objects.bindings(cluster, client_csr=client_csr)
    made = [each.document for each in cluster_objects.binding_actions(bindings, read.bindings) if each.verb == "create"]
    store = BlobStore.default()
    over = Handed(
        tokens=planned.tokens,
        archives=tuple(oci_archive.read(Path(path), store) for path in desired.archives(cluster, registry)),
        local_files=tuple(local_files.read(desired.local_files(cluster, registry)).values()),
    )
    parcel = _parcel(file, cluster, over, {"kube-proxy.pem": proxy.cert, "kube-proxy-key.pem": proxy.key}, ca.pem)
    return job.manifest(parcel, made, planned.tokens, image=image, shards=shards)


_FETCH = "kubeworker artifacts fetch, and kubeworker artifacts publish DIR for the mirror"


def _fit(cluster: ClusterFile, shards: int) -> None:
    if cluster.artifacts.delivery != "pull":
        hint = "set artifacts: {delivery: pull, mirror: URL}; kubeworker artifacts publish DIR fills the mirror"
        raise InputError("the pods hold no artifacts to send", subject="artifacts.delivery", hint=hint)
    if cluster.cni == "cilium":
        hint = "run apply here; parts of a fleet are for nodes alone"
        raise InputError("a chart's objects are not applied in parts", subject="cni: cilium", hint=hint)
    for index in range(shards):
        part = Shard(index=index, count=shards)
        if not any(node.name in part for node in cluster.nodes):
            hint = "use fewer: nodes are assigned by a hash of their names"
            raise UsageError(f"no node belongs to part {part}", subject="--shards", hint=hint)


def _parcel(file: Path, cluster: ClusterFile, over: Handed, proxy: Mapping[str, bytes], ca: bytes) -> Parcel:
    document = deepcopy(cluster_file.document(file))
    document["cluster"] |= {"ca": {"cert": "ca.pem"}, "kubeconfig": "kubeconfig"}
    keys: dict[str, str] = {}
    for own, spec in ((document.setdefault("ssh", {}), cluster.ssh.identity), *_node_identities(document, cluster)):
        if spec:
            own["identity"] = keys.setdefault(spec, f"ssh/id-{len(keys)}")
    if not cluster.ssh.identity and any(not node.ssh.identity for node in cluster.nodes):
        hint = "the pods have no agent and no ~/.ssh: name a key file without a passphrase"
        raise CredentialsError("is not set", subject="ssh.identity", hint=hint)
    document["ssh"].pop("config", None)
    document["ssh"]["known_hosts"] = "ssh/known_hosts"
    inputs = {
        "cluster.yaml": yaml.dump(document).encode(),
        artifacts.lock_path(file).name: _read(artifacts.lock_path(file)),
        "ca.pem": ca,
        "kubeconfig": yaml.dump(job.kubeconfig(cluster.cluster.apiservers[0])).encode(),
        f".kubeworker/{handed.NAME}": handed.render(over).encode(),
        **{f".kubeworker/{name}": content for name, content in proxy.items() if content},
    }
    ssh = {name: _read(Path(path)) for path, name in keys.items()}
    ssh["ssh/known_hosts"] = _read(Path(cluster.ssh.known_hosts))
    for what, files in (("cluster.yaml and what belongs to it", inputs), ("known_hosts", ssh)):
        if (size := sum(map(len, files.values()))) > job.LARGEST:
            hint = "one Secret takes 1 MiB: split the fleet over several cluster files"
            raise InputError(f"too large for a Secret: {size} bytes", subject=what, hint=hint)
    return Parcel(inputs=inputs, ssh=ssh)


def _node_identities(document: Mapping[str, Any], cluster: ClusterFile) -> Iterable[tuple[dict[str, Any], str]]:
    for own, node in zip(document["nodes"], cluster.nodes, strict=True):
        if node.ssh.identity:
            yield own["ssh"], node.ssh.identity


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CredentialsError(f"can't be read: {error.strerror}", subject=str(path)) from error


# ---------------------------------------------------------------------------------------------------------------
# What came of it


@dataclass(frozen=True, slots=True, kw_only=True)
class PartReport:
    """What the newest pod of one part said."""

    index: int
    pod: str
    phase: str
    document: Mapping[str, Any] = field(default_factory=dict)
    """`apply --json`; empty while it has not ended."""
    last: str = ""
    """Its last words, where it ended without a document."""

    def as_json(self) -> dict[str, Any]:
        """The part in the machine-readable form."""
        error = self.document.get("error")
        return {"index": self.index, "pod": self.pod, "phase": self.phase, "error": error, "last": self.last}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """All parts, merged."""

    parts: tuple[PartReport, ...]

    @property
    def exit_code(self) -> int:
        """As `apply` ends: 4 where nodes are unreachable and nothing else is wrong; 1 also while a part is at work."""
        statuses = {node["status"] for part in self.parts for node in part.document.get("nodes", ())}
        unfinished = not self.parts or any("nodes" not in part.document for part in self.parts)
        if unfinished or statuses & {"failed", "skipped"}:
            return 1
        return 4 if "unreachable" in statuses else 0

    def as_json(self) -> dict[str, Any]:
        """As `apply --json` of the whole fleet prints it, and the parts."""
        documents = [part.document for part in self.parts]
        return {
            "changes": sum(each.get("changes", 0) for each in documents),
            "confirmed": True,
            "nodes": [node for each in documents for node in each.get("nodes", ())],
            "cluster": sum(each.get("cluster", 0) for each in documents),
            "warnings": list(dict.fromkeys(text for each in documents for text in each.get("warnings", ()))),
            "parts": [part.as_json() for part in self.parts],
        }


async def report(kube: Kube) -> JobReport:
    """Read what the pods of the Job said; InputError where there are none."""
    pods = await kube.list("Pod", namespace=job.NAMESPACE, labels={job.JOB_LABEL: job.NAME})
    newest: dict[int, Mapping[str, Any]] = {}
    for pod in sorted(pods, key=lambda each: str(each["metadata"]["creationTimestamp"])):
        newest[int(pod["metadata"]["annotations"][job.INDEX_ANNOTATION])] = pod
    if not newest:
        hint = "kubeworker job --image IMAGE --shards N | kubectl apply --server-side -f -"
        raise InputError("it has no pods", subject=f"Job {job.NAMESPACE}/{job.NAME}", hint=hint)
    return JobReport(parts=tuple([await _part(kube, index, newest[index]) for index in sorted(newest)]))


async def _part(kube: Kube, index: int, pod: Mapping[str, Any]) -> PartReport:
    name, phase = pod["metadata"]["name"], pod["status"].get("phase", "Unknown")
    if phase not in {"Succeeded", "Failed"}:
        return PartReport(index=index, pod=name, phase=phase)
    said = await kube.logs(name, namespace=job.NAMESPACE, tail=LOG_LINES)
    document = last_document(said)
    last = "" if document else "\n".join(said.splitlines()[-5:])
    return PartReport(index=index, pod=name, phase=phase, document=document, last=last)


def last_document(said: str) -> Mapping[str, Any]:
    """The JSON document at the end of what a command printed, after its progress; {} where there is none."""
    lines = said.splitlines()
    for number in range(len(lines) - 1, -1, -1):
        if lines[number] == "{":
            try:
                found = json.JSONDecoder().raw_decode("\n".join(lines[number:]))[0]
            except ValueError:
                return {}
            return found if isinstance(found, dict) else {}
    return {}
