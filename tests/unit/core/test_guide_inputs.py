"""What the guide's environment.sh and kube-nginx.conf say, as cluster.yaml's values; and what is wrong with them."""

from pathlib import Path

import pytest

from kubeworker.core.formats import nginx
from kubeworker.core.guide import inputs as guide_inputs
from kubeworker.core.guide.environment_sh import read
from kubeworker.core.guide.inputs import GuideInputs, api_servers, document, from_environment
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import InputError

GUIDE = Path(__file__).parents[2] / "guide"
PLAIN = """\
NODE_IPS=(10.1.0.1 10.1.0.2)
NODE_NAMES=(k8s-01 k8s-02)
CLUSTER_CIDR=172.30.0.0/16
SERVICE_CIDR=10.254.0.0/16
CLUSTER_DNS_SVC_IP=10.254.0.2
"""


def inputs(text: str, servers: tuple[str, ...] | None = None) -> GuideInputs:
    given = ("kube-nginx.conf", servers) if servers is not None else None
    return from_environment(read(text), subject="environment.sh", servers=given)


def refusal(text: str) -> str:
    with pytest.raises(InputError) as caught:
        inputs(text)
    return str(caught.value)


def test_the_guides_own_file_gives_the_guides_cluster() -> None:
    found = inputs((GUIDE / "environment.sh").read_text())
    cluster = ClusterFile.model_validate(document(found))
    assert [(node.name, node.address) for node in cluster.nodes] == [
        ("k8s-01", "172.31.39.151"),
        ("k8s-02", "172.31.32.72"),
    ]
    assert cluster.profile == "guide"
    assert cluster.cluster.apiservers == ("172.31.39.151:6443", "172.31.32.72:6443")
    assert "ETCD_ENDPOINTS" in found.notes["cluster.apiservers"]
    assert (cluster.paths.k8s_dir, cluster.paths.containerd_dir) == ("/data/k8s/k8s", "/data/k8s/containerd")
    kept_out = [remark.split(":")[1] for remark in found.remarks]
    assert kept_out[:2] == ["5", "37"]
    assert "ETCD_DATA_DIR" in found.remarks[2]


def test_an_api_server_list_comes_from_kube_nginx_conf_else_from_etcd_else_from_the_nodes() -> None:
    etcd = PLAIN + "ETCD_ENDPOINTS=https://10.2.0.1:2379,http://etcd-2.example:2379/\n"
    assert inputs(etcd, ("10.3.0.1:6443",)).values["cluster.apiservers"] == ["10.3.0.1:6443"]
    assert inputs(etcd).values["cluster.apiservers"] == ["10.2.0.1:6443", "etcd-2.example:6443"]
    assert inputs(PLAIN).values["cluster.apiservers"] == ["10.1.0.1:6443", "10.1.0.2:6443"]
    assert "NODE_IPS" in inputs(PLAIN).notes["cluster.apiservers"]
    local = PLAIN + "ETCD_ENDPOINTS=https://127.0.0.1:2379\n"
    assert inputs(local).values["cluster.apiservers"] == ["10.1.0.1:6443", "10.1.0.2:6443"]


def test_ipv6_nodes_give_ipv6_api_servers() -> None:
    text = PLAIN.replace("10.1.0.1 10.1.0.2", "fd00::1 fd00::2")
    assert inputs(text).values["cluster.apiservers"] == ["[fd00::1]:6443", "[fd00::2]:6443"]


@pytest.mark.parametrize(
    ("value", "listen"),
    [
        ("https://127.0.0.1:8443", None),
        ("https://127.0.0.1:6444", "127.0.0.1:6444"),
        ("https://127.0.0.2:8443/", "127.0.0.2:8443"),
        ("https://[::1]:8443", "[::1]:8443"),
    ],
)
def test_a_loopback_kube_apiserver_decides_where_kube_nginx_listens(value: str, listen: str | None) -> None:
    found = inputs(f"{PLAIN}KUBE_APISERVER={value}\n")
    assert found.values.get("components.kube_nginx.listen") == listen
    assert found.remarks == ()


@pytest.mark.parametrize(
    "value", ["https://10.1.0.1:6443", "https://lb.example:443", "http://127.0.0.1:8080", "https://127.0.0.1:99999"]
)
def test_another_kube_apiserver_is_named_and_not_used(value: str) -> None:
    found = inputs(f"{PLAIN}KUBE_APISERVER={value}\n")
    assert "components.kube_nginx.listen" not in found.values
    (remark,) = found.remarks
    assert remark.startswith(f"environment.sh:6: KUBE_APISERVER: {value} is not used")


