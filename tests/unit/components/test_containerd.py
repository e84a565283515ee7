"""The container runtime and what lies beside it."""

import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.samples import REGISTRY, changed, cluster, reloaded, restarted, stage, state, text, with_component

from kubeworker.core import desired
from kubeworker.core.model import Image
from kubeworker.errors import SpecError

CONFIG = "/etc/containerd/config.toml"
DOCKER = "/etc/containerd/certs.d/docker.io/hosts.toml"


def config(**how: Any) -> dict[str, Any]:
    return tomllib.loads(text(state(with_component("containerd", **how)), CONFIG))


def cri(document: dict[str, Any]) -> dict[str, Any]:
    return {**document["plugins"]["io.containerd.cri.v1.runtime"], **document["plugins"]["io.containerd.cri.v1.images"]}


def test_the_guides_file_is_the_guides() -> None:
    guide = config(profile="guide")
    assert guide == {
        "version": 3,
        "root": "/data/k8s/containerd/root",
        "state": "/data/k8s/containerd/state",
        "oom_score": -999,
        "grpc": {"max_recv_message_size": 16777216, "max_send_message_size": 16777216},
        "debug": {"level": "info"},
        "metrics": {"address": "", "grpc_histogram": False},
        "plugins": {
            "io.containerd.cri.v1.runtime": {
                "containerd": {
                    "default_runtime_name": "runc",
                    "runtimes": {
                        "runc": {
                            "runtime_type": "io.containerd.runc.v2",
                            "options": {"BinaryName": "/opt/k8s/bin/runc", "SystemdCgroup": True},
                        }
                    },
                },
                # Deprecated under the guide's name since 2.1.
                "cni": {"bin_dir": "/opt/cni/bin", "conf_dir": "/etc/cni/net.d"},
            },
            "io.containerd.cri.v1.images": {"registry": {"config_path": "/etc/containerd/certs.d"}},
        },
    }


def test_the_default_keeps_state_on_a_tmpfs_and_names_the_sandbox_image() -> None:
    document = config()
    assert document["state"] == "/run/containerd"
    assert cri(document)["pinned_images"] == {"sandbox": "registry.k8s.io/pause:3.10"}


def test_a_sandbox_image_that_was_asked_for_is_named_in_the_guides_profile_too() -> None:
    assert cri(config(profile="guide", sandbox_image="site/pause:1"))["pinned_images"] == {"sandbox": "site/pause:1"}


def test_an_older_containerd_gets_the_older_key() -> None:
    of = state(cluster(versions={"containerd": "2.0.5"}))
    assert cri(tomllib.loads(text(of, CONFIG)))["cni"] == {"bin_dir": "/opt/cni/bin", "conf_dir": "/etc/cni/net.d"}


def test_the_guides_key_is_written_for_as_long_as_containerd_reads_it_and_a_plan_says_how_long() -> None:
    guides = cluster(profile="guide", versions={"containerd": "2.3.0"})
    assert cri(tomllib.loads(text(state(guides), CONFIG)))["cni"]["bin_dir"] == "/opt/cni/bin"
    assert any("2.4 removes" in each and "cni.bin_dir" in each for each in desired.warnings(guides, REGISTRY))
    later = cluster(profile="guide", versions={"containerd": "2.4.0"})
    assert cri(tomllib.loads(text(state(later), CONFIG)))["cni"]["bin_dirs"] == ["/opt/cni/bin"]


def test_config_is_merged_over_the_file_and_null_removes() -> None:
    document = config(config={"debug": {"level": "debug"}, "oom_score": None, "ttrpc": {"uid": 1}})
    assert document["debug"] == {"level": "debug"}
    assert "oom_score" not in document
    assert document["ttrpc"] == {"uid": 1}
    assert document["version"] == 3


def test_a_changed_setting_restarts_containerd_alone() -> None:
    before, after = state(cluster()), state(with_component("containerd", config={"debug": {"level": "debug"}}))
    assert restarted(before, after) == {"containerd.service"}


@pytest.mark.parametrize("mirrors", [{"docker.io": ["https://m"]}, {"docker.io": []}, {"quay.io": ["https://q/v2"]}])
def test_mirrors_restart_and_reload_nothing(mirrors: dict[str, list[str]]) -> None:
    before = state(with_component("containerd", mirrors={"docker.io": ["https://old"]}))
    after = state(with_component("containerd", mirrors=mirrors))
    assert changed(before, after)
    assert restarted(before, after) == set()
    assert reloaded(before, after) == set()


def test_containerd_is_healthy_only_once_kubelet_could_use_it() -> None:
    (unit,) = stage(cluster(), "containerd").units
    assert unit.gate is not None
    assert unit.gate.command == (
        "/opt/k8s/bin/crictl",
        "--runtime-endpoint=unix:///run/containerd/containerd.sock",
        "version",
    )


