"""The guide's files and the tool's, each as flat settings that can be compared key by key.

`tests/guide` holds the guide's texts. Here they become what the guide's commands make of them on one node; where a
node's own name or address stands in a value, `NODE_NAME` and `NODE_IP` are put, so that all nodes compare alike.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from kubeworker.core.settings import WHOLE, Settings, flat, nginx_settings, unit_settings

FOLDER = Path(__file__).parent / "guide"

TOKEN = "abcdef.0123456789abcdef"
CA, CERT, KEY = b"the CA's certificate\n", b"a client's certificate\n", b"a client's key\n"


# ---------------------------------------------------------------------------------------------------------------
# What the guide's commands make of its texts


def guide_text(name: str, variables: Mapping[str, str]) -> str:
    """A heredoc as bash writes it to the file, and sed after that."""
    text = (FOLDER / name).read_text()
    if name != "kube-nginx.conf":  # << \EOF: taken as it stands
        text = re.sub(r"\$\{(\w+)\}", lambda found: variables[found[1]], text)
        text = text.replace("\\\\", "\\")
    text = text.replace("$(date -d '+24 hours' -u +%Y-%m-%dT%H:%M:%SZ)", variables["IN_24_HOURS"])
    return re.sub(r"##(\w+)##", lambda found: variables[found[1]], text)


def guide_node_files(variables: Mapping[str, str]) -> dict[str, Settings]:
    """Every file that the guide puts on a node, by path."""

    def text(name: str) -> str:
        return guide_text(name, variables)

    return {
        "/opt/k8s/kube-nginx/conf/kube-nginx.conf": nginx_settings(text("kube-nginx.conf")),
        "/etc/systemd/system/kube-nginx.service": unit_settings(text("kube-nginx.service")),
        "/etc/containerd/config.toml": flat(tomllib.loads(text("containerd-config.toml"))),
        "/etc/systemd/system/containerd.service": unit_settings(text("containerd.service")),
        "/etc/crictl.yaml": flat(yaml.safe_load(text("crictl.yaml"))),
        "/etc/nerdctl/nerdctl.toml": {},
        "/etc/containerd/certs.d/docker.io/hosts.toml": flat(tomllib.loads(text("hosts.toml"))),
        "/etc/kubernetes/kubelet-bootstrap.kubeconfig": kubeconfig("kubelet-bootstrap", variables),
        "/etc/kubernetes/kubelet-config.yaml": flat(yaml.safe_load(text("kubelet-config.yaml.template"))),
        "/etc/systemd/system/kubelet.service": unit_settings(text("kubelet.service.template")),
        "/etc/kubernetes/kube-proxy.kubeconfig": kubeconfig("kube-proxy", variables),
        "/etc/kubernetes/kube-proxy-config.yaml": flat(yaml.safe_load(text("kube-proxy-config.yaml.template"))),
        "/etc/systemd/system/kube-proxy.service": unit_settings(text("kube-proxy.service")),
    }


def guide_objects(variables: Mapping[str, str]) -> dict[str, Settings]:
    """Every object that the guide makes in the cluster, by kind and name, and kube-proxy's certificate request."""
    documents = [*yaml.safe_load_all(guide_text("csr-crb.yaml", variables)), *_created_bindings()]
    found = {f"ClusterRoleBinding {each['metadata']['name']}": flat(each) for each in documents}
    secret = yaml.safe_load(guide_text("bootstrap-token.yaml", variables))
    # stringData is the API's way to take data that is not encoded yet; it stores `data`.
    secret["data"] = secret.pop("stringData")
    found["Secret bootstrap-token-ID"] = flat(secret)
    request = json.loads((FOLDER / "kube-proxy-csr.json").read_text())
    found["certificate of kube-proxy"] = flat(request)
    return found


def _commands() -> Iterator[list[str]]:
    text = re.sub(r"(?m)^\s*#.*$", "", (FOLDER / "commands.sh").read_text()).replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip():
            yield shlex.split(line)


def _options(words: Iterable[str]) -> dict[str, str]:
    text = " ".join(words)
    return dict(re.findall(r"--([a-z-]+)[= ](\S+)", text))


