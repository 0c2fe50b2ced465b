"""What Berth relies on in the real API server and the simulated cluster leaves out: limits, Pod Security, schemas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.contracts.cluster.conftest import ClusterFixture, create_cluster_fixture
from tests.contracts.cluster.manifests import claim, config_map, deployment, job, pod, quota
from tests.contracts.cluster.targets import Target

APPS, BATCH = "apis/apps/v1", "apis/batch/v1"

pytestmark = pytest.mark.controlplane


@pytest.fixture
def cluster(control_plane: Target) -> Iterator[ClusterFixture]:
    """The real control plane alone."""
    yield from create_cluster_fixture(control_plane)


def _counted(cluster: ClusterFixture, name: str) -> None:
    cluster.eventually(lambda: "used" in cluster.get("resourcequotas", name).get("status", {}), "the quota is counted")


def _label(cluster: ClusterFixture, **modes: str) -> None:
    labels = {f"pod-security.kubernetes.io/{mode}": level for mode, level in modes.items()}
    status, _, _ = cluster.raw(
        "PATCH",
        f"/api/v1/namespaces/{cluster.namespace}",
        {"metadata": {"labels": labels}},
        kind="application/merge-patch+json",
    )
    assert status == 200


def test_a_quota_requires_resource_requests(cluster: ClusterFixture) -> None:
    cluster.create("resourcequotas", quota("strict", limits__memory="1Gi"))
    _counted(cluster, "strict")
    status, error = cluster.create("pods", pod("vague", container={"resources": {}}))
    assert (status, error["reason"]) == (403, "Forbidden")
    assert "failed quota: strict: must specify limits.memory for: web" in error["message"]


def test_a_limit_range_sets_defaults_and_rejects_excess(cluster: ClusterFixture) -> None:
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
        status, created = cluster.create("pods", pod("plain", container={"resources": {}}), dryRun="All")
        return created["spec"]["containers"][0]["resources"] if status == 201 else None

    assert cluster.eventually(filled, "resources") == {"limits": {"cpu": "200m"}, "requests": {"cpu": "100m"}}
    status, error = cluster.create("pods", pod("big", container={"resources": {"limits": {"cpu": "2"}}}))
    assert (status, error["reason"]) == (403, "Forbidden")
    assert "maximum cpu usage per Container is 1, but limit is 2" in error["message"]


def test_restricted_pod_security_names_every_violation(cluster: ClusterFixture) -> None:
    _label(cluster, enforce="restricted")
    bare = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "plain"}}
    bare["spec"] = {"containers": [{"name": "web", "image": "example.test/web:1"}]}
    status, error = cluster.create("pods", bare)
    assert (status, error["reason"]) == (403, "Forbidden")
    assert error["message"] == (
        'pods "plain" is forbidden: violates PodSecurity "restricted:latest": '
        'allowPrivilegeEscalation != false (container "web" must set '
        "securityContext.allowPrivilegeEscalation=false), "
        'unrestricted capabilities (container "web" must set securityContext.capabilities.drop=["ALL"]), '
        'runAsNonRoot != true (pod or container "web" must set securityContext.runAsNonRoot=true), '
        'seccompProfile (pod or container "web" must set securityContext.seccompProfile.type to "RuntimeDefault" or '
        '"Localhost")'
    )


def test_a_violating_workload_is_admitted_with_a_warning_and_its_pods_fail(cluster: ClusterFixture) -> None:
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


def test_unknown_and_ill_typed_fields_are_refused(cluster: ClusterFixture) -> None:
    status, error = cluster.apply("configmaps", config_map("one") | {"dta": {}})
    # 500 instead of 400, although it can never succeed: a caller that retries 5xx must recognize this message.
    assert (status, error.get("reason", "")) == (500, "")
    assert error["message"] == (
        "failed to create typed patch object (/one; /v1, Kind=ConfigMap): .dta: field not declared in schema"
    )
    wrong = deployment("web", 0)
    wrong["spec"]["replicas"] = "many"
    status, error = cluster.apply("deployments", wrong, api=APPS)
    assert status == 500
    assert ".spec.replicas: expected numeric (int or float), got string" in error["message"]
    twice = deployment("web", 0, container={"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]})
    status, error = cluster.apply("deployments", twice, api=APPS)
    assert status == 500
    assert 'containers[name="web"].env: duplicate entries for key [name="A"]' in error["message"]


def test_a_bad_quantity_is_found_after_the_merge(cluster: ClusterFixture) -> None:
    body = deployment("web", 0, container={"resources": {"requests": {"cpu": "a lot"}}})
    status, error = cluster.apply("deployments", body, api=APPS)
    assert status == 500
    assert error["message"].startswith("failed to convert new object (/web; apps/v1, Kind=Deployment)")
    assert "quantities must match the regular expression" in error["message"]


@pytest.mark.parametrize(
    ("plural", "api", "obj", "change", "text"),
    [
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
    ],
)
def test_immutable_fields_stay(
    cluster: ClusterFixture, plural: str, api: str, obj: dict[str, Any], change: dict[str, Any], text: str
) -> None:
    assert cluster.create(plural, obj, api=api)[0] == 201
    status, error = cluster.patch(plural, obj["metadata"]["name"], change, api=api)
    assert (status, error["reason"]) == (422, "Invalid"), error
    assert text in error["message"]


def test_progress_has_a_deadline(cluster: ClusterFixture) -> None:
    body = deployment("web", 1, spec={"progressDeadlineSeconds": 1}, nodeSelector={"no-such": "node"})
    cluster.apply("deployments", body, api=APPS)

    def exceeded() -> bool:
        status = cluster.get("deployments", "web", api=APPS)
        return any(
            c["type"] == "Progressing" and c.get("reason") == "ProgressDeadlineExceeded"
            for c in status.get("status", {}).get("conditions", [])
        )

    cluster.eventually(exceeded, "the deadline is exceeded")
