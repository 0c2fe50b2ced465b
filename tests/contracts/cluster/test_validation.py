"""Objects that are refused: wrong kinds, names, host names and strings."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contracts.cluster.conftest import ClusterFixture
from tests.contracts.cluster.manifests import config_map, deployment, pod, service

APPS, NETWORKING = "apis/apps/v1", "apis/networking.k8s.io/v1"
INGRESS: dict[str, Any] = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "Ingress",
    "metadata": {"name": "web"},
    "spec": {
        "rules": [
            {
                "host": "Not A Host",
                "http": {
                    "paths": [
                        {
                            "path": "/",
                            "pathType": "Prefix",
                            "backend": {"service": {"name": "web", "port": {"name": "http"}}},
                        }
                    ]
                },
            }
        ]
    },
}


@pytest.mark.parametrize(
    ("plural", "api", "obj", "field"),
    [
        ("configmaps", "api/v1", config_map("Not_Valid"), "metadata.name"),
        ("ingresses", NETWORKING, INGRESS, "spec.rules[0].host"),
    ],
)
def test_an_invalid_name_names_its_field(
    cluster: ClusterFixture, plural: str, api: str, obj: dict[str, Any], field: str
) -> None:
    status, error = cluster.create(plural, obj, api=api)
    assert (status, error["reason"]) == (422, "Invalid"), error
    causes = [cause for cause in error["details"]["causes"] if cause["field"] == field]
    assert any("RFC 1123" in cause["message"] for cause in causes)
    assert f'"{obj["metadata"]["name"]}" is invalid' in error["message"]
    assert field in error["message"]


@pytest.mark.parametrize("other", [{"kind": "StatefulSet"}, {"apiVersion": "v1"}])
def test_an_object_of_another_kind_is_a_bad_request(cluster: ClusterFixture, other: dict[str, str]) -> None:
    status, error = cluster.create("deployments", {**deployment("web"), **other}, api=APPS)
    assert (status, error["reason"]) == (400, "BadRequest"), error


def test_a_number_where_a_string_belongs(cluster: ClusterFixture) -> None:
    wrong = {**config_map("one"), "data": {"number": 1}}
    status, error = cluster.create("configmaps", wrong)
    assert (status, error["reason"]) == (400, "BadRequest")
    assert "cannot unmarshal" in error["message"]
    # 500 without a reason although no retry helps: callers that retry 5xx must recognize the message.
    status, error = cluster.apply("configmaps", wrong)
    assert (status, error.get("reason", "")) == (500, "")
    assert error["message"].startswith("failed to create typed patch object")
    assert ".data.number" in error["message"]


def test_a_name_that_does_not_match_the_path(cluster: ClusterFixture) -> None:
    cluster.create("configmaps", config_map("one"))
    status, error, _ = cluster.raw("PUT", cluster.path("configmaps", "one"), config_map("two"))
    assert status == 400
    assert "the name of the object (two) does not match the name on the URL (one)" in error["message"]


def test_secrets_take_plain_strings(cluster: ClusterFixture) -> None:
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"a": "hello"}}
    created = cluster.create("secrets", body)[1]
    assert created["data"] == {"a": "aGVsbG8="}
    assert "stringData" not in created
    assert created["type"] == "Opaque"


def test_defaults_are_filled_in(cluster: ClusterFixture) -> None:
    created = cluster.create("deployments", deployment("web", replicas=0), api=APPS)[1]
    assert created["spec"]["strategy"]["type"] == "RollingUpdate"
    inner = created["spec"]["template"]["spec"]
    assert inner["restartPolicy"] == "Always"
    assert inner["containers"][0]["imagePullPolicy"] == "IfNotPresent"
    assert inner["containers"][0]["ports"] == [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]
    created = cluster.create("services", service("web", "web"))[1]
    assert created["spec"]["type"] == "ClusterIP"
    assert created["spec"]["clusterIP"]
    created = cluster.create("pods", pod("one"))[1]
    assert created["spec"]["serviceAccountName"] == "default"
