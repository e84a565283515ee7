from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.core.engine_states import (
    after,
    bare,
    blob,
    state,
    with_file,
    with_unit,
    without_file,
)

from kubeworker.core import actions
from kubeworker.core.diff import diff, held_back
from kubeworker.core.model import (
    Absent,
    AbsentUnit,
    Binary,
    ConfigCheck,
    Deferred,
    Directory,
    File,
    Image,
    KubeconfigTarget,
    Leftover,
    Link,
    Module,
    NodeState,
    RequireCommand,
    Stage,
    Sysctl,
    Unit,
)
from kubeworker.core.node.observed import KubeletKubeconfig, Observed, SeenFile, SeenUnit, StartRecord
from kubeworker.core.node.probe import store_path

KUBELET = b"kubelet"
CONTAINERD = b"containerd"


def node(*, config: bytes = b"maxPods: 220\n", kubelet: bytes = KUBELET, containerd: bytes = CONTAINERD) -> NodeState:
    """Two services, the second needs the first; and one that reloads."""
    return state(
        Stage(
            component="containerd",
            binaries=(Binary(path="/opt/k8s/bin/containerd", blob=blob(containerd), version="2.1.3"),),
            files=(
                File(path="/etc/containerd/config.toml", content=b"version = 3\n"),
                File(path="/etc/containerd/certs.d/docker.io/hosts.toml", content=b"server\n"),
            ),
            units=(
                Unit(
                    name="containerd.service",
                    content="[Service]\n",
                    restart_on=("/opt/k8s/bin/containerd", "/etc/containerd/config.toml"),
                ),
            ),
        ),
        Stage(
            component="kubelet",
            binaries=(Binary(path="/opt/k8s/bin/kubelet", blob=blob(kubelet), version="1.33.3"),),
            files=(File(path="/etc/kubernetes/kubelet.yaml", content=config),),
            config_checks=(ConfigCheck(name="kubelet", command=("true",), inputs=("/etc/kubernetes/kubelet.yaml",)),),
            units=(
                Unit(
                    name="kubelet.service",
                    content="[Unit]\nRequires=containerd.service\n",
                    restart_on=("/opt/k8s/bin/kubelet", "/etc/kubernetes/kubelet.yaml"),
                    requires=("containerd.service",),
                ),
            ),
        ),
        Stage(
            component="nginx",
            files=(File(path="/etc/nginx.conf", content=b"upstream\n"),),
            units=(Unit(name="nginx.service", content="[Service]\n", reload_on=("/etc/nginx.conf",)),),
        ),
    )


def done(wanted: NodeState, observed: Observed) -> list[tuple[str, str]]:
    return [
        (actions.kind(action), actions.subject(action)) for plan in diff(wanted, observed) for action in plan.actions
    ]


def reason(wanted: NodeState, observed: Observed, kind: str, subject: str) -> str:
    (found,) = (
        action.reason
        for plan in diff(wanted, observed)
        for action in plan.actions
        if (actions.kind(action), actions.subject(action)) == (kind, subject)
    )
    return found


def test_a_bare_machine_gets_everything_in_order() -> None:
    assert done(node(), bare()) == [
        ("binary", "/opt/k8s/bin/containerd"),
        ("file", "/etc/containerd/config.toml"),
        ("file", "/etc/containerd/certs.d/docker.io/hosts.toml"),
        ("file", "/etc/systemd/system/containerd.service"),
        ("enable", "containerd.service"),
        ("daemon-reload", "containerd.service"),
        ("start", "containerd.service"),
        ("binary", "/opt/k8s/bin/kubelet"),
        ("file", "/etc/kubernetes/kubelet.yaml"),
        ("file", "/etc/systemd/system/kubelet.service"),
        ("enable", "kubelet.service"),
        ("daemon-reload", "kubelet.service"),
        ("start", "kubelet.service"),
        ("file", "/etc/nginx.conf"),
        ("file", "/etc/systemd/system/nginx.service"),
        ("enable", "nginx.service"),
        ("daemon-reload", "nginx.service"),
        ("start", "nginx.service"),
    ]


