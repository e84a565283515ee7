"""What keeps kubelet from starting or joining, as preflight sees it."""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.unit.authority import NOW
from tests.unit.core.engine_states import bare, state

from kubeworker.core.certificates import pki
from kubeworker.core.certificates.pki import Ca
from kubeworker.core.model import KubeconfigTarget, RequireReserved, Stage
from kubeworker.core.node.observed import Observed
from kubeworker.core.node.probe import KUBELET_KUBECONFIG
from kubeworker.core.preflight import fleet as preflight_fleet
from kubeworker.core.preflight.requirements import preflight
from kubeworker.core.preflight.row import Row

KEY = ec.generate_private_key(ec.SECP256R1())


def authority(name: str) -> Ca:
    key = ec.generate_private_key(ec.SECP256R1())
    return pki.self_signed_ca(common_name=name, key=key, serial=1, now=NOW, lifetime=timedelta(days=3650))


OURS, THEIRS = authority("kubernetes"), authority("elsewhere")


def certificate(ca: Ca, user: str = "system:node:n1", days: int = 300) -> str:
    return pki.issue_client(
        ca, common_name=user, names={}, key=KEY, serial=2, now=NOW, lifetime=timedelta(days=days)
    ).decode()


def rows(stage: Stage, observed: Observed) -> dict[str, Row]:
    fleet = preflight_fleet.of({"n1": observed}, {})
    found = preflight(state(stage), observed, fleet=fleet, control_time=NOW.timestamp() + 86400)
    return {row.id: row for row in found}


def identity(pem: str) -> Row:
    target = KubeconfigTarget(path=KUBELET_KUBECONFIG, server="https://127.0.0.1:8443", ca=OURS.pem)
    return rows(Stage(component="kubelet", kubeconfigs=(target,)), bare(kubelet_client_cert=pem))["client-certificate"]


@pytest.mark.parametrize(
    ("pem", "says"),
    [
        ("", "none yet"),
        ("no certificate", "can't be read"),
        (certificate(OURS), "this cluster's, until 2026-10-28"),
        # Whoever signed it: kubelet asks for another once it has ended.
        (certificate(THEIRS, days=0), "ended on 2026-01-01"),
    ],
)
def test_a_certificate_with_which_the_node_can_join(pem: str, says: str) -> None:
    row = identity(pem)
    assert (row.status, says in row.message) == ("ok", True), row


def test_a_certificate_of_another_cluster_or_node_keeps_it_from_joining() -> None:
    other = identity(certificate(THEIRS))
    assert (other.status, "signed by CN=elsewhere" in other.message) == ("failed", True)
    assert KUBELET_KUBECONFIG in other.fix
    clone = identity(certificate(OURS, "system:node:n2"))
    assert (clone.status, "system:node:n2: a clone?" in clone.message) == ("failed", True)


def reserved(need: RequireReserved, **machine: int) -> tuple[Row, Row]:
    found = rows(Stage(component="kubelet", requirements=(need,)), bare(**machine))
    return found["reserved-memory"], found["reserved-cpus"]


def keeping(memory: int, share: str = "0", cpus: str = "0") -> RequireReserved:
    return RequireReserved(memory=Fraction(memory), memory_share=Fraction(share), cpus=Fraction(cpus))


def test_more_kept_from_pods_than_there_is_keeps_kubelet_from_starting() -> None:
    memory, cpus = reserved(keeping(2 << 30, cpus="5/2"), memory=1 << 30, cpus=2)
    assert (memory.status, memory.message) == (
        "failed",
        "2.0 GiB of 1.0 GiB are to be kept from pods: kubelet refuses to start",
    )
    assert (cpus.status, "2.5 of 2 processors" in cpus.message) == ("failed", True)
    assert "kubeReserved.cpu" in cpus.fix


def test_as_much_as_there_is_may_be_kept_a_share_of_it_included() -> None:
    memory, cpus = reserved(keeping(1 << 30, "1/2", "2"), memory=2 << 30, cpus=2)
    assert (memory.status, cpus.status) == ("ok", "ok")
    memory, _ = reserved(keeping((1 << 30) + 1, "1/2"), memory=2 << 30, cpus=2)
    assert memory.status == "failed"


def test_a_machine_that_does_not_say_what_it_has_is_not_judged() -> None:
    assert {row.status for row in reserved(keeping(1))} == {"unknown"}
