"""Registries and mirrors: from cluster.yaml to the files that containerd reads, and what is refused before."""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.unit.authority import authority, encrypted, pem_of
from tests.unit.core.engine_states import after
from tests.unit.samples import REGISTRY, cluster, files, stage, state, with_component

from kubeworker.core import desired
from kubeworker.core.actions import RemovePath
from kubeworker.core.diff import diff
from kubeworker.core.model import Absent, Directory, File
from kubeworker.core.registry_hosts import MARK
from kubeworker.errors import SpecError
from kubeworker.io.cluster_file import load

CERTS_D = "/etc/containerd/certs.d"
DOCKER = f"{CERTS_D}/docker.io/hosts.toml"
KEY = ec.generate_private_key(ec.SECP256R1())
CA, _ = authority()
CERT, _ = authority(key=KEY)


def written(registry: str, given: Any, *, local: Mapping[str, bytes] | None = None, **how: Any) -> dict[str, File]:
    """The files below the hosts directory when cluster.yaml says this of one registry."""
    spec = with_component("containerd", mirrors={registry: given}, **how)
    return {
        path: file for path, file in files(state(spec, local_files=local or {})).items() if path.startswith(CERTS_D)
    }


def hosts(registry: str, given: Any, **how: Any) -> dict[str, Any]:
    """Its hosts.toml, as containerd reads it."""
    found = written(registry, given, **how)
    return next(tomllib.loads(file.content.decode()) for path, file in found.items() if path.endswith("/hosts.toml"))


@pytest.mark.parametrize(
    "given",
    [
        "https://m.example",
        ["https://m.example"],
        [{"url": "https://m.example"}],
        {"hosts": ["https://m.example/"]},
        {"hosts": [{"url": "https://m.example", "capabilities": ["pull", "resolve"]}], "probe": "x/y:1"},
    ],
)
def test_a_url_a_list_and_the_full_form_say_the_same(given: Any) -> None:
    assert hosts("docker.io", given) == {
        "server": "https://registry-1.docker.io",
        "host": {"https://m.example": {"capabilities": ["pull", "resolve"]}},
    }


def test_mirrors_are_tried_in_the_order_given() -> None:
    text = written("docker.io", ["https://b.example", "https://a.example"])[DOCKER].content.decode()
    assert text.index("b.example") < text.index("a.example") < len(text)


def test_the_full_form_says_all_that_hosts_toml_can() -> None:
    mirror = {
        "url": "https://m.example:5000/v2/cache",
        "capabilities": ["pull", "resolve", "push"],
        "ca": ["one.pem", "two.pem"],
        "ca_on_node": "/etc/ssl/site.pem",
        "client": {"cert": "client.pem", "key": "client-key.pem"},
        "skip_verify": True,
        "header": {"x-site": "a", "X-Many": ["b", "c"]},
        "header_files": {"authorization": "auth"},
        "override_path": True,
    }
    local = {"one.pem": CA, "two.pem": CA, "client.pem": CERT, "client-key.pem": pem_of(KEY), "auth": b"Basic eDp5\n"}
    given = {"hosts": [mirror], "server": "https://up.example", "capabilities": ["pull"], "ca": "one.pem"}
    base = f"{CERTS_D}/quay.io/m.example_5000_v2_cache"
    assert hosts("quay.io", given, local=local) == {
        "server": "https://up.example",
        "capabilities": ["pull"],
        "ca": f"{CERTS_D}/quay.io/server-ca-1.pem",
        "host": {
            "https://m.example:5000/v2/cache": {
                "capabilities": ["pull", "resolve", "push"],
                "ca": [f"{base}-ca-1.pem", f"{base}-ca-2.pem", "/etc/ssl/site.pem"],
                "client": [[f"{base}-client-1.pem", f"{base}-client-1-key.pem"]],
                "skip_verify": True,
                "override_path": True,
                "header": {"X-Site": "a", "X-Many": ["b", "c"], "Authorization": "Basic eDp5"},
            }
        },
    }
    found = written("quay.io", given, local=local)
    assert {path.rpartition("/")[2]: (file.mode, file.secret) for path, file in found.items()} == {
        "server-ca-1.pem": (0o644, False),
        "m.example_5000_v2_cache-ca-1.pem": (0o644, False),
        "m.example_5000_v2_cache-ca-2.pem": (0o644, False),
        "m.example_5000_v2_cache-client-1.pem": (0o644, False),
        "m.example_5000_v2_cache-client-1-key.pem": (0o600, True),
        "hosts.toml": (0o600, True),
    }
    # What hosts.toml names is there before it.
    assert list(found)[-1].endswith("hosts.toml")
    assert found[f"{base}-ca-1.pem"].content == f"{MARK}\n".encode() + CA


