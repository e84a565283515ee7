"""Cilium's real chart through the real helm, and its objects on a real kube-apiserver."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.contract.control_plane import ControlPlane
from tests.contract.kubelets import admin, cluster_of

from kubeworker.components import discover
from kubeworker.core import desired
from kubeworker.core.artifacts.artifact import Artifact
from kubeworker.core.cluster import manifest
from kubeworker.core.cluster.cluster_objects import ObjectAction
from kubeworker.core.cluster.kube_views import Document
from kubeworker.core.cluster.manifest import Ref
from kubeworker.core.component import Chart
from kubeworker.core.spec import ClusterFile, NodeSpec
from kubeworker.errors import ApiError, InputError
from kubeworker.flow import chart_credentials, charts
from kubeworker.flow.charts import Release
from kubeworker.flow.events import silent
from kubeworker.flow.render import render_objects
from kubeworker.io.blob_store import BlobStore
from kubeworker.io.kube import Kube
from kubeworker.io.objects import Objects

pytestmark = pytest.mark.timeout(120)

RECORD = "kubeworker-demo"
NODES = (NodeSpec(name="w1", address="10.1.1.1"), NodeSpec(name="w2", address="10.1.1.2"))


def settings(cluster: ClusterFile, **values: Any) -> ClusterFile:
    """With Cilium, its tools from the cache or built."""
    return ClusterFile.model_validate(
        {
            **cluster.model_dump(mode="json"),
            "cni": "cilium",
            "artifacts": {"sources": ["cache", "build"]},
            "components": {"cilium": values},
        }
    )


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory, control_plane: ControlPlane) -> dict[str, Path]:
    """helm and the chart, as a run has them."""
    place = tmp_path_factory.mktemp("site") / "cluster.yaml"
    cluster = settings(cluster_of(control_plane, *NODES))
    return asyncio.run(charts.tools(place, cluster, discover(), store=BlobStore.default(), report=silent))


def release(plane: ControlPlane, place: Path, **values: Any) -> Release:
    (made,) = charts.releases(
        place / "cluster.yaml", settings(cluster_of(plane, *NODES), **values), discover(), now=datetime.now(UTC)
    )
    return made


@pytest.fixture
async def kube(control_plane: ControlPlane) -> AsyncIterator[Kube]:
    """The administrator's connection; what tests applied is gone after each."""
    async with admin(control_plane) as connected:
        yield connected
        api = Objects(connected)
        for record in (RECORD, "kubeworker-cilium"):
            inventory = await connected.get("ConfigMap", record, namespace="kube-system")
            for which in (*manifest.gone(manifest.recorded(inventory), ()), _ref("v1", "ConfigMap", record)):
                if which.kind != "Namespace":
                    await api.delete(which)
        await api.delete(_ref("v1", "ConfigMap", "demo"))


def _ref(api_version: str, kind: str, name: str, namespace: str = "kube-system") -> Ref:
    return Ref(api_version=api_version, kind=kind, namespace=namespace, name=name)


# ---------------------------------------------------------------------------------------------------------------
# Rendering


async def test_two_renderings_are_the_same_bytes_with_hubble_and_its_relay(
    control_plane: ControlPlane, tools: dict[str, Path], tmp_path: Path
) -> None:
    first = release(control_plane, tmp_path, values={"hubble": {"relay": {"enabled": True}}})
    assert set(first.credentials.issued) == {"ca", "hubble-server", "hubble-relay", "hubble-ui", "hubble-metrics"}
    chart_credentials.write(tmp_path / "cluster.yaml", first.credentials)
    again = release(control_plane, tmp_path, values={"hubble": {"relay": {"enabled": True}}})
    assert again.credentials.issued == {}
    one = await charts.render(first.chart, tools, "1.33.3")
    two = await charts.render(again.chart, tools, "1.33.3")
    assert json.dumps(one) == json.dumps(two)
    secrets = {each["metadata"]["name"] for each in one if each["kind"] == "Secret"}
    assert secrets == {"hubble-server-certs", "hubble-relay-client-certs"}
    kept = sorted(path.stat().st_mode & 0o777 for path in (tmp_path / ".kubeworker/cilium").iterdir())
    assert kept == [0o600] * 10


