"""A node fetches what it lacks from a mirror at the lab's bridge; when that fails, the control host sends it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from tests.lab import mirror
from tests.lab.conftest import kubeworker
from tests.lab.operate import sh

from kubeworker.lab import LabState

pytestmark = pytest.mark.timeout(180)

NODE = "worker-01"
LOSE = """\
sum=$(sha256sum /opt/k8s/bin/crictl | cut -d ' ' -f 1)
rm /opt/k8s/bin/crictl "/opt/k8s/bin/.store/sha256-$sum"
echo "$sum"
"""
"""Nothing is restarted for crictl's sake."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """The lab with `delivery: pull`, and the folder that its mirror serves."""

    lab: LabState
    cluster_yaml: Path
    url: str
    served: Path

    def apply(self) -> tuple[dict[str, object], str]:
        """The node's result, and what was said meanwhile."""
        done = kubeworker("apply", "--yes", "--json", "--json-events", "-f", self.cluster_yaml, "--node", NODE)
        assert done.returncode == 0, done.stdout + done.stderr
        (node,) = json.loads(done.stdout)["nodes"]
        return node, done.stderr


@pytest.fixture(scope="module")
def site(deployed: LabState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    served = tmp_path_factory.mktemp("served")
    document = yaml.safe_load(deployed.cluster_yaml.read_text())
    cluster_yaml = deployed.cluster_yaml.with_name("cluster-pull.yaml")
    with mirror.serving(deployed, served) as url:
        document.setdefault("artifacts", {}).update(delivery="pull", mirror=url)
        cluster_yaml.write_text(yaml.safe_dump(document))
        try:
            yield Site(lab=deployed, cluster_yaml=cluster_yaml, url=url, served=served)
        finally:
            cluster_yaml.unlink()
            assert kubeworker("apply", "--yes", "-f", deployed.cluster_yaml, "--node", NODE).returncode == 0


def test_what_the_mirror_has_is_not_sent_and_what_it_has_not_is(site: Site) -> None:
    published = kubeworker("artifacts", "publish", site.served, "-f", site.cluster_yaml, "--only", "crictl")
    assert published.returncode == 0, published.stderr
    lost = sh(site.lab, NODE, LOSE).strip()
    size = re.search(r"crictl.*?([0-9.]+ MB)", kubeworker("artifacts", "list", "-f", site.cluster_yaml).stdout)

    shown = kubeworker("plan", "-f", site.cluster_yaml, "--node", NODE).stdout
    assert size
    assert f"fetched by it from {site.url}/kubeworker: 1 artifact, {size[1]}; what fails there" in shown
    node, said = site.apply()
    assert (node["uploaded"], node["actions"]) == (0, 1), said
    assert sh(site.lab, NODE, "stat -c %s /opt/k8s/bin/crictl") == str(node["pulled"])
    assert sh(site.lab, NODE, "sha256sum /opt/k8s/bin/crictl").split()[0] == lost

    (site.served / f"kubeworker/sha256-{lost}.gz").write_bytes(b"nonsense")
    assert sh(site.lab, NODE, LOSE).strip() == lost
    node, said = site.apply()
    assert node["pulled"] == 0
    assert isinstance(node["uploaded"], int)
    assert node["uploaded"] > 1_000_000
    assert f"1 of 1 artifacts did not come from {site.url}/kubeworker: the mirror has other bytes" in said
    assert sh(site.lab, NODE, "sha256sum /opt/k8s/bin/crictl").split()[0] == lost
