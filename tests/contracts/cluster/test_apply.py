"""Server-side apply: ownership of single fields, and conflicts that name them (what P4 stands on)."""

from __future__ import annotations

import http.client
import ssl
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest

from tests.contracts.cluster.conftest import Cluster
from tests.contracts.cluster.manifests import config_map, deployment, service

APPS = "apis/apps/v1"


def _managers(obj: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(m["manager"], m["operation"]): m for m in obj["metadata"].get("managedFields", [])}


def test_the_first_apply_creates_the_next_changes_nothing(cluster: Cluster) -> None:
    status, made = cluster.apply("deployments", deployment("web", 0), api=APPS)
    assert status == 201
    status, again = cluster.apply("deployments", deployment("web", 0), api=APPS)
    assert status == 200
    assert again["metadata"]["uid"] == made["metadata"]["uid"]
    settled = cluster.eventually(lambda: _observed(cluster), "the deployment is observed")
    status, third = cluster.apply("deployments", deployment("web", 0), api=APPS)
    assert third["metadata"]["resourceVersion"] == settled["metadata"]["resourceVersion"]
    assert third["metadata"]["generation"] == 1


def _observed(cluster: Cluster) -> dict[str, Any] | None:
    found = cluster.get("deployments", "web", api=APPS)
    conditions = {c["type"]: c["status"] for c in found.get("status", {}).get("conditions", [])}
    return found if found["status"].get("observedGeneration") == 1 and conditions.get("Available") == "True" else None


def test_ownership_is_kept_by_leaf(cluster: Cluster) -> None:
    _, made = cluster.apply("deployments", deployment("web", 0), api=APPS)
    entry = _managers(made)[("berth", "Apply")]
    assert entry["apiVersion"] == "apps/v1"
    assert entry["fieldsType"] == "FieldsV1"
    fields = entry["fieldsV1"]
    assert fields["f:metadata"] == {"f:labels": {"f:app": {}}}
    assert fields["f:spec"]["f:replicas"] == {}
    assert fields["f:spec"]["f:selector"] == {}
    container = fields["f:spec"]["f:template"]["f:spec"]["f:containers"]['k:{"name":"web"}']
    assert container["."] == {}
    assert container["f:image"] == {}
    assert container["f:ports"]['k:{"containerPort":8080,"protocol":"TCP"}']["f:name"] == {}
    assert container["f:resources"]["f:limits"] == {"f:cpu": {}, "f:memory": {}}
    assert "f:imagePullPolicy" not in container


def test_a_change_to_anothers_field_conflicts_and_names_it(cluster: Cluster) -> None:
    cluster.apply("configmaps", config_map("one", {"a": "1", "b": "2"}), manager="theirs")
    status, refusal = cluster.apply("configmaps", config_map("one", {"a": "9"}))
    assert (status, refusal["reason"], refusal["code"]) == (409, "Conflict", 409)
    assert refusal["message"] == 'Apply failed with 1 conflict: conflict with "theirs": .data.a'
    assert refusal["details"]["causes"] == [
        {"reason": "FieldManagerConflict", "message": 'conflict with "theirs"', "field": ".data.a"}
    ]
    assert cluster.get("configmaps", "one")["data"] == {"a": "1", "b": "2"}


def test_every_conflict_is_listed(cluster: Cluster) -> None:
    cluster.apply("deployments", deployment("web", 0), api=APPS, manager="theirs")
    mine = deployment("web", 3)
    mine["spec"]["template"]["spec"]["containers"][0]["image"] = "example.test/web:2"
    status, refusal = cluster.apply("deployments", mine, api=APPS)
    assert status == 409
    assert {c["field"] for c in refusal["details"]["causes"]} == {
        ".spec.replicas",
        '.spec.template.spec.containers[name="web"].image',
    }
    assert refusal["message"].startswith('Apply failed with 2 conflicts: conflicts with "theirs":\n- .spec.replicas')


def test_force_takes_the_fields_that_are_applied_and_no_others(cluster: Cluster) -> None:
    cluster.apply("configmaps", config_map("one", {"a": "1", "b": "2"}), manager="theirs")
    status, forced = cluster.apply("configmaps", config_map("one", {"a": "9"}), force="true")
    assert status == 200
    assert forced["data"] == {"a": "9", "b": "2"}
    owners = _managers(forced)
    assert owners[("berth", "Apply")]["fieldsV1"] == {"f:data": {"f:a": {}}}
    assert owners[("theirs", "Apply")]["fieldsV1"] == {"f:data": {"f:b": {}}}


