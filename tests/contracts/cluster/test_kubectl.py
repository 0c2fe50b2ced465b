"""The real `kubectl` finds its way around."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.contracts.cluster.conftest import Cluster
from tests.contracts.cluster.manifests import config_map, deployment, service

pytestmark = pytest.mark.usefixtures("kubectl_there")


@pytest.fixture
def manifest(cluster: Cluster, tmp_path: Path) -> Path:
    """A deployment, its service and a config map, for the test's namespace."""
    path = tmp_path / "app.yaml"
    objects = [deployment("web", 1), service("web", "web"), config_map("one")]
    for obj in objects:
        obj["metadata"]["namespace"] = cluster.namespace
    path.write_text(yaml.safe_dump_all(objects))
    return path


def test_version_and_resources(cluster: Cluster) -> None:
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
        "PodDisruptionBudget",
    ):
        assert any(line.split()[-1] == kind for line in listed.splitlines()), kind
    assert "apps/v1" in cluster.target.kubectl("api-versions")


@pytest.mark.parametrize("how", ["--server-side", "--server-side=false"])
def test_apply_wait_get_describe_logs_delete(cluster: Cluster, manifest: Path, how: str) -> None:
    run, space = cluster.target.kubectl, ("-n", cluster.namespace)
    said = run("apply", how, "-f", str(manifest))
    assert "deployment.apps/web" in said
    run("-n", cluster.namespace, "rollout", "status", "deployment/web", "--timeout=20s")
    run(*space, "wait", "--for=condition=Available", "deployment/web", "--timeout=20s")
    table = run(*space, "get", "deployments")
    assert table.splitlines()[0].split() == ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]
    assert table.splitlines()[1].split()[:4] == ["web", "1/1", "1", "1"]
    pods = run(*space, "get", "pods", "-o", "wide", "--no-headers").split()
    assert pods[1:3] == ["1/1", "Running"]
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


def test_a_conflict_is_explained(cluster: Cluster, manifest: Path) -> None:
    run = cluster.target.kubectl
    run("apply", "--server-side", "--field-manager=theirs", "-f", str(manifest))
    changed = manifest.read_text().replace("a: '1'", "a: '2'")
    said = run("apply", "--server-side", "--field-manager=berth", "-f", "-", stdin=changed, check=False)
    assert 'Apply failed with 1 conflict: conflict with "theirs": .data.a' in said
    run("apply", "--server-side", "--field-manager=berth", "--force-conflicts", "-f", "-", stdin=changed)


def test_mistakes_are_told_before_anything_is_written(cluster: Cluster, manifest: Path) -> None:
    wrong = manifest.read_text().replace("replicas: 1", "replicsa: 1")
    said = cluster.target.kubectl("apply", "-f", "-", stdin=wrong, check=False)
    assert 'unknown field "spec.replicsa"' in said
    assert cluster.status("deployments", "web", api="apis/apps/v1") == 404


def test_diff_shows_drift(cluster: Cluster, manifest: Path) -> None:
    run = cluster.target.kubectl
    run("apply", "--server-side", "-f", str(manifest))
    changed = manifest.read_text().replace("a: '1'", "a: '2'")
    said = run("diff", "--server-side", "-f", "-", stdin=changed, check=False)
    assert '+  a: "2"' in said


def test_logs_and_whoami(sandbox: Cluster) -> None:
    run = sandbox.target.kubectl
    sandbox.apply("deployments", deployment("web"), api="apis/apps/v1")
    (pod,) = sandbox.ready("web")
    assert "listening on port 8080" in run("-n", sandbox.namespace, "logs", pod.metadata.name)
    assert "berth" in run("auth", "whoami")
    assert "yes" in run("auth", "can-i", "create", "pods")
    assert pod.metadata.name in run("-n", sandbox.namespace, "top", "pods")
    assert "replicas" in run("explain", "deployment.spec.replicas")
