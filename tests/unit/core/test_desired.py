"""The desired state of a node, whichever components make it."""

from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.samples import (
    CREDENTIALS,
    REGISTRY,
    checks,
    cluster,
    files,
    state,
    text,
    units,
    with_component,
)

from kubeworker.core import desired
from kubeworker.core.component import Component, ComponentConfig, Context, Facts, Peer
from kubeworker.core.model import (
    Absent,
    Deferred,
    Directory,
    File,
    NodeState,
    RequireCommand,
    RequireModule,
    RequireSwapOff,
    RequireSysctl,
    Stage,
)
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import SpecError


def refused(spec: ClusterFile) -> SpecError:
    with pytest.raises(SpecError) as caught:
        desired.validate_components(spec, REGISTRY)
    return caught.value


def test_an_unknown_component_is_refused_and_the_likeliest_is_named() -> None:
    error = refused(cluster(components={"kubelt": {}}))
    assert error.subject == "components.kubelt"
    assert error.hint == "did you mean kubelet?"


def test_an_unknown_field_is_refused_and_the_known_ones_are_named() -> None:
    error = refused(with_component("kubelet", maxpods=5))
    assert (error.subject, error.message) == ("components.kubelet.maxpods", "there is no such field")
    assert "max_pods" in error.hint


@pytest.mark.parametrize(
    ("component", "given_", "subject", "message"),
    [
        ("kubelet", {"max_pods": "many"}, "components.kubelet.max_pods", "valid integer"),
        ("kubelet", {"max_pods": 0}, "components.kubelet.max_pods", "greater than 0"),
        ("kubelet", {"token_minutes": 5}, "components.kubelet.token_minutes", "greater than or equal to 15"),
        ("kube_proxy", {"mode": "ebpf"}, "components.kube_proxy.mode", "'ipvs', 'nftables' or 'iptables'"),
        ("kube_nginx", {"listen": "0.0.0.0:8443"}, "components.kube_nginx.listen", "not a loopback address"),
        ("kube_nginx", {"listen": "localhost:8443"}, "components.kube_nginx.listen", "listens on an IP address"),
        ("kube_nginx", {"balance": "random"}, "components.kube_nginx.balance", "'least_conn' or 'hash'"),
        ("containerd", {"mirrors": {"a/b": []}}, "components.containerd.mirrors.a/b", "is not a registry"),
        ("bridge_cni", {"mtu": -1}, "components.bridge_cni.mtu", "greater than or equal to 0"),
        ("host", {"max_clock_skew": 0}, "components.host.max_clock_skew", "greater than 0"),
    ],
)
def test_a_wrong_value_is_named_by_its_field(
    component: str, given_: dict[str, Any], subject: str, message: str
) -> None:
    error = refused(with_component(component, **given_))
    assert error.subject.startswith(subject)
    assert message in error.message


@pytest.mark.parametrize(
    ("versions", "settings_", "subject"),
    [
        ({"containerd": "1.7.24"}, {}, "versions.containerd"),
        ({"kubernetes": "1.30.0"}, {"kube_proxy": {"mode": "nftables"}}, "components.kube_proxy.mode"),
    ],
)
def test_what_a_version_cant_do_is_refused(versions: dict[str, str], settings_: dict[str, Any], subject: str) -> None:
    assert refused(cluster(versions=versions, components=settings_)).subject == subject