def test_equal_values_are_owned_together(cluster: Cluster) -> None:
    cluster.apply("configmaps", config_map("one", {"a": "1"}), manager="theirs")
    status, shared = cluster.apply("configmaps", config_map("one", {"a": "1"}))
    assert status == 200
    assert {who for who, _ in _managers(shared)} == {"theirs", "berth"}
    # One of two owners lets go: the value stays.
    _, left = cluster.apply("configmaps", config_map("one", {"z": "1"}), manager="theirs")
    assert left["data"] == {"a": "1", "z": "1"}


def test_what_is_no_longer_applied_is_removed(cluster: Cluster) -> None:
    cluster.apply("configmaps", config_map("one", {"a": "1", "b": "2"}, labels={"x": "y"}))
    _, changed = cluster.apply("configmaps", config_map("one", {"a": "1"}))
    assert changed["data"] == {"a": "1"}
    assert "labels" not in changed["metadata"]


def test_list_items_come_and_go_by_their_key(cluster: Cluster) -> None:
    body = deployment("web", 0)
    containers = body["spec"]["template"]["spec"]["containers"]
    containers.append({"name": "side", "image": "example.test/side:1"})
    cluster.apply("deployments", body, api=APPS)
    containers[0]["env"] = [{"name": "A", "value": "1"}]
    del containers[1]
    _, changed = cluster.apply("deployments", body, api=APPS)
    found = changed["spec"]["template"]["spec"]["containers"]
    assert [c["name"] for c in found] == ["web"]
    assert found[0]["env"] == [{"name": "A", "value": "1"}]
    assert found[0]["imagePullPolicy"] == "IfNotPresent"


def test_an_item_that_another_added_stays(cluster: Cluster) -> None:
    cluster.apply("services", service("web", "web"))
    extra = {"spec": {"ports": [{"name": "metrics", "port": 9000, "protocol": "TCP"}]}}
    status, _ = cluster.patch("services", "web", extra, form="strategic-merge", fieldManager="theirs")
    assert status == 200
    _, again = cluster.apply("services", service("web", "web"))
    assert sorted(p["name"] for p in again["spec"]["ports"]) == ["http", "metrics"]
    assert again["spec"]["clusterIP"]


def test_an_ordinary_write_takes_ownership(cluster: Cluster) -> None:
    cluster.apply("deployments", deployment("web", 0), api=APPS)
    cluster.patch("deployments", "web", {"spec": {"replicas": 0, "minReadySeconds": 2}}, api=APPS, fieldManager="hand")
    cluster.patch("deployments", "web", {"spec": {"paused": True, "replicas": 1}}, api=APPS, fieldManager="hand")
    status, refusal = cluster.apply("deployments", deployment("web", 0), api=APPS)
    assert status == 409
    cause = refusal["details"]["causes"][0]
    assert cause["field"] == ".spec.replicas"
    assert cause["message"].startswith('conflict with "hand" using apps/v1')
    # Without the field there is nothing to quarrel about, and the other's value stays.
    mine = deployment("web", 0)
    del mine["spec"]["replicas"]
    status, kept = cluster.apply("deployments", mine, api=APPS)
    assert (status, kept["spec"]["replicas"]) == (200, 1)


def test_scaling_belongs_to_whoever_scales(cluster: Cluster) -> None:
    cluster.apply("deployments", deployment("web", 0), api=APPS)
    status, scale = cluster.patch(
        "deployments", "web", {"spec": {"replicas": 1}}, api=APPS, sub="scale", fieldManager="autoscaler"
    )
    assert (status, scale["kind"], scale["spec"]["replicas"]) == (200, "Scale", 1)
    status, refusal = cluster.apply("deployments", deployment("web", 0), api=APPS)
    assert status == 409
    assert 'conflict with "autoscaler" with subresource "scale" using apps/v1' in refusal["message"]


def test_a_scale_patch_whose_body_is_slow_goes_upon_what_stands_when_it_arrived(cluster: Cluster) -> None:
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
        answer = line.getresponse()
        assert (answer.status, orjson.loads(answer.read())["spec"]["replicas"]) == (200, 1)
    assert cluster.get("deployments", "web", api=APPS)["metadata"]["labels"]["turn"] == "4"