def test_a_finished_machine_gets_nothing() -> None:
    assert diff(node(), after(node())) == ()


def test_changed_config_restarts_only_its_unit() -> None:
    wanted = node(config=b"maxPods: 100\n")
    observed = after(node())
    assert done(wanted, observed) == [("file", "/etc/kubernetes/kubelet.yaml"), ("restart", "kubelet.service")]
    assert reason(wanted, observed, "restart", "kubelet.service") == "kubelet.yaml changes"


def test_changed_config_is_checked_before_it_goes_live() -> None:
    (plan,) = diff(node(config=b"maxPods: 100\n"), after(node()))
    assert [check.name for check in plan.checks] == ["kubelet"]


def test_a_check_does_not_run_when_its_inputs_stay() -> None:
    (plan, *_) = diff(node(kubelet=b"other"), after(node()))
    assert plan.checks == ()


def test_reload_input_reloads_and_does_not_restart() -> None:
    observed = with_file(after(node()), "/etc/nginx.conf", sha256="0" * 64)
    assert done(node(), observed) == [("file", "/etc/nginx.conf"), ("reload", "nginx.service")]


def test_a_file_that_is_no_input_touches_no_unit() -> None:
    observed = without_file(after(node()), "/etc/containerd/certs.d/docker.io/hosts.toml")
    assert done(node(), observed) == [("file", "/etc/containerd/certs.d/docker.io/hosts.toml")]


def test_restart_of_a_required_unit_is_shown_for_its_dependents() -> None:
    wanted = node(containerd=b"containerd 2")
    observed = after(node())
    assert done(wanted, observed) == [
        ("binary", "/opt/k8s/bin/containerd"),
        ("restart", "containerd.service"),
        ("restart", "kubelet.service"),
    ]
    assert "Requires=containerd.service" in reason(wanted, observed, "restart", "kubelet.service")


def test_start_of_a_stopped_unit_does_not_restart_its_dependents() -> None:
    observed = with_unit(after(node()), "containerd.service", active_state="failed", sub_state="failed")
    assert done(node(), observed) == [("start", "containerd.service")]
    assert reason(node(), observed, "start", "containerd.service") == "is failed (failed)"


def test_a_run_that_died_between_file_and_restart_is_finished_by_the_next() -> None:
    # The new file is there, the record is of the former start.
    wanted = node(config=b"maxPods: 100\n")
    observed = dataclasses.replace(after(wanted), units=after(node()).units)
    assert done(wanted, observed) == [("restart", "kubelet.service")]


def test_a_run_that_died_after_it_withdrew_the_record_is_finished_by_the_next() -> None:
    observed = with_unit(after(node()), "kubelet.service", record=None)
    assert done(node(), observed) == [("restart", "kubelet.service")]


def test_what_a_killed_run_left_beside_a_file_goes_even_where_nothing_else_is_to_do() -> None:
    left = frozenset({"/etc/.nginx.conf.kubeworker-old", "/etc/.another.kubeworker-old"})
    observed = dataclasses.replace(after(node()), remains=left)
    assert done(node(), observed) == [("remove", "/etc/.nginx.conf.kubeworker-old")]


def test_a_damaged_input_of_an_untouched_process_is_healed_without_restart() -> None:
    observed = with_file(after(node()), "/etc/kubernetes/kubelet.yaml", sha256="0" * 64)
    assert done(node(), observed) == [("file", "/etc/kubernetes/kubelet.yaml")]


def test_a_damaged_input_restarts_the_unit_that_somebody_else_has_started_since() -> None:
    observed = with_file(after(node()), "/etc/kubernetes/kubelet.yaml", sha256="0" * 64)
    observed = with_unit(observed, "kubelet.service", invocation="b2")
    assert done(node(), observed) == [("file", "/etc/kubernetes/kubelet.yaml"), ("restart", "kubelet.service")]


