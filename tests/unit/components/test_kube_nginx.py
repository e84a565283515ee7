"""The local way to the API servers."""

import ipaddress
import subprocess

from tests.unit.samples import changed, checks, cluster, reloaded, restarted, stage, state, text, units, with_component

from kubeworker.core.api_proxy import apiserver_probe
from kubeworker.core.model import Http, Listening, ProxyReaches, RequireCommand

CONF = "/opt/k8s/kube-nginx/conf/kube-nginx.conf"
LIST = "/opt/k8s/kube-nginx/conf/apiservers.conf"
PROBE = "/opt/k8s/kube-nginx/sbin/kube-nginx-probe"
MANY = [f"10.1.0.{number}:6443" for number in range(1, 6)]


def servers(spec_text: str) -> list[str]:
    return [line.split()[1] for line in spec_text.splitlines() if line.strip().startswith("server ") and ":" in line]


def many(**changes: object) -> str:
    networks = {"cluster_cidr": "172.30.0.0/16", "service_cidr": "10.254.0.0/16", "dns_service_ip": "10.254.0.2"}
    nodes = [{"name": f"w{number}", "address": f"10.2.0.{number}"} for number in range(1, 9)]
    spec = cluster(cluster={"apiservers": MANY, **networks}, nodes=nodes, **changes)
    path = CONF if spec.profile == "guide" else LIST
    return "\n".join(",".join(servers(text(state(spec, node=node.name), path))) for node in spec.nodes)


def test_each_node_has_an_order_of_its_own_and_all_servers() -> None:
    orders = many().splitlines()
    assert len(set(orders)) > 4
    assert all(sorted(order.split(",")) == MANY for order in orders)
    assert len({order.split(",")[0] for order in orders}) > 2


def test_the_guides_order_is_the_files() -> None:
    assert set(many(profile="guide").splitlines()) == {",".join(MANY)}


def test_the_method_is_the_profiles_unless_it_is_set() -> None:
    def method(profile: str, **settings: str) -> bool:
        return "least_conn;" in text(state(with_component("kube_nginx", profile=profile, **settings)), CONF)

    assert method("default")
    assert not method("guide")
    assert method("guide", balance="least_conn")
    assert not method("default", balance="hash")


def test_the_pid_file_is_where_the_unit_waits_for_it_in_both_profiles() -> None:
    for profile in ("default", "guide"):
        of = state(cluster(profile=profile))
        assert "pid logs/kube-nginx.pid;" in text(of, CONF)
        assert "PIDFile=/opt/k8s/kube-nginx/logs/kube-nginx.pid\n" in units(of)["kube-nginx.service"].content


def test_another_server_reloads_and_restarts_nothing() -> None:
    before = cluster()
    after = before.model_copy(
        update={
            "cluster": before.cluster.model_copy(update={"apiservers": (*before.cluster.apiservers, "10.9.9.9:6443")})
        }
    )
    assert changed(state(before), state(after)) == {LIST}
    assert reloaded(state(before), state(after)) == {"kube-nginx.service"}
    assert restarted(state(before), state(after)) == {"kube-nginx-probe.service"}


def test_the_probe_is_there_but_with_the_guide_or_one_server_or_off() -> None:
    def probed(**changes: object) -> bool:
        here = stage(cluster(**changes), "kube_nginx")
        there = "kube-nginx-probe.service" in {unit.name for unit in here.units}
        away = "kube-nginx-probe.service" in {unit.name for unit in here.absent_units}
        included = "include /run/kube-nginx/upstream.conf;" in text(state(cluster(**changes)), CONF)
        cut = "worker_shutdown_timeout 500ms;" in text(state(cluster(**changes)), CONF)
        curl = RequireCommand(name="curl", package="curl") in here.requirements
        assert there == included == cut == curl == ("kube_nginx.probe" in checks(cluster(**changes)))
        assert there != away
        return there

    alone = cluster().cluster.model_dump() | {"apiservers": ("10.9.9.9:6443",)}
    assert probed()
    assert not probed(profile="guide")
    assert probed(profile="guide", components={"kube_nginx": {"probe": True}})
    assert not probed(components={"kube_nginx": {"probe": False}})
    assert not probed(cluster=alone)