KEYS = st.sampled_from(
    ["port", "healthzPort", "healthzBindAddress", "metricsBindAddress", "address", "mode", "plugins", "version", "x"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", "x", ":", "a:1", "[::]:80", "0.0.0.0", "10s"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=2),
    max_leaves=4,
)


@given(st.sampled_from(["kubelet", "kube_proxy", "containerd"]), st.dictionaries(KEYS, VALUES, max_size=3))
def test_whatever_is_merged_in_is_taken_or_refused(name: str, config: dict[str, Any]) -> None:
    spec = with_component(name, config=config)
    with suppress(SpecError):
        desired.validate_components(spec, REGISTRY)
        files(state(spec))
        desired.checks(spec, spec.nodes[0], registry=REGISTRY, archives={}, credentials=CREDENTIALS, facts=Facts())


# ---------------------------------------------------------------------------------------------------------------


def component(name: str, *files_: File, **more: Any) -> Component[ComponentConfig]:
    def made(_context: Context[ComponentConfig]) -> Stage:
        return Stage(component=name, files=files_, **more)

    return Component(name=name, config=ComponentConfig, stage=made)


def made_of(*components: Component[ComponentConfig]) -> NodeState:
    spec = cluster()
    return desired.desired(
        spec,
        spec.nodes[0],
        registry=components,
        blobs={},
        archives={},
        local_files={},
        credentials=CREDENTIALS,
        facts=Facts(),
    )


def test_two_owners_of_one_path_are_refused() -> None:
    with pytest.raises(SpecError, match="/etc/x is claimed by a and by b"):
        made_of(component("a", File(path="/etc/x", content=b"1")), component("b", File(path="/etc/x", content=b"1")))


@pytest.mark.parametrize("other", [Absent(path="/etc/x", reason=""), Deferred(path="/etc/x", reason="")])
def test_a_path_cant_be_wanted_by_one_and_unwanted_by_another(other: Absent | Deferred) -> None:
    field = "absent" if isinstance(other, Absent) else "deferred"
    with pytest.raises(SpecError, match="claimed by"):
        made_of(component("a", File(path="/etc/x", content=b"1")), component("b", **{field: (other,)}))


def test_a_directory_may_be_shared_but_not_with_two_modes() -> None:
    shared = Directory(path="/etc/y")
    made_of(component("a", directories=(shared,)), component("b", directories=(shared,)))
    with pytest.raises(SpecError, match="/etc/y is asked for twice, with different modes"):
        made_of(component("a", directories=(shared,)), component("b", directories=(replace(shared, mode=0o700),)))


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ({"bin_dir": "/data/c/root", "containerd_dir": "/data/c"}, "/data/c/root is asked for twice"),
        ({"bin_dir": "/srv/x", "k8s_dir": "/srv/x"}, "/srv/x/kubelet is a file of kubelet and a directory too"),
        ({"bin_dir": "/opt/cni/bin/bridge"}, "/opt/cni/bin/bridge is a file of bridge_cni and a directory too"),
    ],
)
def test_paths_that_collide_are_refused_when_the_file_is_read(paths: dict[str, str], message: str) -> None:
    error = refused(cluster(paths=paths, cni="bridge"))
    assert message in error.message
    assert error.subject == "paths"
    assert error.hint


def test_stages_come_in_the_order_in_which_components_need_each_other() -> None:
    names = [stage.component for stage in state(cluster(cni="bridge")).stages]
    assert names[0] == "host"
    assert set(names) == {"host", "kube_nginx", "containerd", "kubelet", "kube_proxy", "bridge_cni"}
    for earlier, later in pairwise(("host", "kube_nginx", "containerd", "kubelet", "kube_proxy")):
        assert names.index(earlier) < names.index(later)
    assert names.index("kubelet") < names.index("bridge_cni")


def test_a_component_that_the_cluster_does_not_have_asks_for_nothing() -> None:
    assert "bridge" not in {each.name for each in desired.artifacts(cluster(), REGISTRY)}
    assert "bridge" in {each.name for each in desired.artifacts(cluster(cni="bridge"), REGISTRY)}


def test_every_artifact_names_the_version_that_cluster_yaml_asks_for() -> None:
    versions = {each.name: each.version for each in desired.artifacts(cluster(cni="bridge"), REGISTRY)}
    assert versions == {
        "kube-nginx": "1.29.0",
        "containerd": "2.1.3",
        "containerd-shim-runc-v2": "2.1.3",
        "ctr": "2.1.3",
        "runc": "1.3.0",
        "nerdctl": "2.1.3",
        "crictl": "1.33.0",
        "kubelet": "1.33.3",
        "kube-proxy": "1.33.3",
        "bridge": "1.7.1",
        "host-local": "1.7.1",
        "loopback": "1.7.1",
        "portmap": "1.7.1",
    }


# ---------------------------------------------------------------------------------------------------------------

CIDRS = st.sampled_from(["", "172.30.0.0/24", "172.30.1.0/24", "172.30.255.0/24"])
PEERS = st.lists(
    st.builds(Peer, name=st.sampled_from(["k8s-02", "k8s-03"]), address=st.just("172.31.32.72"), pod_cidr=CIDRS),
    max_size=3,
).map(tuple)
FACTS = st.builds(
    Facts,
    joined=st.booleans(),
    pod_cidr=CIDRS,
    peers=PEERS,
    masquerade=st.sampled_from(["nft", "iptables"]),
    resolv_conf=st.sampled_from(["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"]),
)
EVERYTHING = {
    "host": {"disable_swap": True, "load_modules": True, "sysctls": True, "packages": True},
    "containerd": {"mirrors": {"docker.io": ["https://m"], "quay.io": []}, "preload_images": ["pause"]},
}
SPECS = [
    cluster(profile=profile, cni=cni, components=components)
    for profile in ("default", "guide")
    for cni in ("bridge", "none")
    for components in ({}, EVERYTHING)
]