async def test_the_authoritys_key_stays_on_the_control_host(
    control_plane: ControlPlane, tools: dict[str, Path], tmp_path: Path
) -> None:
    made = release(control_plane, tmp_path)
    key = made.credentials.pairs["ca"].key.decode()
    rendered = "".join(manifest.text(each) for each in await charts.render(made.chart, tools, "1.33.3"))
    assert key.splitlines()[1] not in rendered
    assert "cilium-ca" not in {each["metadata"]["name"] for each in await charts.render(made.chart, tools, "1.33.3")}


async def test_the_operators_own_helm_settings_have_no_say(
    control_plane: ControlPlane, tools: dict[str, Path], tmp_path: Path
) -> None:
    """A plugin directory, a kubeconfig and a namespace of the environment would change what a bare helm does."""
    made = release(control_plane, tmp_path, hubble=False)
    before = await charts.render(made.chart, tools, "1.33.3")
    named = {
        "HELM_NAMESPACE": "elsewhere",
        "HELM_KUBEVERSION": "1.10.0",
        "KUBECONFIG": "/nonexistent",
        "HELM_DEBUG": "1",
    }
    kept = {name: os.environ.get(name) for name in named}
    os.environ.update(named)
    try:
        assert await charts.render(made.chart, tools, "1.33.3") == before
    finally:
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


