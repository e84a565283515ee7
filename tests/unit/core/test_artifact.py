from __future__ import annotations

import pytest

from kubeworker.core.artifacts import checksums
from kubeworker.core.artifacts.artifact import kubernetes_ldflags, release_url, reported_version

DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("output", "version"),
    [
        ("Kubernetes v1.33.3\n", "1.33.3"),
        ("Client Version: v1.33.3\nKustomize Version: v5.6.0\n", "1.33.3"),
        ("containerd github.com/containerd/containerd/v2 v2.1.3 \n", "2.1.3"),
        ("containerd-shim-runc-v2:\n  Version:  v2.1.3\n  Go version: go1.26.8\n", "2.1.3"),
        ("runc version 1.3.0\nspec: 1.2.1\ngo: go1.26.8\nlibseccomp: 2.5.4\n", "1.3.0"),
        ("nginx version: nginx/1.22.1\n", "1.22.1"),
        ("etcd Version: 3.5.21\nGo Version: go1.26.8\n", "3.5.21"),
        ("CNI bridge plugin v1.7.1\nCNI protocol versions supported: 0.1.0, 0.2.0\n", "1.7.1"),
        ("nerdctl version 2.1.3\n", "2.1.3"),
        ("Kubernetes v1.33.3-rc.1+abc\n", "1.33.3-rc.1+abc"),
        ("Kubernetes v0.0.0-master+$Format:%H$\n", "0.0.0-master"),
        ("flag provided but not defined: -version\n", ""),
        ("", ""),
    ],
)
def test_the_first_version_is_what_a_binary_reports(output: str, version: str) -> None:
    assert reported_version(output) == version


def test_a_mirror_holds_the_official_paths() -> None:
    official = "https://dl.k8s.io/release/v1.33.3/bin/linux/{arch}/kubelet"
    assert release_url(official, "arm64", None) == "https://dl.k8s.io/release/v1.33.3/bin/linux/arm64/kubelet"
    assert (
        release_url(official, "amd64", "http://mirror.site:8080/base/")
        == "http://mirror.site:8080/base/dl.k8s.io/release/v1.33.3/bin/linux/amd64/kubelet"
    )


def test_kubernetes_commands_get_version_major_and_minor() -> None:
    flags = kubernetes_ldflags("1.33.3")
    assert "-X k8s.io/component-base/version.gitVersion=v1.33.3 " in flags
    assert "-X k8s.io/component-base/version.gitMinor=33 " in flags


@pytest.mark.parametrize(
    "text",
    [
        DIGEST,
        f"{DIGEST}\n",
        f"{DIGEST}  runc.amd64\n",
        f"{DIGEST.upper()} *runc.amd64\n",
        f"{'f' * 64}  runc.arm64\n{DIGEST}  runc.amd64\n",
        f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n{DIGEST}  ./release/runc.amd64\n",
    ],
)
def test_a_publishers_digest_is_found_in_every_form(text: str) -> None:
    assert checksums.find(text, "runc.amd64") == DIGEST


@pytest.mark.parametrize("text", ["", "<html>not here</html>", f"{DIGEST}  runc.amd64.asc\n", f"{DIGEST[:-1]}\n"])
def test_no_digest_is_invented(text: str) -> None:
    assert not checksums.find(text, "runc.amd64")
