"""Whatever a full render and verify produce is explained: it has a reason and a source, and what is said holds."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
from tests.unit.samples import REGISTRY, checks, cluster, files, state, with_component

from kubeworker.core import actions
from kubeworker.core.cluster import cluster_objects
from kubeworker.core.component import Facts, Peer
from kubeworker.core.explain import Entry, Kind, Knowledge
from kubeworker.core.model import NodeState, Stage
from kubeworker.core.settings import WHOLE, settings, without_positions
from kubeworker.core.spec import ClusterFile, Paths
from kubeworker.errors import KubeworkerError, UsageError, tree
from kubeworker.flow.explain import cluster_of, explained, field, load
from kubeworker.io import cluster_file

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "src/kubeworker"
GOLDEN = ROOT / "tests/unit/golden"
PEER = Peer(name="b", address="172.31.32.72", pod_cidr="172.30.2.0/24")
JOINED = Facts(joined=True, pod_cidr="172.30.1.0/24", peers=(PEER,))
IPTABLES = dataclasses.replace(JOINED, masquerade="iptables")
UPSTREAM = re.compile(r"https://\S+|KEP-[0-9]+|[\w.-]+/[\w.-]+#[0-9]+|[\w.-]+\([1-9]\)|docs/[\w./-]+\.md")
"""A URL, a KEP, an issue, a manual page; of errors the page that lists them."""


@cache
def knowledge() -> Knowledge:
    return load(Paths())


def clusters() -> Iterator[tuple[ClusterFile, str, Facts]]:
    """Every kind of cluster and node, before the join and after it."""
    for name in ("default", "guide"):
        spec = cluster_file.load(GOLDEN / name / "cluster.yaml", REGISTRY)
        for node in spec.nodes:
            yield spec, node.name, Facts()
            yield spec, node.name, JOINED
    mirror = {
        "url": "https://mirror.example",
        "ca_on_node": "/etc/ca.pem",
        "skip_verify": True,
        "override_path": True,
        "header": {"X-Site": "a"},
        "client": {"cert": "mirror.pem"},
    }
    own = {"hosts": [mirror], "capabilities": ["pull"], **{key: mirror[key] for key in mirror if key != "url"}}
    for spec in (
        cluster(),
        with_component("kube_proxy", mode="iptables"),
        with_component("kube_proxy", enabled=False),
        with_component("kube_nginx", probe=False),
        with_component("host", sysctls=True),
        with_component("cilium", cni="cilium"),
        with_component("cilium", cni="cilium", kube_proxy_replacement=True),
        with_component("containerd", mirrors={"docker.io": own}, preload_images=["pause.tar"]),
        cluster(versions={"containerd": "2.0.5"}),
    ):
        yield spec, "k8s-01", JOINED
    yield with_component("bridge_cni", cni="bridge", mtu=1400), "k8s-01", IPTABLES


@cache
def states() -> tuple[NodeState, ...]:
    return tuple(state(spec, node=node, facts=facts) for spec, node, facts in clusters())


def good(entry: Entry | None) -> bool:
    """It says why, or what; and where that is written."""
    return entry is not None and bool(entry.why or entry.what) and bool(UPSTREAM.fullmatch(entry.source))


def missing(kind: str, names: Iterator[tuple[str, Entry | None]]) -> str:
    bad = sorted({name for name, entry in names if not good(entry)})
    return f"add to src/kubeworker/explanations, with why and source ({kind}): {', '.join(bad)}" if bad else ""


def paths(stage: Stage) -> Iterator[str]:
    yield from (each.path for each in stage.directories)
    yield from (each.path for each in stage.binaries)
    yield from (each.path for each in stage.files)
    yield from (each.path for each in stage.absent)
    yield from (each.path for each in stage.deferred)
    yield from (each.path for each in stage.kubeconfigs)
    yield from (each.pattern for each in stage.marked)
    yield from (each.pattern for each in stage.private)
    yield from (each.path for each in stage.units)
    for gone in stage.absent_units:
        yield from (gone.path, *gone.paths, *gone.directories)


def test_every_path_of_a_node_is_explained() -> None:
    every = {path for of in states() for stage in of.stages for path in paths(stage)}
    assert len(every) > 50
    assert not (said := missing("paths", ((path, knowledge().path(path)) for path in every))), said


def test_every_unit_is_explained_by_its_name() -> None:
    stages = [stage for of in states() for stage in of.stages]
    names = {unit.name for stage in stages for unit in stage.units}
    names |= {unit.name for stage in stages for unit in stage.absent_units}
    assert len(names) > 5
    for name in names:
        (entry,) = knowledge().find(name)
        assert entry.kind == "unit"
        assert good(entry), name


@cache
def keys() -> frozenset[tuple[str, str]]:
    texts = {(path, file.content) for of in states() for path, file in files(of).items()}
    return frozenset(
        (path, without_positions(key))
        for path, content in texts
        for key in settings(path, content.decode())
        if key != WHOLE
    )


def test_every_key_of_every_structured_file_is_explained() -> None:
    every = keys()
    assert len(every) > 200
    assert not (said := missing("keys", ((f"{path}: {key}", knowledge().key(path, key)) for path, key in every))), said


def test_every_check_of_verify_is_explained() -> None:
    ids = {check for spec, node, facts in clusters() for check in checks(spec, node=node, facts=facts)}
    assert len(ids) > 50
    assert not (said := missing("checks", ((each, knowledge().id("check", each)) for each in ids))), said


def preflight_ids() -> set[str]:
    """Ids of rows in the code and in the pages that must name them all, with `x` for what varies."""
    code = "".join(path.read_text("utf-8") for path in SOURCE.glob("core/reachability/*.py"))
    found = re.findall(r'\.(?:judge|judge_host|row)\(\s*f?"([^"]+)"', code)
    found += re.findall(r'\b(?:id|check)=f?"([^"]+)"', code)
    for page in ("preflight", "reachability"):
        for row in re.findall(r"^\| (`[^|]*) \|", (ROOT / f"docs/{page}.md").read_text("utf-8"), re.MULTILINE):
            found += re.findall(r"`([^`]+)`", row)
    return {re.sub(r"\{[^}]*\}|[A-Z]{2,}", "x", each) for each in found}


def test_every_check_of_preflight_is_explained() -> None:
    ids = preflight_ids()
    assert {"swap", "port-x", "kernel-x", "reach-x-x", "path-mtu", "api-token"} <= ids
    assert not (said := missing("preflight", ((each, knowledge().id("preflight", each)) for each in ids))), said


def test_every_kind_of_action_is_explained() -> None:
    source = ast.parse((SOURCE / "core/actions.py").read_text("utf-8"))
    kind = next(each for each in ast.walk(source) if isinstance(each, ast.FunctionDef) and each.name == "kind")
    kinds = {
        str(each.value.value)
        for each in ast.walk(kind)
        if isinstance(each, ast.Return) and isinstance(each.value, ast.Constant)
    }
    verbs = get_args(cluster_objects.Verb)
    kinds |= {f"{verb}-object" for verb in verbs}
    assert len(kinds) == len(get_args(actions.Action)) + len(verbs)
    assert not (said := missing("actions", ((each, knowledge().id("action", each)) for each in kinds))), said


def test_every_error_has_an_id_a_reason_and_a_way_out_of_its_own() -> None:
    text = "".join(path.read_text("utf-8") for path in SOURCE.rglob("*.py") if path.name != "errors.py")
    elsewhere = re.findall(rf"class (\w+)\((?:{'|'.join(each.__name__ for each in tree())})\)", text)
    assert not elsewhere, "kinds of error belong into errors.py, where the tree is"
    ids = [error.id for error in tree()]
    assert len(set(ids)) == len(ids) > 20
    for error in tree():
        assert {"id", "why", "way_out"} <= vars(error).keys(), error
        assert error.__doc__, error
        for line in (error.what(), error.why, error.way_out):
            assert line, error
            assert "\n" not in line
        assert error("it broke").as_json()["hint"] == error.way_out
        assert error("it broke", hint="mend it").as_json() | {"subject": ""} == {
            "id": error.id,
            "type": error.__name__,
            "subject": "",
            "message": "it broke",
            "hint": "mend it",
        }
        (entry,) = knowledge().find(error.__name__)
        assert good(entry)
        assert entry in knowledge().find(error.id)


def test_nothing_is_explained_that_is_not_there() -> None:
    every_key = keys()
    known = {entry.title for entry in knowledge().of("key") if any(_is(entry, path, key) for path, key in every_key)}
    unknown = {entry.title for entry in knowledge().of("key")} - known
    assert not unknown


def _is(entry: Entry, path: str, key: str) -> bool:
    in_file = path.endswith(entry.file) if entry.shared else _matches(entry.file, path)
    return in_file and _matches(entry.name, key)


def _matches(pattern: str, text: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text) is not None


def test_what_makes_it_is_a_function_of_its_component() -> None:
    for entry in knowledge().entries:
        if entry.made_by and entry.component:
            source = (SOURCE / f"components/{entry.component}.py").read_text("utf-8")
            assert f"\ndef {entry.made_by}(" in source, entry.title
        else:
            assert entry.kind in {"preflight", "action", "error"} or entry.shared, entry.title


def test_what_moves_it_is_a_field_of_cluster_yaml() -> None:
    for entry in knowledge().entries:
        if entry.option:
            assert field(entry.option, REGISTRY) is not None, entry


def test_the_guides_values_are_those_of_its_files_and_errors_md_is_current() -> None:
    command = [sys.executable, str(ROOT / "scripts/explanations"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------------------------------------------
# Asking


def titles(text: str) -> list[str]:
    return [entry.title for entry in knowledge().find(text)]


@pytest.mark.parametrize(
    ("asked", "kind", "name"),
    [
        ("maxPods", "key", "maxPods"),
        ("maxpods", "key", "maxPods"),
        ("kubelet-config.yaml:maxPods", "key", "maxPods"),
        (
            '/etc/kubernetes/kubelet-config.yaml:evictionHard."memory.available"',
            "key",
            'evictionHard."memory.available"',
        ),
        ("memory.available", "key", 'evictionHard."memory.available"'),
        ("--node-ip", "key", "Service.ExecStart --node-ip"),
        ("kubelet.service:Restart", "key", "Service.Restart"),
        ("kubelet:--node-ip", "key", "Service.ExecStart --node-ip"),
        ("HTTP2_PING_TIMEOUT_SECONDS", "key", "Service.Environment"),
        ("kube-nginx.conf:proxy_timeout", "key", "stream.server.proxy_timeout"),
        ("kubelet.service", "unit", "/etc/systemd/system/kubelet.service"),
        ("/opt/k8s/bin/runc", "path", "/opt/k8s/bin/runc"),
        ("config.toml", "path", "/etc/containerd/config.toml"),
        ("/etc/containerd/certs.d/quay.io/hosts.toml", "path", "/etc/containerd/certs.d/quay.io/hosts.toml"),
        ("kube_nginx.apiserver.10.0.0.1:6443", "check", "kube_nginx.apiserver.10.0.0.1:6443"),
        ("port-10250", "preflight", "port-10250"),
        ("sysctl-boot-vm.x", "preflight", "sysctl-boot-vm.x"),
        ("restart", "action", "restart"),
        ("lock-held", "error", "lock-held"),
        ("LockHeld", "error", "lock-held"),
    ],
)
def test_a_thing_is_found_by_what_people_call_it(asked: str, kind: Kind, name: str) -> None:
    (entry,) = knowledge().find(asked)
    assert (entry.kind, entry.name) == (kind, name)


def test_a_word_for_several_things_finds_them_all() -> None:
    assert titles("Restart") == ["kube-proxy.service:Service.Restart", "Service.Restart"]
    assert len(titles("kubelet")) > 1


def test_a_typing_error_gets_what_was_meant() -> None:
    with pytest.raises(UsageError) as caught:
        knowledge().find("maxPosd")
    assert "did you mean maxPods" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        knowledge().find("zzzzzzzz")
    assert caught.value.hint == "kubeworker explain lists what there is"


def test_a_files_own_reason_comes_before_the_one_that_files_share() -> None:
    proxy = knowledge().key("/etc/systemd/system/kube-proxy.service", "Service.Restart")
    kubelet = knowledge().key("/etc/systemd/system/kubelet.service", "Service.Restart")
    assert proxy
    assert "on-failure" in proxy.why
    assert kubelet
    assert (kubelet.component, kubelet.made_by) == ("kubelet", "_unit_file")
    assert kubelet.why != proxy.why


def test_a_path_with_several_patterns_is_explained_by_the_one_that_says_most() -> None:
    hosts = knowledge().path("/etc/containerd/certs.d/docker.io/hosts.toml")
    other = knowledge().path("/etc/containerd/certs.d/docker.io/ca.pem")
    assert hosts
    assert "order" in hosts.what
    assert other
    assert other.name.endswith("/*/*")


@pytest.mark.parametrize(
    ("asked", "guide"),
    [
        ("maxPods", "220"),
        ("kube-proxy.service:Restart", "on-failure"),
        ("podPidsLimit", "-1"),
        ("--node-ip", "no such setting"),
        ("Service.RestartSec", "5"),
        (
            "Unit.Documentation",
            "https://containerd.io (containerd.service); https://github.com/GoogleCloudPlatform/kubernetes",
        ),
        ("kubelet-config.yaml", "has this file"),
        ("90-kubeworker.conf", "nothing of the kind"),
        ("lock-held", ""),
    ],
)
def test_what_the_guide_has_is_said(asked: str, guide: str) -> None:
    entry = knowledge().find(asked)[0]
    assert knowledge().guides(entry).startswith(guide)
    assert bool(guide) == bool(knowledge().guides(entry))


def test_a_clusters_own_places_and_values_are_shown(tmp_path: Path) -> None:
    spec = cluster(
        paths={"bin_dir": "/srv/k8s/bin"},
        nodes=[
            {"name": "a", "address": "10.0.0.1"},
            {"name": "b", "address": "10.0.0.2", "components": {"kubelet": {"max_pods": 50}}},
        ],
    )
    here = load(spec.paths)
    assert here.find("/srv/k8s/bin/runc")
    (found,) = explained(here, here.find("maxPods"), REGISTRY, spec)
    assert found.here == (("220", ("a",)), ("50", ("b",)))
    assert found.as_json()["values"] == [{"value": "220", "nodes": ["a"]}, {"value": "50", "nodes": ["b"]}]
    assert "Upper bound" in found.field
    (secret,) = explained(here, here.find("kube-proxy.kubeconfig:client-key-data"), REGISTRY, spec)
    assert secret.here == ()


def test_a_wrong_cluster_file_does_not_keep_an_error_from_being_explained(tmp_path: Path) -> None:
    wrong = tmp_path / "cluster.yaml"
    wrong.write_text("nodez: []\n")
    assert cluster_of(None, wrong, REGISTRY) is None
    assert cluster_of(None, tmp_path / "none.yaml", REGISTRY) is None
    with pytest.raises(KubeworkerError):
        cluster_of(wrong, wrong, REGISTRY)