async def test_render_writes_the_objects_twice_the_same_without_an_api_and_without_a_secret(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    cluster = settings(cluster_of(control_plane, *NODES))
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        found = await render_objects(tmp_path / "cluster.yaml", cluster, discover(), tmp_path / name, silent)
        written.append({path.name: path.read_text() for path in found})
    one, two = written
    assert one == two
    assert list(one) == sorted(one)
    assert next(iter(one)) == "000-namespace-cilium-secrets.yaml"
    secret = yaml.safe_load(one["004-secret-hubble-server-certs.yaml"])
    assert set(secret["data"].values()) == {"secret: made by `kubeworker apply`, never rendered"}
    assert not (tmp_path / ".kubeworker").exists()


async def test_the_chart_says_why_it_refuses_values(
    control_plane: ControlPlane, tools: dict[str, Path], tmp_path: Path
) -> None:
    made = release(control_plane, tmp_path, hubble=False, values={"tunnel": "vxlan"})
    with pytest.raises(InputError) as caught:
        await charts.render(made.chart, tools, "1.33.3")
    assert "tunnel was deprecated" in caught.value.message
    assert caught.value.subject == "components.cilium"


async def test_keys_are_in_no_argument_and_in_no_file_of_helms(
    control_plane: ControlPlane, tools: dict[str, Path], tmp_path: Path
) -> None:
    """helm replaced by a script that tells its arguments and what lies in its home."""
    spy = tmp_path / "helm"
    spy.write_text(
        '#!/bin/sh\n{ echo "$@"; env; grep -r . "$HOME"; } > ' + str(tmp_path / "seen") + "\ncat > /dev/null\n"
    )
    spy.chmod(0o755)
    made = release(control_plane, tmp_path)
    assert await charts.render(made.chart, {**tools, "helm": spy}, "1.33.3") == ()
    seen = (tmp_path / "seen").read_text()
    assert "--kube-version 1.33.3" in seen
    assert "LS0tLS1" not in seen  # base64 of -----


# ---------------------------------------------------------------------------------------------------------------
# On a real API server


async def applied(kube: Kube, made: Release, tools: dict[str, Path]) -> tuple[ObjectAction, ...]:
    """A run's part: what it did."""
    planned = await charts.plan(kube, (made,), tools, None)
    await charts.apply(kube, planned.actions, silent)
    return planned.actions


def told(actions: tuple[ObjectAction, ...]) -> list[str]:
    return [f"{action.verb} {action.subject}" for action in actions]


async def versions(kube: Kube, made: Release, tools: dict[str, Path]) -> dict[str, str]:
    """Every object's resourceVersion; where a controller writes a status, the generation of the spec."""
    api = Objects(kube)
    found = {}
    for each in await charts.render(made.chart, tools, "1.33.3"):
        document = await api.get(manifest.ref(each))
        assert document is not None
        version = "generation" if each["kind"] in {"DaemonSet", "Deployment"} else "resourceVersion"
        found[str(manifest.ref(each))] = str(document["metadata"][version])
    return found


async def test_a_second_run_does_nothing_and_turning_hubble_off_removes_what_was_its(
    control_plane: ControlPlane, tools: dict[str, Path], kube: Kube, tmp_path: Path
) -> None:
    made = release(control_plane, tmp_path)
    chart_credentials.write(tmp_path / "cluster.yaml", made.credentials)
    first = told(await applied(kube, made, tools))
    assert first[:2] == ["apply ConfigMap kube-system/kubeworker-cilium", "apply Namespace cilium-secrets"]
    assert first.index("apply ServiceAccount kube-system/cilium") < first.index("apply DaemonSet kube-system/cilium")
    assert "apply Secret kube-system/hubble-server-certs" in first

    before = await versions(kube, made, tools)
    assert told(await applied(kube, made, tools)) == []
    assert await versions(kube, made, tools) == before

    off = told(await applied(kube, release(control_plane, tmp_path, hubble=False), tools))
    assert [each for each in off if each.startswith("delete")] == [
        "delete Secret kube-system/hubble-server-certs",
        "delete Service kube-system/hubble-peer",
    ]
    assert off[-1] == "apply ConfigMap kube-system/kubeworker-cilium"
    assert await kube.get("Secret", "hubble-server-certs", namespace="kube-system") is None
    assert told(await applied(kube, release(control_plane, tmp_path, hubble=False), tools)) == []


async def test_an_edit_is_shown_with_its_author_and_taken_back(
    control_plane: ControlPlane, tools: dict[str, Path], kube: Kube, tmp_path: Path
) -> None:
    made = release(control_plane, tmp_path, hubble=False)
    await applied(kube, made, tools)
    await kube.request(
        "PATCH",
        "/api/v1/namespaces/kube-system/configmaps/cilium-config?fieldManager=kubectl-edit",
        body={"data": {"debug": "true"}},
        content_type="application/merge-patch+json",
        subject="the edit",
    )
    (action,) = (await charts.plan(kube, (made,), tools, None)).actions
    assert action.reason == "kubectl-edit changed .data.debug: taken back"
    assert '-  debug: "true"\n+  debug: "false"' in action.diff
    await charts.apply(kube, (action,), silent)
    assert (await charts.plan(kube, (made,), tools, None)).actions == ()


async def test_a_chart_without_helm_at_hand_is_told_and_not_compared(
    control_plane: ControlPlane, kube: Kube, tools: dict[str, Path], tmp_path: Path
) -> None:
    made = release(control_plane, tmp_path, hubble=False)
    planned = await charts.plan(kube, (made,), {"helm": tools["helm"]}, None)
    why = "cilium-chart is not in this host's cache; get: kubeworker artifacts fetch"
    assert (planned.actions, planned.warnings) == ((), (f"the objects of cilium are not compared: {why}",))
    planned = await charts.plan(kube, (made,), {}, None)
    assert "helm and cilium-chart are not in this host's cache" in planned.warnings[0]


@pytest.fixture
def installed_by_helm(control_plane: ControlPlane, tools: dict[str, Path], tmp_path: Path) -> Iterator[None]:
    """Cilium as its documentation installs it, with Hubble; the release's record goes in the end."""
    home = tmp_path / "helm"
    home.mkdir()
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": str(control_plane.kubeconfig)}
    values = ("--set", "k8sServiceHost=10.1.1.1", "--set", "k8sServicePort=6443")

    def run(*arguments: str | Path) -> None:
        subprocess.run([tools["helm"], *arguments, "--namespace", "kube-system"], env=env, check=True, timeout=60)

    # The namespace that earlier tests left is nobody's.
    run("install", "cilium", tools["cilium-chart"], "--take-ownership", *values)
    yield
    run("uninstall", "cilium")


@pytest.mark.usefixtures("installed_by_helm")
async def test_a_cilium_that_helm_installed_is_refused_and_taken_over_where_asked(
    control_plane: ControlPlane, tools: dict[str, Path], kube: Kube, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        await charts.plan(kube, (release(control_plane, tmp_path, hubble=False),), tools, None)
    assert "ServiceAccount kube-system/cilium (helm)" in caught.value.message
    assert "adopt: true" in caught.value.hint

    adopting = release(control_plane, tmp_path, hubble=False, adopt=True)
    planned = await charts.plan(kube, (adopting,), tools, None)
    actions = {action.subject: action for action in planned.actions}
    assert actions["ServiceAccount kube-system/cilium"].reason == "made by helm; taken over"
    assert actions["DaemonSet kube-system/cilium"].reason.startswith("made by helm; taken over, and it differs")
    assert re.search(r"^-.*10\.1\.1\.1$", actions["DaemonSet kube-system/cilium"].diff, re.MULTILINE)
    release_kept, objects_left = planned.warnings
    assert "delete secret --selector owner=helm,name=cilium" in release_kept
    assert "v1 Service kube-system/hubble-peer" in objects_left
    await charts.apply(kube, planned.actions, silent)
    # From then on it is this tool's, with and without the field.
    assert told(await applied(kube, release(control_plane, tmp_path, hubble=False), tools)) == []


# ---------------------------------------------------------------------------------------------------------------
# Objects of any kind


CRD: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "things.kubeworker.test"},
    "spec": {
        "group": "kubeworker.test",
        "scope": "Namespaced",
        "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                },
            }
        ],
    },
}
THING: dict[str, Any] = {"apiVersion": "kubeworker.test/v1", "kind": "Thing", "metadata": {"name": "one"}}
ROLE = "ClusterRole"