def test_without_a_header_hosts_toml_is_no_secret() -> None:
    file = written("docker.io", [{"url": "https://m", "client": {"cert": "both.pem"}}])[DOCKER]
    assert (file.mode, file.secret) == (0o644, False)


def test_a_certificate_that_holds_its_key_is_one_secret_file() -> None:
    both = CERT + pem_of(KEY)
    found = written("docker.io", [{"url": "https://m", "client": {"cert": "both.pem"}}], local={"both.pem": both})
    (secret,) = (file for file in found.values() if file.secret)
    assert secret.mode == 0o600
    (entry,) = tomllib.loads(found[DOCKER].content.decode())["host"].values()
    assert entry["client"] == [secret.path]


@pytest.mark.parametrize(
    ("registry", "folder", "server"),
    [
        ("docker.io", "docker.io", "https://registry-1.docker.io"),
        ("registry.k8s.io", "registry.k8s.io", "https://registry.k8s.io"),
        ("10.0.0.1:443", "10.0.0.1_443_", "https://10.0.0.1:443"),
        ("localhost:5000", "localhost_5000_", None),
        ("[fd00::1]:5000", "[fd00::1]_5000_", "https://[fd00::1]:5000"),
        ("_default", "_default", None),
    ],
)
def test_a_registrys_folder_is_where_containerd_looks(registry: str, folder: str, server: str | None) -> None:
    assert list(written(registry, "https://m")) == [f"{CERTS_D}/{folder}/hosts.toml"]
    assert hosts(registry, "https://m").get("server") == server
    directories = stage(with_component("containerd", mirrors={registry: "https://m"}), "containerd").directories
    assert Directory(path=f"{CERTS_D}/{folder}") in directories


def test_the_guide_has_a_mirror_for_docker_and_the_default_has_none() -> None:
    guide = files(state(cluster(profile="guide")))[DOCKER].content.decode()
    assert tomllib.loads(guide) == {
        # The guide's https://docker.io sends to a web site.
        "server": "https://registry-1.docker.io",
        "host": {"https://mirror.gcr.io": {"capabilities": ["pull", "resolve"]}},
    }
    assert DOCKER not in files(state(cluster()))
    assert DOCKER not in files(state(with_component("containerd", profile="guide", mirrors={})))


def test_an_empty_list_removes_the_registrys_file() -> None:
    containerd = stage(with_component("containerd", mirrors={"docker.io": []}), "containerd")
    assert containerd.absent == (Absent(path=DOCKER, reason="docker.io has no mirrors in cluster.yaml"),)


def test_an_empty_list_keeps_a_registry_out_of_the_default() -> None:
    spec = with_component("containerd", mirrors={"_default": "https://m", "docker.io": []})
    assert tomllib.loads(files(state(spec))[DOCKER].content.decode()) == {"server": "https://registry-1.docker.io"}


def test_nerdctl_finds_a_registry_beside_the_default() -> None:
    """It asks for HOST:443 first, and would be given `_default`."""
    mirrors = {"_default": "https://m", "quay.io": "https://q", "docker.io": "https://d", "x.example:5000": "https://x"}
    containerd = stage(with_component("containerd", mirrors=mirrors), "containerd")
    found = {file.path: file.content for file in containerd.files}
    assert found[f"{CERTS_D}/quay.io_443_/hosts.toml"] == found[f"{CERTS_D}/quay.io/hosts.toml"]
    assert Directory(path=f"{CERTS_D}/quay.io_443_") in containerd.directories
    assert [path for path in found if "_443_" in path] == [f"{CERTS_D}/quay.io_443_/hosts.toml"]
    assert not [path for path in written("quay.io", "https://q") if "_443_" in path]


def test_a_registry_that_is_taken_out_loses_its_files_and_what_others_wrote_stays() -> None:
    before = state(with_component("containerd", mirrors={"docker.io": {"ca": "a.pem"}, "quay.io": "https://m"}))
    now = state(with_component("containerd", mirrors={"quay.io": "https://m"}))
    marked = frozenset(path for path, file in files(before).items() if file.content.startswith(MARK.encode()))
    observed = dataclasses.replace(after(now), marked=marked)
    (plan,) = diff(now, observed)
    gone = (DOCKER, f"{CERTS_D}/docker.io/server-ca-1.pem")
    why = "cluster.yaml does not name it any more"
    assert plan.actions == tuple(RemovePath(path=path, reason=why, folder_too=True) for path in gone)


