"""Namespaces that end, quotas, limits and Pod Security (what P6, P7, P18 and P19 stand on)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contracts.cluster.conftest import Cluster
from tests.contracts.cluster.manifests import claim, config_map, deployment, pod, quota

APPS = "apis/apps/v1"


def _counted(cluster: Cluster, name: str) -> None:
    cluster.eventually(lambda: "used" in cluster.get("resourcequotas", name).get("status", {}), "the quota is counted")


# ---------------------------------------------------------------- namespaces


def test_a_namespace_takes_its_content_along(cluster: Cluster) -> None:
    cluster.apply("deployments", deployment("web", 1), api=APPS)
    cluster.create("configmaps", config_map("one"))
    status, answer, _ = cluster.raw("DELETE", f"/api/v1/namespaces/{cluster.namespace}")
    assert status == 200
    assert answer["status"]["phase"] == "Terminating"
    space = f"/api/v1/namespaces/{cluster.namespace}"
    cluster.eventually(lambda: cluster.raw("GET", space)[0] == 404, "the namespace is gone")
    assert cluster.raw("GET", cluster.path("configmaps"))[1]["items"] == []


def test_a_finalizer_holds_the_namespace_and_is_named(cluster: Cluster) -> None:
    cluster.create("configmaps", config_map("held", finalizers=["berth.example/hold"]))
    space = f"/api/v1/namespaces/{cluster.namespace}"
    cluster.raw("DELETE", space)

    def held() -> Any:
        found = cluster.raw("GET", space)[1]
        conditions = {c["type"]: c for c in found["status"].get("conditions", [])}
        return conditions if conditions.get("NamespaceFinalizersRemaining", {}).get("status") == "True" else None

    conditions = cluster.eventually(held, "the finalizer is reported")
    assert conditions["NamespaceFinalizersRemaining"]["reason"] == "SomeFinalizersRemain"
    assert "berth.example/hold in 1 resource instances" in conditions["NamespaceFinalizersRemaining"]["message"]
    assert conditions["NamespaceContentRemaining"]["status"] == "True"
    assert "configmaps. has 1 resource instances" in conditions["NamespaceContentRemaining"]["message"]
    cluster.patch("configmaps", "held", {"metadata": {"finalizers": None}})
    cluster.eventually(lambda: cluster.raw("GET", space)[0] == 404, "the namespace is gone")


def test_nothing_new_enters_an_ending_namespace(cluster: Cluster) -> None:
    cluster.create("configmaps", config_map("held", finalizers=["berth.example/hold"]))
    cluster.raw("DELETE", f"/api/v1/namespaces/{cluster.namespace}")
    try:
        status, refusal = cluster.create("configmaps", config_map("late"))
        assert (status, refusal["reason"]) == (403, "Forbidden")
        assert "because it is being terminated" in refusal["message"]
        assert refusal["details"]["causes"][0]["reason"] == "NamespaceTerminating"
        status, refusal = cluster.apply("deployments", deployment("web"), api=APPS)
        assert (status, refusal["details"]["causes"][0]["reason"]) == (403, "NamespaceTerminating")
        status, refusal, _ = cluster.raw("POST", "/api/v1/namespaces", {"metadata": {"name": cluster.namespace}})
        assert (status, refusal["reason"]) == (409, "AlreadyExists")
    finally:
        cluster.patch("configmaps", "held", {"metadata": {"finalizers": None}})


# ---------------------------------------------------------------- quotas and limits


def test_a_quota_refuses_what_exceeds_it(cluster: Cluster) -> None:
    cluster.create("resourcequotas", quota("small", requests__cpu="50m", persistentvolumeclaims="1"))
    _counted(cluster, "small")
    status, refusal = cluster.create("pods", pod("big", container={"resources": {"requests": {"cpu": "200m"}}}))
    assert (status, refusal["reason"]) == (403, "Forbidden")
    assert refusal["message"] == (
        'pods "big" is forbidden: exceeded quota: small, requested: requests.cpu=200m, used: requests.cpu=0, '
        "limited: requests.cpu=50m"
    )
    assert cluster.create("persistentvolumeclaims", claim("one"))[0] == 201
    status, refusal = cluster.create("persistentvolumeclaims", claim("two"))
    assert status == 403
    assert "exceeded quota: small" in refusal["message"]


def test_a_quota_wants_the_resources_named(cluster: Cluster) -> None:
    cluster.create("resourcequotas", quota("strict", limits__memory="1Gi"))
    _counted(cluster, "strict")
    status, refusal = cluster.create("pods", pod("vague", container={"resources": {}}))
    assert (status, refusal["reason"]) == (403, "Forbidden")
    assert "failed quota: strict: must specify limits.memory for: web" in refusal["message"]


def test_a_quota_shows_what_is_used(cluster: Cluster) -> None:
    cluster.create("resourcequotas", quota("wide", requests__memory="1Gi", pods="5"))
    _counted(cluster, "wide")
    cluster.create("pods", pod("one"))
    cluster.eventually(
        lambda: cluster.get("resourcequotas", "wide")["status"]["used"] == {"requests.memory": "16Mi", "pods": "1"},
        "usage",
    )


def test_a_limit_range_fills_in_and_refuses(cluster: Cluster) -> None:
    limits = {
        "apiVersion": "v1",
        "kind": "LimitRange",
        "metadata": {"name": "limits"},
        "spec": {
            "limits": [
                {
                    "type": "Container",
                    "default": {"cpu": "200m"},
                    "defaultRequest": {"cpu": "100m"},
                    "max": {"cpu": "1"},
                }
            ]
        },
    }
    cluster.create("limitranges", limits)

    def filled() -> Any:
        # Admission reads limit ranges from a cache that may lag behind.
        status, made = cluster.create("pods", pod("plain", container={"resources": {}}), dryRun="All")
        return made["spec"]["containers"][0]["resources"] if status == 201 else None

    assert cluster.eventually(filled, "resources") == {"limits": {"cpu": "200m"}, "requests": {"cpu": "100m"}}
    status, refusal = cluster.create("pods", pod("big", container={"resources": {"limits": {"cpu": "2"}}}))
    assert (status, refusal["reason"]) == (403, "Forbidden")
    assert "maximum cpu usage per Container is 1, but limit is 2" in refusal["message"]


# ---------------------------------------------------------------- Pod Security


def _label(cluster: Cluster, **modes: str) -> None:
    labels = {f"pod-security.kubernetes.io/{mode}": level for mode, level in modes.items()}
    status, _, _ = cluster.raw(
        "PATCH",
        f"/api/v1/namespaces/{cluster.namespace}",
        {"metadata": {"labels": labels}},
        kind="application/merge-patch+json",
    )
    assert status == 200


def test_restricted_refuses_a_plain_pod_in_full(cluster: Cluster) -> None:
    _label(cluster, enforce="restricted")
    bare = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "plain"}}
    bare["spec"] = {"containers": [{"name": "web", "image": "example.test/web:1"}]}
    status, refusal = cluster.create("pods", bare)
    assert (status, refusal["reason"]) == (403, "Forbidden")
    assert refusal["message"] == (
        'pods "plain" is forbidden: violates PodSecurity "restricted:latest": '
        'allowPrivilegeEscalation != false (container "web" must set '
        "securityContext.allowPrivilegeEscalation=false), "
        'unrestricted capabilities (container "web" must set securityContext.capabilities.drop=["ALL"]), '
        'runAsNonRoot != true (pod or container "web" must set securityContext.runAsNonRoot=true), '
        'seccompProfile (pod or container "web" must set securityContext.seccompProfile.type to "RuntimeDefault" or '
        '"Localhost")'
    )


def test_restricted_admits_a_careful_pod(cluster: Cluster) -> None:
    _label(cluster, enforce="restricted")
    assert cluster.create("pods", pod("careful"))[0] == 201


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"hostNetwork": True}, "host namespaces (hostNetwork=true)"),
        ({"volumes": [{"name": "root", "hostPath": {"path": "/"}}]}, 'hostPath volumes (volume "root")'),
        (
            {"container": {"securityContext": {"privileged": True}}},
            'privileged (container "web" must not set securityContext.privileged=true)',
        ),
        (
            {"container": {"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}},
            'non-default capabilities (container "web" must not include "SYS_ADMIN" in '
            "securityContext.capabilities.add)",
        ),
        (
            {"container": {"ports": [{"containerPort": 80, "hostPort": 80}]}},
            'hostPort (container "web" uses hostPort 80)',
        ),
    ],
)
def test_baseline_refuses_the_dangerous(cluster: Cluster, more: dict[str, Any], text: str) -> None:
    _label(cluster, enforce="baseline")
    status, refusal = cluster.create("pods", pod("bad", **more))
    assert (status, refusal["reason"]) == (403, "Forbidden"), refusal
    assert f'violates PodSecurity "baseline:latest": {text}' in refusal["message"]


def test_workloads_are_admitted_with_a_warning_and_fail_at_their_pods(cluster: Cluster) -> None:
    _label(cluster, enforce="restricted", warn="restricted")
    body = deployment("web", 1, container={"securityContext": {}})
    path = cluster.path("deployments", api=APPS)
    status, _, headers = cluster.raw("POST", path, body)
    assert status == 201
    assert 'would violate PodSecurity \\"restricted:latest\\"' in headers["Warning"]

    def failed() -> bool:
        conditions = cluster.get("deployments", "web", api=APPS).get("status", {}).get("conditions", [])
        return any(c["type"] == "ReplicaFailure" and "violates PodSecurity" in c["message"] for c in conditions)

    cluster.eventually(failed, "the refusal of its pods")


def test_an_account_that_is_not_there(cluster: Cluster) -> None:
    status, refusal = cluster.create("pods", pod("one", serviceAccountName="nobody"))
    assert (status, refusal["reason"]) == (403, "Forbidden")
    assert 'serviceaccount "nobody" not found' in refusal["message"]
