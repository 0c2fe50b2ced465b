"""Server-side apply: ownership of single fields, and conflicts that name them (what P4 stands on)."""

from __future__ import annotations

import http.client
import ssl
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest

from tests.contracts.cluster.conftest import ClusterFixture
from tests.contracts.cluster.manifests import config_map, deployment, service

APPS = "apis/apps/v1"


def _managers(obj: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(m["manager"], m["operation"]): m for m in obj["metadata"].get("managedFields", [])}


def test_a_repeated_apply_changes_nothing(cluster: ClusterFixture) -> None:
    status, created = cluster.apply("deployments", deployment("web", 0), api=APPS)
    assert status == 201
    status, applied = cluster.apply("deployments", deployment("web", 0), api=APPS)
    assert status == 200
    assert applied["metadata"]["uid"] == created["metadata"]["uid"]
    settled = cluster.eventually(lambda: _observed(cluster), "the deployment is observed")
    status, third = cluster.apply("deployments", deployment("web", 0), api=APPS)
    assert third["metadata"]["resourceVersion"] == settled["metadata"]["resourceVersion"]
    assert third["metadata"]["generation"] == 1


def _observed(cluster: ClusterFixture) -> dict[str, Any] | None:
    deployment = cluster.get("deployments", "web", api=APPS)
    conditions = {c["type"]: c["status"] for c in deployment.get("status", {}).get("conditions", [])}
    return (
        deployment
        if deployment["status"].get("observedGeneration") == 1 and conditions.get("Available") == "True"
        else None
    )


def test_applying_a_field_of_another_manager_is_a_conflict_that_names_it(cluster: ClusterFixture) -> None:
    cluster.apply("configmaps", config_map("one", {"a": "1", "b": "2"}), manager="theirs")
    status, error = cluster.apply("configmaps", config_map("one", {"a": "9"}))
    assert (status, error["reason"], error["code"]) == (409, "Conflict", 409)
    assert error["message"] == 'Apply failed with 1 conflict: conflict with "theirs": .data.a'
    assert error["details"]["causes"] == [
        {"reason": "FieldManagerConflict", "message": 'conflict with "theirs"', "field": ".data.a"}
    ]
    assert cluster.get("configmaps", "one")["data"] == {"a": "1", "b": "2"}


def test_every_conflict_is_listed(cluster: ClusterFixture) -> None:
    cluster.apply("deployments", deployment("web", 0), api=APPS, manager="theirs")
    mine = deployment("web", 3)
    mine["spec"]["template"]["spec"]["containers"][0]["image"] = "example.test/web:2"
    status, error = cluster.apply("deployments", mine, api=APPS)
    assert status == 409
    assert {c["field"] for c in error["details"]["causes"]} == {
        ".spec.replicas",
        '.spec.template.spec.containers[name="web"].image',
    }
    assert error["message"].startswith("Apply failed with 2 conflicts")


def test_force_takes_the_fields_that_are_applied_and_no_others(cluster: ClusterFixture) -> None:
    cluster.apply("configmaps", config_map("one", {"a": "1", "b": "2"}), manager="theirs")
    status, forced = cluster.apply("configmaps", config_map("one", {"a": "9"}), force="true")
    assert status == 200
    assert forced["data"] == {"a": "9", "b": "2"}
    owners = _managers(forced)
    assert owners[("berth", "Apply")]["fieldsV1"] == {"f:data": {"f:a": {}}}
    assert owners[("theirs", "Apply")]["fieldsV1"] == {"f:data": {"f:b": {}}}


def test_equal_values_are_owned_together(cluster: ClusterFixture) -> None:
    cluster.apply("configmaps", config_map("one", {"a": "1"}), manager="theirs")
    status, shared = cluster.apply("configmaps", config_map("one", {"a": "1"}))
    assert status == 200
    assert {who for who, _ in _managers(shared)} == {"theirs", "berth"}
    # One of two owners lets go: the value stays.
    _, remaining = cluster.apply("configmaps", config_map("one", {"z": "1"}), manager="theirs")
    assert remaining["data"] == {"a": "1", "z": "1"}