@pytest.mark.parametrize(
    ("registry", "given", "message"),
    [
        ("../x", "https://m", "is not a registry"),
        ("a/b", "https://m", "is not a registry"),
        ("-a", "https://m", "is not a registry"),
        ("a:b", "https://m", "is not a registry"),
        ("quay.io", "m.example", "must be a URL"),
        ("quay.io", "ftp://m.example", "must be a URL"),
        ("quay.io", "https://m.example:99999", "must be a URL"),
        ("quay.io", "https://m.example?x", "must be a URL"),
        ("quay.io", 'https://m.example/"', "must be a URL"),
        ("quay.io", ["https://m", "https://m/"], "twice"),
        ("quay.io", [{"url": "https://m", "capabilities": ["pul"]}], "pull"),
        ("quay.io", [{"url": "https://m", "capabilities": []}], "at least 1"),
        ("quay.io", [{"url": "https://m", "header": {"a b": "c"}}], "match"),
        ("quay.io", [{"url": "https://m", "header": {"a": "b\nc"}}], "one line"),
        ("quay.io", [{"url": "https://m", "header": {"a": "b"}, "header_files": {"A": "c"}}], "named twice"),
        ("quay.io", [{"url": "https://m", "tls": True}], "no such field"),
        ("quay.io", {"server": "up.example"}, "must be a URL"),
    ],
)
def test_what_containerd_would_ignore_or_misread_is_refused(registry: str, given: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        state(with_component("containerd", mirrors={registry: given}))


def test_a_password_in_a_url_is_refused_and_not_shown() -> None:
    with pytest.raises(SpecError, match="must not hold a user") as caught:
        state(with_component("containerd", mirrors={"quay.io": "https://me:sesame@m.example"}))
    assert "sesame" not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize(
    ("local", "subject", "message"),
    [
        ({"ca.pem": b"no certificate"}, "ca.pem", "no PEM certificate"),
        ({"client.pem": b"x", "key.pem": pem_of(KEY)}, "client.pem", "no PEM certificate"),
        ({"client.pem": CERT, "key.pem": encrypted(KEY)}, "key.pem", "without a passphrase"),
        ({"client.pem": CERT, "key.pem": b"x"}, "key.pem", "without a passphrase"),
        ({"client.pem": CA, "key.pem": pem_of(KEY)}, "key.pem", "is not the key of client.pem"),
        ({"auth": b"two\nlines"}, "auth", "one line"),
    ],
)
def test_a_file_that_containerd_could_not_use_is_named(local: dict[str, bytes], subject: str, message: str) -> None:
    mirror = {
        "url": "https://m",
        "ca": "ca.pem",
        "client": [{"cert": "client.pem", "key": "key.pem"}],
        "header_files": {"Authorization": "auth"},
    }
    with pytest.raises(SpecError, match=message) as caught:
        written("quay.io", [mirror], local=local)
    assert caught.value.subject == subject


def test_files_of_the_control_host_are_found_beside_cluster_yaml(tmp_path: Path) -> None:
    mirror = "{url: https://m, ca: ca.pem, client: {cert: /x/c.pem, key: k.pem}, header_files: {Authorization: a}}"
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "cluster: {apiservers: ['10.0.0.1:6443'], cluster_cidr: 172.30.0.0/16, service_cidr: 10.254.0.0/16,"
        " dns_service_ip: 10.254.0.2}\n"
        f"components: {{containerd: {{mirrors: {{docker.io: [{mirror}], quay.io: {{ca: [q.pem]}}}}}}}}\n"
        "nodes: [{name: a, address: 10.0.0.2}]\n"
    )
    names = ("ca.pem", "/x/c.pem", "k.pem", "a", "q.pem")
    assert desired.local_files(load(path, REGISTRY), REGISTRY) == tuple(str(tmp_path / name) for name in names)


def test_a_plan_warns_of_hosts_that_are_not_verified() -> None:
    mirrors = {
        "docker.io": [{"url": "https://a", "skip_verify": True}, "https://b", "http://c", "http://127.0.0.1:5000"],
        "quay.io": {"skip_verify": True},
    }
    said = desired.warnings(with_component("containerd", mirrors=mirrors), REGISTRY)
    assert [text.partition(": ")[2].partition(":")[0] for text in said if "mirrors" in text] == [
        "https",
        "http",
        "https",
    ]
    assert [text for text in said if "https://a is not verified (skip_verify)" in text]
    assert [text for text in said if "http://c is plain http" in text]
    assert [text for text in said if "mirrors.quay.io: https://quay.io is not verified" in text]


def test_headers_stay_out_of_what_is_printed() -> None:
    spec = with_component("containerd", mirrors={"quay.io": [{"url": "https://m", "header": {"X-Token": "sesame"}}]})
    component = next(each for each in REGISTRY if each.name == "containerd")
    assert "sesame" not in repr(desired.config(component, spec))
    assert "sesame" not in repr(state(spec))
