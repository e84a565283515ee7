"""The lab's registries, as files and as what their journals tell."""

import json

import yaml

from kubeworker.core.spec import Versions
from kubeworker.io import build
from kubeworker.lab import registry
from kubeworker.lab.pki import Pair
from kubeworker.lab.registry import Server

PAIR = Pair(cert=b"cert", key=b"key")


def config(server: Server) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load(
        registry.files(server, PAIR)[f"/etc/lab-registry/{server.name}/config.yml"]
    )
    return found


def test_a_registry_speaks_tls_and_names_who_was_asked() -> None:
    server = Server(name="first", port=5001, store="shared")
    assert config(server) == {
        "version": 0.1,
        "log": {"level": "info", "formatter": "json", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": "/data/lab-registry/shared"}},
        "http": {
            "addr": ":5001",
            "tls": {"certificate": "/etc/lab-registry/first/cert.pem", "key": "/etc/lab-registry/first/key.pem"},
        },
    }
    unit = registry.files(server, PAIR)["/etc/systemd/system/lab-registry-first.service"].decode()
    assert "ExecStart=/opt/lab/bin/registry serve /etc/lab-registry/first/config.yml\n" in unit


def test_clients_are_checked_by_certificate_or_password_and_a_cache_trusts_its_remote() -> None:
    assert config(Server(name="a", port=1, client_ca=b"ca"))["http"] == {
        "addr": ":1",
        "tls": {
            "certificate": "/etc/lab-registry/a/cert.pem",
            "key": "/etc/lab-registry/a/key.pem",
            "clientcas": ["/etc/lab-registry/a/client-ca.pem"],
        },
    }
    assert config(Server(name="b", port=1, htpasswd="x:y"))["auth"] == {
        "htpasswd": {"realm": "lab", "path": "/etc/lab-registry/b/htpasswd"}
    }
    cache = Server(name="c", port=1, remote="https://up", remote_ca=b"ca")
    assert config(cache)["proxy"] == {"remoteurl": "https://up"}
    unit = registry.files(cache, PAIR)["/etc/systemd/system/lab-registry-c.service"].decode()
    assert "\nEnvironment=SSL_CERT_FILE=/etc/lab-registry/c/remote-ca.pem\n" in unit


def test_the_recipe_has_the_version_that_labs_run() -> None:
    (artifact,) = registry.artifacts(Versions())
    assert artifact.build is not None
    recipe = build.load_recipe(artifact.build.module)  # type: ignore[union-attr]
    assert recipe.version(artifact.build.package) == artifact.version == registry.VERSION  # type: ignore[union-attr]


def test_a_journal_tells_who_was_asked_for_what() -> None:
    said = {
        "msg": "response completed",
        "http.request.method": "HEAD",
        "http.request.host": "registry-1.docker.io",
        "http.request.uri": "/v2/library/x/manifests/1",
        "http.request.useragent": "containerd/v2.1.3",
        "http.response.status": 200,
    }
    lines = [
        {"_SYSTEMD_UNIT": "lab-registry-up.service", "MESSAGE": json.dumps(said)},
        {"_SYSTEMD_UNIT": "lab-registry-up.service", "MESSAGE": json.dumps({"msg": "listening"})},
        {"_SYSTEMD_UNIT": "init.scope", "MESSAGE": "Started lab-registry-up.service"},
    ]
    assert registry.journal("\n".join(map(json.dumps, lines))) == {
        "up": (
            registry.Request(
                method="HEAD",
                host="registry-1.docker.io",
                path="/v2/library/x/manifests/1",
                status=200,
                agent="containerd/v2.1.3",
            ),
        )
    }
