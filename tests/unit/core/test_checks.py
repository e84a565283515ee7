from __future__ import annotations

import base64
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kubeworker.core.model import Certificate, FileMode, Listening, NodeCommand, PortClosed, UnitActive
from kubeworker.core.verify import check_script, checks
from kubeworker.core.verify.check_script import CommandSeen, Evidence, Socket, UnitSeen

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def key_pair(
    common_name: str,
    *,
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None,
    days: int = 365,
    begins: datetime = NOW - timedelta(days=400),
    ends: datetime | None = None,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends or NOW + timedelta(days=days))
        .sign(issuer[1] if issuer else key, hashes.SHA256())
    )
    return certificate, key


CA = key_pair("kubernetes-ca")


def judge(check: checks.LocalCheck, seen: Evidence) -> checks.Verdict:
    return checks.judge(check, seen, ca=CA[0], now=NOW)


def unit(executable: str = "/opt/k8s/bin/kubelet", journal: str = "", **properties: str) -> Evidence:
    usual = {
        "LoadState": "loaded",
        "ActiveState": "active",
        "SubState": "running",
        "Result": "success",
        "UnitFileState": "enabled",
        "NeedDaemonReload": "no",
    }
    seen = UnitSeen(properties=usual | properties, executable=executable, journal=journal)
    return Evidence(units={"kubelet.service": seen})


UNIT = UnitActive(id="kubelet.active", unit="kubelet.service")


def test_an_active_enabled_unit_passes() -> None:
    assert judge(UNIT, unit()) == checks.Verdict(id="kubelet.active", status="passed", detail="active (running)")


@pytest.mark.parametrize(
    ("seen", "detail"),
    [
        (Evidence(), "kubelet.service is not loaded (unknown)"),
        (unit(LoadState="not-found"), "kubelet.service is not loaded (not-found)"),
        (unit(UnitFileState="disabled"), "won't start at boot"),
        (unit(NeedDaemonReload="yes"), "daemon-reload needed"),
        (unit(executable="/opt/k8s/bin/kubelet (deleted)"), "replaced binary"),
    ],
)
def test_a_unit_that_is_not_as_it_should_be_fails_and_says_how(seen: Evidence, detail: str) -> None:
    verdict = judge(UNIT, seen)
    assert verdict.status == "failed"
    assert detail in verdict.detail


def test_a_failed_unit_is_shown_with_its_last_journal_lines() -> None:
    seen = unit(ActiveState="failed", SubState="failed", Result="exit-code", journal="bad flag\nexit 1")
    assert judge(UNIT, seen).detail == "kubelet.service is failed (failed), result exit-code\nbad flag\nexit 1"


LOOPBACK = Listening(id="kube_nginx.listen", port=8443, addresses=("127.0.0.1",))


def test_a_port_on_exactly_its_address_passes() -> None:
    seen = Evidence(sockets=(Socket(address="127.0.0.1", port=8443, process="kube-nginx"),))
    assert judge(LOOPBACK, seen).status == "passed"


@pytest.mark.parametrize("addresses", [(), ("*",), ("127.0.0.1", "10.0.0.4")])
def test_a_port_on_no_or_on_other_addresses_fails(addresses: tuple[str, ...]) -> None:
    seen = Evidence(sockets=tuple(Socket(address=address, port=8443) for address in addresses))
    assert judge(LOOPBACK, seen).status == "failed"


def test_a_port_that_should_be_closed_fails_naming_who_listens() -> None:
    closed = PortClosed(id="kubelet.read_only_port", port=10255)
    assert judge(closed, Evidence()).status == "passed"
    seen = Evidence(sockets=(Socket(address="*", port=10255, process="kubelet"),))
    assert judge(closed, seen).detail == "port 10255 is open: *:10255 (kubelet)"


def test_a_file_needs_its_exact_mode_and_owner() -> None:
    check = FileMode(id="kubelet.kubeconfig", path="/etc/k", mode=0o600)
    assert judge(check, Evidence(files={"/etc/k": "600 root:root"})).status == "passed"
    assert judge(check, Evidence(files={"/etc/k": "644 root:root"})).detail == (
        "/etc/k is 644 root:root, expected 600 root:root"
    )
    assert judge(check, Evidence(files={"/etc/k": ""})).detail == "/etc/k does not exist"


def test_a_command_needs_status_zero_and_its_text() -> None:
    check = NodeCommand(id="containerd.version", command=("/bin/ctr", "version"), contains="v2.1.3")

    def seen(status: int, output: str) -> Evidence:
        return Evidence(commands={check.id: CommandSeen(status=status, output=output)})

    assert judge(check, seen(0, "Server v2.1.3")).status == "passed"
    assert "did not print 'v2.1.3'" in judge(check, seen(0, "Server v2.0.0")).detail
    assert judge(check, seen(1, "no socket\n")).detail == "/bin/ctr ended with status 1: no socket"
    assert "in time" in judge(check, seen(124, "")).detail
    assert "no answer" in judge(check, Evidence()).detail


CLIENT = Certificate(id="kubelet.client_certificate", path="/c.pem", common_name="system:node:w1", days=7)


def seen_certificate(certificate: x509.Certificate) -> Evidence:
    return Evidence(certificates={"/c.pem": certificate.public_bytes(serialization.Encoding.PEM)})


def test_a_client_certificate_under_the_ca_passes_with_its_days_left() -> None:
    certificate, _ = key_pair("system:node:w1", issuer=CA, days=90)
    assert judge(CLIENT, seen_certificate(certificate)).detail == "CN=system:node:w1, 90 days left"