def kubeconfig(user: str, variables: Mapping[str, str]) -> Settings:
    """What `kubectl config` writes: the guide's four commands for one file, carried out."""
    document: dict[str, Any] = {"apiVersion": "v1", "kind": "Config", "preferences": {}}
    for words in _commands():
        options = _options(words)
        if words[:2] != ["kubectl", "config"] or not options["kubeconfig"].startswith(user):
            continue
        name = words[3]
        match words[2]:
            case "set-cluster":
                server = options["server"].replace("${KUBE_APISERVER}", variables["KUBE_APISERVER"])
                cluster = {"certificate-authority-data": _encoded(CA), "server": server}
                document["clusters"] = [{"name": name, "cluster": cluster}]
            case "set-credentials":
                given = {"token": TOKEN}
                if "token" not in options:
                    given = {"client-certificate-data": _encoded(CERT), "client-key-data": _encoded(KEY)}
                document["users"] = [{"name": name, "user": given}]
            case "set-context":
                context = {"cluster": options["cluster"], "user": options["user"]}
                document["contexts"] = [{"name": name, "context": context}]
            case "use-context":
                document["current-context"] = name
    return flat(document)


def _created_bindings() -> Iterator[dict[str, Any]]:
    """`kubectl create clusterrolebinding NAME --clusterrole=ROLE --user U | --group G`."""
    group = "rbac.authorization.k8s.io"
    for words in _commands():
        if words[:3] != ["kubectl", "create", "clusterrolebinding"]:
            continue
        options = _options(words)
        kind = "User" if "user" in options else "Group"
        yield {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": words[3]},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": options["clusterrole"]},
            "subjects": [{"apiGroup": group, "kind": kind, "name": options[kind.lower()]}],
        }


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


# ---------------------------------------------------------------------------------------------------------------
# A certificate as settings


def certificate_settings(pem: bytes) -> Settings:
    """A certificate in the words of cfssl's request."""
    certificate = x509.load_pem_x509_certificate(pem)
    key = certificate.public_key()
    assert isinstance(key, rsa.RSAPublicKey)

    def name(oid: x509.ObjectIdentifier) -> str:
        (attribute,) = certificate.subject.get_attributes_for_oid(oid)
        return str(attribute.value)

    try:
        hosts = list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        hosts = []
    names = {
        "C": NameOID.COUNTRY_NAME,
        "ST": NameOID.STATE_OR_PROVINCE_NAME,
        "L": NameOID.LOCALITY_NAME,
        "O": NameOID.ORGANIZATION_NAME,
        "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
    }
    return flat(
        {
            "CN": name(NameOID.COMMON_NAME),
            "hosts": [str(host) for host in hosts],
            "key": {"algo": "rsa", "size": key.key_size},
            "names": [{short: name(oid) for short, oid in names.items()}],
        }
    )


# ---------------------------------------------------------------------------------------------------------------
# Differences, and the table that lists them

NONE = "none"
"""What stands in the table where one side has no such key."""

Difference = tuple[str, str, str, str]
"""File or object, key, the guide's value, ours."""


def differences(guide: Mapping[str, Settings], ours: Mapping[str, Settings]) -> set[Difference]:
    """Every key that is not the same on both sides; a file of one side only is one difference."""
    found: set[Difference] = set()
    for path in guide.keys() | ours.keys():
        if path not in guide or path not in ours:
            found.add((path, WHOLE, *(("there", NONE) if path in guide else (NONE, "there"))))
            continue
        theirs, mine = guide[path], ours[path]
        for key in theirs.keys() | mine.keys():
            if theirs.get(key) != mine.get(key):
                found.add((path, key, theirs.get(key, NONE), mine.get(key, NONE)))
    return found


def general(found: Iterable[Difference], *, name: str, address: str) -> set[Difference]:
    """The same with NODE_NAME and NODE_IP for one node's own."""

    def put(text: str) -> str:
        return text.replace(address, "NODE_IP").replace(name, "NODE_NAME")

    return {(path, key, put(guide), put(ours)) for path, key, guide, ours in found}


def row(difference: Difference, reason: str) -> str:
    """A line of the table."""
    return (
        "| "
        + " | ".join([*(each if each in {NONE, "there", WHOLE} else f"`{each}`" for each in difference), reason])
        + " |"
    )


def table(text: str, heading: str) -> dict[Difference, str]:
    """The reasons in a Markdown page's table below this heading, by difference."""
    lines = text.partition(f"\n{heading}\n")[2].partition("\n## ")[0].splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| ---")][1:]
    found: dict[Difference, str] = {}
    for line in rows:
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        assert len(cells) == 5, line
        path, key, guide, ours, reason = (cell.strip("`") if cell.startswith("`") else cell for cell in cells)
        assert (path, key, guide, ours) not in found, f"twice: {line}"
        found[path, key, guide, ours] = reason
    return found
