"""docs/add-a-component.md: the worked example does what the page says."""

import re
from pathlib import Path
from types import ModuleType

from tests.unit.samples import CREDENTIALS, cluster

from kubeworker.components import discover
from kubeworker.core import desired
from kubeworker.core.component import Facts
from kubeworker.core.model import Blob, Http, NodeState
from kubeworker.core.spec import ClusterFile

PAGE = Path(__file__).parents[3] / "docs" / "add-a-component.md"


def example() -> ModuleType:
    """The page's component, as a file in the folder would be."""
    code, *_tests = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    module = ModuleType("node_exporter")
    exec(compile(code, str(PAGE), "exec", dont_inherit=True), module.__dict__)
    return module


def state(spec: ClusterFile, module: ModuleType) -> NodeState:
    registry = (*discover(), module.COMPONENT)
    desired.validate_components(spec, registry)
    return desired.desired(
        spec,
        spec.nodes[0],
        registry=registry,
        blobs={each.name: Blob(sha256="a" * 64, size=1) for each in desired.artifacts(spec, registry)},
        archives={},
        local_files={},
        credentials=CREDENTIALS,
        facts=Facts(),
    )


def test_the_example_is_a_stage_beside_the_others() -> None:
    stages = {each.component: each for each in state(cluster(components={"node_exporter": {}}), example()).stages}
    (unit,) = stages["node_exporter"].units
    assert unit.restart_on == ("/opt/k8s/bin/node_exporter",)
    assert "--web.listen-address=172.31.39.151:9100" in unit.content


def test_a_cluster_that_does_not_name_the_example_has_none() -> None:
    assert "node_exporter" not in {each.component for each in state(cluster(), example()).stages}


def test_verify_asks_the_example_for_its_metrics() -> None:
    module, spec = example(), cluster(components={"node_exporter": {"port": 9200}})
    checks = desired.checks(
        spec, spec.nodes[0], registry=(module.COMPONENT,), archives={}, credentials=CREDENTIALS, facts=Facts()
    )
    metrics = next(each for each in checks if each.id == "node_exporter.metrics")
    assert isinstance(metrics, Http)
    assert metrics.url == "http://172.31.39.151:9200/metrics"
