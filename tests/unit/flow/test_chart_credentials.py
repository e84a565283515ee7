"""Certificates of a chart: issued, kept 0600, judged, renewed before they end."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from kubeworker.core.component import Certificate
from kubeworker.errors import CredentialsError
from kubeworker.flow import chart_credentials
from kubeworker.flow.chart_credentials import ChartCredentials

NOW = datetime(2026, 11, 25, tzinfo=UTC)
YEAR = timedelta(days=365)
SERVER = Certificate(name="server", common_name="*.demo.example", dns_names=("*.demo.example",))
CLIENT = Certificate(name="client", common_name="client.example", dns_names=("client.example",))


def load(place: Path, *wanted: Certificate, now: datetime = NOW, lifetime: timedelta = YEAR) -> ChartCredentials:
    return chart_credentials.load(
        place / "cluster.yaml", "demo", wanted or (SERVER, CLIENT), now=now, lifetime=lifetime
    )


def kept(place: Path, *wanted: Certificate, lifetime: timedelta = YEAR) -> ChartCredentials:
    made = load(place, *wanted, lifetime=lifetime)
    chart_credentials.write(place / "cluster.yaml", made)
    return made


def certificate(credentials: ChartCredentials, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(credentials.pairs[name].cert)


def test_the_first_run_makes_an_authority_and_a_certificate_for_each_name(tmp_path: Path) -> None:
    made = load(tmp_path)
    assert made.issued == {
        "ca": "none was made yet",
        "server": "none was issued yet",
        "client": "none was issued yet",
    }
    server, ca = certificate(made, "server"), certificate(made, "ca")
    server.verify_directly_issued_by(ca)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["*.demo.example"]
    usages = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usages) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not (tmp_path / ".kubeworker").exists()


def test_what_is_kept_is_used_again_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    made = kept(tmp_path)
    again = load(tmp_path)
    assert again.issued == {}
    assert again.pairs == made.pairs
    folder = tmp_path / ".kubeworker/demo"
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_nothing_is_made_where_nothing_is_wanted(tmp_path: Path) -> None:
    made = chart_credentials.load(tmp_path / "cluster.yaml", "demo", (), now=NOW, lifetime=YEAR)
    assert (made.pairs, made.issued) == ({}, {})


def test_certificates_are_renewed_before_they_end_and_the_authority_stays(tmp_path: Path) -> None:
    kept(tmp_path)
    assert load(tmp_path, now=NOW + YEAR - timedelta(days=31)).issued == {}
    late = load(tmp_path, now=NOW + YEAR - timedelta(days=29))
    assert late.issued == {"server": "it expires on 2027-11-25", "client": "it expires on 2027-11-25"}


def test_the_authority_goes_a_year_before_its_end_and_everything_with_it(tmp_path: Path) -> None:
    kept(tmp_path, lifetime=timedelta(days=4000))
    late = load(tmp_path, now=NOW + timedelta(days=8000 - 364), lifetime=YEAR)
    assert set(late.issued) == {"ca", "server", "client"}
    assert late.issued["server"] == "its authority has changed"


def test_a_name_that_changed_is_issued_anew(tmp_path: Path) -> None:
    kept(tmp_path)
    other = Certificate(name="server", common_name="*.eu.example", dns_names=("*.eu.example",))
    assert load(tmp_path, other, CLIENT).issued == {"server": "it is not for *.eu.example"}


def test_a_write_that_was_cut_short_is_seen_by_the_next_run(tmp_path: Path) -> None:
    kept(tmp_path)
    folder = tmp_path / ".kubeworker/demo"
    shutil.copy(folder / "client-key.pem", folder / "server-key.pem")
    assert load(tmp_path).issued == {"server": "the kept key does not belong to the kept certificate"}


def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / ".kubeworker").write_text("in the way")
    with pytest.raises(CredentialsError) as caught:
        load(tmp_path)
    assert ".kubeworker" in caught.value.subject