def test_without_the_probe_the_servers_are_in_the_configuration_itself() -> None:
    off = with_component("kube_nginx", probe=False)
    assert set(servers(text(state(off), CONF))) == set(off.cluster.apiservers)
    (away,) = stage(off, "kube_nginx").absent_units
    assert {LIST, PROBE} <= set(away.paths)


def test_a_node_prefers_one_server_and_neighbours_share_them_evenly() -> None:
    (first, *others) = [
        line.split() for line in text(state(cluster()), LIST).splitlines() if line.startswith("server ")
    ]
    assert "weight=100" in first
    assert all("weight=100" not in line for line in others)
    assert "weight" not in text(state(cluster(profile="guide")), CONF)
    for count, steps in ((2, (1, 2, 10, 16)), (3, (1, 2, 10)), (5, (1,))):
        for step in steps:
            chosen = [
                apiserver_probe.preferred(str(ipaddress.ip_address("10.2.0.0") + step * number), count)
                for number in range(20 * count)
            ]
            most = max(chosen.count(server) for server in range(count))
            assert most <= 20 * (1 if step == 1 else 1.75), (count, step)
    assert apiserver_probe.preferred("fd00::1", 1) == 0


def test_neighbours_take_a_returned_server_into_use_at_different_seconds() -> None:
    slots = [apiserver_probe.slot(f"10.2.0.{number}") for number in range(1, apiserver_probe.SPREAD + 1)]
    assert sorted(slots) == list(range(apiserver_probe.SPREAD))
    assert apiserver_probe.slot("fd00::7") != apiserver_probe.slot("fd00::8")


def test_the_program_is_clean_shell() -> None:
    checked = subprocess.run(
        ["shellcheck", "--severity=style", "-"],
        input=text(state(cluster()), PROBE),
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.stdout == ""
    assert checked.returncode == 0


def test_another_port_reaches_everyone_who_uses_it() -> None:
    spec = with_component("kube_nginx", listen="127.0.0.1:9443")
    of = state(spec)
    assert "listen 127.0.0.1:9443;" in text(of, CONF)
    for path in ("/etc/kubernetes/kubelet-bootstrap.kubeconfig", "/etc/kubernetes/kube-proxy.kubeconfig"):
        assert "server: https://127.0.0.1:9443\n" in text(of, path)
    (target,) = stage(spec, "kubelet").kubeconfigs
    assert target.server == "https://127.0.0.1:9443"
    (endpoint,) = stage(spec, "kube_nginx").tls_endpoints
    assert endpoint.address == "127.0.0.1:9443"
    assert "127.0.0.1" in endpoint.hint
    found = checks(spec)
    assert found["kube_nginx.listen"] == Listening(id="kube_nginx.listen", port=9443, addresses=("127.0.0.1",))
    assert isinstance(found["kube_nginx.proxy"], Http)


def test_ipv6_loopback_is_written_as_each_reader_has_it() -> None:
    spec = with_component("kube_nginx", listen="[::1]:8443")
    assert "listen [::1]:8443;" in text(state(spec), CONF)
    listening = checks(spec)["kube_nginx.listen"]
    assert listening == Listening(id="kube_nginx.listen", port=8443, addresses=("::1",))


def test_every_api_server_is_asked_through_the_node() -> None:
    reached = {check.apiserver for check in checks(cluster()).values() if isinstance(check, ProxyReaches)}
    assert reached == {"172.31.39.151:6443", "172.31.32.72:6443"}


def test_it_lies_beside_bin_dir() -> None:
    of = state(cluster(paths={"bin_dir": "/srv/kube/bin"}))
    assert "ExecStart=/srv/kube/kube-nginx/sbin/kube-nginx -c" in units(of)["kube-nginx.service"].content