def test_the_tools_find_containerd() -> None:
    of = state(cluster())
    assert yaml.safe_load(text(of, "/etc/crictl.yaml")) == {
        "runtime-endpoint": "unix:///run/containerd/containerd.sock",
        "image-endpoint": "unix:///run/containerd/containerd.sock",
        "timeout": 10,
        "debug": False,
    }
    assert tomllib.loads(text(of, "/etc/nerdctl/nerdctl.toml")) == {
        "namespace": "k8s.io",
        "hosts_dir": ["/etc/containerd/certs.d"],
    }
    assert text(state(cluster(profile="guide")), "/etc/nerdctl/nerdctl.toml") == ""


def test_images_of_an_archive_are_wanted_one_by_one() -> None:
    containerd = stage(with_component("containerd", preload_images=["pause.tar"]), "containerd")
    (image,) = containerd.images
    assert isinstance(image, Image)
    assert (image.reference, image.ctr) == ("example.org/pause.tar:1", "/opt/k8s/bin/ctr")


def test_directories_have_the_modes_that_containerd_gives_them() -> None:
    modes = {each.path: each.mode for each in stage(cluster(profile="guide"), "containerd").directories}
    assert modes["/data/k8s/containerd/root"] == 0o711
    assert modes["/data/k8s/containerd/state"] == 0o711
    assert modes["/etc/containerd/certs.d/docker.io"] == 0o755


def moved(folder: Path, live: str | None, new: str) -> tuple[int, str]:
    """What the check says of a node whose file was `live` and is to be `new`; DIR stands for the folder."""
    (check,) = (
        each for each in stage(cluster(), "containerd").config_checks if each.name == "check of running containers"
    )
    for name, content in (("live", live), ("new", new)):
        if content is not None:
            (folder / name).write_text(content.replace("DIR", str(folder)))
    assert check.command[-2:] == (CONFIG, f"{{{CONFIG}}}")
    command = [*check.command[:-2], str(folder / "live"), str(folder / "new")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


OLD = 'version = 3\nroot = "DIR/root"\n  state = "DIR/old"\n\n[plugins.x]\nstate = "DIR/other"\n'
NEW = OLD.replace("DIR/old", "DIR/new")


@pytest.mark.parametrize(
    "new", [NEW, OLD.replace("DIR/root", "/elsewhere"), "version = 3\n"], ids=["state", "root", "both"]
)
def test_containers_are_not_left_behind_in_an_old_directory(tmp_path: Path, new: str) -> None:
    for name in ("a", "b"):
        (tmp_path / "old/io.containerd.runtime.v2.task/k8s.io" / name).mkdir(parents=True)
    status, said = moved(tmp_path, OLD, new)
    assert status == 1
    assert f"the node's 2 containers: state {tmp_path}/old, root" in said


def test_the_directory_may_change_where_no_container_is(tmp_path: Path) -> None:
    (tmp_path / "old/io.containerd.runtime.v2.task/k8s.io").mkdir(parents=True)
    assert moved(tmp_path, OLD, NEW) == (0, "")
    assert moved(tmp_path, None, NEW) == (0, "")


def test_other_settings_may_change_while_containers_run(tmp_path: Path) -> None:
    (tmp_path / "old/io.containerd.runtime.v2.task/k8s.io/a").mkdir(parents=True)
    assert moved(tmp_path, OLD, OLD + "level = 1\n") == (0, "")


def test_a_setting_that_toml_cant_say_is_refused() -> None:
    with pytest.raises(SpecError, match="can't be written as TOML") as caught:
        state(with_component("containerd", config={"imports": [None]}))
    assert caught.value.subject == "components.containerd.config"


def registry_config(**settings: Any) -> dict[str, Any]:
    return {"config": {"plugins": {"io.containerd.cri.v1.images": {"registry": settings}}}}


def test_mirrors_of_the_old_kind_are_refused() -> None:
    with pytest.raises(SpecError, match="can't stand beside config_path"):
        desired.validate_components(with_component("containerd", **registry_config(mirrors={"a": {}})), REGISTRY)


def test_a_plan_warns_of_credentials_in_the_config_file() -> None:
    spec = with_component("containerd", **registry_config(configs={"a": {"auth": {"username": "x"}}}))
    (said,) = (text for text in desired.warnings(spec, REGISTRY) if "registry.configs" in text)
    assert said.startswith("containerd 1.5 deprecates and 2.4 removes or switches off")
    assert not [text for text in desired.warnings(cluster(), REGISTRY) if "registry.configs" in text]


def test_a_plan_warns_of_a_pair_that_upstream_does_not_recommend() -> None:
    spec = cluster()
    newer = spec.model_copy(update={"versions": spec.versions.model_copy(update={"kubernetes": "1.36.0"})})
    (said,) = (text for text in desired.warnings(newer, REGISTRY) if "recommends" in text)
    assert "2.1.3 is not what containerd recommends for kubernetes 1.36.0: 2.3.0+, 2.2.0+" in said
    assert not [text for text in desired.warnings(spec, REGISTRY) if "recommends" in text]
