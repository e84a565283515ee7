"""Mirrors on a real node, with real registries that say who asked them for what."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from tests.lab.operate import Operator, changes, kubectl, restarted, sh, starts
from tests.lab.registries import DOCKER, Site, site

from kubeworker.lab import LabState
from kubeworker.lab.registry import Request

pytestmark = pytest.mark.timeout(240)

REGISTRIES, NODE = "k8s-01", "k8s-02"
BIN = "/opt/k8s/bin"
CERTS_D = "/etc/containerd/certs.d"


def run_pod(lab: LabState, image: str) -> str:
    """Kubelet on the node pulls it and runs it."""
    name = image.rpartition("/")[2].partition(":")[0]
    container = {"name": "main", "image": image, "imagePullPolicy": "Always"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"nodeName": NODE, "containers": [container], "tolerations": [{"operator": "Exists"}]},
    }
    kubectl(lab, "apply", "-f", "-", stdin=json.dumps(pod))
    try:
        kubectl(lab, "wait", f"pod/{name}", "--for=condition=Ready", "--timeout=60s")
        return kubectl(lab, "get", "pod", name, "-o=jsonpath={.status.containerStatuses[0].imageID}")
    finally:
        kubectl(lab, "delete", "pod", name, "--grace-period=0", "--force")


CLIENTS: Mapping[str, Callable[[LabState, str], str]] = {
    "crictl": lambda lab, image: sh(lab, NODE, f"{BIN}/crictl pull {image}"),
    "nerdctl": lambda lab, image: sh(lab, NODE, f"{BIN}/nerdctl pull {image}"),
    "ctr": lambda lab, image: sh(lab, NODE, f"{BIN}/ctr -n k8s.io images pull --hosts-dir={CERTS_D} {image}"),
    "kubelet": run_pod,
}


def mirrors(registries: Site) -> dict[str, Any]:
    """`components.containerd.mirrors` of the whole file; paths are relative to it."""
    ca, trust = "site/ca.pem", {"ca": "site/ca.pem"}
    upstream = {"server": registries.url("upstream"), **trust}
    return {
        "docker.io": {
            "hosts": [{"url": registries.url("first"), **trust}, {"url": registries.url("second"), **trust}],
            "probe": "library/probe:1",
            **trust,
        },
        "mutual.example": {
            "hosts": [
                {
                    "url": registries.url("mutual"),
                    "client": {"cert": "site/client.pem", "key": "site/client-key.pem"},
                    **trust,
                }
            ],
            "probe": "library/probe:1",
        },
        "basic.example": {
            "hosts": [
                {"url": registries.url("basic"), "header_files": {"Authorization": "site/basic"}, "ca": [ca, ca]}
            ],
            "probe": "library/probe:1",
        },
        "digests.example": {
            "hosts": [{"url": registries.url("first"), "capabilities": ["pull"], **trust}],
            "probe": "library/probe:1",
            **upstream,
        },
        "stranger.example": {"hosts": [{"url": registries.url("stranger"), **trust}], **upstream},
        "anyone.example": [{"url": registries.url("stranger"), "skip_verify": True}],
        "path.example": [{"url": f"{registries.url('first')}/v2/team", "override_path": True, **trust}],
        f"{REGISTRIES}:5002": [{"url": registries.url("first"), "capabilities": ["pull", "resolve", "push"], **trust}],
        "_default": {"hosts": [{"url": registries.url("cache"), **trust}], "probe": "any.example/library/probe:1"},
    }


@pytest.fixture(scope="module")
def plain(lab: LabState) -> Operator:
    """The node as a worker, without any mirror."""
    operator = Operator(lab=lab, file=lab.cluster_yaml)
    operator.apply("--node", NODE)
    return operator


@pytest.fixture(scope="module")
def registries(plain: Operator) -> Iterator[Site]:
    with site(plain.lab, plain.lab.machine(REGISTRIES), hosts_of=NODE) as running:
        yield running


@pytest.fixture(scope="module")
def operator(plain: Operator, registries: Site) -> Iterator[Operator]:
    """The node with all mirrors; afterwards it is as before."""

    def change(document: dict[str, Any]) -> None:
        document["components"].setdefault("containerd", {})["mirrors"] = mirrors(registries)

    before = starts(plain.lab, NODE)
    with plain.changed(change) as changed:
        document = changed.plan("--node", NODE)
        assert {kind for kind, _ in changes(document, NODE)} == {"directory", "file"}
        assert any("anyone.example" in text and "skip_verify" in text for text in document["warnings"])
        assert "bGFiOnNlc2FtZQ" not in json.dumps(document)
        assert "PRIVATE KEY" not in json.dumps(document)
        said = changed.apply("--node", NODE)
        assert "bGFiOnNlc2FtZQ" not in said
        assert changed.plan("--node", NODE)["changes"] == 0
        # Adding a mirror restarts nothing.
        assert restarted(before, starts(plain.lab, NODE)) == set()
        yield changed
    plain.apply("--node", NODE)
    sh(
        plain.lab,
        NODE,
        f"{BIN}/ctr -n k8s.io images ls -q | grep -E '/(pull-|probe:)' | xargs -r {BIN}/ctr -n k8s.io images rm",
    )


def pull(operator: Operator, image: str, client: str = "crictl") -> None:
    CLIENTS[client](operator.lab, image)


def whole(requests: list[Request], repository: str) -> None:
    """A tag was resolved, and manifest, config and layer were fetched."""
    ends = [
        (each.method, each.path.partition("?")[0].removeprefix(f"/v2/{repository}/").partition("/")[0])
        for each in requests
    ]
    assert ("HEAD", "manifests") in ends
    assert ends.count(("GET", "manifests")) == 1
    assert ends.count(("GET", "blobs")) == 2


@pytest.mark.parametrize("client", CLIENTS)
def test_every_client_goes_to_the_first_mirror_and_to_nothing_else(
    operator: Operator, registries: Site, client: str
) -> None:
    image = registries.push(f"pull-{client}")
    with registries.counted() as asked:
        pull(operator, f"docker.io/{image}", client)
    assert set(asked) == {"first"}
    whole(asked["first"], f"library/pull-{client}")
    assert all(each.path.endswith("?ns=docker.io") for each in asked["first"])
    # One namespace for all of them, kubelet's: a plain nerdctl shows and fills it too.
    assert image in sh(operator.lab, NODE, f"{BIN}/nerdctl images --names")
    assert image in sh(operator.lab, NODE, f"{BIN}/ctr -n k8s.io images ls -q")


@pytest.mark.parametrize("client", ["crictl", "nerdctl", "ctr"])
def test_the_second_mirror_serves_while_the_first_is_down_and_docker_ios_own_registry_while_both_are(
    operator: Operator, registries: Site, client: str
) -> None:
    second, upstream = registries.push(f"pull-second-{client}"), registries.push(f"pull-upstream-{client}")
    with registries.down("first"):
        with registries.counted() as asked:
            pull(operator, f"docker.io/{second}", client)
        assert set(asked) == {"second"}
        whole(asked["second"], second.removesuffix(":1"))
        with registries.down("second"), registries.counted() as asked:
            pull(operator, f"docker.io/{upstream}", client)
    assert set(asked) == {"upstream"}
    whole(asked["upstream"], upstream.removesuffix(":1"))
    assert {each.host for each in asked["upstream"]} == {DOCKER}
    # It is no mirror, and is not told the name that the image has.
    assert not any("ns=" in each.path for each in asked["upstream"])


@pytest.mark.parametrize(
    ("registry", "served_by"),
    [
        ("mutual.example", "mutual"),
        ("basic.example", "basic"),
        ("anyone.example", "stranger"),
        (f"{REGISTRIES}:5002", "first"),
    ],
)
@pytest.mark.parametrize("client", ["crictl", "nerdctl"])
def test_certificates_headers_and_ports_are_taken_from_the_registrys_own_folder(
    operator: Operator, registries: Site, registry: str, served_by: str, client: str
) -> None:
    image = registries.push(f"pull-{registry.replace(':', '-')}-{client}")
    with registries.counted() as asked:
        pull(operator, f"{registry}/{image}", client)
    assert set(asked) == {served_by}
    whole(asked[served_by], image.removesuffix(":1"))


def test_a_mirror_of_an_unknown_authority_is_not_used(operator: Operator, registries: Site) -> None:
    image = registries.push("pull-stranger")
    with registries.counted() as asked:
        pull(operator, f"stranger.example/{image}")
    assert set(asked) == {"upstream"}
    log = sh(operator.lab, NODE, "journalctl -u containerd -n 50 -o cat --no-pager")
    assert "certificate signed by unknown authority" in log


def test_credentials_are_needed_where_a_mirror_asks_for_them(operator: Operator, registries: Site) -> None:
    """That the tests before could not pass without: these mirrors refuse who comes with nothing."""
    curl = f"curl -s -o /dev/null -w '%{{http_code}}' --cacert {CERTS_D}/docker.io/server-ca-1.pem"
    answers = {name: sh(operator.lab, NODE, f"{curl} {registries.url(name)}/v2/ || :") for name in registries.servers}
    assert answers == {
        "upstream": "200",
        "first": "200",
        "second": "200",
        "cache": "200",
        "basic": "401",
        # No answer at all: without a certificate, and from somebody else than the site's authority vouches for.
        "mutual": "000",
        "stranger": "000",
    }


def test_override_path_takes_the_url_as_it_stands(operator: Operator, registries: Site) -> None:
    registries.push("pull-path", repository="team/pull-path")
    with registries.counted() as asked:
        pull(operator, "path.example/pull-path:1")
    assert set(asked) == {"first"}
    whole(asked["first"], "team/pull-path")


def test_the_default_directory_is_for_every_other_registry_and_a_cache_fetches_once(
    operator: Operator, registries: Site
) -> None:
    image = registries.push("pull-any")
    with registries.counted() as asked:
        pull(operator, f"any.example/{image}")
    assert set(asked) == {"cache", "upstream"}
    assert all(each.path.endswith("?ns=any.example") for each in asked["cache"])
    sh(operator.lab, NODE, f"{BIN}/crictl rmi any.example/{image}")
    with registries.down("upstream"), registries.counted() as asked:
        pull(operator, f"any.example/{image}")
    assert set(asked) == {"cache"}


def test_credentials_are_roots_alone_and_a_wider_mode_is_mended(operator: Operator) -> None:
    lab = operator.lab
    listed = sh(lab, NODE, f"grep -rlE 'PRIVATE KEY|Basic ' {CERTS_D} | xargs stat -c '%n %a %U:%G'").splitlines()
    secret = [
        f"{CERTS_D}/basic.example/hosts.toml",
        f"{CERTS_D}/basic.example_443_/hosts.toml",
        f"{CERTS_D}/mutual.example/{REGISTRIES}_5003-client-1-key.pem",
    ]
    assert sorted(listed) == [f"{path} 600 root:root" for path in secret]
    sh(lab, NODE, f"chmod 644 {' '.join(secret)}")
    assert sorted(changes(operator.plan("--node", NODE), NODE)) == [("mode", path) for path in secret]
    failures = verify(operator, "--check", "containerd.mirrors")[0]
    assert set(failures) == {f"containerd.mirrors.mode.{path}" for path in secret}
    operator.apply("--node", NODE)
    assert verify(operator, "--check", "containerd.mirrors")[0] == {}


def verify(operator: Operator, *arguments: str) -> tuple[dict[str, str], dict[str, str]]:
    """Details of the checks that failed and of those that passed."""
    document = json.loads(operator.run("verify", "--json", "--node", NODE, *arguments).stdout)
    (node,) = document["nodes"]
    found: dict[str, dict[str, str]] = {"failed": {}, "passed": {}}
    for check in node["checks"]:
        found[check["status"]][check["id"]] = check["detail"]
    return found["failed"], found["passed"]


DEEP = ("--deep", "--check", "containerd.registry", "--check", "containerd.mirror.")


def test_verify_deep_says_which_host_served(operator: Operator, registries: Site) -> None:
    lab = operator.lab
    registries.push("probe")
    kept = sh(lab, NODE, f"{BIN}/ctr -n k8s.io images ls -q; {BIN}/ctr -n k8s.io content ls -q")
    with registries.counted() as asked:
        failures, passed = verify(operator, *DEEP)
    first, second = registries.url("first"), registries.url("second")
    served = {name.removeprefix("containerd."): detail.rpartition("served by ")[2] for name, detail in passed.items()}
    assert all("name one in components.containerd.mirrors." in detail for detail in failures.values()), failures
    assert served == {
        "registry.docker.io": f"{REGISTRIES}:5001",
        f"mirror.docker.io.{first}": f"{REGISTRIES}:5001",
        f"mirror.docker.io.{second}": f"{REGISTRIES}:5002",
        "registry.mutual.example": f"{REGISTRIES}:5003",
        f"mirror.mutual.example.{registries.url('mutual')}": f"{REGISTRIES}:5003",
        "registry.basic.example": f"{REGISTRIES}:5004",
        f"mirror.basic.example.{registries.url('basic')}": f"{REGISTRIES}:5004",
        "registry.digests.example": f"{REGISTRIES}:5001",
        f"mirror.digests.example.{first}": f"{REGISTRIES}:5001",
        "registry._default": f"{REGISTRIES}:5006",
        f"mirror._default.{registries.url('cache')}": f"{REGISTRIES}:5006",
    }
    # It does ask them: a tag, a manifest, a config and a layer each time, whatever containerd has already.
    assert len([each for each in asked["second"] if each.method == "GET"]) == 3
    # For the others no image is named.
    assert "containerd.registry.anyone.example" in failures
    # Nothing is kept.
    assert sh(lab, NODE, f"{BIN}/ctr -n k8s.io images ls -q; {BIN}/ctr -n k8s.io content ls -q") == kept
    assert sh(lab, NODE, "ls -d /run/kubeworker-verify.* 2> /dev/null || :") == ""


def test_verify_deep_names_the_mirror_that_is_down_and_who_served_instead(operator: Operator, registries: Site) -> None:
    registries.push("probe")
    first, second = registries.url("first"), registries.url("second")
    checks = ("--deep", "--check", "containerd.registry.docker.io", "--check", "containerd.mirror.docker.io")
    with registries.down("first"):
        failures, passed = verify(operator, *checks)
        assert set(failures) == {f"containerd.mirror.docker.io.{first}"}
        assert "connection refused" in failures[f"containerd.mirror.docker.io.{first}"]
        assert f"served by {REGISTRIES}:5002 ({REGISTRIES}:5001: dial" in passed["containerd.registry.docker.io"]
        with registries.down("second"):
            done = operator.run("verify", "--node", NODE, *checks)
    assert done.returncode == 1
    (line,) = (line for line in done.stdout.splitlines() if "containerd.registry.docker.io" in line)
    assert f"served by {DOCKER}, not by a mirror: {REGISTRIES}:5001: dial" in line
    assert f"{REGISTRIES}:5002: dial" in line
    assert f"containerd.mirror.docker.io.{second}: docker.io/library/probe:1: {REGISTRIES}:5002: dial" in done.stdout


def test_what_cluster_yaml_names_no_more_goes_and_nothing_is_restarted(operator: Operator, plain: Operator) -> None:
    lab = plain.lab
    sh(lab, NODE, f"mkdir -p {CERTS_D}/mine.example && echo '# by hand' > {CERTS_D}/mine.example/hosts.toml")
    before = starts(lab, NODE)

    def fewer(document: dict[str, Any]) -> None:
        given = document["components"]["containerd"]["mirrors"]
        document["components"]["containerd"]["mirrors"] = {
            "docker.io": given["docker.io"]["hosts"][1:],
            "basic.example": given["basic.example"]["hosts"][0]["url"],
        }

    with operator.changed(fewer) as changed:
        document = changed.plan("--node", NODE)
        assert {kind for kind, _ in changes(document, NODE)} == {"file", "remove"}
        # A file that held a credential until now, and will not, is shown no more than before.
        assert "bGFiOnNlc2FtZQ" not in json.dumps(document)
        changed.apply("--node", NODE)
        assert changed.plan("--node", NODE)["changes"] == 0
    names = sh(lab, NODE, f"cd {CERTS_D} && find . -type f | sort").splitlines()
    assert names == [
        "./basic.example/hosts.toml",
        "./docker.io/hosts.toml",
        f"./docker.io/{REGISTRIES}_5002-ca-1.pem",
        "./mine.example/hosts.toml",
    ]
    assert sh(lab, NODE, f"ls {CERTS_D}").split() == ["basic.example", "docker.io", "mine.example"]
    sh(lab, NODE, f"rm -r {CERTS_D}/mine.example")
    assert restarted(before, starts(lab, NODE)) == set()
