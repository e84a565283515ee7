"""What `verify` reports: a verdict per check, a report per node, and the judging of node-local checks.

Pure: `check_script` says what was seen on the node, this file says what that means.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import NameOID

from kubeworker.core.certificates.expiry import expiry, renewed_by
from kubeworker.core.model import (
    Certificate,
    Check,
    FileMode,
    Listening,
    NodeCommand,
    PortClosed,
    UnitActive,
)
from kubeworker.core.verify.check_script import Evidence, Socket, UnitSeen

LocalCheck: TypeAlias = UnitActive | Listening | PortClosed | FileMode | NodeCommand | Certificate
LOCAL = (UnitActive, Listening, PortClosed, FileMode, NodeCommand, Certificate)
"""The checks that the probe script alone decides."""

Status: TypeAlias = Literal["passed", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One check's outcome on one node. `detail` says what was seen, in one line or with a unit's last log lines."""

    id: str
    status: Status
    detail: str = ""

    def as_json(self) -> dict[str, str]:
        """The element of `checks` in the machine-readable form."""
        return {"id": self.id, "status": self.status, "detail": self.detail}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """All verdicts on one node, in the order of its components."""

    name: str
    checks: tuple[Verdict, ...]
    unreachable: bool = False
    """No SSH connection: its checks failed for that reason alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """The whole of one `verify` run."""

    nodes: tuple[NodeReport, ...]

    @property
    def passed(self) -> int:
        """Checks that passed, over all nodes."""
        return sum(verdict.status == "passed" for node in self.nodes for verdict in node.checks)

    @property
    def failed(self) -> int:
        """Checks that failed, over all nodes."""
        return sum(verdict.status == "failed" for node in self.nodes for verdict in node.checks)

    @property
    def exit_code(self) -> int:
        """0: all passed; 4: failures only on nodes that can't be reached; 1: any other failure."""
        failing = [node for node in self.nodes if any(verdict.status == "failed" for verdict in node.checks)]
        if not failing:
            return 0
        return 4 if all(node.unreachable for node in failing) else 1

    def as_json(self) -> dict[str, object]:
        """The machine-readable form (design: `verify --json`)."""
        return {
            "passed": self.passed,
            "failed": self.failed,
            "nodes": [
                {"name": node.name, "checks": [verdict.as_json() for verdict in node.checks]} for node in self.nodes
            ],
        }


def passed(check: Check, detail: str = "") -> Verdict:
    """The check holds."""
    return Verdict(id=check.id, status="passed", detail=detail)


def failed(check: Check, detail: str) -> Verdict:
    """The check does not hold, or could not be made; `detail` says which."""
    return Verdict(id=check.id, status="failed", detail=detail)


def judge(check: LocalCheck, seen: Evidence, *, ca: x509.Certificate, now: datetime) -> Verdict:
    """The verdict of a node-local check on what the probe saw."""
    match check:
        case UnitActive(unit=unit):
            return _unit(check, seen.units.get(unit))
        case Listening():
            return _listening(check, seen.sockets)
        case PortClosed(port=port):
            found = _on_port(seen.sockets, port)
            return failed(check, f"port {port} is open: {_sockets(found)}") if found else passed(check, "closed")
        case FileMode():
            return _file(check, seen.files.get(check.path, ""))
        case NodeCommand():
            return _command(check, seen)
        case Certificate():
            return _certificate(check, seen.certificates.get(check.path, b""), ca, now)


def _unit(check: UnitActive, seen: UnitSeen | None) -> Verdict:
    if seen is None or seen.properties.get("LoadState") != "loaded":
        state = seen.properties.get("LoadState", "unknown") if seen else "unknown"
        return failed(check, f"{check.unit} is not loaded ({state})")
    state = f"{seen.properties.get('ActiveState')} ({seen.properties.get('SubState')})"
    if seen.properties.get("ActiveState") != "active":
        result = seen.properties.get("Result", "")
        why = f", result {result}" if result not in {"", "success"} else ""
        log = f"\n{seen.journal}" if seen.journal else ""
        return failed(check, f"{check.unit} is {state}{why}{log}")
    if seen.properties.get("UnitFileState") not in {"enabled", "enabled-runtime"}:
        return failed(
            check, f"{check.unit} is active but {seen.properties.get('UnitFileState')}: it won't start at boot"
        )
    if seen.properties.get("NeedDaemonReload") == "yes":
        return failed(check, f"{check.unit} runs as loaded earlier: its file changed since (daemon-reload needed)")
    # The kernel marks a process's file so once it was replaced or removed (proc_pid_exe(5)).
    if seen.executable.endswith(" (deleted)"):
        return failed(check, f"{check.unit} still runs a replaced binary: {seen.executable}")
    return passed(check, state)


