"""What the control host itself runs comes along in a bundle: helm and Cilium's chart render there without a network."""

from __future__ import annotations

from pathlib import Path

from tests.artifact_site import Site, cluster

from kubeworker.components import discover
from kubeworker.core import desired
from kubeworker.flow import charts
from kubeworker.flow.artifact_bundle import bundle, unbundle
from kubeworker.flow.artifacts import resolve
from kubeworker.flow.events import silent
from kubeworker.io.blob_store import BlobStore


async def test_a_chart_is_rendered_from_a_bundle_alone(tmp_path: Path) -> None:
    home, away = tmp_path / "home", Site.at(tmp_path / "away")
    home.mkdir()
    spec = cluster(sources=["cache", "build"]).model_copy(update={"cni": "cilium"})
    wanted = desired.tools(spec, discover())
    assert [each.name for each in wanted] == ["helm", "cilium-chart"]
    store, source = BlobStore.default(), tmp_path / "bundle.tar.gz"
    blobs = await resolve(home / "cluster.yaml", spec, wanted, store=store)
    await bundle(home / "cluster.yaml", wanted, blobs, (), source, store=store)

    file = away.directory / "cluster.yaml"
    brought = await unbundle(file, (), source, store=away.store)
    assert brought.artifacts == ("cilium-chart", "helm")

    alone = cluster(sources=["cache"]).model_copy(update={"cni": "cilium"})
    tools = await charts.tools(file, alone, discover(), store=away.store, report=silent)
    assert all(path.is_relative_to(away.directory) for path in tools.values())
    (chart,) = charts.stand_ins(alone, discover())
    objects = await charts.render(chart, tools, alone.versions.kubernetes)
    assert ("DaemonSet", "cilium") in {(each["kind"], each["metadata"]["name"]) for each in objects}