def test_fields_that_are_no_longer_applied_are_removed(cluster: ClusterFixture) -> None:
    cluster.apply("configmaps", config_map("one", {"a": "1", "b": "2"}, labels={"x": "y"}))
    _, changed = cluster.apply("configmaps", config_map("one", {"a": "1"}))
    assert changed["data"] == {"a": "1"}
    assert "labels" not in changed["metadata"]


def test_list_items_are_added_and_removed_by_key(cluster: ClusterFixture) -> None:
    body = deployment("web", 0)
    containers = body["spec"]["template"]["spec"]["containers"]
    containers.append({"name": "side", "image": "example.test/side:1"})
    cluster.apply("deployments", body, api=APPS)
    containers[0]["env"] = [{"name": "A", "value": "1"}]
    del containers[1]
    _, changed = cluster.apply("deployments", body, api=APPS)
    applied = changed["spec"]["template"]["spec"]["containers"]
    assert [c["name"] for c in applied] == ["web"]
    assert applied[0]["env"] == [{"name": "A", "value": "1"}]
    assert applied[0]["imagePullPolicy"] == "IfNotPresent"


def test_an_item_that_another_added_stays(cluster: ClusterFixture) -> None:
    cluster.apply("services", service("web", "web"))
    extra = {"spec": {"ports": [{"name": "metrics", "port": 9000, "protocol": "TCP"}]}}
    status, _ = cluster.patch("services", "web", extra, form="strategic-merge", fieldManager="theirs")
    assert status == 200
    _, applied = cluster.apply("services", service("web", "web"))
    assert sorted(p["name"] for p in applied["spec"]["ports"]) == ["http", "metrics"]
    assert applied["spec"]["clusterIP"]


def test_an_ordinary_write_takes_ownership(cluster: ClusterFixture) -> None:
    cluster.apply("deployments", deployment("web", 0), api=APPS)
    cluster.patch("deployments", "web", {"spec": {"replicas": 0, "minReadySeconds": 2}}, api=APPS, fieldManager="hand")
    cluster.patch("deployments", "web", {"spec": {"paused": True, "replicas": 1}}, api=APPS, fieldManager="hand")
    status, error = cluster.apply("deployments", deployment("web", 0), api=APPS)
    assert status == 409
    cause = error["details"]["causes"][0]
    assert cause["field"] == ".spec.replicas"
    assert cause["message"].startswith('conflict with "hand" using apps/v1')
    # Without the field there is nothing to quarrel about, and the other's value stays.
    mine = deployment("web", 0)
    del mine["spec"]["replicas"]
    status, applied = cluster.apply("deployments", mine, api=APPS)
    assert (status, applied["spec"]["replicas"]) == (200, 1)


def test_replicas_belong_to_the_manager_that_scaled(cluster: ClusterFixture) -> None:
    cluster.apply("deployments", deployment("web", 0), api=APPS)
    status, scale = cluster.patch(
        "deployments", "web", {"spec": {"replicas": 1}}, api=APPS, sub="scale", fieldManager="autoscaler"
    )
    assert (status, scale["kind"], scale["spec"]["replicas"]) == (200, "Scale", 1)
    status, error = cluster.apply("deployments", deployment("web", 0), api=APPS)
    assert status == 409
    assert 'conflict with "autoscaler" with subresource "scale" using apps/v1' in error["message"]


