"""verify --deep: what the log of a real `ctr --debug` (2.1.3) says, and the verdicts on it."""

import base64
import subprocess
from collections.abc import Sequence

import pytest
from tests.unit.samples import checks, with_component

from kubeworker.core.model import FileMode, MirrorPull, NodeCommand
from kubeworker.core.verify import mirror_pull
from kubeworker.core.verify.mirror_pull import Answer, Fetched

CHECK = MirrorPull(
    id="containerd.registry.docker.io",
    image="docker.io/library/x:1",
    ctr="/opt/k8s/bin/ctr",
    folder="docker.io",
    served_by=("127.0.0.1:5997", "127.0.0.1:5999"),
)
DIGEST = f"sha256:{'8' * 64}"

# As the node's sed leaves it, of a pull whose first mirror was down and whose second one answered.
FELL_THROUGH = """\
time="2026-11-25T02:36:09Z" level=info msg="trying next host" error="failed to do request: Head \
\\"https://127.0.0.1:5997/v2/library/x/manifests/1?ns=docker.io\\": dial tcp 127.0.0.1:5997: connect: connection \
refused" host="127.0.0.1:5997" ref="docker.io/library/x:1"
answer 200 https://127.0.0.1:5999/v2/library/x/manifests/1?ns=docker.io
time="2026-11-25T02:36:09Z" level=debug msg="fetch failed" digest="sha256:81" error="failed to do request: Get \
\\"https://127.0.0.1:5997/v2/library/x/manifests/sha256:81?ns=docker.io\\": dial tcp 127.0.0.1:5997: connect: \
connection refused" ref="docker.io/library/x:1"
answer 200 https://127.0.0.1:5999/v2/library/x/manifests/sha256:81?ns=docker.io
"""
NOBODY = """\
time="2026-11-25T02:36:09Z" level=info msg="trying next host" error="failed to do request: Head \
\\"https://127.0.0.1:5999/v2/library/x/manifests/1?ns=docker.io\\": tls: failed to verify certificate: x509: \
certificate signed by unknown authority" host="127.0.0.1:5999" ref="docker.io/library/x:1"
answer 404 https://127.0.0.1:5996/v2/library/x/manifests/1?ns=docker.io
time="2026-11-25T02:36:09Z" level=info msg="trying next host after status: 404 Not Found" host="127.0.0.1:5996" \
ref="docker.io/library/x:1"
time="2026-11-25T02:36:09Z" level=info msg="fetch failed" error="failed to do request: Head \
\\"https://127.0.0.1:5998/v2/library/x/manifests/1?ns=docker.io\\": dial tcp 127.0.0.1:5998: connect: connection \
refused" host="127.0.0.1:5998" ref="docker.io/library/x:1"
ctr: failed to do request: Head "https://127.0.0.1:5999/v2/library/x/manifests/1?ns=docker.io": tls: failed to verify \
certificate: x509: certificate signed by unknown authority
"""


def encoded(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def fetched(log: str, *, status: int = 0, content: bytes = b"{}") -> Fetched:
    architecture, (found,) = mirror_pull.parse(
        f"machine\tx86_64\nobject\t{status}\t{encoded(content)}\t{encoded(log)}\n"
    )
    assert architecture == "amd64"
    return found


def test_the_log_tells_who_served_and_who_did_not() -> None:
    found = fetched(FELL_THROUGH)
    assert found.answers == (Answer(status=200, host="127.0.0.1:5999"),) * 2
    assert found.served_by == "127.0.0.1:5999"
    assert found.troubles == ("127.0.0.1:5997: dial tcp 127.0.0.1:5997: connect: connection refused",)


def test_every_host_that_refused_is_named_with_its_reason() -> None:
    found = fetched(NOBODY, status=1)
    assert found.served_by == ""
    assert found.troubles == (
        "127.0.0.1:5999: tls: failed to verify certificate: x509: certificate signed by unknown authority",
        "127.0.0.1:5996: answers 404 Not Found",
        "127.0.0.1:5998: dial tcp 127.0.0.1:5998: connect: connection refused",
    )
    verdict = mirror_pull.judge(CHECK, (found,))
    assert verdict.status == "failed"
    assert verdict.detail == f"docker.io/library/x:1: {'; '.join(found.troubles)}"


def test_a_download_that_was_stopped_says_so() -> None:
    found = fetched("", status=124)
    assert mirror_pull.judge(CHECK, (found,)).detail.endswith("no answer within 45 s")


def test_a_mirror_that_served_passes_and_the_one_before_it_is_named() -> None:
    verdict = mirror_pull.judge(CHECK, (fetched(FELL_THROUGH),))
    assert verdict.status == "passed"
    assert verdict.detail.startswith("docker.io/library/x:1: served by 127.0.0.1:5999 (127.0.0.1:5997: dial tcp")


def test_a_fallback_that_served_fails_and_is_named() -> None:
    check = MirrorPull(
        id=CHECK.id, image=CHECK.image, ctr=CHECK.ctr, folder=CHECK.folder, served_by=("127.0.0.1:5997",)
    )
    verdict = mirror_pull.judge(check, (fetched(FELL_THROUGH),))
    assert verdict.status == "failed"
    assert "served by 127.0.0.1:5999, not by the mirror: 127.0.0.1:5997: dial tcp" in verdict.detail


def test_an_image_of_which_a_part_came_from_elsewhere_fails() -> None:
    other = Fetched(status=0, answers=(Answer(status=200, host="registry-1.docker.io"),))
    verdict = mirror_pull.judge(CHECK, (fetched(FELL_THROUGH), other, other))
    assert verdict.status == "failed"
    assert "served by 127.0.0.1:5999 (1 of 3), registry-1.docker.io (2 of 3), not by a mirror" in verdict.detail


def test_a_blob_with_other_bytes_is_found() -> None:
    wanted = f"sha256:{'1' * 64}"
    _, (good, bad) = mirror_pull.parse(
        f"machine\taarch64\nblob\t0\t{wanted}\t{encoded(FELL_THROUGH)}\nblob\t0\t{DIGEST}\t{encoded(FELL_THROUGH)}\n"
    )
    assert mirror_pull.other_bytes(CHECK, wanted, good) is None
    verdict = mirror_pull.other_bytes(CHECK, wanted, bad)
    assert verdict is not None
    assert verdict.detail == f"docker.io/library/x:1: 127.0.0.1:5999 serves other bytes as {wanted}"


def test_an_index_gives_the_manifest_of_the_machine() -> None:
    def platform(architecture: str, system: str = "linux") -> dict[str, str]:
        return {"architecture": architecture, "os": system}

    index = {
        "manifests": [
            {"digest": "sha256:w", "platform": platform("arm64", "windows")},
            {"digest": "sha256:a", "platform": platform("amd64")},
            {"digest": "sha256:b", "platform": platform("arm64")},
        ]
    }
    assert mirror_pull.of_machine(index, "arm64") == "sha256:b"
    assert mirror_pull.of_machine({"config": {}}, "arm64") == ""
    manifest = {"config": {"digest": "c"}, "layers": [{"digest": "l"}, {"digest": "l"}]}
    assert mirror_pull.blobs(manifest) == ("c", "l")


@pytest.mark.parametrize("content", [b"<html>", b"[]", b"{}"])
def test_a_web_page_is_no_manifest(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"127.0.0.1:5999 did not answer with a manifest"):
        mirror_pull.document(fetched(FELL_THROUGH, content=content))


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("docker.io/library/x:1", "docker.io/library/x"),
        ("reg.example:5000/x:1", "reg.example:5000/x"),
        (f"reg.example:5000/x:1@{DIGEST}", "reg.example:5000/x"),
    ],
)
def test_a_digest_takes_the_place_of_the_tag(image: str, name: str) -> None:
    assert mirror_pull.by_digest(image, "sha256:1") == f"{name}@sha256:1"


