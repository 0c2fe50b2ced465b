"""The real `kubectl` finds its way around."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.contracts.cluster.conftest import ClusterFixture
from tests.contracts.cluster.manifests import config_map, deployment, service

pytestmark = pytest.mark.usefixtures("kubectl_there")


@pytest.fixture
def manifest(cluster: ClusterFixture, tmp_path: Path) -> Path:
    """A deployment, its service and a config map, for the test's namespace."""
    path = tmp_path / "app.yaml"
    objects = [deployment("web", 1), service("web", "web"), config_map("one")]
    for obj in objects:
        obj["metadata"]["namespace"] = cluster.namespace
    path.write_text(yaml.safe_dump_all(objects))
    return path


def test_version_and_resources(cluster: ClusterFixture) -> None:
    assert "Server Version: v1." in cluster.target.kubectl("version")
    listed = cluster.target.kubectl("api-resources", "--no-headers")
    for kind in (
        "Pod",
        "Deployment",
        "StatefulSet",
        "Job",
        "CronJob",
        "Ingress",
        "NetworkPolicy",
        "Certificate",
    ):
        assert any(line.split()[-1] == kind for line in listed.splitlines()), kind
    assert "apps/v1" in cluster.target.kubectl("api-versions")


@pytest.mark.parametrize("how", ["--server-side", "--server-side=false"])
def test_apply_wait_get_describe_logs_delete(cluster: ClusterFixture, manifest: Path, how: str) -> None:
    run, space = cluster.target.kubectl, ("-n", cluster.namespace)
    output = run("apply", how, "-f", str(manifest))
    assert "deployment.apps/web" in output
    run("-n", cluster.namespace, "rollout", "status", "deployment/web", "--timeout=20s")
    run(*space, "wait", "--for=condition=Available", "deployment/web", "--timeout=20s")
    assert "web" in run(*space, "get", "deployments")
    assert cluster.namespace in run("get", "pods", "-A")
    described = run(*space, "describe", "deployment", "web")
    assert "example.test/web:1.0" in described
    assert "ScalingReplicaSet" in described
    assert "unchanged" in run("apply", how, "-f", str(manifest)) or how == "--server-side"
    listed = json.loads(run(*space, "get", "configmap", "one", "-o", "json"))
    assert listed["data"] == {"a": "1"}
    run(*space, "scale", "deployment/web", "--replicas=0")
    run(*space, "annotate", "deployment/web", "note=x")
    run(*space, "label", "deployment/web", "extra=1")
    run("delete", "-f", str(manifest), "--timeout=20s")
    assert "NotFound" in run(*space, "get", "deployment", "web", check=False)


def test_a_conflict_is_explained(cluster: ClusterFixture, manifest: Path) -> None:
    run = cluster.target.kubectl
    run("apply", "--server-side", "--field-manager=theirs", "-f", str(manifest))
    changed = manifest.read_text().replace("a: '1'", "a: '2'")
    output = run("apply", "--server-side", "--field-manager=berth", "-f", "-", stdin=changed, check=False)
    assert 'Apply failed with 1 conflict: conflict with "theirs": .data.a' in output
    run("apply", "--server-side", "--field-manager=berth", "--force-conflicts", "-f", "-", stdin=changed)


def test_diff_shows_drift(cluster: ClusterFixture, manifest: Path) -> None:
    run = cluster.target.kubectl
    run("apply", "--server-side", "-f", str(manifest))
    changed = manifest.read_text().replace("a: '1'", "a: '2'")
    output = run("diff", "--server-side", "-f", "-", stdin=changed, check=False)
    assert '+  a: "2"' in output