def test_a_restart_by_somebody_else_with_good_inputs_is_left_alone() -> None:
    observed = with_unit(after(node()), "kubelet.service", invocation="b2")
    assert diff(node(), observed) == ()


def test_an_edited_unit_file_that_is_not_loaded_yet_is_loaded() -> None:
    observed = with_unit(after(node()), "kubelet.service", need_daemon_reload=True)
    assert done(node(), observed) == [("daemon-reload", "kubelet.service")]


def test_a_disabled_unit_is_enabled() -> None:
    observed = with_unit(after(node()), "kubelet.service", file_state="disabled")
    assert done(node(), observed) == [("enable", "kubelet.service")]


MINE = "/etc/systemd/system/kubelet.service.d/10-mine.conf"


def test_a_drop_in_by_somebody_else_is_an_input() -> None:
    observed = with_unit(with_file(after(node()), MINE, sha256="d" * 64), "kubelet.service", dropins=(MINE,))
    assert done(node(), observed) == [("restart", "kubelet.service")]


def test_a_drop_in_that_systemd_has_not_seen_is_loaded_first() -> None:
    observed = with_file(after(node()), MINE, sha256="d" * 64)
    assert done(node(), observed) == [("daemon-reload", "kubelet.service"), ("restart", "kubelet.service")]


def test_a_drop_in_that_is_gone_but_still_loaded_is_unloaded() -> None:
    observed = with_unit(after(node()), "kubelet.service", dropins=(MINE,))
    assert done(node(), observed) == [("daemon-reload", "kubelet.service")]


def joining(*, token: bytes | None) -> NodeState:
    """kubelet reads a token when it starts, and that is gone once it has joined."""
    containerd, kubelet, nginx = node().stages
    path = "/etc/kubernetes/bootstrap"
    return state(
        containerd,
        dataclasses.replace(
            kubelet,
            files=(*kubelet.files, *((File(path=path, content=token),) if token else ())),
            absent=() if token else (Absent(path=path, reason="joined"),),
            units=tuple(dataclasses.replace(unit, read_at_start=(path,)) for unit in kubelet.units),
        ),
        nginx,
    )


def test_a_file_read_at_the_start_restarts_the_unit_when_written_and_never_when_removed() -> None:
    first, second, joined = joining(token=b"one"), joining(token=b"two"), joining(token=None)
    assert done(second, after(first)) == [("file", "/etc/kubernetes/bootstrap"), ("restart", "kubelet.service")]
    assert reason(second, after(first), "restart", "kubelet.service") == "reads bootstrap only when it starts"
    assert done(joined, after(first)) == [("remove", "/etc/kubernetes/bootstrap")]


def joined_node(*, content: bytes = b"apiVersion: v1\n") -> NodeState:
    path = "/etc/kubernetes/kubelet.kubeconfig"
    target = KubeconfigTarget(path=path, server="https://127.0.0.1:8443", ca=b"CA", content=content)
    containerd, kubelet, nginx = node().stages
    units = tuple(dataclasses.replace(unit, read_at_start=(path,)) for unit in kubelet.units)
    return state(containerd, dataclasses.replace(kubelet, kubeconfigs=(target,), units=units), nginx)


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (None, "missing"),
        (KubeletKubeconfig(server="https://other:6443", ca_data="Q0E="), "names another server"),
        (KubeletKubeconfig(server="https://127.0.0.1:8443", ca_data="T1RIRVI="), "trusts another CA"),
        (KubeletKubeconfig(), "names another server"),
    ],
)
def test_the_kubeconfig_that_kubelet_wrote_is_healed(says: KubeletKubeconfig | None, why: str) -> None:
    path = "/etc/kubernetes/kubelet.kubeconfig"
    observed = after(joined_node())
    if says is not None:
        observed = dataclasses.replace(with_file(observed, path, mode=0o600), kubelet_kubeconfig=says)
    assert done(joined_node(), observed) == [("file", path), ("restart", "kubelet.service")]
    assert reason(joined_node(), observed, "file", path) == why


