"""Objects and verbs: what is answered, and how refusals look."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contracts.cluster.conftest import ClusterFixture
from tests.contracts.cluster.manifests import config_map, deployment

APPS, BATCH = "apis/apps/v1", "apis/batch/v1"


def test_a_created_object_has_its_identity(cluster: ClusterFixture) -> None:
    status, created = cluster.create("configmaps", config_map("one", labels={"berth/instance": "i1"}))
    assert status == 201
    meta = created["metadata"]
    assert {"uid", "resourceVersion", "creationTimestamp"} <= meta.keys()
    assert cluster.get("configmaps", "one") == created


def test_creating_twice_is_refused(cluster: ClusterFixture) -> None:
    cluster.create("configmaps", config_map("one"))
    status, error = cluster.create("configmaps", config_map("one"))
    assert status == 409
    assert error["kind"] == "Status"
    assert error["reason"] == "AlreadyExists"
    assert error["message"] == 'configmaps "one" already exists'
    assert error["details"] == {"name": "one", "kind": "configmaps"}
    assert error["code"] == 409


def test_a_missing_object_is_not_found(cluster: ClusterFixture) -> None:
    status, error, _ = cluster.raw("GET", cluster.path("deployments", "none", api=APPS))
    assert (status, error["reason"]) == (404, "NotFound")
    assert error["message"] == 'deployments.apps "none" not found'
    assert error["details"] == {"name": "none", "group": "apps", "kind": "deployments"}


def test_a_missing_namespace_is_not_found(cluster: ClusterFixture) -> None:
    status, error, _ = cluster.raw("POST", "/api/v1/namespaces/nowhere-at-all/configmaps", config_map("one"))
    assert (status, error["reason"]) == (404, "NotFound")
    assert error["message"] == 'namespaces "nowhere-at-all" not found'


def test_requests_without_a_valid_token_are_unauthorized(cluster: ClusterFixture) -> None:
    for header in ("", "Bearer wrong"):
        status, error, _ = cluster.raw("GET", "/api/v1/pods", headers={"Authorization": header})
        assert status in (401, 403)
        if header:
            assert (status, error["reason"]) == (401, "Unauthorized")


def test_an_unknown_kind_is_not_found(cluster: ClusterFixture) -> None:
    assert cluster.raw("GET", cluster.path("gizmos"))[0] == 404
    assert cluster.raw("GET", "/apis/nobody.example/v1/things")[0] == 404


def test_generated_names_are_distinct(cluster: ClusterFixture) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "made-"}}
    names = {cluster.create("configmaps", body)[1]["metadata"]["name"] for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("made-") and len(name) == 10 for name in names)


# ---------------------------------------------------------------- concurrency


def test_a_stale_replacement_is_refused(cluster: ClusterFixture) -> None:
    first = cluster.create("configmaps", config_map("one"))[1]
    path = cluster.path("configmaps", "one")
    assert cluster.raw("PUT", path, {**first, "data": {"a": "2"}})[0] == 200
    status, error, _ = cluster.raw("PUT", path, {**first, "data": {"a": "3"}})
    assert (status, error["reason"]) == (409, "Conflict")
    assert error["message"] == (
        'Operation cannot be fulfilled on configmaps "one": the object has been modified; please apply your changes to '
        "the latest version and try again"
    )
    assert cluster.get("configmaps", "one")["data"] == {"a": "2"}


def test_a_stale_patch_is_refused(cluster: ClusterFixture) -> None:
    version = cluster.create("configmaps", config_map("one"))[1]["metadata"]["resourceVersion"]
    stale = {"metadata": {"resourceVersion": version}, "data": {"a": "9"}}
    assert cluster.patch("configmaps", "one", {"data": {"a": "2"}})[0] == 200
    assert cluster.patch("configmaps", "one", stale)[0] == 409


def test_a_write_that_changes_nothing_makes_no_version(cluster: ClusterFixture) -> None:
    first = cluster.create("configmaps", config_map("one"))[1]
    status, second = cluster.patch("configmaps", "one", {"data": {"a": "1"}})
    assert status == 200
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


def test_generation_counts_changes_of_the_spec_only(cluster: ClusterFixture) -> None:
    created = cluster.create("deployments", deployment("web", replicas=0), api=APPS)[1]
    assert created["metadata"]["generation"] == 1
    labelled = cluster.patch("deployments", "web", {"metadata": {"labels": {"x": "y"}}}, api=APPS)[1]
    assert labelled["metadata"]["generation"] == 1
    changed = cluster.patch("deployments", "web", {"spec": {"minReadySeconds": 1}}, api=APPS)[1]
    assert changed["metadata"]["generation"] == 2


def test_a_write_to_the_object_leaves_its_status_alone(cluster: ClusterFixture) -> None:
    cluster.create("deployments", deployment("web", replicas=0), api=APPS)
    changed = cluster.patch("deployments", "web", {"status": {"readyReplicas": 7}}, api=APPS)[1]
    assert changed.get("status", {}).get("readyReplicas", 0) == 0


# ---------------------------------------------------------------- patches


def test_merge_patch(cluster: ClusterFixture) -> None:
    cluster.create("configmaps", config_map("one", {"a": "1", "b": "2"}))
    assert cluster.patch("configmaps", "one", {"data": {"a": None, "c": "3"}})[1]["data"] == {"b": "2", "c": "3"}


def test_strategic_merge_patch_merges_lists_by_key(cluster: ClusterFixture) -> None:
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


def test_a_dry_run_changes_nothing(cluster: ClusterFixture) -> None:
    status, created = cluster.create("configmaps", config_map("dry"), dryRun="All")
    assert (status, created["metadata"]["name"]) == (201, "dry")
    assert cluster.status("configmaps", "dry") == 404
    cluster.create("configmaps", config_map("one"))
    assert cluster.patch("configmaps", "one", {"data": {"a": "2"}}, dryRun="All")[1]["data"] == {"a": "2"}
    assert cluster.delete("configmaps", "one", dryRun="All")[0] == 200
    assert cluster.get("configmaps", "one")["data"] == {"a": "1"}


# ---------------------------------------------------------------- lists


def test_lists_are_selected_by_labels_and_fields(cluster: ClusterFixture) -> None:
    for name, tier in (("a", "front"), ("b", "back"), ("c", "back")):
        cluster.create("configmaps", config_map(name, labels={"tier": tier, "mine": "yes"}))

    def names(**query: Any) -> list[str]:
        config_maps = cluster.raw("GET", cluster.path("configmaps"), **query)[1]
        assert config_maps["kind"] == "ConfigMapList"
        return [
            item["metadata"]["name"] for item in config_maps["items"] if item["metadata"]["name"] != "kube-root-ca.crt"
        ]

    assert names(labelSelector="tier=back") == ["b", "c"]
    assert names(labelSelector="tier in (front, back),mine") == ["a", "b", "c"]
    assert names(labelSelector="tier!=back,mine") == ["a"]
    assert names(labelSelector="!tier") == []
    assert names(labelSelector="tier notin (back),mine=yes") == ["a"]
    assert names(fieldSelector="metadata.name=b") == ["b"]
    assert cluster.raw("GET", cluster.path("configmaps"), fieldSelector="data.a=1")[0] == 400


def test_lists_come_in_pages(cluster: ClusterFixture) -> None:
    for number in range(5):
        cluster.create("configmaps", config_map(f"page-{number}", labels={"paged": "yes"}))
    names: list[str] = []
    query: dict[str, Any] = {"limit": 2, "labelSelector": "paged=yes"}
    while True:
        page = cluster.raw("GET", cluster.path("configmaps"), **query)[1]
        names += [item["metadata"]["name"] for item in page["items"]]
        assert len(page["items"]) <= 2
        if not page["metadata"].get("continue"):
            break
        query["continue"] = page["metadata"]["continue"]
    assert names == [f"page-{number}" for number in range(5)]


# ---------------------------------------------------------------- deletion


def test_a_deleted_object_is_not_found(cluster: ClusterFixture) -> None:
    uid = cluster.create("configmaps", config_map("one"))[1]["metadata"]["uid"]
    status, content = cluster.delete("configmaps", "one")
    assert status == 200
    assert content["status"] == "Success"
    assert content["details"] == {"name": "one", "kind": "configmaps", "uid": uid}
    assert cluster.delete("configmaps", "one")[0] == 404


def test_preconditions_guard_deletion(cluster: ClusterFixture) -> None:
    cluster.create("configmaps", config_map("one"))
    wrong = {"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}}
    status, error = cluster.delete("configmaps", "one", wrong)
    assert (status, error["reason"]) == (409, "Conflict")
    assert "does not match the UID in record" in error["message"]
    assert cluster.status("configmaps", "one") == 200


def test_a_collection_is_deleted_by_selector(cluster: ClusterFixture) -> None:
    for name, label in (("a", "x"), ("b", "x"), ("c", "y")):
        cluster.create("configmaps", config_map(name, labels={"k": label}))
    assert cluster.raw("DELETE", cluster.path("configmaps"), labelSelector="k=x")[0] == 200
    cluster.eventually(lambda: cluster.status("configmaps", "a") == 404, "the collection is gone")
    assert cluster.status("configmaps", "c") == 200


def test_a_finalizer_holds_an_object(cluster: ClusterFixture) -> None:
    cluster.create("configmaps", config_map("held", finalizers=["berth.example/hold"]))
    status, content = cluster.delete("configmaps", "held")
    assert status == 200
    assert content["metadata"]["deletionTimestamp"]
    assert cluster.status("configmaps", "held") == 200
    assert cluster.patch("configmaps", "held", {"metadata": {"finalizers": None}})[0] == 200
    assert cluster.status("configmaps", "held") == 404


@pytest.mark.parametrize("plural", ["pods", "configmaps", "services", "secrets"])
def test_every_list_has_a_resource_version(cluster: ClusterFixture, plural: str) -> None:
    objects = cluster.raw("GET", cluster.path(plural))[1]
    assert int(objects["metadata"]["resourceVersion"]) > 0
