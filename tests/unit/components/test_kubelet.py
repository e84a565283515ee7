"""The node agent: its file, its unit, its bootstrap kubeconfig."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import yaml
from tests.unit.samples import (
    CREDENTIALS,
    REGISTRY,
    changed,
    checks,
    cluster,
    reloaded,
    restarted,
    stage,
    state,
    text,
    units,
    with_component,
)

from kubeworker.components import kubelet
from kubeworker.core import desired
from kubeworker.core.component import Facts
from kubeworker.core.model import (
    Absent,
    Certificate,
    Deferred,
    FileMode,
    Http,
    Listening,
    RequireReserved,
    RequireSysctl,
)
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import SpecError

CONFIG = "/etc/kubernetes/kubelet-config.yaml"
BOOTSTRAP = "/etc/kubernetes/kubelet-bootstrap.kubeconfig"


def config(*, facts: Facts | None = None, **how: Any) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(text(state(with_component("kubelet", **how), facts=facts), CONFIG))
    return document


def unit(spec: ClusterFile) -> str:
    return units(state(spec))["kubelet.service"].content


def one_node(**node: Any) -> ClusterFile:
    return cluster(nodes=[{"name": "k8s-01", "address": "172.31.39.151"} | node])


GUIDES = {
    "kind": "KubeletConfiguration",
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "address": "172.31.39.151",
    "staticPodPath": "",
    "syncFrequency": "1m",
    "fileCheckFrequency": "20s",
    "httpCheckFrequency": "20s",
    "staticPodURL": "",
    "port": 10250,
    "readOnlyPort": 0,
    "rotateCertificates": True,
    "serverTLSBootstrap": True,
    "authentication": {
        "anonymous": {"enabled": False},
        "webhook": {"enabled": True},
        "x509": {"clientCAFile": "/etc/kubernetes/cert/ca.pem"},
    },
    "authorization": {"mode": "Webhook"},
    "registryPullQPS": 0,
    "registryBurst": 20,
    "eventRecordQPS": 0,
    "eventBurst": 20,
    "enableDebuggingHandlers": True,
    "enableContentionProfiling": True,
    "healthzPort": 10248,
    "healthzBindAddress": "172.31.39.151",
    "clusterDomain": "cluster.local",
    "clusterDNS": ["10.254.0.2"],
    "nodeStatusUpdateFrequency": "10s",
    "nodeStatusReportFrequency": "1m",
    "imageMinimumGCAge": "2m",
    "imageGCHighThresholdPercent": 85,
    "imageGCLowThresholdPercent": 80,
    "volumeStatsAggPeriod": "1m",
    "kubeletCgroups": "",
    "systemCgroups": "",
    "cgroupRoot": "",
    "cgroupsPerQOS": True,
    "cgroupDriver": "systemd",
    "runtimeRequestTimeout": "10m",
    "hairpinMode": "promiscuous-bridge",
    "maxPods": 220,
    "podCIDR": "172.30.0.0/16",
    "podPidsLimit": -1,
    "resolvConf": "/etc/resolv.conf",
    "maxOpenFiles": 1000000,
    "kubeAPIQPS": 1000,
    "kubeAPIBurst": 2000,
    "serializeImagePulls": False,
    "evictionHard": {
        "memory.available": "100Mi",
        "nodefs.available": "10%",
        "nodefs.inodesFree": "5%",
        "imagefs.available": "15%",
    },
    "evictionSoft": {},
    "enableControllerAttachDetach": True,
    "failSwapOn": True,
    "containerLogMaxSize": "20Mi",
    "containerLogMaxFiles": 10,
    "systemReserved": {},
    "kubeReserved": {},
    "systemReservedCgroup": "",
    "kubeReservedCgroup": "",
    "enforceNodeAllocatable": ["pods"],
}
"""The guide's kubelet-config.yaml, copied value by value."""


def test_the_guides_file_is_the_guides_in_its_order() -> None:
    assert config(profile="guide") == GUIDES
    assert list(config(profile="guide")) == list(GUIDES)


