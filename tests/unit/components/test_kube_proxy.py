"""Services on the node."""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.samples import (
    CREDENTIALS,
    REGISTRY,
    changed,
    checks,
    cluster,
    restarted,
    stage,
    state,
    text,
    units,
    with_component,
)

from kubeworker.core import desired
from kubeworker.core.component import Facts
from kubeworker.core.model import (
    Gate,
    Http,
    Listening,
    NodeCommand,
    RequireCommand,
    RequireModule,
    RequirePort,
    RequireProxyMode,
    VirtualServers,
)
from kubeworker.errors import SpecError

CONFIG = "/etc/kubernetes/kube-proxy-config.yaml"
COPIES = "copies of kube-proxy's former rules"
KUBECONFIG = "/etc/kubernetes/kube-proxy.kubeconfig"


def config(**how: Any) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(text(state(with_component("kube_proxy", **how)), CONFIG))
    return document


GUIDES = {
    "kind": "KubeProxyConfiguration",
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
    "bindAddress": "172.31.39.151",
    "clientConnection": {"burst": 200, "kubeconfig": "/etc/kubernetes/kube-proxy.kubeconfig", "qps": 100},
    "clusterCIDR": "172.30.0.0/16",
    "healthzBindAddress": "172.31.39.151:10256",
    "hostnameOverride": "k8s-01",
    "metricsBindAddress": "172.31.39.151:10249",
    "mode": "ipvs",
}
"""The guide's kube-proxy-config.yaml, copied value by value."""


def test_the_guides_file_is_the_guides_in_its_order() -> None:
    assert config(profile="guide") == GUIDES
    assert list(config(profile="guide")) == list(GUIDES)


def test_the_default_shows_its_metrics_to_the_node_alone() -> None:
    assert config() == GUIDES | {"metricsBindAddress": "127.0.0.1:10249"}


def test_its_name_is_kubelets() -> None:
    of = state(cluster(), node="k8s-02")
    assert yaml.safe_load(text(of, CONFIG))["hostnameOverride"] == "k8s-02"
    assert "--hostname-override=k8s-02 " in units(of)["kubelet.service"].content


@pytest.mark.parametrize(
    ("mode", "commands", "modules"),
    [
        ("ipvs", {"iptables", "ipset"}, {"ip_vs", "ip_vs_rr", "nf_conntrack", "dummy"}),
        ("iptables", {"iptables"}, set()),
        ("nftables", {"nft"}, set()),
    ],
)
def test_each_mode_asks_for_what_it_runs(mode: str, commands: set[str], modules: set[str]) -> None:
    needs = stage(with_component("kube_proxy", mode=mode), "kube_proxy").requirements
    assert RequireProxyMode(mode=mode) in needs
    assert {need.name for need in needs if isinstance(need, RequireCommand)} == commands
    assert {need.name for need in needs if isinstance(need, RequireModule)} == modules
    assert {need.port for need in needs if isinstance(need, RequirePort)} == {10249, 10256}


def test_another_scheduler_asks_for_its_module() -> None:
    spec = with_component("kube_proxy", config={"ipvs": {"scheduler": "wrr", "strictARP": True}})
    modules = {need.name for need in stage(spec, "kube_proxy").requirements if isinstance(need, RequireModule)}
    assert "ip_vs_wrr" in modules
    assert "ip_vs_rr" not in modules
    document = yaml.safe_load(text(state(spec), CONFIG))
    assert document["ipvs"] == {"scheduler": "wrr", "strictARP": True}


@pytest.mark.parametrize(
    ("mode", "others"),
    [("ipvs", {"iptables", "nftables"}), ("nftables", {"iptables", "ipvs"}), ("iptables", {"ipvs", "nftables"})],
)
def test_the_rules_of_the_other_modes_must_not_be_there(mode: str, others: set[str]) -> None:
    left = stage(with_component("kube_proxy", mode=mode), "kube_proxy").leftovers
    assert {each.name for each in left} == {f"kube-proxy's {other} rules" for other in others} | {COPIES}


