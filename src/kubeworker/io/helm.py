"""Renders Helm charts (hides helm): values in, Kubernetes objects out, without a cluster and without a network."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kubeworker.core.cluster import manifest
from kubeworker.core.cluster.kube_views import Document
from kubeworker.core.formats import yaml as values_format
from kubeworker.errors import ArtifactError, ChartError
from kubeworker.io import command

SECONDS = 120
"""Cilium's chart takes a quarter of a second; a busy machine may take longer."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Manifests(_Loader):  # type: ignore[misc]
    """YAML as Kubernetes reads it: a date is a string."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own way
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in _Loader.yaml_implicit_resolvers.items()
    }


async def template(
    helm: Path, chart: Path, *, release: str, namespace: str, kube_version: str, values: Mapping[str, Any], subject: str
) -> tuple[Document, ...]:
    """The chart's objects for a cluster of this version (1.33.3), in Helm's install order.

    The values go by standard input, since they may hold keys. The operator's own Helm settings and repositories have
    no say: helm runs with an empty home. InputError, naming `subject`, where the chart refuses the values.
    """
    with tempfile.TemporaryDirectory() as home:
        ran = await command.pipe(
            (
                *(str(helm), "template", release, str(chart)),
                *("--namespace", namespace),
                *("--kube-version", kube_version),
                "--include-crds",
                "--skip-tests",
                *("--values", "-"),
            ),
            values_format.dump(values).encode(),
            env={
                "PATH": "/usr/bin:/bin",
                "HOME": home,
                "HELM_CACHE_HOME": f"{home}/cache",
                "HELM_CONFIG_HOME": f"{home}/config",
                "HELM_DATA_HOME": f"{home}/data",
                "KUBECONFIG": f"{home}/none",
            },
            cwd=Path(home),
            timeout=SECONDS,
        )
    if ran.status != 0:
        said = "\n".join(ran.stderr.strip().splitlines()[-5:])
        if ran.status == 126 or not said:
            hint = "helm itself does not run here: versions.helm, and `kubeworker artifacts fetch` to get it anew"
            raise ArtifactError(f"helm ended with status {ran.status}: {said}", subject=subject, hint=hint)
        raise ChartError(
            f"the chart can't be rendered: {said.removeprefix('Error: ')}",
            subject=subject,
            hint="look at the component's `values` in cluster.yaml",
        )
    try:
        rendered = list(yaml.load_all(ran.stdout, Loader=_Manifests))
    except yaml.YAMLError as error:
        raise ChartError(f"the chart renders no valid YAML: {error}", subject=subject) from error
    return manifest.documents(rendered, subject=subject)
