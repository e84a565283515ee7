from kubeworker.core.api_proxy.apiserver_slices import compare
from kubeworker.core.cluster.kube_views import EndpointsStatus


def slices(*addresses: str) -> list[EndpointsStatus]:
    return [
        EndpointsStatus(
            name="kubernetes", namespace="default", service="kubernetes", addresses=addresses, ports=(6443,)
        )
    ]


def test_the_same_servers_are_no_news() -> None:
    found = compare(("10.0.0.1:6443", "[fd00::2]:6443"), [*slices("10.0.0.1"), *slices("fd00::2")])
    assert (found.drifts, found.notes) == ((), ())


def test_a_server_that_is_gone_and_one_that_is_new_are_named_with_a_way_out() -> None:
    gone, new = compare(("10.0.0.1:6443", "10.0.0.2:6443"), slices("10.0.0.1", "10.0.0.3")).drifts
    assert (gone.subject, new.subject) == ("10.0.0.2:6443", "10.0.0.3:6443")
    assert "not among the EndpointSlices" in gone.what
    assert new.fix == "add 10.0.0.3:6443 to cluster.apiservers and apply"


def test_another_port_is_another_server() -> None:
    found = compare(("10.0.0.1:6443", "10.0.0.2:443"), slices("10.0.0.1", "10.0.0.2"))
    assert [each.subject for each in found.drifts] == ["10.0.0.2:443", "10.0.0.2:6443"]


def test_a_load_balancers_address_is_not_compared() -> None:
    found = compare(("10.9.9.9:6443",), slices("10.0.0.1", "10.0.0.2"))
    assert found.drifts == ()
    assert "load balancer?): not compared" in found.notes[0]


def test_behind_a_name_may_be_any_of_them() -> None:
    found = compare(("api.example:6443", "10.0.0.1:6443"), slices("10.0.0.1", "10.0.0.2"))
    assert found.drifts == ()
    assert found.notes == ("api.example:6443 in cluster.apiservers is a name: not compared with default/kubernetes",)


def test_without_slices_nothing_is_compared() -> None:
    assert "not compared" in compare(("10.0.0.1:6443",), ()).notes[0]