@pytest.mark.parametrize("mirror", ["", "https://m.example:5000/v2/it"])
def test_the_texts_are_clean_shell(mirror: str) -> None:
    check = MirrorPull(
        id="x", image="docker.io/x:1", ctr="/opt/k8s bin/ctr", folder="x_1_", mirror=mirror, served_by=()
    )
    texts: Sequence[str] = (
        mirror_pull.manifest_script(check, check.image, only_mirror=True),
        mirror_pull.blobs_script(check, ("sha256:1", "sha256:2")),
    )
    for text in texts:
        # SC2317, SC2329: the text carries all functions and calls some of them. SC2086: no argument, or one word.
        # SC2034: and all variables. SC2016: awk's, not the shell's.
        done = subprocess.run(
            ["shellcheck", "--shell=sh", "--severity=style", "--exclude=SC2317,SC2329,SC2034,SC2086,SC2016", "-"],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == ""


def test_headers_never_leave_the_node() -> None:
    """`do request` lines show them; the node's sed lets through who answered and who did not."""
    log = (
        'time="x" level=debug msg="do request" host="m" request.header.x-token=sesame request.method=HEAD url="https://m/"\n'
        'time="x" level=debug msg="fetch response received" host="m" response.header.set-cookie=sesame '
        'response.status="200 OK" url="https://m/v2/"\n'
    )
    done = subprocess.run(["sh", "-c", mirror_pull.SHORT_LOG], input=log, capture_output=True, text=True, check=True)
    assert done.stdout == "answer 200 https://m/v2/\n"


def test_each_registry_and_each_mirror_is_asked_and_secret_files_are_looked_at() -> None:
    mirrors = {
        "docker.io": ["https://a", {"url": "https://b:5000", "capabilities": ["pull"], "header": {"X": "y"}}],
        "registry.k8s.io": [{"url": "https://c", "capabilities": ["resolve"]}],
        "quay.io": {"ca_on_node": "/x"},
        "_default": {"hosts": ["https://d"], "probe": "ghcr.io/x/y:1"},
        "ghcr.io": [],
    }
    found = [
        each
        for each in checks(with_component("containerd", mirrors=mirrors)).values()
        if ".mirror" in each.id or "registry" in each.id
    ]
    pulls = {each.id: (each.image, each.served_by, each.resolves) for each in found if isinstance(each, MirrorPull)}
    assert pulls == {
        "containerd.registry.docker.io": ("docker.io/library/busybox:latest", ("a", "b:5000"), True),
        "containerd.mirror.docker.io.https://a": ("docker.io/library/busybox:latest", ("a",), True),
        "containerd.mirror.docker.io.https://b:5000": ("docker.io/library/busybox:latest", ("b:5000",), False),
        "containerd.registry.registry.k8s.io": ("registry.k8s.io/pause:3.10", ("registry.k8s.io",), True),
        "containerd.registry.quay.io": ("", ("quay.io",), True),
        "containerd.registry._default": ("ghcr.io/x/y:1", ("d",), True),
        "containerd.mirror._default.https://d": ("ghcr.io/x/y:1", ("d",), True),
    }
    modes = [each for each in found if isinstance(each, FileMode)]
    assert [(each.path, each.mode) for each in modes] == [("/etc/containerd/certs.d/docker.io/hosts.toml", 0o600)]
    assert [each.id for each in found if isinstance(each, NodeCommand)] == ["containerd.mirrors.config_path"]
    assert not [name for name in checks(with_component("containerd")) if "mirror" in name]