def test_a_kubeconfig_with_the_right_server_and_ca_is_kubelets_own_business() -> None:
    path = "/etc/kubernetes/kubelet.kubeconfig"
    says = KubeletKubeconfig(server="https://127.0.0.1:8443", ca_data="Q0E=")
    observed = dataclasses.replace(
        with_file(after(joined_node()), path, sha256="d" * 64, mode=0o600), kubelet_kubeconfig=says
    )
    assert done(joined_node(), observed) == []
    assert done(joined_node(content=b""), after(joined_node())) == []


def test_a_drop_in_that_is_removed_reloads_the_unit_file_and_restarts() -> None:
    path = "/etc/systemd/system/kubelet.service.d/10-old.conf"
    first, second, third = node().stages
    wanted = state(first, dataclasses.replace(second, absent=(Absent(path=path, reason="replaced"),)), third)
    observed = with_file(after(node()), path, sha256="d" * 64)
    reached = after(wanted)
    observed = dataclasses.replace(observed, units=reached.units)
    assert done(wanted, observed) == [("remove", path), ("daemon-reload", "kubelet.service")]
    assert diff(wanted, without_file(observed, path)) == ()


@pytest.mark.parametrize("change", [{"mode": 0o600}, {"owner": "nobody:nogroup"}])
def test_a_wrong_mode_or_owner_is_set_without_writing_or_restarting(change: dict[str, object]) -> None:
    observed = with_file(after(node()), "/etc/kubernetes/kubelet.yaml", **change)
    assert done(node(), observed) == [("mode", "/etc/kubernetes/kubelet.yaml")]


def test_a_link_in_the_place_of_a_file_is_replaced() -> None:
    path = "/etc/nginx.conf"
    observed = with_file(after(node()), path, kind="link", target="/elsewhere", sha256="")
    assert ("file", path) in done(node(), observed)
    assert reason(node(), observed, "file", path) == "is a link"


def test_only_blobs_that_the_store_lacks_are_sent() -> None:
    wanted = node(kubelet=b"new kubelet", containerd=b"new containerd")
    observed = after(node())
    stored = store_path(wanted.bin_dir, blob(b"new kubelet").sha256)
    observed = with_file(observed, stored, sha256=blob(b"new kubelet").sha256)
    assert [plan.blobs for plan in diff(wanted, observed)] == [(blob(b"new containerd"),), ()]


def test_a_damaged_blob_is_sent_again() -> None:
    observed = after(node())
    for path in ("/opt/k8s/bin/kubelet", store_path("/opt/k8s/bin", blob(KUBELET).sha256)):
        observed = with_file(observed, path, sha256="0" * 64)
    (plan,) = diff(node(), observed)
    assert plan.blobs == (blob(KUBELET),)


def test_an_intact_visible_file_needs_no_blob_in_the_store() -> None:
    observed = without_file(after(node()), store_path("/opt/k8s/bin", blob(KUBELET).sha256))
    assert diff(node(), observed) == ()


def test_a_text_change_is_shown_as_a_diff() -> None:
    observed = with_file(
        after(node()), "/etc/kubernetes/kubelet.yaml", sha256="0" * 64, content=b"maxPods: 110\n", size=13
    )
    (plan,) = diff(node(), observed)
    text = actions.difference(plan.actions[0])
    assert "-maxPods: 110" in text
    assert "+maxPods: 220" in text


