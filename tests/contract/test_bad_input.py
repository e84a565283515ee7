"""Wrong input, given to the real command: one clear error that names file, line or field and a way out, exit code 3."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

KUBEWORKER = Path(sys.executable).parent / "kubeworker"

CLUSTER = """\
cluster:
  apiservers: [127.0.0.1:1]
  cluster_cidr: 172.30.0.0/16
  service_cidr: 10.254.0.0/16
  dns_service_ip: 10.254.0.2
  kubeconfig: admin.kubeconfig
artifacts: {sources: [local], local: binaries}
ssh: {config: none, known_hosts: known_hosts}
nodes:
  - {name: k8s-01, address: 127.0.0.2, ssh: {port: 1}}
  - {name: k8s-02, address: 127.0.0.3, ssh: {port: 1}}
"""


@dataclass(frozen=True)
class Site:
    """A folder with a cluster file, and the command run in it."""

    folder: Path

    def run(self, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HOME": str(self.folder), "XDG_CACHE_HOME": str(self.folder / "cache")}
        environment.pop("KUBEWORKER_DEBUG", None)
        command = [*prefix, str(KUBEWORKER), *arguments]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def refused(self, *arguments: str, prefix: tuple[str, ...] = ()) -> tuple[str, str]:
        """The error and the hint; what every refusal has in common is asserted here."""
        before = self.files()
        result = self.run(*arguments, prefix=prefix)
        assert result.returncode == 3, result
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
        lines = result.stderr.splitlines()
        assert lines[0].startswith("error: ")
        assert lines[-1].startswith("  hint: ")
        assert sum(line.startswith("error: ") for line in lines) == 1
        assert self.files() == before, "something was written although the input was refused"
        return "\n".join(lines[:-1]), lines[-1]

    def files(self) -> set[str]:
        return {str(path) for path in self.folder.rglob("*") if path.is_file()}

    def edit(self, before: str, after: str) -> None:
        path = self.folder / "cluster.yaml"
        assert before in path.read_text()
        path.write_text(path.read_text().replace(before, after))


def write_ca(folder: Path, *, days: tuple[int, int] = (-1, 365), is_ca: bool = True) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    (folder / "ca.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "ca-key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    write_ca(tmp_path)
    return Site(tmp_path)


@pytest.mark.parametrize(
    ("before", "after", "error", "hint"),
    [
        ("nodes:", "nodes: [", "cluster.yaml:10: not valid YAML", "brackets"),
        ("nodes:", "\tnodes:", "cluster.yaml:9: not valid YAML", "spaces"),
        ("nodes:", "nodes: []\nnodes:", "cluster.yaml:10: nodes: is already set on line 9", "one of the two"),
        ("cluster_cidr", "cluster_cdr", "cluster.yaml:3: cluster.cluster_cdr: there is no such field", "cluster_cidr"),
        ("k8s-02", "k8s-01", "cluster.yaml:11: nodes.1.name: k8s-01 is also the name of nodes.0", "own name"),
        ("127.0.0.3", "127.0.0.2", "cluster.yaml:11: nodes.1.address: 127.0.0.2 is also", "own address"),
        ("172.30.0.0/16", "10.254.0.0/15", "cluster.yaml:4: cluster.service_cidr: 10.254.0.0/16 overlaps", "share"),
        ("10.254.0.2", "10.1.0.2", "cluster.yaml:5: cluster.dns_service_ip: 10.1.0.2 is not inside", "address"),
    ],
)
def test_a_wrong_cluster_file_is_refused_by_line_and_field(
    site: Site, before: str, after: str, error: str, hint: str
) -> None:
    site.edit(before, after)
    said, way_out = site.refused("plan")
    assert error in said
    assert hint in (way_out if "no such field" not in error else said + way_out)


def test_a_missing_cluster_file_is_named(site: Site) -> None:
    said, way_out = site.refused("plan", "-f", "elsewhere.yaml")
    assert said == "error: elsewhere.yaml: no such file [cluster-file]"
    assert "kubeworker init" in way_out


def test_an_unreadable_cluster_file_is_named(site: Site) -> None:
    (site.folder / "cluster.yaml").chmod(0)
    # root may read anything: without these two capabilities it may not.
    prefix = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
    said, way_out = site.refused("plan", prefix=prefix)
    assert said == "error: cluster.yaml: can't be read: permission denied [cluster-file]"
    assert "mode" in way_out


def without_ca(folder: Path) -> None:
    (folder / "ca.pem").unlink()


def without_key(folder: Path) -> None:
    (folder / "ca-key.pem").unlink()


def with_a_foreign_key(folder: Path) -> None:
    certificate = (folder / "ca.pem").read_bytes()
    write_ca(folder)
    (folder / "ca.pem").write_bytes(certificate)


def with_an_expired_ca(folder: Path) -> None:
    write_ca(folder, days=(-30, -1))


def with_a_certificate_that_is_no_ca(folder: Path) -> None:
    write_ca(folder, is_ca=False)


def with_garbage(folder: Path) -> None:
    (folder / "ca.pem").write_text("garbage")


@pytest.mark.parametrize(
    ("spoil", "file", "message"),
    [
        (without_ca, "ca.pem", "no such file"),
        (without_key, "ca-key.pem", "no such file"),
        (with_a_foreign_key, "ca-key.pem", "is not the key of"),
        (with_an_expired_ca, "ca.pem", "expired"),
        (with_a_certificate_that_is_no_ca, "ca.pem", "CA"),
        (with_garbage, "ca.pem", "no PEM certificate"),
    ],
)
def test_a_ca_that_can_not_sign_is_refused(site: Site, spoil: Callable[[Path], None], file: str, message: str) -> None:
    spoil(site.folder)
    said, _ = site.refused("plan")
    assert file in said
    assert message in said


def test_a_missing_kubeconfig_is_named(site: Site) -> None:
    said, way_out = site.refused("plan")
    assert f"{site.folder}/admin.kubeconfig" in said
    assert "cluster.kubeconfig" in said + way_out


def test_a_kubeconfig_that_is_none_is_named(site: Site) -> None:
    (site.folder / "admin.kubeconfig").write_text("{}")
    said, _ = site.refused("plan")
    assert f"{site.folder}/admin.kubeconfig" in said


def test_apply_without_a_terminal_needs_yes(site: Site) -> None:
    said, way_out = site.refused("apply")
    assert "terminal" in said
    assert "--yes" in way_out


@pytest.mark.parametrize("command", ["plan", "apply", "verify", "status"])
def test_an_unknown_node_is_named_with_those_there_are(site: Site, command: str) -> None:
    said, way_out = site.refused(command, "--node", "k8s-03", *(["--yes"] if command == "apply" else []))
    assert "k8s-03" in said
    assert "k8s-01, k8s-02" in way_out


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (("aply",), "no command 'aply'", "kubeworker apply"),
        (("plan", "--nodes", "x"), "no option --nodes", "did you mean --node?"),
        (("apply", "--serial", "many"), "many", "--help"),
        (("apply", "--yes", "--serial", "0"), "--serial must be >= 1, not 0", "--help"),
        (("apply", "--yes", "--max-failures", "-1"), "--max-failures must be >= 0, not -1", "--help"),
        (("render",), "--out", "--help"),
        (("init", "--out", "cluster.yaml"), "exists already", "--out"),
        (("init", "--out", "no/such/folder.yaml"), "can't be written", "--out"),
        (("render", "--out", "."), "not empty", "directory"),
    ],
)
def test_wrong_usage_is_explained(site: Site, arguments: tuple[str, ...], error: str, hint: str) -> None:
    said, way_out = site.refused(*arguments)
    assert error in said
    assert hint in way_out


def test_errors_are_documents_with_json(site: Site) -> None:
    site.edit("k8s-02", "k8s-01")
    result = site.run("plan", "--json")
    assert result.returncode == 3
    error = json.loads(result.stdout)["error"]
    assert set(error) == {"id", "type", "subject", "message", "hint"}
    assert (error["id"], error["type"]) == ("cluster-file", "SpecError")
    assert error["subject"] == "cluster.yaml:11: nodes.1.name"


def test_debug_shows_where_an_error_came_from(site: Site) -> None:
    result = site.run("plan", "-f", "elsewhere.yaml", prefix=("env", "KUBEWORKER_DEBUG=1"))
    assert result.returncode == 3
    assert "Traceback" in result.stderr


def test_help_answers_at_once_and_names_every_command(site: Site) -> None:
    result = site.run("--help")
    assert result.returncode == 0
    for command in ("init", "artifacts", "render", "plan", "apply", "verify", "status", "csr", "lab"):
        assert f" {command} " in result.stdout