def test_the_default_differs_where_the_page_of_differences_says() -> None:
    default = config()
    assert {key: value for key, value in default.items() if GUIDES.get(key) != value} == {
        "healthzBindAddress": "127.0.0.1",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "podPidsLimit": 4096,
        "maxParallelImagePulls": 5,
        "systemReserved": {"cpu": "100m", "memory": "256Mi"},
        "kubeReserved": {"cpu": "100m", "memory": "256Mi"},
    }


def test_every_default_is_kept_small() -> None:
    assert not {key for key, value in config().items() if value in ("", {}, [])}


def test_config_is_merged_over_the_file_and_null_removes() -> None:
    document = config(config={"evictionHard": {"memory.available": "1Gi"}, "maxOpenFiles": None, "port": 10350})
    assert document["evictionHard"]["memory.available"] == "1Gi"
    assert document["evictionHard"]["nodefs.available"] == "10%"
    assert "maxOpenFiles" not in document
    found = checks(with_component("kubelet", config={"port": 10350}))
    assert found["kubelet.listen"] == Listening(id="kubelet.listen", port=10350, addresses=("172.31.39.151",))
    anonymous = found["kubelet.anonymous"]
    assert isinstance(anonymous, Http)
    assert anonymous.url == "https://172.31.39.151:10350/metrics"


@pytest.mark.parametrize("key", ["port", "healthzPort"])
@pytest.mark.parametrize("value", ["many", 0, 65536, True, [1]])
def test_a_port_that_is_none_is_refused(key: str, value: object) -> None:
    with pytest.raises(SpecError, match="is not a port number") as caught:
        desired.validate_components(with_component("kubelet", config={key: value}), REGISTRY)
    assert caught.value.subject == f"components.kubelet.config.{key}"


@pytest.mark.parametrize(("address", "listens"), [("0.0.0.0", "*"), (None, "*"), ("127.0.0.9", "127.0.0.9")])
def test_where_it_listens_follows_what_was_merged_in(address: str | None, listens: str) -> None:
    listening = checks(with_component("kubelet", config={"address": address}))["kubelet.listen"]
    assert listening == Listening(id="kubelet.listen", port=10250, addresses=(listens,))


def test_one_changed_setting_restarts_kubelet_alone() -> None:
    before, after = state(cluster()), state(with_component("kubelet", config={"maxPods": 100}))
    assert changed(before, after) == {CONFIG}
    assert restarted(before, after) == {"kubelet.service"}
    assert reloaded(before, after) == set()


def test_the_token_is_no_input_of_a_running_kubelet() -> None:
    """It is read at the start alone: a kubelet that has joined is not restarted when its token changes or goes."""
    assert BOOTSTRAP in units(state(cluster()))["kubelet.service"].read_at_start
    with_token = state(cluster())
    other = state(cluster(), credentials=replace(CREDENTIALS, bootstrap_token="ghijkl.0123456789abcdef"))
    joined = state(cluster(), facts=Facts(joined=True))
    assert changed(with_token, other) == changed(with_token, joined) == {BOOTSTRAP}
    assert restarted(with_token, other) == restarted(with_token, joined) == set()


def test_a_new_ca_restarts_who_reads_it() -> None:
    after = state(cluster(), credentials=replace(CREDENTIALS, ca_cert=b"another\n"))
    who = {"kubelet.service", "kube-proxy.service", "kube-nginx-probe.service"}
    assert restarted(state(cluster()), after) == who


def test_a_resolver_seen_on_the_node_is_used_but_by_the_guide() -> None:
    facts = Facts(resolv_conf="/run/systemd/resolve/resolv.conf")
    assert config(facts=facts)["resolvConf"] == "/run/systemd/resolve/resolv.conf"
    assert config(facts=facts, profile="guide")["resolvConf"] == "/etc/resolv.conf"


# ---------------------------------------------------------------------------------------------------------------


