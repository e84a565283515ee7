"""`render`: every file of every node, every object of a chart, offline: no node, API, CA key or kubeconfig is needed.

Of artifacts only what renders a chart is needed, and the chart.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from kubeworker.core import desired
from kubeworker.core.cluster import manifest
from kubeworker.core.component import Archive, Credentials, Facts
from kubeworker.core.desired import Inputs, Registry
from kubeworker.core.formats import yaml
from kubeworker.core.model import UNKNOWN, File, NodeState
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import FileError, reason
from kubeworker.flow import charts
from kubeworker.flow.events import Reporter
from kubeworker.io import local_files
from kubeworker.io.blob_store import BlobStore

PLACEHOLDER = b"# secret: made by `kubeworker apply`, never rendered\n"
"""What stands in a file whose content is a secret."""

_OBJECT_PLACEHOLDER = "secret: made by `kubeworker apply`, never rendered"

_STAND_IN = "000000.0000000000000000"
_MARKER = ".kubeworker-render"


def render(cluster: ClusterFile, registry: Registry, out_dir: Path) -> tuple[Path, ...]:
    """Write DIR/<node>/<absolute path> for every file, and return what was written.

    What only the live cluster knows (podCIDRs) is left out. A directory of an earlier render is replaced; any
    other directory with something in it is refused with InputError.
    """
    desired.validate_components(cluster, registry)
    try:
        _prepare(out_dir)
    except OSError as error:
        text = f"can't be written: {reason(error)}"
        raise FileError(text, subject=str(out_dir), hint="name a directory that you can make or write to") from error
    inputs = _offline(cluster, registry)
    written = []
    for node in cluster.nodes:
        for file in files(inputs.state(node, Facts())):
            path = out_dir / node.name / file.path.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(PLACEHOLDER if file.secret else file.content)
            path.chmod(0o644)
            written.append(path)
    return tuple(written)


async def render_objects(
    cluster_file: Path, cluster: ClusterFile, registry: Registry, out_dir: Path, report: Reporter
) -> tuple[Path, ...]:
    """Write DIR/cluster/NNN-KIND-NAME.yaml for every object of every chart, in the order in which they are applied.

    The charts are rendered for versions.kubernetes, since no API is asked. Of Secrets the names stand there only: their
    values are kept beside cluster.yaml, or not made yet.
    """
    made = charts.stand_ins(cluster, registry)
    if not made:
        return ()
    tools = await charts.tools(cluster_file, cluster, registry, store=BlobStore.default(), report=report)
    place = out_dir / "cluster"
    place.mkdir(exist_ok=True)
    written: list[Path] = []
    for chart in made:
        for document in await charts.render(chart, tools, cluster.versions.kubernetes):
            path = place / f"{len(written):03}-{document['kind'].lower()}-{document['metadata']['name']}.yaml"
            shown = manifest.masked(manifest.labelled(document, chart.component), lambda _value: _OBJECT_PLACEHOLDER)
            path.write_text(yaml.dump(shown), encoding="utf-8")
            written.append(path)
    return tuple(written)


def offline_state(cluster: ClusterFile, registry: Registry, node: str) -> NodeState:
    """The node's desired state with stand-ins for everything that lies outside cluster.yaml."""
    return _offline(cluster, registry).state(cluster.node(node), Facts())


def _offline(cluster: ClusterFile, registry: Registry) -> Inputs:
    return Inputs(
        cluster=cluster,
        registry=registry,
        blobs={artifact.name: UNKNOWN for artifact in desired.artifacts(cluster, registry)},
        archives={path: Archive(references=(), blob=UNKNOWN) for path in desired.archives(cluster, registry)},
        local_files=local_files.read_present(desired.local_files(cluster, registry)),
        credentials=Credentials(ca_cert=_ca_certificate(cluster), bootstrap_token=_STAND_IN),
    )


def files(state: NodeState) -> tuple[File, ...]:
    """Every file of the node, unit files among them."""
    return tuple(file for stage in state.stages for file in (*stage.files, *(unit.file for unit in stage.units)))


def _ca_certificate(cluster: ClusterFile) -> bytes:
    path = Path(cluster.cluster.ca.cert)
    return path.read_bytes() if path.is_file() else b"# the cluster's CA certificate (cluster.ca.cert)\n"


def _prepare(out_dir: Path) -> None:
    if out_dir.is_dir() and any(out_dir.iterdir()):
        if not (out_dir / _MARKER).is_file():
            raise FileError(
                "is not empty and was not made by render", subject=str(out_dir), hint="name a new directory"
            )
        shutil.rmtree(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / _MARKER).touch()
