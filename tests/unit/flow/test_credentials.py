"""The CA's files as operators have them, and the client certificate that is kept beside cluster.yaml."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from tests.unit.authority import NOW, authority

from kubeworker.core.certificates import pki
from kubeworker.core.certificates.pki import Ca, CaCertificate
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import CredentialsError
from kubeworker.flow import credentials
from kubeworker.flow.credentials import KubeProxyCredential

YEAR = timedelta(days=365)


@dataclass(frozen=True)
class Site:
    """A directory with cluster.yaml and a CA."""

    folder: Path

    @property
    def cluster_file(self) -> Path:
        return self.folder / "cluster.yaml"

    @property
    def kept(self) -> Path:
        return self.folder / ".kubeworker"

    def cluster(self) -> ClusterFile:
        ca = {"cert": str(self.folder / "ca.pem"), "key": str(self.folder / "ca-key.pem")}
        networks = {"cluster_cidr": "172.30.0.0/16", "service_cidr": "10.254.0.0/16", "dns_service_ip": "10.254.0.2"}
        return ClusterFile.model_validate(
            {
                "cluster": {"apiservers": ["10.1.0.1:6443"], "ca": ca, **networks},
                "nodes": [{"name": "w1", "address": "10.1.0.2"}],
            }
        )

    def new_ca(self, **how: datetime) -> Ca:
        cert, key = authority(**how)  # type: ignore[arg-type]
        (self.folder / "ca.pem").write_bytes(cert)
        (self.folder / "ca-key.pem").write_bytes(key)
        return credentials.load_ca(self.cluster(), now=NOW)

    def kube_proxy(self, ca: CaCertificate, now: datetime = NOW, lifetime: timedelta = YEAR) -> KubeProxyCredential:
        return credentials.kube_proxy(self.cluster_file, ca, now=now, lifetime=lifetime)

    def write(self, credential: KubeProxyCredential) -> None:
        credentials.write(self.cluster_file, credential)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_missing_file_is_named_with_the_field_that_names_it(site: Site) -> None:
    site.new_ca()
    (site.folder / "ca-key.pem").unlink()
    with pytest.raises(CredentialsError, match="no such file") as caught:
        credentials.load_ca(site.cluster(), now=NOW)
    assert caught.value.subject == str(site.folder / "ca-key.pem")
    assert "cluster.ca.key" in caught.value.hint


def test_a_key_of_another_ca_is_refused(site: Site) -> None:
    site.new_ca()
    (site.folder / "ca-key.pem").write_bytes(authority()[1])
    with pytest.raises(CredentialsError, match="is not the key of"):
        credentials.load_ca(site.cluster(), now=NOW)


def test_the_certificate_alone_needs_no_key(site: Site) -> None:
    site.new_ca()
    (site.folder / "ca-key.pem").unlink()
    assert credentials.load_ca_certificate(site.cluster(), now=NOW).pem == (site.folder / "ca.pem").read_bytes()


def test_without_the_ca_key_a_missing_certificate_is_seen_and_none_is_made(site: Site) -> None:
    site.new_ca()
    looked = site.kube_proxy(credentials.load_ca_certificate(site.cluster(), now=NOW))
    assert (looked.status, looked.cert, looked.key) == ("issue", b"", b"")


@pytest.mark.parametrize("function", [credentials.load_ca, credentials.load_ca_certificate])
def test_an_expired_ca_is_refused(site: Site, function: object) -> None:
    site.new_ca(end=NOW + timedelta(days=1))
    with pytest.raises(CredentialsError, match="expired"):
        function(site.cluster(), now=NOW + timedelta(days=2))  # type: ignore[operator]


# ---------------------------------------------------------------------------------------------------------------


def test_the_first_certificate_is_the_guides(site: Site) -> None:
    ca = site.new_ca()
    made = site.kube_proxy(ca)
    assert (made.status, made.reason) == ("issue", "no certificate was issued yet")
    certificate = pki.parse_certificate(made.cert, subject="")
    (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert name.value == "system:kube-proxy"
    public = certificate.public_key()
    assert isinstance(public, rsa.RSAPublicKey)
    assert public.key_size == 2048
    assert pki.key_matches(made.key, certificate)
    assert pki.signed_by(certificate, ca.certificate)


def test_looking_writes_nothing(site: Site) -> None:
    site.kube_proxy(site.new_ca())
    assert not site.kept.exists()


def test_what_was_written_is_kept(site: Site) -> None:
    ca = site.new_ca()
    made = site.kube_proxy(ca)
    site.write(made)
    again = site.kube_proxy(ca)
    assert (again.status, again.reason) == ("kept", "")
    assert (again.cert, again.key) == (made.cert, made.key)


@pytest.mark.parametrize(
    ("days_left", "status"), [(31, "kept"), (30, "kept"), (29.9, "renew"), (0, "renew"), (-5, "renew")]
)
def test_it_is_renewed_when_thirty_days_are_left(site: Site, days_left: float, status: str) -> None:
    ca = site.new_ca()
    site.write(site.kube_proxy(ca))
    later = site.kube_proxy(ca, now=NOW + YEAR - timedelta(days=days_left))
    assert later.status == status
    assert later.reason == ("it expires on 2027-01-01" if status == "renew" else "")


def test_a_short_lived_ca_does_not_renew_at_each_run(site: Site) -> None:
    ca = site.new_ca(end=NOW + timedelta(days=10))
    site.write(site.kube_proxy(ca))
    assert site.kube_proxy(ca, now=NOW + timedelta(days=1)).status == "kept"


def test_a_new_ca_renews_it(site: Site) -> None:
    site.write(site.kube_proxy(site.new_ca()))
    renewed = site.kube_proxy(site.new_ca())
    assert (renewed.status, renewed.reason) == ("renew", "the cluster's CA has changed")


def test_a_damaged_certificate_is_renewed(site: Site) -> None:
    ca = site.new_ca()
    site.write(site.kube_proxy(ca))
    (site.kept / "kube-proxy.pem").write_text("half a fi")
    renewed = site.kube_proxy(ca)
    assert renewed.status == "renew"
    assert renewed.reason.startswith("the kept certificate holds no PEM certificate")


def test_a_run_that_died_between_key_and_certificate_is_healed(site: Site) -> None:
    ca = site.new_ca()
    site.write(site.kube_proxy(ca))
    other = site.kube_proxy(ca, now=NOW + YEAR)
    (site.kept / "kube-proxy-key.pem").write_bytes(other.key)
    healed = site.kube_proxy(ca)
    assert (healed.status, healed.reason) == ("renew", "the kept key does not belong to the kept certificate")


def test_a_pair_that_lost_its_key_is_issued_anew(site: Site) -> None:
    ca = site.new_ca()
    site.write(site.kube_proxy(ca))
    (site.kept / "kube-proxy-key.pem").unlink()
    assert site.kube_proxy(ca).status == "issue"


def test_only_root_may_read_what_is_kept(site: Site) -> None:
    site.write(site.kube_proxy(site.new_ca()))
    modes = {path.name: path.stat().st_mode & 0o7777 for path in (site.kept, *site.kept.iterdir())}
    assert modes == {".kubeworker": 0o700, "kube-proxy.pem": 0o600, "kube-proxy-key.pem": 0o600}


def test_a_failed_write_leaves_no_half_file(site: Site) -> None:
    ca = site.new_ca()
    made = site.kube_proxy(ca)
    site.kept.mkdir()
    (site.kept / "kube-proxy.pem").mkdir()
    with pytest.raises(CredentialsError, match="can't be written"):
        site.write(made)
    assert sorted(path.name for path in site.kept.iterdir()) == ["kube-proxy-key.pem", "kube-proxy.pem"]


def test_writing_again_replaces_as_a_whole(site: Site) -> None:
    ca = site.new_ca()
    made = site.kube_proxy(ca)
    site.write(made)
    before = (site.kept / "kube-proxy.pem").stat().st_ino
    site.write(replace(made, cert=made.cert + b"\n"))
    assert (site.kept / "kube-proxy.pem").stat().st_ino != before
    assert (site.kept / "kube-proxy.pem").read_bytes() == made.cert + b"\n"


def test_no_repr_shows_a_key(site: Site) -> None:
    assert "PRIVATE" not in repr(site.kube_proxy(site.new_ca()))
