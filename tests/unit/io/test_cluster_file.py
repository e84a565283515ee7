from collections.abc import Callable
from pathlib import Path

import pytest

from kubeworker.components import discover
from kubeworker.errors import SpecError
from kubeworker.io.cluster_file import load

GOOD = """\
cluster:
  apiservers: [172.31.39.151:6443, 172.31.32.72:6443]
  cluster_cidr: 172.30.0.0/16
  service_cidr: 10.254.0.0/16
  dns_service_ip: 10.254.0.2
nodes:
  - {name: k8s-01, address: 172.31.39.151}
  - {name: k8s-02, address: 172.31.32.72}
"""

Refusal = Callable[[str], SpecError]


@pytest.fixture
def refused(tmp_path: Path) -> Refusal:
    """The error that a text gives, without the folder in its subject."""

    def error_of(text: str) -> SpecError:
        path = tmp_path / "cluster.yaml"
        path.write_text(text)
        with pytest.raises(SpecError) as caught:
            load(path, discover())
        caught.value.subject = caught.value.subject.removeprefix(f"{tmp_path}/")
        return caught.value

    return error_of


@pytest.mark.parametrize(
    ("before", "after", "subject", "message", "hint"),
    [
        ("  dns_service_ip: 10.254.0.2\n", "", "cluster.yaml:1: cluster.dns_service_ip", "required and missing", "add"),
        (
            "  dns_service_ip",
            "  dns_servce_ip",
            "cluster.yaml:5: cluster.dns_servce_ip",
            "no such field",
            "did you mean dns_service_ip?",
        ),
        ("nodes:", "node: 1\nnodes:", "cluster.yaml:6: node", "no such field", "did you mean nodes?"),
        ("nodes:", "cni: brigde\nnodes:", "cluster.yaml:6: cni", "is not one of", "did you mean bridge?"),
        ("nodes:", "versions: {kubernetes: 1.33}\nnodes:", "cluster.yaml:6: versions.kubernetes", "number", '"1.33"'),
        (
            "nodes:",
            "components: {containerd: {mirrors: {quay.io: [{url: https://m, capabilites: [pull]}]}}}\nnodes:",
            "cluster.yaml:6: components.containerd.mirrors.quay.io.hosts.0.capabilites",
            "no such field",
            "did you mean capabilities?",
        ),
        ("nodes:", "versions:\nnodes:", "cluster.yaml:6: versions", "must be a map of fields, not nothing", ""),
        ("172.30.0.0/16", "10.254.0.0/16", "cluster.yaml:4: cluster.service_cidr", "overlaps", "share no address"),
        ("10.254.0.2\n", "10.2.0.2\n", "cluster.yaml:5: cluster.dns_service_ip", "not inside", "service network"),
        ("name: k8s-02", "name: k8s-01", "cluster.yaml:8: nodes.1.name", "also the name of nodes.0", "its own name"),
        ("172.31.32.72}", "172.31.39.151}", "cluster.yaml:8: nodes.1.address", "also the address", "its own address"),
        ("172.31.32.72}", "10.254.0.9}", "cluster.yaml:8: nodes.1.address", "lies inside cluster.service_cidr", ""),
        ("172.31.32.72:6443", "172.31.32.72", "cluster.yaml:2: cluster.apiservers.1", "is not HOST:PORT", ""),
        ("[172.31.39.151:6443, 172.31.32.72:6443]", "1.2.3.4:1", "cluster.yaml:2: cluster.apiservers", "list", "[a"),
        ("nodes:", "nodes: []\nx:", "cluster.yaml:6: nodes", "at least one", ""),
        ("nodes:", "components: {kubelt: {}}\nnodes:", "cluster.yaml:6: components.kubelt", "no such", "kubelet?"),
        (
            "nodes:",
            "components:\n  kubelet:\n    max_pod: 3\nnodes:",
            "cluster.yaml:8: components.kubelet.max_pod",
            "no such field",
            "did you mean max_pods?",
        ),
        (
            "nodes:",
            "components:\n  kubelet:\n    max_pods: many\nnodes:",
            "cluster.yaml:8: components.kubelet.max_pods",
            "must be a whole number, not 'many'",
            "Upper bound",
        ),
        (
            "address: 172.31.32.72}",
            "address: 172.31.32.72, components: {kubelet: {max_pod: 3}}}",
            "cluster.yaml:8: nodes.1.components.kubelet.max_pod",
            "no such field",
            "did you mean max_pods?",
        ),
        (
            "address: 172.31.32.72}",
            "address: 172.31.32.72, components: {kubelt: {}}}",
            "cluster.yaml:8: nodes.1.components.kubelt",
            "no such component",
            "did you mean kubelet?",
        ),
        (
            "address: 172.31.32.72}",
            "address: 172.31.32.72, components: {kubelet: {client_csr: auto}}}",
            "cluster.yaml:8: nodes.1.components.kubelet.client_csr",
            "whole cluster",
            "set it in components.kubelet",
        ),
        (
            "address: 172.31.32.72}",
            "address: 172.31.32.72, components: {kubelet: 3}}",
            "cluster.yaml:8: nodes.1.components.kubelet",
            "must be a map",
            "",
        ),
    ],
)
def test_wrong_values_are_named_with_their_line(
    refused: Refusal, before: str, after: str, subject: str, message: str, hint: str
) -> None:
    assert before in GOOD
    error = refused(GOOD.replace(before, after))
    assert error.subject == subject
    assert message in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    ("text", "subject", "message"),
    [
        ("a: 1\na: 2\n", "cluster.yaml:2: a", "already set on line 1"),
        ("cluster:\n\tx: 1\n", "cluster.yaml:2", "not valid YAML"),
        ("a: b: c\n", "cluster.yaml:1", "mapping values are not allowed"),
        ("a: [1,\n", "cluster.yaml:2", "not valid YAML"),
        ("a: &a [*a]\n", "cluster.yaml:1", "alias inside its own anchor"),
        ("a: *b\n", "cluster.yaml:1", "undefined alias"),
        ("a: !!python/object:os.system {}\n", "cluster.yaml:1", "could not determine a constructor"),
        ("a: 1\n---\nb: 2\n", "cluster.yaml:2", "single document"),
        ("- a\n", "cluster.yaml:1", "must be a map"),
        ("", "cluster.yaml", "is empty"),
        ("# only a comment\n", "cluster.yaml", "is empty"),
        ("a: \x01\n", "cluster.yaml", "not valid YAML"),
    ],
)
def test_what_is_not_a_yaml_map_is_refused_with_its_line(
    refused: Refusal, text: str, subject: str, message: str
) -> None:
    error = refused(text)
    assert (error.subject, message in error.message) == (subject, True), error
    assert error.hint


