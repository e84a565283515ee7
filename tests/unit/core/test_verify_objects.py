from __future__ import annotations

from datetime import UTC, datetime

import pytest

from kubeworker.core.cluster.kube_views import PodStatus
from kubeworker.core.verify import objects as verify_objects
from kubeworker.core.verify.objects import Role, Run

RUN = Run(id="abc123")


def test_every_object_carries_the_label_and_the_run() -> None:
    objects = (
        verify_objects.binding(RUN),
        verify_objects.pod(RUN, "w1", "busybox"),
        verify_objects.service_account(RUN, RUN.without_rights),
    )
    for document in objects:
        assert document["metadata"]["labels"] == {
            "app.kubernetes.io/managed-by": "kubeworker-verify",
            "kubeworker.dev/verify-run": "abc123",
        }


def test_only_the_accounts_with_rights_are_bound() -> None:
    subjects = [subject["name"] for subject in verify_objects.binding(RUN)["subjects"]]
    assert subjects == list(RUN.with_rights)
    assert RUN.without_rights not in subjects


def test_pod_names_are_valid_however_long_the_node_name_is() -> None:
    name = RUN.pod("a" * 62 + "." + "b" * 62 + "." + "c" * 62 + "." + "d" * 62)
    assert len(name) <= 253
    assert name[-1].isalnum()


@pytest.mark.parametrize(
    ("preloaded", "image"),
    [
        ((), verify_objects.FALLBACK_IMAGE),
        (("registry.k8s.io/pause:3.10",), verify_objects.FALLBACK_IMAGE),
        (("registry.k8s.io/pause:3.10", "docker.io/library/busybox:lab"), "docker.io/library/busybox:lab"),
        (("mirror.example:5000/pause:3.10", "example/pauser:1"), "example/pauser:1"),
    ],
)
def test_the_default_image_is_the_first_preloaded_one_with_a_shell(preloaded: tuple[str, ...], image: str) -> None:
    assert verify_objects.default_image(preloaded) == image


def test_only_objects_older_than_any_run_are_stale() -> None:
    now = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
    assert verify_objects.is_stale({"metadata": {"creationTimestamp": "2026-11-24T11:49:59Z"}}, now)
    assert not verify_objects.is_stale({"metadata": {"creationTimestamp": "2026-11-24T11:50:01Z"}}, now)


def status(phase: str, waiting: str = "") -> PodStatus:
    return PodStatus(name="p", namespace="default", phase=phase, waiting=waiting)


def test_a_pod_is_given_up_only_when_it_can_not_run_any_more() -> None:
    assert not verify_objects.will_not_run(status("Pending"))
    assert not verify_objects.will_not_run(status("Running"))
    assert verify_objects.will_not_run(status("Failed"))
    assert verify_objects.will_not_run(status("Pending", "ErrImagePull: no route to host"))
    assert verify_objects.will_not_run(status("Pending", "CreateContainerError"))


def test_a_pod_that_takes_steps_is_waited_for_and_one_that_stands_or_fails_is_not() -> None:
    pulled, created = "Pulled: already present on machine", "Created: Created container: main"
    sandbox = "FailedCreatePodSandBox: Failed to create pod sandbox: no network"
    assert verify_objects.goes_on((pulled,), ())
    assert verify_objects.goes_on((pulled, created), (pulled,))
    assert not verify_objects.goes_on((pulled,), (pulled,))
    assert not verify_objects.goes_on((), ())
    assert not verify_objects.goes_on((pulled, sandbox), (pulled,))


def test_traffic_goes_to_pods_of_the_other_side_and_never_to_the_one_that_asks() -> None:
    pods = {side: verify_objects.traffic_pod(RUN, "w1", side, "open", "busybox") for side in (0, 1)}
    assert pods[0]["metadata"]["name"] != pods[1]["metadata"]["name"]
    for side in (0, 1):
        selector = verify_objects.traffic_service(RUN, 1 - side)["spec"]["selector"].items()
        assert not selector <= pods[side]["metadata"]["labels"].items()
        assert selector <= pods[1 - side]["metadata"]["labels"].items()


def test_the_policy_selects_guarded_pods_of_this_run_only() -> None:
    spec = verify_objects.traffic_policy(RUN)["spec"]
    selector = spec["endpointSelector"]["matchLabels"].items()
    (allowed,) = (peer["matchLabels"].items() for rule in spec["ingress"] for peer in rule["fromEndpoints"])
    cases: tuple[tuple[Run, Role, bool, bool], ...] = (
        (RUN, "guarded", True, False),
        (RUN, "open", False, True),
        (Run(id="other"), "guarded", False, False),
        (Run(id="other"), "open", False, False),
    )
    for run, role, guarded, let_in in cases:
        labels = verify_objects.traffic_pod(run, "w1", 0, role, "busybox")["metadata"]["labels"].items()
        assert (selector <= labels) == guarded
        assert (allowed <= labels) == let_in


def test_pods_for_traffic_meet_the_restricted_standard_as_the_others() -> None:
    plain, talking = verify_objects.pod(RUN, "w1", "b"), verify_objects.traffic_pod(RUN, "w1", 0, "guarded", "b")
    (here,), (there,) = plain["spec"]["containers"], talking["spec"]["containers"]
    assert {**plain["spec"], "containers": [{**here, "command": there["command"]}]} == talking["spec"]
