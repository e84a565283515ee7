"""`profile: guide` against the guide's own files, key by key: from its environment.sh to what lies on a node.

Every difference stands in docs/guide-differences.md with its reason, and every line there is a difference.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests import guide_files
from tests.guide_files import CA, CERT, KEY, TOKEN, Difference
from tests.unit.authority import authority

from kubeworker.components import discover, kubelet
from kubeworker.core import desired
from kubeworker.core.certificates import pki
from kubeworker.core.cluster import bootstrap_token
from kubeworker.core.cluster.cluster_objects import bindings
from kubeworker.core.component import Credentials, Facts
from kubeworker.core.model import Blob
from kubeworker.core.settings import Settings, flat, nginx_settings, settings, unit_settings
from kubeworker.core.spec import ClusterFile
from kubeworker.flow import credentials
from kubeworker.flow.init import from_guide
from kubeworker.flow.render import files
from kubeworker.io import cluster_file

ROOT = Path(__file__).parents[3]
HEADING = "## `profile: guide`, key by key"
REGISTRY = discover()


@pytest.fixture
def cluster(tmp_path: Path) -> ClusterFile:
    out = tmp_path / "cluster.yaml"
    from_guide(
        out,
        REGISTRY,
        environment=guide_files.FOLDER / "environment.sh",
        kube_nginx_conf=guide_files.FOLDER / "kube-nginx.conf",
    )
    return cluster_file.load(out, REGISTRY)


def our_files(cluster: ClusterFile, node: str) -> dict[str, Settings]:
    nothing = Blob(sha256="0" * 64, size=0)
    state = desired.desired(
        cluster,
        cluster.node(node),
        registry=REGISTRY,
        blobs={artifact.name: nothing for artifact in desired.artifacts(cluster, REGISTRY)},
        archives={},
        local_files={},
        credentials=Credentials(ca_cert=CA, kube_proxy_cert=CERT, kube_proxy_key=KEY, bootstrap_token=TOKEN),
        facts=Facts(),
    )
    return {file.path: settings(file.path, file.content.decode()) for file in files(state)}


def our_objects(cluster: ClusterFile, node: str, folder: Path, now: datetime) -> dict[str, Settings]:
    config = desired.config(kubelet.COMPONENT, cluster)
    found = {
        f"ClusterRoleBinding {each['metadata']['name']}": flat(each)
        for each in bindings(cluster, client_csr=config.client_csr_for(cluster))
    }
    token_id, _, secret = TOKEN.partition(".")
    expires = now + timedelta(minutes=config.token_minutes_for(cluster))
    token = bootstrap_token.BootstrapToken(id=token_id, secret=secret, node=node, expires=expires)
    document = bootstrap_token.document(token, profile=cluster.profile)
    document["data"] = {key: base64.b64decode(value).decode() for key, value in document["data"].items()}
    found["Secret bootstrap-token-ID"] = flat(document)
    cert, key = authority(start=now - timedelta(days=1), end=now + timedelta(days=9000))
    ca = pki.load_ca(cert, key, now=now, cert_subject="ca", key_subject="key")
    pair = credentials.kube_proxy(folder / "cluster.yaml", ca, now=now, lifetime=timedelta(days=3650))
    found["certificate of kube-proxy"] = guide_files.certificate_settings(pair.cert)
    return found


def found(cluster: ClusterFile, node: str, folder: Path) -> set[Difference]:
    spec = cluster.node(node)
    token_id, _, secret = TOKEN.partition(".")
    now = datetime.now(UTC)
    variables = {
        "IN_24_HOURS": f"{now + timedelta(hours=24):%Y-%m-%dT%H:%M:%SZ}",
        "CONTAINERD_DIR": "/data/k8s/containerd",
        "K8S_DIR": "/data/k8s/k8s",
        "CLUSTER_CIDR": "172.30.0.0/16",
        "CLUSTER_DNS_DOMAIN": "cluster.local",
        "CLUSTER_DNS_SVC_IP": "10.254.0.2",
        "KUBE_APISERVER": "https://127.0.0.1:8443",
        "NODE_NAME": node,
        "NODE_IP": spec.address,
        "node_name": node,
        "TOKEN_ID": token_id,
        "TOKEN_SECRET": secret,
    }
    theirs = guide_files.guide_node_files(variables) | guide_files.guide_objects(variables)
    mine = our_files(cluster, node) | our_objects(cluster, node, folder, now)
    return guide_files.general(guide_files.differences(theirs, mine), name=node, address=spec.address)


def test_every_difference_is_listed_with_its_reason_and_every_listed_one_is_there(
    cluster: ClusterFile, tmp_path: Path
) -> None:
    listed = guide_files.table((ROOT / "docs/guide-differences.md").read_text(), HEADING)
    seen = [found(cluster, node.name, tmp_path) for node in cluster.nodes]
    assert seen[0] == seen[1]
    new = sorted(seen[0] - listed.keys())
    gone = sorted(listed.keys() - seen[0])
    assert not new, "not listed in docs/guide-differences.md:\n" + "\n".join(
        guide_files.row(each, "why") for each in new
    )
    assert not gone, "listed in docs/guide-differences.md and no more there:\n" + "\n".join(map(str, gone))
    assert all(reason for reason in listed.values())


def test_a_difference_is_found_wherever_it_is() -> None:
    guide = {"a.service": unit_settings("[Service]\nExecStart=/bin/x \\\n  --a=1 \\\n  --b=2\nAfter=y\n")}
    ours = {"a.service": unit_settings("[Service]\nExecStart=/bin/x --a=1 --b=3\nAfter=y\nAfter=z\n")}
    assert guide_files.differences(guide, ours) == {
        ("a.service", "Service.ExecStart --b", "2", "3"),
        ("a.service", "Service.After", "y", "y; z"),
    }
    assert guide_files.differences(guide, {}) == {("a.service", "the file", "there", "none")}
    conf = nginx_settings("a { b 1; b 2; }")
    assert guide_files.differences({"c": conf}, {"c": {}}) == {("c", "a.b", "1; 2", "none")}
    assert flat({"a": {"b.c": [1], "d": [{"e": ""}]}}) == {'a."b.c"': "[1]", "a.d[0].e": '""'}


def test_the_table_is_read_as_it_is_written() -> None:
    difference = ("/etc/a", "b", "none", "c d")
    head = "x\n## head\n\n| file | key | g | k | why |\n| --- | --- | --- | --- | --- |\n"
    page = f"{head}{guide_files.row(difference, 'so')}\n"
    assert guide_files.table(f"{page}\n## next\n\n| 1 | 2 | 3 | 4 | 5 |\n", "## head") == {difference: "so"}