def test_all_errors_are_told_at_once_in_the_files_order(refused: Refusal) -> None:
    text = GOOD.replace("10.254.0.2\n", "ten\n").replace("name: k8s-02", "name: K8S").replace("cluster_cidr", "cidr")
    error = refused(text)
    assert error.subject == "cluster.yaml:1: cluster.cluster_cidr"
    assert error.message.splitlines()[1] == "and 3 more:"
    lines = [line.split("cluster.yaml:")[1].split(": ")[1] for line in error.message.splitlines()[2:]]
    assert lines == ["cluster.cidr", "cluster.dns_service_ip", "nodes.1.name"]


def test_problems_between_fields_are_told_together(refused: Refusal) -> None:
    text = GOOD.replace("10.254.0.2\n", "10.2.0.2\n").replace("name: k8s-02", "name: k8s-01")
    error = refused(text)
    assert "dns_service_ip" in error.subject
    assert "nodes.1.name" in error.message


def test_a_missing_file_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no such file.*\n.*kubeworker init"):
        load(tmp_path / "cluster.yaml")


def test_a_folder_and_a_binary_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is a directory"):
        load(tmp_path)
    binary = tmp_path / "cluster.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="not a UTF-8"):
        load(binary)


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    text = GOOD + "components: {containerd: {preload_images: [images/pause.tar, /srv/busybox.tar]}}\n"
    text = text.replace("  dns_service_ip", "  kubeconfig: admin.conf\n  dns_service_ip")
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    cluster = load(path, discover())
    assert cluster.cluster.kubeconfig == str(tmp_path / "admin.conf")
    assert cluster.cluster.ca.key == str(tmp_path / "ca-key.pem")
    assert cluster.ssh.known_hosts == "/home/me/.ssh/known_hosts"
    assert cluster.ssh.identity == ""
    images = cluster.components["containerd"]["preload_images"]
    assert tuple(images) == (str(tmp_path / "images/pause.tar"), "/srv/busybox.tar")


def test_merge_keys_and_anchors_work_and_errors_behind_them_have_a_line(refused: Refusal, tmp_path: Path) -> None:
    text = GOOD.replace("  - {name: k8s-02, address: 172.31.32.72}", "  - {<<: *one, name: k8s-02, address: 1.2.3.4}")
    text = text.replace("- {name: k8s-01", "- &one {labels: {a: b}, name: k8s-01")
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    assert load(path).nodes[1].labels == {"a": "b"}
    assert refused(text.replace("1.2.3.4", "1.2.3")).subject == "cluster.yaml:8: nodes.1.address"


def test_what_is_wrong_for_every_node_is_said_once(refused: Refusal) -> None:
    text = GOOD.replace("172.31.32.72}", "172.31.32.72, components: {kubelet: {max_pods: 9}}}")
    error = refused(text + "components:\n  kubelet: {token_minutes: 1}\n")
    assert error.subject == "cluster.yaml:10: components.kubelet.token_minutes"
    assert "more" not in error.message


def test_paths_of_a_nodes_own_settings_are_relative_to_the_file_too(tmp_path: Path) -> None:
    own = "172.31.32.72, components: {containerd: {preload_images: [b.tar]}}}"
    path = tmp_path / "cluster.yaml"
    path.write_text(GOOD.replace("172.31.32.72}", own) + "components: {containerd: {preload_images: [a.tar]}}\n")
    cluster = load(path, discover())
    images = [cluster.as_seen_by(node).components["containerd"]["preload_images"] for node in cluster.nodes]
    assert images == [(str(tmp_path / "a.tar"),), (str(tmp_path / "b.tar"),)]