def _on_port(sockets: Iterable[Socket], port: int) -> tuple[Socket, ...]:
    return tuple(socket for socket in sockets if socket.port == port)


def _sockets(sockets: Iterable[Socket]) -> str:
    return ", ".join(sorted(f"{s.address}:{s.port}" + (f" ({s.process})" if s.process else "") for s in sockets))


def _listening(check: Listening, sockets: tuple[Socket, ...]) -> Verdict:
    found = _on_port(sockets, check.port)
    wanted = ", ".join(f"{address}:{check.port}" for address in check.addresses)
    if not found:
        return failed(check, f"nothing listens on port {check.port}, expected {wanted}")
    if {socket.address for socket in found} != set(check.addresses):
        return failed(check, f"listens on {_sockets(found)}, expected exactly {wanted}")
    return passed(check, _sockets(found))


def _file(check: FileMode, seen: str) -> Verdict:
    if not seen:
        return failed(check, f"{check.path} does not exist")
    wanted = f"{check.mode:o} {check.owner}"
    if seen != wanted:
        return failed(check, f"{check.path} is {seen}, expected {wanted}")
    return passed(check, f"{check.path} {seen}")


def _command(check: NodeCommand, seen: Evidence) -> Verdict:
    answer = seen.commands.get(check.id)
    name = check.command[0]
    if answer is None:
        return failed(check, f"{name} gave no answer")
    text = answer.output.strip()
    if answer.status in {124, 137}:
        return failed(check, f"{name} did not end in time: {_last_lines(text)}")
    if answer.status != 0:
        return failed(check, f"{name} ended with status {answer.status}: {_last_lines(text)}")
    if check.contains not in answer.output:
        return failed(check, f"{name} did not print {check.contains!r}: {_last_lines(text)}")
    return passed(check, check.contains or _last_lines(text, 1))


def _last_lines(text: str, count: int = 3) -> str:
    return "\n".join(line[:300] for line in text.splitlines()[-count:])


def _certificate(check: Certificate, pem: bytes, ca: x509.Certificate, now: datetime) -> Verdict:
    try:
        certificate = x509.load_pem_x509_certificates(pem)[0]
    except (ValueError, IndexError):
        return failed(check, f"{check.path} holds no readable certificate")
    fault = certificate_fault(certificate, ca, now, days=check.days)
    if fault:
        return failed(check, f"{check.path}: {fault}")
    name = common_name(certificate)
    if name != check.common_name:
        return failed(check, f"{check.path} is {name}'s, expected {check.common_name}'s")
    lasts = expiry(certificate, now, rotates=check.rotates)
    if lasts.state == "overdue":
        return failed(
            check,
            f"{check.path}: {lasts.text} left, and kubelet should have renewed it by "
            f"{renewed_by(certificate):%Y-%m-%d %H:%M} UTC: `kubeworker csr list` shows what its request waits for",
        )
    return passed(check, f"CN={name}, {lasts.text} left")


def certificate_fault(certificate: x509.Certificate, ca: x509.Certificate, now: datetime, *, days: int = 0) -> str:
    """Why the certificate is not good for `days` more days under this CA; "" when it is."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return f"not signed by the cluster's CA (its issuer is {certificate.issuer.rfc4514_string()})"
    if certificate.not_valid_before_utc > now:
        return f"not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
    if certificate.not_valid_after_utc <= now:
        return f"expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if certificate.not_valid_after_utc - now < timedelta(days=days):
        return f"expires on {certificate.not_valid_after_utc:%Y-%m-%d}, in less than {days} days"
    return ""


def common_name(certificate: x509.Certificate) -> str:
    """The subject's CN: the Kubernetes user."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""