@pytest.mark.parametrize(
    ("certificate", "detail"),
    [
        (key_pair("system:node:w1", issuer=key_pair("kubernetes-ca"))[0], "not signed by the cluster's CA"),
        (key_pair("system:node:w1")[0], "not signed by the cluster's CA"),
        (key_pair("system:node:w1", issuer=CA, days=-1)[0], "expired on 2026-11-23"),
        (key_pair("system:node:w1", issuer=CA, days=3)[0], "in less than 7 days"),
        (key_pair("system:node:w2", issuer=CA)[0], "is system:node:w2's, expected system:node:w1's"),
    ],
)
def test_a_client_certificate_that_will_not_do_fails_and_says_why(certificate: x509.Certificate, detail: str) -> None:
    verdict = judge(CLIENT, seen_certificate(certificate))
    assert verdict.status == "failed"
    assert detail in verdict.detail


@pytest.mark.parametrize(("minutes", "status"), [(9.4, "passed"), (9.6, "failed")])
def test_one_that_kubelet_renews_fails_when_kubelet_is_late_and_not_before(minutes: float, status: str) -> None:
    check = replace(CLIENT, days=0, rotates=True)
    # As kube-controller-manager signs with --cluster-signing-duration=10m: backdated by 5 minutes.
    begins = NOW - timedelta(minutes=5)
    certificate, _ = key_pair("system:node:w1", issuer=CA, begins=begins, ends=NOW + timedelta(minutes=10))
    now = NOW + timedelta(minutes=minutes)
    verdict = checks.judge(check, seen_certificate(certificate), ca=CA[0], now=now)
    assert verdict.status == status
    assert ("kubeworker csr list" in verdict.detail) == (status == "failed")


def test_a_missing_client_certificate_fails() -> None:
    assert "no readable certificate" in judge(CLIENT, Evidence(certificates={"/c.pem": b""})).detail


def report(*nodes: tuple[checks.Status, bool]) -> checks.VerifyReport:
    return checks.VerifyReport(
        nodes=tuple(
            checks.NodeReport(
                name=f"w{index}",
                checks=(checks.Verdict(id="a", status=status, detail="d"),),
                unreachable=unreachable,
            )
            for index, (status, unreachable) in enumerate(nodes)
        )
    )


def test_the_exit_code_tells_failed_from_unreachable() -> None:
    assert report(("passed", False)).exit_code == 0
    assert report(("passed", False), ("failed", True)).exit_code == 4
    assert report(("failed", False), ("failed", True)).exit_code == 1


def test_the_json_form_is_the_documented_one() -> None:
    assert report(("passed", False), ("failed", False)).as_json() == {
        "passed": 1,
        "failed": 1,
        "nodes": [
            {"name": "w0", "checks": [{"id": "a", "status": "passed", "detail": "d"}]},
            {"name": "w1", "checks": [{"id": "a", "status": "failed", "detail": "d"}]},
        ],
    }


@pytest.mark.parametrize(
    ("line", "socket"),
    [
        (
            'LISTEN 0 4096 127.0.0.1:8443 0.0.0.0:* users:(("kube-nginx",pid=7,fd=5))',
            Socket(address="127.0.0.1", port=8443, process="kube-nginx"),
        ),
        ("LISTEN 0 128 0.0.0.0:22 0.0.0.0:*", Socket(address="*", port=22)),
        ("LISTEN 0 4096 *:10256 *:*", Socket(address="*", port=10256)),
        ("LISTEN 0 128 [::]:22 [::]:*", Socket(address="*", port=22)),
        ("LISTEN 0 1 [fd00::5]:10250 [::]:*", Socket(address="fd00::5", port=10250)),
        ("LISTEN 0 1 127.0.0.53%lo:53 0.0.0.0:*", Socket(address="127.0.0.53", port=53)),
    ],
)
def test_ss_lines_are_read(line: str, socket: Socket) -> None:
    assert check_script.parse(f"socket\t{line}\n").sockets == (socket,)


def test_an_unknown_line_is_refused() -> None:
    with pytest.raises(ValueError, match="gibberish"):
        check_script.parse("gibberish\n")


def test_the_script_sees_files_certificates_and_commands_on_this_machine(tmp_path: Path) -> None:
    ca = trustme.CA()
    pem = ca.issue_cert("x.example").private_key_and_cert_chain_pem.bytes()
    both = tmp_path / "key and cert.pem"
    both.write_bytes(pem)
    both.chmod(0o640)
    kubeconfig = tmp_path / "kubeconfig"
    data = base64.b64encode(ca.cert_pem.bytes()).decode()
    kubeconfig.write_text(f"users:\n- user:\n    client-certificate-data: {data}\n    client-key-data: c2VjcmV0\n")
    script = check_script.script(
        (
            FileMode(id="f", path=str(both), mode=0o600),
            FileMode(id="g", path=str(tmp_path / "none"), mode=0o600),
            Certificate(id="c", path=str(both), common_name="x"),
            Certificate(id="k", path=str(kubeconfig), common_name="x"),
            Certificate(id="n", path=str(tmp_path / "none"), common_name="x"),
            NodeCommand(id="image.docker.io/e:1", command=("sh", "-c", "echo 'a\tb'; echo err >&2; exit 3")),
        )
    )
    seen = check_script.parse(subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout)
    assert seen.files[str(both)].startswith("640 ")
    assert seen.files[str(tmp_path / "none")] == ""
    assert seen.commands["image.docker.io/e:1"] == CommandSeen(status=3, output="a\tb\nerr\n")
    assert b"PRIVATE" not in seen.certificates[str(both)]
    assert x509.load_pem_x509_certificates(seen.certificates[str(both)])
    assert seen.certificates[str(kubeconfig)].strip() == ca.cert_pem.bytes().strip()
    assert seen.certificates[str(tmp_path / "none")] == b""