def binding(role: str) -> dict[str, Any]:
    group = "rbac.authorization.k8s.io"
    return {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "kubeworker-demo"},
        "roleRef": {"apiGroup": group, "kind": ROLE, "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": "x", "namespace": "kube-system"}],
    }


CHART = Chart(component="demo", release="demo", namespace="kube-system", artifact="", values={}, agent="none")


async def converge(kube: Kube, *documents: dict[str, Any]) -> manifest.Changes:
    wanted: tuple[Document, ...] = manifest.documents(copy.deepcopy(documents), subject="components.demo")
    changes = await charts.compare(kube, CHART, wanted)
    await charts.apply(kube, changes.actions, silent)
    return changes


async def test_a_definition_is_served_before_its_first_object_and_stays_while_there_are_objects(kube: Kube) -> None:
    first = told((await converge(kube, THING, CRD)).actions)
    assert first[1:] == ["apply CustomResourceDefinition things.kubeworker.test", "apply Thing kube-system/one"]
    assert (await converge(kube, THING, CRD)).actions == ()
    # Somebody's own object of that kind.
    await Objects(kube).apply({**THING, "metadata": {"name": "theirs", "namespace": "default"}}, force=True)
    changes = await converge(kube)
    assert "delete Thing kube-system/one" in told(changes.actions)
    assert "delete CustomResourceDefinition things.kubeworker.test" not in told(changes.actions)
    assert any("objects of its kind" in text for text in changes.warnings)
    await Objects(kube).delete(_ref("kubeworker.test/v1", "Thing", "theirs", "default"))
    assert "delete CustomResourceDefinition things.kubeworker.test" in told((await converge(kube)).actions)


async def test_a_bindings_role_is_changed_by_making_it_anew(kube: Kube) -> None:
    await converge(kube, binding("view"))
    (action,) = (await converge(kube, binding("edit"))).actions
    assert action.verb == "recreate"
    assert action.reason == "it can't be changed in place: roleRef"
    assert (await converge(kube, binding("edit"))).actions == ()


async def test_a_kind_that_the_cluster_does_not_serve_is_named(kube: Kube) -> None:
    with pytest.raises(ApiError) as caught:
        await converge(kube, {"apiVersion": "monitoring.example/v1", "kind": "Probe", "metadata": {"name": "p"}})
    error = caught.value
    assert error.message == "the cluster serves no Probe of monitoring.example/v1"
    assert error.hint


async def test_a_run_that_died_half_way_leaves_nothing_unknown(kube: Kube) -> None:
    """The record is written first: what the next run no longer wants, it still finds."""
    demo = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "demo"}, "data": {"a": "1"}}
    wanted = manifest.documents([demo, binding("view")], subject="components.demo")
    changes = await charts.compare(kube, CHART, wanted)
    await charts.apply(kube, changes.actions[:2], silent)  # killed after the first object
    assert "delete ConfigMap kube-system/demo" in told((await converge(kube)).actions)
    assert await kube.get("ConfigMap", "demo", namespace="kube-system") is None


def test_helm_is_the_pinned_one(tools: dict[str, Path]) -> None:
    said = subprocess.run([tools["helm"], "version", "--short"], capture_output=True, text=True, check=True).stdout
    assert said.startswith("v3.18.4")


def test_tools_never_go_to_nodes(control_plane: ControlPlane) -> None:
    cluster = settings(cluster_of(control_plane, *NODES))
    names: set[str] = {each.name for each in desired.artifacts(cluster, discover())}
    wanted: tuple[Artifact, ...] = desired.tools(cluster, discover())
    assert {each.name for each in wanted} == {"helm", "cilium-chart"}
    assert not names & {"helm", "cilium-chart"}
