"""The machine: nothing but kernel modules is changed unless asked for."""

from typing import Any

from tests.unit.samples import cluster, stage, state, text, with_component

from kubeworker.core.component import Facts
from kubeworker.core.model import Module, RequireCgroup, RequireClock, RequireDisk, Sysctl

ASKED: dict[str, Any] = {"disable_swap": True, "load_modules": True, "sysctls": True, "packages": True}


MODULES = "/etc/modules-load.d/90-kubeworker.conf"


def test_only_modules_are_loaded_by_default_now_and_at_boot() -> None:
    host = stage(cluster(), "host")
    assert not host.swap_off
    assert (host.sysctls, host.packages, host.absent) == ((), (), ())
    assert [file.path for file in host.files] == [MODULES]
    names = ["overlay", "ip_vs", "ip_vs_rr", "nf_conntrack", "dummy"]
    assert [module.name for module in host.modules] == names
    assert text(state(cluster()), MODULES).split() == names


def test_a_container_loads_no_module_and_none_at_boot() -> None:
    host = stage(cluster(), "host", facts=Facts(container="systemd-nspawn"))
    assert (host.modules, host.files) == ((), ())
    assert [absent.path for absent in host.absent] == [MODULES]


def test_modules_are_left_to_the_operator_on_request() -> None:
    host = stage(with_component("host", load_modules=False), "host")
    assert (host.modules, host.files, host.absent) == ((), (), ())


def test_what_is_asked_for_covers_every_components_needs() -> None:
    host = stage(with_component("host", cni="bridge", **ASKED), "host")
    assert host.swap_off
    assert {
        Module(name=name) for name in ("overlay", "br_netfilter", "ip_vs", "ip_vs_rr", "nf_conntrack", "dummy")
    } == {*host.modules}
    assert Sysctl(key="net.bridge.bridge-nf-call-iptables", value="1") in host.sysctls
    assert Sysctl(key="net.ipv4.ip_forward", value="1") in host.sysctls
    assert {"ipset", "iptables", "nftables"} <= {*host.packages}


def test_what_is_set_now_is_set_at_the_next_boot_too() -> None:
    of = state(with_component("host", **ASKED))
    assert text(of, "/etc/sysctl.d/90-kubeworker.conf") == "net.ipv4.ip_forward = 1\n"
    assert text(of, "/etc/modules-load.d/90-kubeworker.conf").splitlines()[0] == "overlay"


def test_the_machine_is_looked_at_in_any_case() -> None:
    needs = stage(with_component("host", max_clock_skew=2.5, min_free_gib=3), "host").requirements
    assert RequireClock(skew=2.5) in needs
    assert RequireDisk(path="/data/k8s/containerd", free=3 * 2**30) in needs


def test_one_directory_for_everything_is_counted_once() -> None:
    paths = {"bin_dir": "/srv/bin", "k8s_dir": "/srv/x", "containerd_dir": "/srv/x"}
    disks = [need for need in stage(cluster(paths=paths), "host").requirements if isinstance(need, RequireDisk)]
    assert [disk.path for disk in disks] == ["/srv/bin", "/srv/x"]


def test_cgroup_v1_is_refused_from_the_version_on_that_refuses_it() -> None:
    def versions(kubernetes: str) -> tuple[int, ...]:
        needs = stage(cluster(versions={"kubernetes": kubernetes}), "host").requirements
        (need,) = (need for need in needs if isinstance(need, RequireCgroup))
        return need.versions

    assert versions("1.34.9") == (1, 2)
    assert versions("1.35.0") == (2,)
