"""Looks at a Helm chart's archive: whether it is one, and of which version."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import yaml

from kubeworker.core.artifacts.artifact import Artifact
from kubeworker.errors import ArtifactError


def check(path: Path, artifact: Artifact, *, subject: str) -> None:
    """ArtifactError, naming `subject`, unless the file is a packed chart of the artifact's version."""
    found = str(_description(path, artifact, subject).get("version", ""))
    if found.removeprefix("v") != artifact.version:
        field = artifact.field or "its version in cluster.yaml"
        raise ArtifactError(
            f"{artifact.name} is a chart of version {found or '(none)'}; {artifact.version} is asked for",
            subject=subject,
            hint=f"set {field}: {found or '...'} or get the right file",
        )


def _description(path: Path, artifact: Artifact, subject: str) -> dict[str, Any]:
    """Chart.yaml, which lies in the archive's one top directory (helm.sh/docs/topics/charts)."""
    try:
        with tarfile.open(path, mode="r:gz") as archive:
            for entry in archive:
                if entry.isreg() and entry.name.count("/") == 1 and entry.name.endswith("/Chart.yaml"):
                    file = archive.extractfile(entry)
                    assert file is not None
                    described = yaml.safe_load(file.read())
                    if isinstance(described, dict):
                        return described
    except (tarfile.TarError, EOFError, OSError, yaml.YAMLError) as error:
        raise _no_chart(artifact, subject, f"it can't be read: {error}") from error
    raise _no_chart(artifact, subject, "it holds no Chart.yaml")


def _no_chart(artifact: Artifact, subject: str, why: str) -> ArtifactError:
    return ArtifactError(
        f"{artifact.name} must be a Helm chart (.tgz); {why}",
        subject=subject,
        hint="an error page was saved in its place, perhaps",
    )