def test_the_mode_that_was_merged_in_counts() -> None:
    spec = with_component("kube_proxy", mode="ipvs", config={"mode": "iptables"})
    assert {each.name for each in stage(spec, "kube_proxy").leftovers} == {
        "kube-proxy's ipvs rules",
        "kube-proxy's nftables rules",
        COPIES,
    }
    with pytest.raises(SpecError, match="is no mode of kube-proxy"):
        desired.validate_components(with_component("kube_proxy", config={"mode": "userspace"}), REGISTRY)


CILIUM: dict[str, Any] = {"cni": "cilium", "components": {"cilium": {"kube_proxy_replacement": True}}}


def test_a_kube_proxy_that_is_not_wanted_is_taken_away_with_every_rule() -> None:
    gone = stage(with_component("kube_proxy", enabled=False), "kube_proxy")
    (unit,) = gone.absent_units
    assert (unit.name, unit.waits_for) == ("kube-proxy.service", "")
    assert {"/opt/k8s/bin/kube-proxy", CONFIG, KUBECONFIG} == {*unit.paths}
    # Virtual servers are removed by kube-proxy itself, so that it goes after them.
    assert [each.name.split()[1] for each in unit.leftovers[:-1]] == ["iptables", "ipvs", "nftables"]
    assert (gone.units, gone.binaries, gone.files, gone.requirements) == ((), (), (), ())


def test_beside_cilium_that_replaces_it_kube_proxy_waits_for_ciliums_agent() -> None:
    (waiting,) = stage(cluster(**CILIUM), "kube_proxy").absent_units
    assert waiting.waits_for == "Cilium's agent on the node is Ready and does its work"
    (ready,) = stage(cluster(**CILIUM), "kube_proxy", facts=Facts(service_proxy_replaced=True)).absent_units
    assert ready.waits_for == ""
    assert ready.paths == waiting.paths


def test_a_cluster_without_kube_proxy_needs_no_artifact_of_it() -> None:
    names = {each.name for each in desired.artifacts(cluster(**CILIUM), REGISTRY)}
    assert "kubelet" in names
    assert "kube-proxy" not in names
    assert "kube-proxy" in {each.name for each in desired.artifacts(cluster(), REGISTRY)}


def test_verify_proves_that_kube_proxy_is_gone() -> None:
    found = checks(with_component("kube_proxy", enabled=False))
    assert {each for each in found if each.startswith("kube_proxy.")} == {"kube_proxy.absent", "kube_proxy.rules"}