@settings(max_examples=60)
@given(st.sampled_from(SPECS), FACTS, st.booleans())
def test_the_set_of_paths_does_not_depend_on_facts(spec: ClusterFile, facts: Facts, token: bool) -> None:  # noqa: FBT001
    credentials = CREDENTIALS if token else replace(CREDENTIALS, bootstrap_token="")
    unknown, known = state(spec), state(spec, facts=facts, credentials=credentials)
    assert sorted(desired.paths(known)) == sorted(desired.paths(unknown))
    assert [stage.directories for stage in known.stages] == [stage.directories for stage in unknown.stages]
    assert units(known).keys() == units(unknown).keys()


@settings(max_examples=30)
@given(st.sampled_from(SPECS), FACTS)
def test_the_same_input_gives_the_same_state(spec: ClusterFile, facts: Facts) -> None:
    assert state(spec, facts=facts) == state(spec, facts=facts)


@pytest.mark.parametrize("spec", SPECS)
def test_every_input_of_a_unit_is_a_managed_path(spec: ClusterFile) -> None:
    of = state(spec)
    managed = set(desired.paths(of))
    for unit in units(of).values():
        assert {*unit.restart_on, *unit.reload_on} <= managed
        assert not {*unit.restart_on} & {*unit.reload_on}
    for stage in of.stages:
        for check in stage.config_checks:
            assert {*check.inputs} <= managed


@pytest.mark.parametrize("spec", SPECS)
def test_secrets_are_for_root_alone_and_end_with_a_newline(spec: ClusterFile) -> None:
    for path, file in files(state(spec)).items():
        assert (file.mode == 0o600) is file.secret, path
        assert file.content.endswith(b"\n") or not file.content, path


@pytest.mark.parametrize("spec", SPECS)
def test_no_secret_stands_in_a_file_that_is_shown(spec: ClusterFile) -> None:
    token, key = CREDENTIALS.bootstrap_token.encode(), CREDENTIALS.kube_proxy_key
    for path, file in files(state(spec)).items():
        if not file.secret:
            assert token not in file.content, path
            assert key not in file.content, path


def test_what_the_state_brings_about_is_no_requirement_any_more() -> None:
    def needs(spec: ClusterFile) -> set[type]:
        return {type(need) for stage in state(spec).stages for need in stage.requirements}

    kinds = {RequireSwapOff, RequireSysctl}
    assert kinds <= needs(cluster())
    assert not kinds & needs(cluster(components=EVERYTHING))
    assert RequireModule in needs(cluster(components=EVERYTHING))


def test_commands_are_asked_for_by_the_stage_that_installs_them_and_by_no_other() -> None:
    def commands(spec: ClusterFile) -> dict[str, set[str]]:
        return {
            stage.component: {need.name for need in stage.requirements if isinstance(need, RequireCommand)}
            for stage in state(spec).stages
        }

    without = commands(cluster(cni="bridge"))
    installing = commands(cluster(cni="bridge", components={"host": {"packages": True}}))
    assert "nft" in without["bridge_cni"] - without["host"]
    assert installing["host"] == set().union(*without.values())
    assert not any(names for component, names in installing.items() if component != "host")


def test_warnings_are_the_enabled_components() -> None:
    assert any("ipvs" in warning for warning in desired.warnings(cluster(), REGISTRY))
    nftables = with_component("kube_proxy", mode="nftables")
    assert desired.warnings(nftables, REGISTRY) == ()
    many = with_component("kubelet", max_pods=300)
    assert any("max_pods: 300" in warning for warning in desired.warnings(many, REGISTRY))


def test_check_ids_are_unique_and_stable_across_profiles() -> None:
    def ids(spec: ClusterFile) -> list[str]:
        found = desired.checks(
            spec, spec.nodes[0], registry=REGISTRY, archives={}, credentials=CREDENTIALS, facts=Facts()
        )
        return [check.id for check in found]

    assert len(ids(cluster())) == len(set(ids(cluster())))
    # The guide's profile has a mirror of its own accord and no probe, and both bring checks.
    same = {"containerd": {"mirrors": {"docker.io": ["https://mirror.gcr.io"]}}, "kube_nginx": {"probe": False}}
    assert ids(cluster(components=same)) == ids(cluster(components=same, profile="guide"))


# ---------------------------------------------------------------------------------------------------------------
# Nodes with settings of their own


def mixed(own: dict[str, Any], **common: Any) -> ClusterFile:
    """Two nodes, the second with settings of its own."""
    first, second = cluster().nodes
    return cluster(components=common, nodes=[first, second.model_copy(update={"components": own})])