def test_a_dry_run_shows_the_drift_and_leaves_it(cluster: Cluster) -> None:
    cluster.apply("configmaps", config_map("one", {"a": "1"}))
    cluster.patch("configmaps", "one", {"data": {"a": "drifted", "extra": "x"}}, fieldManager="hand")
    status, shown = cluster.apply("configmaps", config_map("one", {"a": "1"}), dryRun="All", force="true")
    assert (status, shown["data"]) == (200, {"a": "1", "extra": "x"})
    assert cluster.get("configmaps", "one")["data"] == {"a": "drifted", "extra": "x"}


def test_what_others_keep_in_metadata_stays(cluster: Cluster) -> None:
    cluster.apply("configmaps", config_map("one", labels={"mine": "1"}))
    theirs = {"metadata": {"annotations": {"note": "n"}, "finalizers": ["x.example/hold"]}}
    cluster.patch("configmaps", "one", theirs, fieldManager="theirs")
    _, again = cluster.apply("configmaps", config_map("one", labels={"mine": "2"}))
    assert again["metadata"]["labels"] == {"mine": "2"}
    assert again["metadata"]["annotations"] == {"note": "n"}
    assert again["metadata"]["finalizers"] == ["x.example/hold"]
    cluster.patch("configmaps", "one", {"metadata": {"finalizers": None}})


def test_unknown_and_ill_typed_fields_are_refused(cluster: Cluster) -> None:
    status, refusal = cluster.apply("configmaps", config_map("one") | {"dta": {}})
    # Not 400, though it can never succeed: whoever retries 5xx must know this message.
    assert (status, refusal.get("reason", "")) == (500, "")
    assert refusal["message"] == (
        "failed to create typed patch object (/one; /v1, Kind=ConfigMap): .dta: field not declared in schema"
    )
    wrong = deployment("web", 0)
    wrong["spec"]["replicas"] = "many"
    status, refusal = cluster.apply("deployments", wrong, api=APPS)
    assert status == 500
    assert ".spec.replicas: expected numeric (int or float), got string" in refusal["message"]
    twice = deployment("web", 0, container={"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]})
    status, refusal = cluster.apply("deployments", twice, api=APPS)
    assert status == 500
    assert 'containers[name="web"].env: duplicate entries for key [name="A"]' in refusal["message"]


@pytest.mark.parametrize("missing", ["fieldManager"])
def test_apply_needs_a_manager(cluster: Cluster, missing: str) -> None:
    status, refusal, _ = cluster.raw(
        "PATCH", cluster.path("configmaps", "one"), config_map("one"), kind="application/apply-patch+yaml"
    )
    assert (status, refusal["reason"]) == (422, "Invalid")
    assert f"{missing}: Required value: is required for apply patch" in refusal["message"]


def test_managed_fields_may_not_be_applied(cluster: Cluster) -> None:
    body = config_map("one", managedFields=[{"manager": "x"}])
    status, refusal = cluster.apply("configmaps", body)
    assert (status, refusal["reason"]) == (400, "BadRequest")
    assert "metadata.managedFields must be nil" in refusal["message"]


def test_an_apply_must_be_of_the_kind_it_is_sent_to(cluster: Cluster) -> None:
    status, refusal = cluster.apply("configmaps", config_map("one") | {"kind": "Secret"})
    assert (status, refusal["reason"]) == (400, "BadRequest")
    assert refusal["message"] == "invalid object type: /v1, Kind=Secret"


def test_a_bad_quantity_is_found_after_the_merge(cluster: Cluster) -> None:
    body = deployment("web", 0, container={"resources": {"requests": {"cpu": "a lot"}}})
    status, refusal = cluster.apply("deployments", body, api=APPS)
    assert status == 500
    assert refusal["message"].startswith("failed to convert new object (/web; apps/v1, Kind=Deployment)")
    assert "quantities must match the regular expression" in refusal["message"]


def test_apply_with_a_stale_version_is_refused(cluster: Cluster) -> None:
    _, made = cluster.apply("configmaps", config_map("one", {"a": "1"}))
    cluster.apply("configmaps", config_map("one", {"a": "2"}))
    stale = config_map("one", {"a": "3"}, resourceVersion=made["metadata"]["resourceVersion"])
    status, refusal = cluster.apply("configmaps", stale)
    assert (status, refusal["reason"]) == (409, "Conflict")
    assert "the object has been modified" in refusal["message"]