def test_a_secret_is_shown_as_hashes_only() -> None:
    secret = File(path="/etc/kubernetes/token", content=b"abc.def", mode=0o600, secret=True)
    wanted = state(Stage(component="kubelet", files=(secret,)))
    observed = bare(
        files={
            secret.path: SeenFile(
                path=secret.path, kind="file", mode=0o600, owner="root:root", size=3, sha256="0" * 64, content=b"old"
            )
        }
    )
    (plan,) = diff(wanted, observed)
    shown = repr(plan) + str([actions.as_json(action) for action in plan.actions])
    assert "abc.def" not in shown
    assert "old" not in shown.replace("threshold", "")
    assert secret.sha256[:12] in shown


def test_a_file_that_was_private_is_shown_as_hashes_only() -> None:
    """It may have been a secret until now."""
    file = File(path="/etc/hosts.toml", content=b"server\n")
    seen = SeenFile(path=file.path, kind="file", mode=0o600, owner="root:root", size=9, sha256="0" * 64)
    (plan,) = diff(state(Stage(component="c", files=(file,))), bare(files={file.path: seen}))
    (put,) = plan.actions
    assert actions.difference(put) == (
        f"sha256 {'0' * 12} -> {file.sha256[:12]} (its present content is not everybody's to read)"
    )


def test_a_deferred_file_is_left_as_it_is() -> None:
    path = "/etc/cni/net.d/10-bridge.conflist"
    wanted = state(Stage(component="cni", deferred=(Deferred(path=path, reason="podCIDR"),)))
    assert diff(wanted, bare()) == ()
    assert diff(wanted, with_file(bare(), path, sha256="0" * 64)) == ()


def test_a_missing_command_installs_only_packages_that_were_asked_for() -> None:
    requirements = (
        RequireCommand(name="nft", package="nftables"),
        RequireCommand(name="ipset", package="ipset"),
        RequireCommand(name="curl", package="curl"),
    )
    wanted = state(Stage(component="host", requirements=requirements, packages=("nftables", "curl")))
    assert done(wanted, bare(commands=frozenset({"curl"}))) == [("packages", "nftables")]


def test_swap_is_turned_off_also_where_only_fstab_would_turn_it_on() -> None:
    wanted = state(Stage(component="host", swap_off=True))
    assert done(wanted, bare(swaps=("/dev/sda2",))) == [("swap-off", "/dev/sda2")]
    assert done(wanted, bare(fstab_swaps=("/dev/sda2 none",))) == [("swap-off", "/etc/fstab")]
    assert diff(wanted, bare()) == ()


def test_modules_and_sysctls() -> None:
    wanted = state(
        Stage(
            component="host",
            modules=(Module(name="overlay"), Module(name="br_netfilter")),
            sysctls=(Sysctl(key="net.ipv4.ip_forward", value="1"), Sysctl(key="net.ipv4.tcp_rmem", value="1 2\t3")),
        )
    )
    observed = bare(
        modules={"overlay": "builtin", "br_netfilter": "available"},
        sysctls={"net.ipv4.ip_forward": "0", "net.ipv4.tcp_rmem": "1 2 3"},
    )
    assert done(wanted, observed) == [("module", "br_netfilter"), ("sysctl", "net.ipv4.ip_forward")]


# ---------------------------------------------------------------------------------------------------------------
# What must not be there


RULES = Leftover(name="demo's rules", present="[ -e /run/rules ]", remove="rm /run/rules", reason="demo is gone")
PROXY = "/etc/systemd/system/demo.service"
DROPIN = f"{PROXY}.d/50-site.conf"
PACKAGED = "/usr/lib/systemd/system/demo.service.d/10-package.conf"


def gone(**fields: object) -> NodeState:
    parts = {"paths": ("/opt/k8s/bin/demo", "/etc/demo.yaml"), "leftovers": (RULES,), **fields}
    unit = AbsentUnit(name="demo.service", reason="nobody needs it", **parts)  # type: ignore[arg-type]
    return state(Stage(component="demo", absent_units=(unit,)))