def test_a_slow_scale_patch_applies_to_the_object_at_its_arrival(cluster: ClusterFixture) -> None:
    cluster.apply("deployments", deployment("web", 0), api=APPS)
    settings = cluster.client.configuration
    url = urlsplit(settings.host)
    assert url.hostname
    trust = ssl.create_default_context(cafile=settings.ssl_ca_cert)
    body = orjson.dumps({"spec": {"replicas": 1}})
    with closing(http.client.HTTPSConnection(url.hostname, url.port, context=trust, timeout=30)) as line:
        line.putrequest("PATCH", cluster.path("deployments", "web", "scale", api=APPS))
        line.putheader("Authorization", settings.auth_settings()["BearerToken"]["value"])
        line.putheader("Content-Type", "application/merge-patch+json")
        line.putheader("Content-Length", str(len(body)))
        line.endheaders()
        # Several writes, so that one of them falls after the request was taken up and before its body is there.
        for number in range(5):
            status, _ = cluster.patch("deployments", "web", {"metadata": {"labels": {"turn": str(number)}}}, api=APPS)
            assert status == 200
        line.send(body)
        response = line.getresponse()
        assert (response.status, orjson.loads(response.read())["spec"]["replicas"]) == (200, 1)
    assert cluster.get("deployments", "web", api=APPS)["metadata"]["labels"]["turn"] == "4"


def test_a_dry_run_returns_the_drift_without_changing_it(cluster: ClusterFixture) -> None:
    cluster.apply("configmaps", config_map("one", {"a": "1"}))
    cluster.patch("configmaps", "one", {"data": {"a": "drifted", "extra": "x"}}, fieldManager="hand")
    status, preview = cluster.apply("configmaps", config_map("one", {"a": "1"}), dryRun="All", force="true")
    assert (status, preview["data"]) == (200, {"a": "1", "extra": "x"})
    assert cluster.get("configmaps", "one")["data"] == {"a": "drifted", "extra": "x"}


def test_metadata_of_other_managers_stays(cluster: ClusterFixture) -> None:
    cluster.apply("configmaps", config_map("one", labels={"mine": "1"}))
    theirs = {"metadata": {"annotations": {"note": "n"}, "finalizers": ["x.example/hold"]}}
    cluster.patch("configmaps", "one", theirs, fieldManager="theirs")
    _, applied = cluster.apply("configmaps", config_map("one", labels={"mine": "2"}))
    assert applied["metadata"]["labels"] == {"mine": "2"}
    assert applied["metadata"]["annotations"] == {"note": "n"}
    assert applied["metadata"]["finalizers"] == ["x.example/hold"]
    cluster.patch("configmaps", "one", {"metadata": {"finalizers": None}})


@pytest.mark.parametrize("missing", ["fieldManager"])
def test_apply_needs_a_manager(cluster: ClusterFixture, missing: str) -> None:
    status, error, _ = cluster.raw(
        "PATCH", cluster.path("configmaps", "one"), config_map("one"), kind="application/apply-patch+yaml"
    )
    assert (status, error["reason"]) == (422, "Invalid")
    assert f"{missing}: Required value: is required for apply patch" in error["message"]


def test_managed_fields_may_not_be_applied(cluster: ClusterFixture) -> None:
    body = config_map("one", managedFields=[{"manager": "x"}])
    status, error = cluster.apply("configmaps", body)
    assert (status, error["reason"]) == (400, "BadRequest")
    assert "metadata.managedFields must be nil" in error["message"]


def test_an_apply_of_another_kind_than_its_path_is_rejected(cluster: ClusterFixture) -> None:
    status, error = cluster.apply("configmaps", config_map("one") | {"kind": "Secret"})
    assert (status, error["reason"]) == (400, "BadRequest")
    assert error["message"] == "invalid object type: /v1, Kind=Secret"


def test_apply_with_a_stale_version_is_refused(cluster: ClusterFixture) -> None:
    _, created = cluster.apply("configmaps", config_map("one", {"a": "1"}))
    cluster.apply("configmaps", config_map("one", {"a": "2"}))
    stale = config_map("one", {"a": "3"}, resourceVersion=created["metadata"]["resourceVersion"])
    status, error = cluster.apply("configmaps", stale)
    assert (status, error["reason"]) == (409, "Conflict")
    assert "the object has been modified" in error["message"]
