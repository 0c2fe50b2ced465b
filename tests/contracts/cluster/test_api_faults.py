"""Faults of the API, which the proxy injects before either cluster."""

from __future__ import annotations

import http.client
from typing import Any

import pytest
import urllib3

from tests.contracts.cluster.conftest import ClusterFixture
from tests.contracts.cluster.manifests import config_map
from tests.contracts.cluster.targets import call


def test_throttling_returns_retry_after(sandbox: ClusterFixture, fault: Any) -> None:
    fault("throttle", count=2)
    for _ in range(2):
        status, error, headers = sandbox.raw("GET", sandbox.path("pods"))
        assert (status, error["reason"]) == (429, "TooManyRequests")
        assert headers["Retry-After"] == "1"
        assert error["details"]["retryAfterSeconds"] == 1
    assert sandbox.raw("GET", sandbox.path("pods"))[0] == 200


def test_server_errors(sandbox: ClusterFixture, fault: Any) -> None:
    fault("server_error", count=2)
    responses = [sandbox.create("configmaps", config_map("one")) for _ in range(2)]
    assert {(status, error["reason"]) for status, error in responses} == {
        (503, "ServiceUnavailable"),
        (500, "InternalError"),
    }
    assert all(error["status"] == "Failure" for _, error in responses)
    assert sandbox.create("configmaps", config_map("one"))[0] == 201


def test_conflict_faults_affect_writes_only(sandbox: ClusterFixture, fault: Any) -> None:
    fault("conflict", count=1)
    assert sandbox.raw("GET", sandbox.path("configmaps"))[0] == 200
    status, error = sandbox.apply("configmaps", config_map("one"))
    assert (status, error["reason"]) == (409, "Conflict")
    assert "the object has been modified" in error["message"]
    assert sandbox.apply("configmaps", config_map("one"))[0] == 201


def test_a_write_with_a_lost_reply_is_applied(sandbox: ClusterFixture, fault: Any) -> None:
    fault("lost_reply", count=1)
    with pytest.raises((urllib3.exceptions.HTTPError, http.client.HTTPException)):
        sandbox.apply("configmaps", config_map("one", {"a": "1"}))
    assert sandbox.get("configmaps", "one")["data"] == {"a": "1"}
    assert sandbox.apply("configmaps", config_map("one", {"a": "1"}))[0] == 200


def test_a_quota_that_is_full(sandbox: ClusterFixture, fault: Any) -> None:
    fault("quota", count=1)
    status, error = sandbox.create("configmaps", config_map("one"))
    assert (status, error["reason"]) == (403, "Forbidden")
    assert "exceeded quota" in error["message"]


def test_faults_stay_in_their_namespace(sandbox: ClusterFixture, fault: Any) -> None:
    fault("throttle", namespace="nobody-*")
    assert sandbox.raw("GET", sandbox.path("pods"))[0] == 200
    assert sandbox.raw("GET", "/api/v1/namespaces/nobody-here/pods")[0] == 429
    assert sandbox.raw("GET", "/api/v1/namespaces/nobody-here")[0] == 429


@pytest.mark.parametrize(
    "body", [{"fault": "weather"}, {}, {"fault": "throttle", "count": 0}, {"fault": "throttle", "seconds": "soon"}, []]
)
def test_an_unknown_fault_is_rejected(sandbox: ClusterFixture, body: Any) -> None:
    status, content = call(f"{sandbox.target.sandbox}/sandbox/faults", "POST", body)
    assert status == 400
    assert content["error"]


def test_faults_are_listed(sandbox: ClusterFixture, fault: Any) -> None:
    fault("throttle", count=3)
    sandbox.raw("GET", sandbox.path("pods"))
    status, content = call(f"{sandbox.target.sandbox}/sandbox/faults")
    assert status == 200
    assert content["faults"] == [{"fault": "throttle", "hits": 1, "namespace": sandbox.namespace, "count": 3}]