def running_demo() -> Observed:
    observed = bare(
        units={"demo.service": SeenUnit(name="demo.service", load_state="loaded", active_state="active")},
        leftovers=frozenset({RULES.name}),
    )
    for path in (PROXY, DROPIN, PACKAGED, "/opt/k8s/bin/demo", "/etc/demo.yaml"):
        observed = with_file(observed, path)
    return observed


def did(wanted: NodeState, observed: Observed) -> list[tuple[str, str]]:
    return [(actions.kind(each), actions.subject(each)) for plan in diff(wanted, observed) for each in plan.actions]


def test_an_absent_unit_stops_before_its_leftovers_go_and_its_own_file_goes_last() -> None:
    assert did(gone(), running_demo()) == [
        ("stop", "demo.service"),
        ("leftover", "demo's rules"),
        ("remove", DROPIN),
        ("remove", "/opt/k8s/bin/demo"),
        ("remove", "/etc/demo.yaml"),
        ("remove", PROXY),
        ("daemon-reload", "demo.service"),
    ]
    assert {each.reason for plan in diff(gone(), running_demo()) for each in plan.actions} == {
        "nobody needs it",
        "demo is gone",
        "its files are gone",
    }


def test_an_absent_unit_that_is_not_there_is_nothing_to_do() -> None:
    not_found = bare(units={"demo.service": SeenUnit(name="demo.service")})
    assert diff(gone(), not_found) == ()
    assert diff(gone(), with_file(not_found, PACKAGED)) == ()


@pytest.mark.parametrize(
    "seen",
    [
        SeenUnit(name="demo.service", load_state="loaded", file_state="disabled"),
        SeenUnit(name="demo.service", active_state="failed", sub_state="failed"),
        SeenUnit(name="demo.service", record=StartRecord(restart="a", reload="b", invocation="c")),
    ],
    ids=["stopped, its file still there", "failed, its file gone", "files gone, the record not"],
)
def test_a_removal_that_was_cut_short_is_finished(seen: SeenUnit) -> None:
    assert did(gone(), bare(units={"demo.service": seen})) == [
        ("stop", "demo.service"),
        ("daemon-reload", "demo.service"),
    ]


def test_leftovers_of_a_unit_that_is_gone_already_go_too() -> None:
    observed = bare(units={"demo.service": SeenUnit(name="demo.service")}, leftovers=frozenset({RULES.name}))
    assert did(gone(), observed) == [("leftover", "demo's rules")]


def test_an_absent_unit_that_must_wait_is_left_alone_and_said() -> None:
    waiting = gone(waits_for="something else does its work")
    assert diff(waiting, running_demo()) == ()
    assert held_back(waiting, running_demo()) == ("demo.service: removed once something else does its work",)
    assert held_back(waiting, bare(units={"demo.service": SeenUnit(name="demo.service")})) == ()
    assert held_back(gone(), running_demo()) == ()


def test_leftovers_beside_a_unit_go_when_it_is_healthy() -> None:
    unit = Unit(name="demo.service", content="[Service]\n")
    wanted = state(Stage(component="demo", units=(unit,), leftovers=(RULES,)))
    assert [kind for kind, _ in did(wanted, bare(leftovers=frozenset({RULES.name})))] == [
        "file",
        "enable",
        "daemon-reload",
        "start",
        "leftover",
    ]
    assert diff(wanted, after(wanted)) == ()


def test_an_image_that_is_missing_is_imported_after_the_units() -> None:
    image = Image(reference="registry.k8s.io/pause:3.10", archive=blob(b"oci"), ctr="/opt/k8s/bin/ctr")
    first, *others = node().stages
    wanted = state(dataclasses.replace(first, images=(image,)), *others)
    assert done(wanted, after(node())) == [("image", "registry.k8s.io/pause:3.10")]
    (plan,) = diff(wanted, after(node()))
    assert plan.blobs == (image.archive,)
    assert diff(wanted, after(wanted)) == ()