def test_a_node_has_its_own_settings_over_everybodys() -> None:
    spec = mixed({"kube_proxy": {"mode": "nftables"}}, kube_proxy={"config": {"iptables": {"syncPeriod": "9s"}}})
    configs = [text(state(spec, node=node), "/etc/kubernetes/kube-proxy-config.yaml") for node in ("k8s-01", "k8s-02")]
    assert ["mode: ipvs" in each for each in configs] == [True, False]
    assert ["mode: nftables" in each for each in configs] == [False, True]
    assert all("syncPeriod: 9s" in each for each in configs)


def test_a_nodes_null_removes_what_the_tool_renders() -> None:
    spec = mixed({"kubelet": {"config": {"readOnlyPort": None}}}, kubelet={"config": {"readOnlyPort": 10255}})
    files_ = [text(state(spec, node=node), "/etc/kubernetes/kubelet-config.yaml") for node in ("k8s-01", "k8s-02")]
    assert ["readOnlyPort" in each for each in files_] == [True, False]


def test_a_nodes_own_api_proxy_is_what_its_clients_use() -> None:
    spec = mixed({"kube_nginx": {"listen": "127.0.0.1:9443"}})
    kubeconfigs = [
        text(state(spec, node=node), "/etc/kubernetes/kube-proxy.kubeconfig") for node in ("k8s-01", "k8s-02")
    ]
    assert ["https://127.0.0.1:9443" in each for each in kubeconfigs] == [False, True]


def test_checks_and_warnings_follow_the_nodes_own_settings() -> None:
    spec = mixed({"kube_proxy": {"mode": "ipvs"}}, kube_proxy={"mode": "nftables"})
    assert any("ipvs" in warning for warning in desired.warnings(spec, REGISTRY))
    modes = [checks(spec, node=node)["kube_proxy.mode"] for node in ("k8s-01", "k8s-02")]
    assert [getattr(each, "contains", "") for each in modes] == ["nftables", "ipvs"]


def test_every_nodes_archives_are_read_and_each_gets_its_own() -> None:
    spec = mixed({"containerd": {"preload_images": ["b.tar"]}}, containerd={"preload_images": ["a.tar"]})
    assert desired.archives(spec, REGISTRY) == ("a.tar", "b.tar")
    images = [image.reference for stage in state(spec, node="k8s-02").stages for image in stage.images]
    assert images == ["example.org/b.tar:1"]
    assert len(desired.artifacts(spec, REGISTRY)) == len(desired.artifacts(cluster(), REGISTRY))


@pytest.mark.parametrize(
    ("own", "subject", "message"),
    [
        ({"kubelt": {}}, "nodes.1.components.kubelt", "no component"),
        ({"kubelet": {"maxpods": 5}}, "nodes.1.components.kubelet.maxpods", "no such field"),
        ({"kube_proxy": {"mode": "ebpf"}}, "nodes.1.components.kube_proxy.mode", "nftables"),
        ({"kube_nginx": {"listen": "0.0.0.0:1"}}, "nodes.1.components.kube_nginx.listen", "loopback"),
        ({"kubelet": {"client_csr": "auto"}}, "nodes.1.components.kubelet.client_csr", "whole cluster"),
        ({"kubelet": {"token_minutes": 30}}, "nodes.1.components.kubelet.token_minutes", "whole cluster"),
        ({"kube_proxy": {"certificate_days": 90}}, "nodes.1.components.kube_proxy.certificate_days", "whole cluster"),
    ],
)
def test_a_nodes_wrong_setting_is_named_with_the_node(own: dict[str, Any], subject: str, message: str) -> None:
    error = refused(mixed(own))
    assert error.subject == subject
    assert message in error.message
    assert error.hint or message in {"nftables", "loopback"}


def test_what_a_version_cant_do_is_refused_for_one_node_too() -> None:
    spec = mixed({"kube_proxy": {"mode": "nftables"}}).model_copy(
        update={"versions": cluster().versions.model_copy(update={"kubernetes": "1.30.0"})}
    )
    assert refused(spec).subject == "nodes.1.components.kube_proxy.mode"


@given(st.sampled_from(["kubelet", "kube_proxy", "containerd"]), st.dictionaries(KEYS, VALUES, max_size=3))
def test_the_same_settings_mean_the_same_on_one_node_and_on_all(name: str, config: dict[str, Any]) -> None:
    own, common = mixed({name: {"config": config}}), with_component(name, config=config)
    with suppress(SpecError):
        desired.validate_components(common, REGISTRY)
        assert files(state(own, node="k8s-02")) == files(state(common, node="k8s-02"))
        assert files(state(own, node="k8s-01")) == files(state(cluster(), node="k8s-01"))
