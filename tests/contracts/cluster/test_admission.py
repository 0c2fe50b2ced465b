"""Namespaces that are being deleted, and quotas (what P6, P7, P18 and P19 rely on)."""

from __future__ import annotations

from typing import Any

from tests.contracts.cluster.conftest import ClusterFixture
from tests.contracts.cluster.manifests import claim, config_map, deployment, pod, quota

APPS = "apis/apps/v1"


def _counted(cluster: ClusterFixture, name: str) -> None:
    cluster.eventually(lambda: "used" in cluster.get("resourcequotas", name).get("status", {}), "the quota is counted")


# ---------------------------------------------------------------- namespaces


def test_deleting_a_namespace_deletes_its_objects(cluster: ClusterFixture) -> None:
    cluster.apply("deployments", deployment("web", 1), api=APPS)
    cluster.create("configmaps", config_map("one"))
    status, content, _ = cluster.raw("DELETE", f"/api/v1/namespaces/{cluster.namespace}")
    assert status == 200
    assert content["status"]["phase"] == "Terminating"
    space = f"/api/v1/namespaces/{cluster.namespace}"
    cluster.eventually(lambda: cluster.raw("GET", space)[0] == 404, "the namespace is gone")
    assert cluster.raw("GET", cluster.path("configmaps"))[1]["items"] == []


def test_a_finalizer_holds_the_namespace_and_is_named(cluster: ClusterFixture) -> None:
    cluster.create("configmaps", config_map("held", finalizers=["berth.example/hold"]))
    space = f"/api/v1/namespaces/{cluster.namespace}"
    cluster.raw("DELETE", space)

    def held() -> Any:
        namespace = cluster.raw("GET", space)[1]
        conditions = {c["type"]: c for c in namespace["status"].get("conditions", [])}
        return conditions if conditions.get("NamespaceFinalizersRemaining", {}).get("status") == "True" else None

    conditions = cluster.eventually(held, "the finalizer is reported")
    assert conditions["NamespaceFinalizersRemaining"]["reason"] == "SomeFinalizersRemain"
    assert "berth.example/hold in 1 resource instances" in conditions["NamespaceFinalizersRemaining"]["message"]
    assert conditions["NamespaceContentRemaining"]["status"] == "True"
    assert "configmaps. has 1 resource instances" in conditions["NamespaceContentRemaining"]["message"]
    cluster.patch("configmaps", "held", {"metadata": {"finalizers": None}})
    cluster.eventually(lambda: cluster.raw("GET", space)[0] == 404, "the namespace is gone")


def test_a_terminating_namespace_rejects_new_objects(cluster: ClusterFixture) -> None:
    cluster.create("configmaps", config_map("held", finalizers=["berth.example/hold"]))
    cluster.raw("DELETE", f"/api/v1/namespaces/{cluster.namespace}")
    try:
        status, error = cluster.create("configmaps", config_map("late"))
        assert (status, error["reason"]) == (403, "Forbidden")
        assert "because it is being terminated" in error["message"]
        assert error["details"]["causes"][0]["reason"] == "NamespaceTerminating"
        status, error = cluster.apply("deployments", deployment("web"), api=APPS)
        assert (status, error["details"]["causes"][0]["reason"]) == (403, "NamespaceTerminating")
        status, error, _ = cluster.raw("POST", "/api/v1/namespaces", {"metadata": {"name": cluster.namespace}})
        assert (status, error["reason"]) == (409, "AlreadyExists")
    finally:
        cluster.patch("configmaps", "held", {"metadata": {"finalizers": None}})


# ---------------------------------------------------------------- quotas and limits


def test_a_quota_rejects_objects_that_exceed_it(cluster: ClusterFixture) -> None:
    cluster.create("resourcequotas", quota("small", requests__cpu="50m", persistentvolumeclaims="1"))
    _counted(cluster, "small")
    status, error = cluster.create("pods", pod("big", container={"resources": {"requests": {"cpu": "200m"}}}))
    assert (status, error["reason"]) == (403, "Forbidden")
    assert error["message"] == (
        'pods "big" is forbidden: exceeded quota: small, requested: requests.cpu=200m, used: requests.cpu=0, '
        "limited: requests.cpu=50m"
    )
    assert cluster.create("persistentvolumeclaims", claim("one"))[0] == 201
    status, error = cluster.create("persistentvolumeclaims", claim("two"))
    assert status == 403
    assert "exceeded quota: small" in error["message"]


def test_a_quota_shows_what_is_used(cluster: ClusterFixture) -> None:
    cluster.create("resourcequotas", quota("wide", requests__memory="1Gi", pods="5"))
    _counted(cluster, "wide")
    cluster.create("pods", pod("one"))
    cluster.eventually(
        lambda: cluster.get("resourcequotas", "wide")["status"]["used"] == {"requests.memory": "16Mi", "pods": "1"},
        "usage",
    )