# ---------------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from([f"p{number}" for number in range(8)])
CONTENTS = st.sampled_from([b"", b"a\n", b"b\n", b"\xff"])
MODES = st.sampled_from([0o644, 0o600])


@st.composite
def stages(draw: st.DrawFn, component: str) -> Stage:
    """A stage whose paths lie in a folder of its own, so that no two stages own one path."""
    names = draw(st.lists(NAMES, unique=True, max_size=8))
    kinds = [draw(st.sampled_from(["file", "secret", "binary", "link", "absent", "deferred"])) for _ in names]
    paths = [f"/etc/{component}/{name}" for name in names]

    def of(*wanted: str) -> list[str]:
        return [path for path, kind in zip(paths, kinds, strict=True) if kind in wanted]

    inputs = [path for path in paths if draw(st.booleans())]
    unit = Unit(
        name=f"{component}.service",
        content="[Service]\n",
        restart_on=tuple(inputs),
        reload_on=tuple(path for path in paths if path not in inputs),
        requires=("a.service",) if component != "a" and draw(st.booleans()) else (),
    )
    return Stage(
        component=component,
        directories=(Directory(path=f"/etc/{component}", mode=draw(MODES)),),
        files=tuple(
            [File(path=path, content=draw(CONTENTS), mode=draw(MODES)) for path in of("file")]
            + [File(path=path, content=draw(CONTENTS), mode=0o600, secret=True) for path in of("secret")]
        ),
        binaries=tuple(Binary(path=path, blob=blob(draw(CONTENTS)), version="1") for path in of("binary")),
        links=tuple(Link(path=path, target=draw(NAMES)) for path in of("link")),
        absent=tuple(Absent(path=path, reason="gone") for path in of("absent")),
        deferred=tuple(Deferred(path=path, reason="later") for path in of("deferred")),
        sysctls=(Sysctl(key=f"net.{component}", value=draw(NAMES)),) if draw(st.booleans()) else (),
        modules=(Module(name=component),) if draw(st.booleans()) else (),
        units=(unit,) if draw(st.booleans()) else (),
        swap_off=draw(st.booleans()),
    )


@st.composite
def states(draw: st.DrawFn) -> NodeState:
    return state(*(draw(stages(component)) for component in ("a", "b", "c")))


@st.composite
def observations(draw: st.DrawFn) -> Observed:
    """A machine in any condition: what another desired state led to, then meddled with."""
    observed = after(draw(states()), bare(swaps=draw(st.sampled_from([(), ("/dev/sda2",)]))))
    for path in list(observed.files):
        match draw(st.sampled_from(["keep", "keep", "drop", "damage", "mode", "link"])):
            case "drop":
                observed = without_file(observed, path)
            case "damage":
                observed = with_file(observed, path, sha256="0" * 64, content=b"damaged\n", size=8)
            case "mode":
                observed = with_file(observed, path, mode=0o777)
            case "link":
                observed = with_file(observed, path, kind="link", target="/nowhere", sha256="")
            case _:
                pass
    for name in list(observed.units):
        change: dict[str, object] = draw(
            st.sampled_from([{}, {"record": None}, {"invocation": "z"}, {"active_state": "failed"}])
        )
        observed = with_unit(observed, name, **change)
    return observed


@given(states(), observations())
def test_a_state_that_was_reached_leaves_nothing_to_do(wanted: NodeState, before: Observed) -> None:
    assert diff(wanted, after(wanted, before)) == ()


@given(states(), observations())
def test_every_change_has_a_reason_and_a_stage_owns_its_subjects(wanted: NodeState, before: Observed) -> None:
    for plan in diff(wanted, before):
        assert plan.actions
        assert all(action.reason for action in plan.actions)
        assert set(plan.kept) >= {each.sha256 for each in plan.blobs}
        for action in plan.actions:
            assert set(actions.as_json(action)) == {"kind", "subject", "reason", "diff"}
