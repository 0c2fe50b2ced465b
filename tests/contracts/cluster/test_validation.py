"""What the API makes of objects' contents: refusals name the field, immutable fields stay, defaults are filled in."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contracts.cluster.conftest import Cluster
from tests.contracts.cluster.manifests import claim, config_map, deployment, job, pod, service

APPS, BATCH = "apis/apps/v1", "apis/batch/v1"


def _without(obj: dict[str, Any], *path: Any) -> dict[str, Any]:
    inner: Any = obj
    for step in path[:-1]:
        inner = inner[step]
    del inner[path[-1]]
    return obj


def _with(obj: dict[str, Any], value: Any, *path: Any) -> dict[str, Any]:
    inner: Any = obj
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return obj


CONTAINER = ("spec", "template", "spec", "containers", 0)


@pytest.mark.parametrize(
    ("plural", "api", "obj", "field", "text"),
    [
        ("configmaps", "api/v1", config_map("Not_Valid"), "metadata.name", "RFC 1123"),
        ("configmaps", "api/v1", config_map("one", labels={"k": "not valid!"}), "metadata.labels", "a valid label"),
        ("configmaps", "api/v1", config_map("one", {"no spaces": "x"}), "data[no spaces]", "a valid config key"),
        ("deployments", APPS, _without(deployment("web"), "spec", "selector"), "spec.selector", "Required value"),
        (
            "deployments",
            APPS,
            _with(deployment("web"), {"app": "other"}, "spec", "template", "metadata", "labels"),
            "spec.template.metadata.labels",
            "`selector` does not match template `labels`",
        ),
        (
            "deployments",
            APPS,
            _with(deployment("web"), [], "spec", "template", "spec", "containers"),
            "spec.template.spec.containers",
            "Required value",
        ),
        (
            "deployments",
            APPS,
            _without(deployment("web"), *CONTAINER, "image"),
            "spec.template.spec.containers[0].image",
            "Required value",
        ),
        (
            "deployments",
            APPS,
            _without(deployment("web"), *CONTAINER, "name"),
            "spec.template.spec.containers[0].name",
            "Required value",
        ),
        (
            "deployments",
            APPS,
            _with(deployment("web"), -1, "spec", "replicas"),
            "spec.replicas",
            "must be greater than or equal to 0",
        ),
        (
            "deployments",
            APPS,
            _with(deployment("web"), [{"name": "data", "mountPath": "/data"}], *CONTAINER, "volumeMounts"),
            "spec.template.spec.containers[0].volumeMounts[0].name",
            'Not found: "data"',
        ),
        (
            "deployments",
            APPS,
            _with(deployment("web"), [{"containerPort": 70000}], *CONTAINER, "ports"),
            "spec.template.spec.containers[0].ports[0].containerPort",
            "must be between 1 and 65535, inclusive",
        ),
        (
            "deployments",
            APPS,
            _with(deployment("web"), {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}, *CONTAINER, "resources"),
            "spec.template.spec.containers[0].resources.requests",
            "must be less than or equal to cpu limit of 1",
        ),
        (
            "jobs",
            BATCH,
            _with(job("run"), "Always", "spec", "template", "spec", "restartPolicy"),
            "spec.template.spec.restartPolicy",
            'Required value: valid values: "OnFailure", "Never"',
        ),
        ("services", "api/v1", _with(service("web", "web"), [], "spec", "ports"), "spec.ports", "Required value"),
        (
            "services",
            "api/v1",
            _with(service("web", "web"), 0, "spec", "ports", 0, "port"),
            "spec.ports[0].port",
            "must be between 1 and 65535",
        ),
        (
            "persistentvolumeclaims",
            "api/v1",
            claim("data", accessModes=[]),
            "spec.accessModes",
            "at least 1 access mode",
        ),
        ("persistentvolumeclaims", "api/v1", claim("data", resources={}), "spec.resources[storage]", "Required value"),
    ],
)
def test_invalid_objects_name_the_field(
    cluster: Cluster, plural: str, api: str, obj: dict[str, Any], field: str, text: str
) -> None:
    status, refusal = cluster.create(plural, obj, api=api)
    assert (status, refusal["reason"]) == (422, "Invalid"), refusal
    causes = [c for c in refusal["details"]["causes"] if c["field"] == field]
    assert causes, refusal["details"]["causes"]
    assert any(text in c["message"] for c in causes)
    assert f'"{obj["metadata"]["name"]}" is invalid' in refusal["message"]
    assert field in refusal["message"]


@pytest.mark.parametrize(
    ("obj", "text"),
    [
        (_with(deployment("web"), "three", "spec", "replicas"), "cannot unmarshal string into Go struct field"),
        (_with(deployment("web"), {"requests": {"cpu": "a lot"}}, *CONTAINER, "resources"), "quantities must match"),
        (
            _with(deployment("web"), 5, *CONTAINER, "image"),
            "Container.spec.template.spec.containers.image of type string",
        ),
        ({**deployment("web"), "kind": "StatefulSet"}, "StatefulSet"),
        ({**deployment("web"), "apiVersion": "v1"}, "v1"),
    ],
)
def test_malformed_objects_are_bad_requests(cluster: Cluster, obj: dict[str, Any], text: str) -> None:
    status, refusal = cluster.create("deployments", obj, api=APPS)
    assert (status, refusal["reason"]) == (400, "BadRequest"), refusal
    assert text in refusal["message"]


def test_unknown_fields_warn_or_fail_as_asked(cluster: Cluster) -> None:
    obj = config_map("one") | {"dta": {"a": "1"}}
    status, refusal = cluster.create("configmaps", obj, fieldValidation="Strict")
    assert (status, refusal["reason"]) == (400, "BadRequest")
    assert 'unknown field "dta"' in refusal["message"]
    status, made, headers = cluster.raw("POST", cluster.path("configmaps"), obj)
    assert status == 201
    assert "dta" not in made
    assert headers["Warning"] == '299 - "unknown field \\"dta\\""'


@pytest.mark.parametrize(
    ("plural", "api", "obj", "change", "text"),
    [
        (
            "deployments",
            APPS,
            deployment("web", 0),
            {"spec": {"selector": {"matchLabels": {"app": "b"}}, "template": {"metadata": {"labels": {"app": "b"}}}}},
            "field is immutable",
        ),
        (
            "jobs",
            BATCH,
            job("run", spec={"suspend": True}),
            {"spec": {"completionMode": "Indexed"}},
            "field is immutable",
        ),
        (
            "persistentvolumeclaims",
            "api/v1",
            claim("data"),
            {"spec": {"accessModes": ["ReadWriteMany"]}},
            "spec is immutable after creation",
        ),
        (
            "services",
            "api/v1",
            service("web", "web"),
            {"spec": {"clusterIP": "10.96.200.200", "clusterIPs": ["10.96.200.200"]}},
            "may not change once set",
        ),
    ],
)
def test_immutable_fields_stay(
    cluster: Cluster, plural: str, api: str, obj: dict[str, Any], change: dict[str, Any], text: str
) -> None:
    assert cluster.create(plural, obj, api=api)[0] == 201
    status, refusal = cluster.patch(plural, obj["metadata"]["name"], change, api=api)
    assert (status, refusal["reason"]) == (422, "Invalid"), refusal
    assert text in refusal["message"]


def test_a_name_that_does_not_match_the_path(cluster: Cluster) -> None:
    cluster.create("configmaps", config_map("one"))
    status, refusal, _ = cluster.raw("PUT", cluster.path("configmaps", "one"), config_map("two"))
    assert status == 400
    assert "the name of the object (two) does not match the name on the URL (one)" in refusal["message"]


def test_secrets_take_plain_strings_and_keep_their_type(cluster: Cluster) -> None:
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"a": "hello"}}
    made = cluster.create("secrets", body)[1]
    assert made["data"] == {"a": "aGVsbG8="}
    assert "stringData" not in made
    assert made["type"] == "Opaque"
    status, refusal = cluster.patch("secrets", "s", {"type": "kubernetes.io/tls"})
    assert (status, refusal["reason"]) == (422, "Invalid")


def test_secrets_must_be_base64(cluster: Cluster) -> None:
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "not base64!"}}
    status, refusal = cluster.create("secrets", body)
    assert (status, refusal["reason"]) == (400, "BadRequest")
    assert refusal["message"] == (
        'Secret in version "v1" cannot be handled as a Secret: illegal base64 data at input byte 3'
    )


def test_names_of_services_may_begin_with_a_digit(cluster: Cluster) -> None:
    assert cluster.create("services", service("1web", "web"))[0] == 201
    status, refusal = cluster.create("services", service("a.b", "web"))
    assert (status, refusal["details"]["causes"][0]["message"]) == (422, 'Invalid value: "a.b": must not contain dots')


def test_defaults_are_filled_in(cluster: Cluster) -> None:
    made = cluster.create("deployments", deployment("web", replicas=0), api=APPS)[1]
    spec = made["spec"]
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}
    assert (spec["revisionHistoryLimit"], spec["progressDeadlineSeconds"]) == (10, 600)
    inner = spec["template"]["spec"]
    assert (inner["restartPolicy"], inner["dnsPolicy"], inner["schedulerName"]) == (
        "Always",
        "ClusterFirst",
        "default-scheduler",
    )
    container = inner["containers"][0]
    assert container["imagePullPolicy"] == "IfNotPresent"
    assert container["terminationMessagePath"] == "/dev/termination-log"
    assert container["ports"] == [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]
    made = cluster.create("services", service("web", "web"))[1]
    assert made["spec"]["type"] == "ClusterIP"
    assert made["spec"]["clusterIP"].startswith("10.")
    made = cluster.create("pods", pod("one"))[1]
    assert made["spec"]["serviceAccountName"] == "default"
    assert {t["key"] for t in made["spec"]["tolerations"]} == {
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    }