def test_the_bootstrap_kubeconfig_is_the_guides() -> None:
    (file,) = (each for each in stage(cluster(), "kubelet").files if each.path == BOOTSTRAP)
    assert (file.mode, file.secret) == (0o600, True)
    document = yaml.safe_load(file.content)
    assert document["users"] == [{"name": "kubelet-bootstrap", "user": {"token": CREDENTIALS.bootstrap_token}}]
    assert document["contexts"] == [
        {"name": "default", "context": {"cluster": "kubernetes", "user": "kubelet-bootstrap"}}
    ]
    assert document["current-context"] == "default"
    assert document["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:8443"


def test_it_is_deferred_until_there_is_a_token_and_gone_once_the_node_has_joined() -> None:
    tokenless = replace(CREDENTIALS, bootstrap_token="")
    (deferred,) = stage(cluster(), "kubelet", credentials=tokenless).deferred
    assert isinstance(deferred, Deferred)
    assert deferred.path == BOOTSTRAP
    (absent,) = stage(cluster(), "kubelet", facts=Facts(joined=True)).absent
    assert isinstance(absent, Absent)
    assert absent.path == BOOTSTRAP


@pytest.mark.parametrize("profile", ["default", "guide"])
def test_the_unit_has_the_guides_flags(profile: str) -> None:
    content = unit(cluster(profile=profile)).replace(" \\\n ", "")
    for flag in (
        "--bootstrap-kubeconfig=/etc/kubernetes/kubelet-bootstrap.kubeconfig",
        "--cert-dir=/etc/kubernetes/cert",
        "--kubeconfig=/etc/kubernetes/kubelet.kubeconfig",
        "--config=/etc/kubernetes/kubelet-config.yaml",
        "--hostname-override=k8s-01",
        "--node-ip=172.31.39.151",
        "--root-dir=/data/k8s/k8s/kubelet",
        "--v=2",
    ):
        assert f" {flag}" in content
    guides = " --container-runtime-endpoint=unix:///var/run/containerd/containerd.sock"
    assert (guides in content) is (profile == "guide")
    assert ("HTTP2_PING_TIMEOUT_SECONDS" in content) is (profile == "default")
    assert "Requires=containerd.service\n" in content
    assert "WorkingDirectory=/data/k8s/k8s/kubelet\n" in content


def test_what_systemd_starts_anew_with_containerd_is_known_to_the_plan() -> None:
    assert units(state(cluster()))["kubelet.service"].requires == ("containerd.service",)


def test_labels_and_taints_are_registered_with_the_node() -> None:
    spec = one_node(
        labels={"b": "2", "a.example/x": ""}, taints=["k=y:NoSchedule", "bare:NoExecute", "empty=:NoSchedule"]
    )
    assert "--node-labels=a.example/x=,b=2" in unit(spec)
    document = text(state(spec), CONFIG)
    assert yaml.safe_load(document)["registerWithTaints"] == [
        {"key": "k", "value": "y", "effect": "NoSchedule"},
        {"key": "bare", "effect": "NoExecute"},
        {"key": "empty", "value": "", "effect": "NoSchedule"},
    ]
    # go-yaml would read a bare y as true.
    assert 'value: "y"' in document


@pytest.mark.parametrize(
    "label",
    [
        {"role": "db"},
        {"example.com/role": "db"},
        {"topology.kubernetes.io/zone": "a"},
        {"node.kubernetes.io/pool": "a"},
        {"x.kubelet.kubernetes.io/pool": "a"},
        {"empty": ""},
    ],
)
def test_labels_that_a_kubelet_may_set_are_taken(label: dict[str, str]) -> None:
    desired.validate_components(one_node(labels=label), REGISTRY)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"node-role.kubernetes.io/worker": ""}, "a kubelet may not set"),
        ({"kubernetes.io/role": "x"}, "a kubelet may not set"),
        ({"x.k8s.io/role": "x"}, "a kubelet may not set"),
        ({"-bad": "x"}, "is not a label key"),
        ({"a/b/c": "x"}, "is not a label key"),
        ({"/a": "x"}, "is not a label key"),
        ({"a": "with space"}, "is not a label value"),
        ({"a": "x" * 64}, "is not a label value"),
    ],
)
def test_labels_that_would_keep_kubelet_from_starting_are_refused(label: dict[str, str], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        desired.validate_components(one_node(labels=label), REGISTRY)
    assert caught.value.subject.startswith("nodes.0.labels.")


def test_an_ipv6_node_is_written_as_urls_have_it() -> None:
    spec = cluster(
        cluster={
            "apiservers": ["[fd00::1]:6443"],
            "cluster_cidr": "fd01::/48",
            "service_cidr": "fd02::/112",
            "dns_service_ip": "fd02::a",
        },
        nodes=[{"name": "k8s-01", "address": "fd00::5"}],
        profile="guide",
    )
    found = checks(spec)
    assert isinstance(found["kubelet.healthz"], Http)
    assert found["kubelet.healthz"].url == "http://[fd00::5]:10248/healthz"
    assert yaml.safe_load(text(state(spec), CONFIG))["address"] == "fd00::5"


def test_certificates_and_their_modes_are_checked() -> None:
    found = checks(cluster())
    assert found["kubelet.kubeconfig_mode"] == FileMode(
        id="kubelet.kubeconfig_mode", path="/etc/kubernetes/kubelet.kubeconfig", mode=0o600
    )
    client = found["kubelet.client_cert"]
    assert isinstance(client, Certificate)
    assert client.common_name == "system:node:k8s-01"


def test_settings_follow_the_profile_unless_they_are_set() -> None:
    def of(spec: ClusterFile) -> tuple[str, int]:
        settings = desired.config(kubelet.COMPONENT, spec)
        return settings.client_csr_for(spec), settings.token_minutes_for(spec)

    assert of(cluster()) == ("guarded", 20)
    assert of(cluster(profile="guide")) == ("auto", 1440)
    assert of(with_component("kubelet", profile="guide", client_csr="guarded", token_minutes=15)) == ("guarded", 15)


def test_a_port_that_config_removes_is_kubelets_own() -> None:
    assert kubelet.port(kubelet.Config(config={"port": None})) == 10250
    assert kubelet.port(kubelet.Config(config={"port": 10350})) == 10350


def kept(**settings: Any) -> tuple[RequireReserved, ...]:
    needs = stage(with_component("kubelet", config=settings), "kubelet").requirements
    return tuple(need for need in needs if isinstance(need, RequireReserved))


def test_what_is_kept_from_pods_is_added_up() -> None:
    mib = 1 << 20
    assert kept() == (RequireReserved(memory=Fraction(612 * mib), memory_share=Fraction(0), cpus=Fraction(1, 5)),)
    of = {"kubeReserved": {"cpu": 1, "memory": "1Gi"}, "systemReserved": None, "evictionHard": None}
    assert kept(**of) == (RequireReserved(memory=Fraction(1124 * mib), memory_share=Fraction(0), cpus=Fraction(1)),)
    assert kept(evictionHard={"memory.available": "5%"})[0].memory_share == Fraction(1, 20)


@pytest.mark.parametrize("value", [{"memory": "lots"}, {"cpu": "1 core"}, "all"])
def test_what_is_no_quantity_is_left_to_kubelets_own_checker(value: Any) -> None:
    assert kept(kubeReserved=value) == ()


def test_kernel_settings_are_asked_for_where_kubelet_may_not_set_them() -> None:
    def asked(on: bool) -> set[str]:  # noqa: FBT001 - one case each
        spec = with_component("kubelet", config={"protectKernelDefaults": on})
        return {need.key for need in stage(spec, "kubelet").requirements if isinstance(need, RequireSysctl)}

    assert asked(on=False) == set()
    assert {"vm.overcommit_memory", "kernel.panic", "kernel.keys.root_maxkeys"} <= asked(on=True)