def test_a_dot_at_the_end_of_the_domain_goes_and_is_said() -> None:
    found = inputs(f"{PLAIN}CLUSTER_DNS_DOMAIN=cluster.local.\n")
    assert found.values["cluster.dns_domain"] == "cluster.local"
    assert "cluster.local." in found.notes["cluster.dns_domain"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("NODE_IPS=(10.1.0.1 10.1.0.2)\n", ""), "environment.sh: NODE_IPS: is not set"),
        (("(10.1.0.1 10.1.0.2)", "(10.1.0.1)"), "2: NODE_NAMES: has 2 elements, and NODE_IPS (line 1) has 1"),
        (("k8s-01 k8s-02", "k8s-01 k8s-01"), "2: NODE_NAMES: k8s-01 is both of elements 1 and 2"),
        (("10.1.0.1 10.1.0.2", "10.1.0.1 10.1.0.1"), "1: NODE_IPS: 10.1.0.1 is both of elements 1 and 2"),
        (("(10.1.0.1 10.1.0.2)", '"10.1.0.1 10.1.0.2"'), "1: NODE_IPS: is one value; an array is meant"),
        (("(10.1.0.1 10.1.0.2)", "()"), "1: NODE_IPS: is empty"),
        (("=172.30.0.0/16", "=(172.30.0.0/16)"), "3: CLUSTER_CIDR: is an array; one value is meant"),
        (("172.30.0.0/16", "172.30.1.0/16"), "3: CLUSTER_CIDR: '172.30.1.0/16' has host bits set"),
        (("10.254.0.2", "10.255.0.2"), "5: CLUSTER_DNS_SVC_IP: 10.255.0.2 is not inside"),
        (("172.30.0.0/16", "10.1.0.0/16"), "1: NODE_IPS: 10.1.0.1 lies inside"),
        (("k8s-02", "K8S_02"), "2: NODE_NAMES: 'K8S_02' is not a node name"),
        (("10.1.0.2)", "ten)"), "1: NODE_IPS: 'ten' is not an IP address"),
        (("(10.1.0.1 10.1.0.2)", "($(hostname -I))"), "1: NODE_IPS: can't be told: a command substitution"),
        (("NODE_IPS=", "K8S_DIR=$(pwd)\nNODE_IPS="), "1: K8S_DIR: can't be told: a command substitution"),
        (("NODE_IPS=", "source ./common.sh\nNODE_IPS="), "K8S_DIR: can't be told: line 1 (source) may set it"),
        (("NODE_IPS=", "ETCD_ENDPOINTS=$(x)\nNODE_IPS="), "or name the API servers with --kube-nginx-conf"),
        (("NODE_IPS=", "ETCD_ENDPOINTS=a:b:c\nNODE_IPS="), "1: ETCD_ENDPOINTS: 'a:b:c' is not the URL of an etcd"),
        (("NODE_IPS=", "K8S_DIR=data\nNODE_IPS="), "1: K8S_DIR: 'data' is not an absolute path"),
    ],
)
def test_what_is_wrong_is_refused_with_its_line_and_a_way_out(change: tuple[str, str], says: str) -> None:
    assert says in refusal(PLAIN.replace(*change))


def test_all_problems_come_at_once() -> None:
    text = refusal("NODE_IPS=(1.1.1.1)\nCLUSTER_CIDR=$(x)\n")
    for name in ("NODE_NAMES", "CLUSTER_CIDR", "SERVICE_CIDR", "CLUSTER_DNS_SVC_IP"):
        assert f"{name}: " in text
    assert "and 3 more:" in text


def test_what_the_tool_has_no_use_for_may_be_unreadable() -> None:
    found = inputs(f"{PLAIN}ENCRYPTION_KEY=$(head -c 32 /dev/urandom | base64)\n")
    assert found.remarks == ("environment.sh:6: ENCRYPTION_KEY: not read: a command substitution",)


def test_a_name_that_is_set_plainly_after_a_doubt_is_no_doubt() -> None:
    assert inputs(
        f"source ./common.sh\n{PLAIN}K8S_DIR=/d\nCONTAINERD_DIR=/c\nCLUSTER_DNS_DOMAIN=x\nKUBE_APISERVER=x\nETCD_ENDPOINTS=http://a"
    ).remarks


CONF = (GUIDE / "kube-nginx.conf").read_text()


def servers(text: str) -> tuple[str, ...]:
    return api_servers(nginx.parse(text), subject="kube-nginx.conf")


def test_the_guides_kube_nginx_conf_lists_its_api_servers() -> None:
    assert servers(CONF) == ("172.31.39.151:6443", "172.31.32.72:6443")


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("server 172.31.32.72:6443 ", "# server 172.31.32.72:6443 ", ("172.31.39.151:6443",)),
        ("172.31.32.72:6443        max_fails=3", "172.31.32.72:6443 down max_fails=3", ("172.31.39.151:6443",)),
        ("172.31.32.72:6443 ", '"[fd00::1]:6443" ', ("172.31.39.151:6443", "[fd00::1]:6443")),
        ("172.31.32.72", "172.31.39.151", ("172.31.39.151:6443",)),
        ("stream {", "stream { upstream other { server 10.0.0.1:53; }", ("172.31.39.151:6443", "172.31.32.72:6443")),
    ],
)
def test_only_what_nginx_would_use_counts(old: str, new: str, found: tuple[str, ...]) -> None:
    assert old in CONF
    assert servers(CONF.replace(old, new)) == found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("172.31.32.72:6443", "unix:/run/x.sock"),
        ("172.31.32.72:6443", "172.31.32.72"),
        ("proxy_pass backend", "proxy_pass other"),
        ("stream", "http"),
    ],
)
def test_a_kube_nginx_conf_without_plain_servers_is_refused(old: str, new: str) -> None:
    with pytest.raises(InputError):
        servers(CONF.replace(old, new))


def test_every_name_that_is_used_is_one_of_the_guides() -> None:
    text = (GUIDE / "environment.sh").read_text()
    assert all(f"{name}=" in text for name in guide_inputs.USED)
