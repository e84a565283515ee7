"""The Job's objects: what pods get, and what they may do."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

import pytest

from kubeworker.core.cluster import bootstrap_token
from kubeworker.core.component import Archive
from kubeworker.core.model import Blob
from kubeworker.core.sharding import handed, job
from kubeworker.core.sharding.handed import Handed
from kubeworker.core.sharding.job import Parcel
from kubeworker.errors import CredentialsError
from kubeworker.flow.job import JobReport, PartReport, last_document

TOKEN = bootstrap_token.make(bytes(22), node="w1", expires=datetime(2026, 1, 1, tzinfo=UTC))
PARCEL = Parcel(
    inputs={"cluster.yaml": b"nodes: []\n", ".kubeworker/handed-over.json": b"{}"}, ssh={"ssh/id-0": b"PRIVATE"}
)


def objects() -> list[dict[str, Any]]:
    return list(job.objects(PARCEL, (), (TOKEN,), image="example.com/kubeworker:1", shards=3))


def rules() -> list[dict[str, Any]]:
    return [rule for each in objects() if each["kind"] in {"Role", "ClusterRole"} for rule in each["rules"]]


def test_pods_may_touch_secrets_and_leases_by_name_only_and_make_nothing() -> None:
    for rule in rules():
        assert "create" not in rule["verbs"]
        assert "*" not in (*rule["verbs"], *rule["resources"], *rule["apiGroups"])
        if rule["resources"][0] in {"secrets", "leases", "configmaps"}:
            assert rule["resourceNames"]
    (secrets,) = (rule for rule in rules() if rule["resources"] == ["secrets"])
    assert (secrets["resourceNames"], secrets["verbs"]) == ([TOKEN.secret_name], ["delete", "patch"])


def test_without_tokens_there_is_no_right_to_secrets_at_all() -> None:
    given = job.objects(PARCEL, (), (), image="i", shards=1)
    roles = [each for each in given if each["kind"] == "Role"]
    assert all("secrets" not in rule["resources"] for each in roles for rule in each["rules"])


def test_each_pod_applies_its_own_part_with_the_files_where_cluster_yaml_has_them() -> None:
    (found,) = (each for each in objects() if each["kind"] == "Job")
    spec = found["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    pod = spec["template"]["spec"]
    assert "--shard=$(JOB_COMPLETION_INDEX)/3" in pod["containers"][0]["command"]
    secrets = {
        each["metadata"]["name"]: each["data"] for each in objects() if each["kind"] == "Secret" and "data" in each
    }
    places = {}
    for source in pod["volumes"][0]["projected"]["sources"]:
        for item in source["secret"]["items"]:
            places[item["path"]] = base64.b64decode(secrets[source["secret"]["name"]][item["key"]])
    assert places == {**PARCEL.inputs, **PARCEL.ssh}
    assert pod["securityContext"]["runAsNonRoot"]


def test_the_whole_fleets_lease_may_be_looked_at_and_not_taken() -> None:
    leases = {
        name: rule["verbs"] for rule in rules() if rule["resources"] == ["leases"] for name in rule["resourceNames"]
    }
    assert leases["kubeworker"] == ["get"]
    assert leases["kubeworker-shard-2"] == ["get", "update"]
    made = [each["metadata"]["name"] for each in objects() if each["kind"] == "Lease"]
    assert made == ["kubeworker-shard-0", "kubeworker-shard-1", "kubeworker-shard-2"]


def test_what_is_handed_over_comes_back_and_nonsense_is_refused_without_a_word_of_it() -> None:
    archive = Archive(references=("registry.k8s.io/pause:3.10",), blob=Blob(sha256="1" * 64, size=7))
    over = Handed(tokens=(TOKEN,), archives=(archive,), local_files=(b"\0secret",))
    assert handed.parse(handed.render(over), subject="x") == over
    assert "secret" not in repr(over)
    assert TOKEN.secret not in repr(over)
    with pytest.raises(CredentialsError) as caught:
        handed.parse('{"tokens": "hunter2"}', subject="x")
    assert "hunter2" not in str(caught.value)


def node(name: str, status: str) -> dict[str, Any]:
    return {"name": name, "status": status, "actions": 1, "seconds": 1.0, "uploaded": 0, "error": None}


def part(index: int, *nodes: dict[str, Any], **more: Any) -> PartReport:
    document = {"changes": len(nodes), "confirmed": True, "nodes": list(nodes), "cluster": 1, "warnings": ["old"]}
    return PartReport(index=index, pod=f"p-{index}", phase="Succeeded", document=document | more)


def test_parts_are_merged_into_one_report_of_the_fleet() -> None:
    merged = JobReport(parts=(part(0, node("a", "ok"), node("b", "ok")), part(1, node("c", "ok"))))
    document = merged.as_json()
    assert [each["name"] for each in document["nodes"]] == ["a", "b", "c"]
    assert (document["changes"], document["cluster"], document["warnings"]) == (3, 2, ["old"])
    assert merged.exit_code == 0


@pytest.mark.parametrize(
    ("last", "code"),
    [
        (part(1, node("c", "unreachable")), 4),
        (part(1, node("c", "failed")), 1),
        (PartReport(index=1, pod="p", phase="Running"), 1),
        (PartReport(index=1, pod="p", phase="Failed", document={"error": {"message": "lock held"}}), 1),
    ],
)
def test_the_worst_part_decides_how_it_ends(last: PartReport, code: int) -> None:
    assert JobReport(parts=(part(0, node("a", "ok")), last)).exit_code == code


def test_the_document_is_found_behind_the_progress() -> None:
    document = '{\n  "changes": 0,\n  "nodes": [\n    {\n      "name": "a"\n    }\n  ]\n}\n'
    said = f'k8s-01: observe\n{{"event": "note"}}\n{document}bye\n'
    assert last_document(said) == {"changes": 0, "nodes": [{"name": "a"}]}
    assert last_document("killed\n") == {}
    assert last_document('{\n  "cut": ') == {}