@pytest.mark.parametrize(
    ("chain", "said"), [("KUBE-SVC-X", "there are kube-proxy's iptables rules"), ("KUBE-FIREWALL", "no")]
)
def test_verify_finds_rules_of_another_mode_by_itself(chain: str, said: str, tmp_path: Path) -> None:
    """Its script runs alone, not after the probe that asks the same."""
    for name, script in {"iptables-save": f"echo ':{chain} - [0:0]'", "ip6tables-save": ":", "nft": "exit 1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    check = checks(with_component("kube_proxy", mode="nftables"))["kube_proxy.rules"]
    assert isinstance(check, NodeCommand)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(check.command, env=path, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(said), (done.stdout, done.stderr)
    assert (done.returncode == 0, done.stderr) == (said == "no", "")


def test_virtual_servers_are_compared_in_ipvs_mode_alone_with_kube_proxys_own_settings() -> None:
    spec = with_component(
        "kube_proxy",
        config={"nodePortAddresses": ["primary"], "ipvs": {"scheduler": "sh", "excludeCIDRs": ["192.0.2.0/24"]}},
    )
    assert checks(spec)["kube_proxy.ipvs"] == VirtualServers(
        id="kube_proxy.ipvs",
        scheduler="sh",
        node_port_addresses=("172.31.39.151/32",),
        exclude=("192.0.2.0/24",),
    )
    assert "kube_proxy.ipvs" not in checks(with_component("kube_proxy", mode="nftables"))


def test_services_without_anything_behind_them_are_warned_of() -> None:
    (text,) = desired.warnings(with_component("kube_proxy", cni="bridge", enabled=False), REGISTRY)
    assert "Services have no addresses" in text


def test_the_plan_warns_of_the_end_of_ipvs() -> None:
    (text,) = desired.warnings(cluster(), REGISTRY)
    assert text.startswith("kubernetes 1.35 deprecates and 1.40 removes or switches off kube-proxy mode ipvs")


def test_a_changed_mode_restarts_kube_proxy_alone() -> None:
    before, after = state(cluster()), state(with_component("kube_proxy", mode="nftables"))
    # Its modules are no longer loaded at boot.
    assert changed(before, after) == {CONFIG, "/etc/modules-load.d/90-kubeworker.conf"}
    assert restarted(before, after) == {"kube-proxy.service"}


def test_a_renewed_certificate_restarts_kube_proxy_alone() -> None:
    after = state(cluster(), credentials=replace(CREDENTIALS, kube_proxy_cert=b"renewed\n"))
    assert changed(state(cluster()), after) == {KUBECONFIG}
    assert restarted(state(cluster()), after) == {"kube-proxy.service"}


def test_gate_and_checks_follow_addresses_that_were_merged_in() -> None:
    spec = with_component("kube_proxy", config={"healthzBindAddress": "0.0.0.0:20256", "metricsBindAddress": None})
    assert units(state(spec))["kube-proxy.service"].gate == Gate(http=("http://127.0.0.1:20256/healthz",), timeout=60)
    found = checks(spec)
    assert found["kube_proxy.healthz_listen"] == Listening(id="kube_proxy.healthz_listen", port=20256, addresses=("*",))
    # Without the key kube-proxy takes its own default.
    metrics = found["kube_proxy.metrics"]
    assert isinstance(metrics, Http)
    assert metrics.url == "http://127.0.0.1:10249/metrics"


@pytest.mark.parametrize("key", ["healthzBindAddress", "metricsBindAddress"])
@pytest.mark.parametrize("value", ["nowhere", "10256", "1.2.3.4:", 10256])
def test_an_address_that_cant_be_asked_is_refused(key: str, value: object) -> None:
    with pytest.raises(SpecError, match="is not ADDRESS:PORT") as caught:
        desired.validate_components(with_component("kube_proxy", config={key: value}), REGISTRY)
    assert caught.value.subject == f"components.kube_proxy.config.{key}"


def test_the_mode_is_proved_by_what_kube_proxy_says_it_runs() -> None:
    mode = checks(with_component("kube_proxy", mode="nftables"))["kube_proxy.mode"]
    assert isinstance(mode, Http)
    assert (mode.url, mode.contains) == ("http://127.0.0.1:10249/proxyMode", "nftables")


def test_its_kubeconfig_is_a_secret_with_the_certificate_inside() -> None:
    (file,) = (each for each in stage(cluster(), "kube_proxy").files if each.path == KUBECONFIG)
    assert (file.mode, file.secret) == (0o600, True)
    (user,) = yaml.safe_load(file.content)["users"]
    assert user["name"] == "kube-proxy"
    assert {*user["user"]} == {"client-certificate-data", "client-key-data"}


@pytest.mark.parametrize(("profile", "restart"), [("guide", "on-failure"), ("default", "always")])
def test_the_unit_is_the_guides_or_starts_again_in_any_case(profile: str, restart: str) -> None:
    content = units(state(cluster(profile=profile)))["kube-proxy.service"].content
    assert f"\nRestart={restart}\n" in content
    assert "\nWorkingDirectory=/data/k8s/k8s/kube-proxy\n" in content
    assert "--config=/etc/kubernetes/kube-proxy-config.yaml" in content
