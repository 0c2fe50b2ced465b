"""Objects and verbs: what is answered, and how refusals look."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contracts.cluster.conftest import Cluster
from tests.contracts.cluster.manifests import config_map, deployment

APPS, BATCH = "apis/apps/v1", "apis/batch/v1"


def test_a_created_object_bears_its_identity(cluster: Cluster) -> None:
    status, made = cluster.create("configmaps", config_map("one", labels={"berth/instance": "i1"}))
    assert status == 201
    meta = made["metadata"]
    assert {"uid", "resourceVersion", "creationTimestamp"} <= meta.keys()
    assert cluster.get("configmaps", "one") == made


def test_creating_twice_is_refused(cluster: Cluster) -> None:
    cluster.create("configmaps", config_map("one"))
    status, refusal = cluster.create("configmaps", config_map("one"))
    assert status == 409
    assert refusal["kind"] == "Status"
    assert refusal["reason"] == "AlreadyExists"
    assert refusal["message"] == 'configmaps "one" already exists'
    assert refusal["details"] == {"name": "one", "kind": "configmaps"}
    assert refusal["code"] == 409


def test_what_is_not_there_is_not_found(cluster: Cluster) -> None:
    status, refusal, _ = cluster.raw("GET", cluster.path("deployments", "none", api=APPS))
    assert (status, refusal["reason"]) == (404, "NotFound")
    assert refusal["message"] == 'deployments.apps "none" not found'
    assert refusal["details"] == {"name": "none", "group": "apps", "kind": "deployments"}


def test_a_namespace_that_is_not_there(cluster: Cluster) -> None:
    status, refusal, _ = cluster.raw("POST", "/api/v1/namespaces/nowhere-at-all/configmaps", config_map("one"))
    assert (status, refusal["reason"]) == (404, "NotFound")
    assert refusal["message"] == 'namespaces "nowhere-at-all" not found'


def test_without_a_token_nothing_is_told(cluster: Cluster) -> None:
    for header in ("", "Bearer wrong"):
        status, refusal, _ = cluster.raw("GET", "/api/v1/pods", headers={"Authorization": header})
        assert status in (401, 403)
        if header:
            assert (status, refusal["reason"]) == (401, "Unauthorized")


def test_an_unknown_kind_is_not_found(cluster: Cluster) -> None:
    assert cluster.raw("GET", cluster.path("gizmos"))[0] == 404
    assert cluster.raw("GET", "/apis/nobody.example/v1/things")[0] == 404


def test_generated_names_are_distinct(cluster: Cluster) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "made-"}}
    names = {cluster.create("configmaps", body)[1]["metadata"]["name"] for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("made-") and len(name) == 10 for name in names)


# ---------------------------------------------------------------- concurrency


def test_a_stale_replacement_is_refused(cluster: Cluster) -> None:
    first = cluster.create("configmaps", config_map("one"))[1]
    path = cluster.path("configmaps", "one")
    assert cluster.raw("PUT", path, {**first, "data": {"a": "2"}})[0] == 200
    status, refusal, _ = cluster.raw("PUT", path, {**first, "data": {"a": "3"}})
    assert (status, refusal["reason"]) == (409, "Conflict")
    assert refusal["message"] == (
        'Operation cannot be fulfilled on configmaps "one": the object has been modified; please apply your changes to '
        "the latest version and try again"
    )
    assert cluster.get("configmaps", "one")["data"] == {"a": "2"}


def test_a_stale_patch_is_refused(cluster: Cluster) -> None:
    version = cluster.create("configmaps", config_map("one"))[1]["metadata"]["resourceVersion"]
    stale = {"metadata": {"resourceVersion": version}, "data": {"a": "9"}}
    assert cluster.patch("configmaps", "one", {"data": {"a": "2"}})[0] == 200
    assert cluster.patch("configmaps", "one", stale)[0] == 409


def test_a_write_that_changes_nothing_makes_no_version(cluster: Cluster) -> None:
    first = cluster.create("configmaps", config_map("one"))[1]
    status, second = cluster.patch("configmaps", "one", {"data": {"a": "1"}})
    assert status == 200
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


def test_generation_counts_changes_of_the_spec_only(cluster: Cluster) -> None:
    made = cluster.create("deployments", deployment("web", replicas=0), api=APPS)[1]
    assert made["metadata"]["generation"] == 1
    labelled = cluster.patch("deployments", "web", {"metadata": {"labels": {"x": "y"}}}, api=APPS)[1]
    assert labelled["metadata"]["generation"] == 1
    changed = cluster.patch("deployments", "web", {"spec": {"minReadySeconds": 1}}, api=APPS)[1]
    assert changed["metadata"]["generation"] == 2


def test_a_write_to_the_object_leaves_its_status_alone(cluster: Cluster) -> None:
    cluster.create("deployments", deployment("web", replicas=0), api=APPS)
    changed = cluster.patch("deployments", "web", {"status": {"readyReplicas": 7}}, api=APPS)[1]
    assert changed.get("status", {}).get("readyReplicas", 0) == 0


# ---------------------------------------------------------------- patches


def test_merge_patch(cluster: Cluster) -> None:
    cluster.create("configmaps", config_map("one", {"a": "1", "b": "2"}))
    assert cluster.patch("configmaps", "one", {"data": {"a": None, "c": "3"}})[1]["data"] == {"b": "2", "c": "3"}


def test_json_patch(cluster: Cluster) -> None:
    cluster.create("configmaps", config_map("one", {"a": "1"}))
    change = [{"op": "test", "path": "/data/a", "value": "1"}, {"op": "add", "path": "/data/b", "value": "2"}]
    assert cluster.patch("configmaps", "one", change, form="json")[1]["data"] == {"a": "1", "b": "2"}
    failing = [{"op": "test", "path": "/data/a", "value": "other"}]
    assert cluster.patch("configmaps", "one", failing, form="json")[0] == 422


def test_strategic_merge_patch_merges_lists_by_key(cluster: Cluster) -> None:
    body = deployment("web", replicas=0)
    body["spec"]["template"]["spec"]["containers"].append({"name": "side", "image": "example.test/side:1"})
    cluster.create("deployments", body, api=APPS)
    change = {"spec": {"template": {"spec": {"containers": [{"name": "side", "image": "example.test/side:2"}]}}}}
    changed = cluster.patch("deployments", "web", change, api=APPS, form="strategic-merge")[1]
    images = {c["name"]: c["image"] for c in changed["spec"]["template"]["spec"]["containers"]}
    assert images == {"web": "example.test/web:1.0", "side": "example.test/side:2"}
    gone = {"spec": {"template": {"spec": {"containers": [{"name": "side", "$patch": "delete"}]}}}}
    changed = cluster.patch("deployments", "web", gone, api=APPS, form="strategic-merge")[1]
    assert [c["name"] for c in changed["spec"]["template"]["spec"]["containers"]] == ["web"]


def test_a_dry_run_changes_nothing(cluster: Cluster) -> None:
    status, made = cluster.create("configmaps", config_map("dry"), dryRun="All")
    assert (status, made["metadata"]["name"]) == (201, "dry")
    assert cluster.status("configmaps", "dry") == 404
    cluster.create("configmaps", config_map("one"))
    assert cluster.patch("configmaps", "one", {"data": {"a": "2"}}, dryRun="All")[1]["data"] == {"a": "2"}
    assert cluster.delete("configmaps", "one", dryRun="All")[0] == 200
    assert cluster.get("configmaps", "one")["data"] == {"a": "1"}


# ---------------------------------------------------------------- lists


def test_lists_are_selected_by_labels_and_fields(cluster: Cluster) -> None:
    for name, tier in (("a", "front"), ("b", "back"), ("c", "back")):
        cluster.create("configmaps", config_map(name, labels={"tier": tier, "mine": "yes"}))

    def names(**query: Any) -> list[str]:
        found = cluster.raw("GET", cluster.path("configmaps"), **query)[1]
        assert found["kind"] == "ConfigMapList"
        return [item["metadata"]["name"] for item in found["items"] if item["metadata"]["name"] != "kube-root-ca.crt"]

    assert names(labelSelector="tier=back") == ["b", "c"]
    assert names(labelSelector="tier in (front, back),mine") == ["a", "b", "c"]
    assert names(labelSelector="tier!=back,mine") == ["a"]
    assert names(labelSelector="!tier") == []
    assert names(labelSelector="tier notin (back),mine=yes") == ["a"]
    assert names(fieldSelector="metadata.name=b") == ["b"]
    assert cluster.raw("GET", cluster.path("configmaps"), fieldSelector="data.a=1")[0] == 400


def test_lists_come_in_pages(cluster: Cluster) -> None:
    for number in range(5):
        cluster.create("configmaps", config_map(f"page-{number}", labels={"paged": "yes"}))
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2, "labelSelector": "paged=yes"}
    while True:
        page = cluster.raw("GET", cluster.path("configmaps"), **query)[1]
        seen += [item["metadata"]["name"] for item in page["items"]]
        assert len(page["items"]) <= 2
        if not page["metadata"].get("continue"):
            break
        query["continue"] = page["metadata"]["continue"]
    assert seen == [f"page-{number}" for number in range(5)]


# ---------------------------------------------------------------- deletion


def test_deletion_answers_success_and_then_nothing_is_there(cluster: Cluster) -> None:
    uid = cluster.create("configmaps", config_map("one"))[1]["metadata"]["uid"]
    status, answer = cluster.delete("configmaps", "one")
    assert status == 200
    assert answer["status"] == "Success"
    assert answer["details"] == {"name": "one", "kind": "configmaps", "uid": uid}
    assert cluster.delete("configmaps", "one")[0] == 404


def test_preconditions_guard_deletion(cluster: Cluster) -> None:
    cluster.create("configmaps", config_map("one"))
    wrong = {"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}}
    status, refusal = cluster.delete("configmaps", "one", wrong)
    assert (status, refusal["reason"]) == (409, "Conflict")
    assert "does not match the UID in record" in refusal["message"]
    assert cluster.status("configmaps", "one") == 200


def test_a_collection_is_deleted_by_selector(cluster: Cluster) -> None:
    for name, label in (("a", "x"), ("b", "x"), ("c", "y")):
        cluster.create("configmaps", config_map(name, labels={"k": label}))
    assert cluster.raw("DELETE", cluster.path("configmaps"), labelSelector="k=x")[0] == 200
    cluster.eventually(lambda: cluster.status("configmaps", "a") == 404, "the collection is gone")
    assert cluster.status("configmaps", "c") == 200


def test_a_finalizer_holds_an_object(cluster: Cluster) -> None:
    cluster.create("configmaps", config_map("held", finalizers=["berth.example/hold"]))
    status, answer = cluster.delete("configmaps", "held")
    assert status == 200
    assert answer["metadata"]["deletionTimestamp"]
    assert cluster.status("configmaps", "held") == 200
    assert cluster.patch("configmaps", "held", {"metadata": {"finalizers": None}})[0] == 200
    assert cluster.status("configmaps", "held") == 404


@pytest.mark.parametrize("plural", ["pods", "configmaps", "services", "secrets"])
def test_every_list_says_its_version(cluster: Cluster, plural: str) -> None:
    found = cluster.raw("GET", cluster.path(plural))[1]
    assert int(found["metadata"]["resourceVersion"]) > 0
