"""Controllers: from a manifest to ready pods and back."""

from __future__ import annotations

from typing import Any

from tests.contracts.cluster.conftest import ClusterFixture
from tests.contracts.cluster.manifests import config_map, deployment, job, pod, quota, stateful_set

APPS, BATCH = "apis/apps/v1", "apis/batch/v1"


def _conditions(obj: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c.get("reason", "")) for c in obj.get("status", {}).get("conditions", [])}


def _rolled_out(cluster: ClusterFixture, name: str, kind: str = "deployments") -> Any:
    def rolled_out() -> dict[str, Any] | None:
        workload = cluster.get(kind, name, api=APPS)
        status, replicas = workload.get("status", {}), workload["spec"]["replicas"]
        counts = [status.get(k, 0) for k in ("replicas", "readyReplicas", "updatedReplicas", "availableReplicas")]
        done = status.get("observedGeneration") == workload["metadata"]["generation"] and counts == [replicas] * 4
        return workload if done else None

    return cluster.eventually(rolled_out, f"{kind} {name} rolled out")


def test_a_deployment_becomes_available(cluster: ClusterFixture) -> None:
    cluster.apply("deployments", deployment("web", 2), api=APPS)
    rolled_out = _rolled_out(cluster, "web")
    cluster.eventually(
        lambda: (
            _conditions(cluster.get("deployments", "web", api=APPS)).get("Progressing")
            == ("True", "NewReplicaSetAvailable")
        ),
        "progress is done",
    )
    assert _conditions(rolled_out)["Available"] == ("True", "MinimumReplicasAvailable")
    pods = cluster.ready("web", 2)
    for found_pod in pods:
        owner = found_pod.metadata.owner_references[0]
        assert (owner.kind, owner.controller) == ("ReplicaSet", True)
        assert found_pod.metadata.labels["pod-template-hash"]
        assert found_pod.status.phase == "Running"
        assert found_pod.status.pod_ip
        assert found_pod.spec.node_name


def test_a_new_template_replaces_every_pod(cluster: ClusterFixture) -> None:
    cluster.apply("deployments", deployment("web", 2), api=APPS)
    before = {p.metadata.uid for p in cluster.ready("web", 2)}
    changed = deployment("web", 2)
    changed["spec"]["template"]["spec"]["containers"][0]["image"] = "example.test/web:2.0"
    cluster.apply("deployments", changed, api=APPS)
    _rolled_out(cluster, "web")
    after = cluster.ready("web", 2)
    assert not before & {p.metadata.uid for p in after}
    assert {p.spec.containers[0].image for p in after} == {"example.test/web:2.0"}
    sets = cluster.raw("GET", cluster.path("replicasets", api=APPS))[1]["items"]
    revisions = {s["metadata"]["annotations"]["deployment.kubernetes.io/revision"]: s["spec"]["replicas"] for s in sets}
    assert revisions == {"1": 0, "2": 2}


def test_recreate_ends_the_old_pods_first(cluster: ClusterFixture) -> None:
    body = deployment("web", 1, spec={"strategy": {"type": "Recreate"}})
    cluster.apply("deployments", body, api=APPS)
    (old,) = cluster.ready("web", 1)
    body["spec"]["template"]["spec"]["containers"][0]["image"] = "example.test/web:2.0"
    cluster.apply("deployments", body, api=APPS)
    _rolled_out(cluster, "web")
    (new,) = cluster.ready("web", 1)
    assert new.metadata.uid != old.metadata.uid
    assert new.metadata.creation_timestamp >= old.metadata.creation_timestamp


def test_scaling_to_zero_removes_the_pods(cluster: ClusterFixture) -> None:
    cluster.apply("deployments", deployment("web", 2), api=APPS)
    cluster.ready("web", 2)
    status, _ = cluster.patch("deployments", "web", {"spec": {"replicas": 0}}, api=APPS, sub="scale")
    assert status == 200
    cluster.eventually(lambda: not cluster.pods("web"), "no pods")
    _rolled_out(cluster, "web")


def test_a_deleted_pod_comes_back(cluster: ClusterFixture) -> None:
    cluster.apply("deployments", deployment("web", 1), api=APPS)
    (first,) = cluster.ready("web", 1)
    status, content = cluster.delete("pods", first.metadata.name)
    assert (status, content["kind"]) == (200, "Pod")
    assert content["metadata"]["deletionTimestamp"]

    def another() -> bool:
        pods = [p for p in cluster.pods("web") if p.metadata.uid != first.metadata.uid]
        return bool(pods) and all(
            any(c.type == "Ready" and c.status == "True" for c in p.status.conditions or ()) for p in pods
        )

    cluster.eventually(another, "another pod")


def test_a_stateful_set_counts_its_pods(cluster: ClusterFixture) -> None:
    cluster.apply("statefulsets", stateful_set("db", 3), api=APPS)
    pods = cluster.ready("db", 3)
    assert sorted(p.metadata.name for p in pods) == ["db-0", "db-1", "db-2"]
    creation_times = {p.metadata.name: p.metadata.creation_timestamp for p in pods}
    assert creation_times["db-0"] <= creation_times["db-1"] <= creation_times["db-2"]
    rolled_out = _rolled_out(cluster, "db", "statefulsets")
    assert rolled_out["status"]["currentRevision"] == rolled_out["status"]["updateRevision"]
    cluster.patch("statefulsets", "db", {"spec": {"replicas": 1}}, api=APPS)
    cluster.eventually(lambda: [p.metadata.name for p in cluster.pods("db")] == ["db-0"], "the highest go first")


def test_a_stateful_set_updates_its_pods_in_place(cluster: ClusterFixture) -> None:
    body = stateful_set("db", 2)
    cluster.apply("statefulsets", body, api=APPS)
    cluster.ready("db", 2)
    _rolled_out(cluster, "db", "statefulsets")
    body["spec"]["template"]["spec"]["containers"][0]["image"] = "example.test/web:2.0"
    cluster.apply("statefulsets", body, api=APPS)
    _rolled_out(cluster, "db", "statefulsets")
    assert {p.spec.containers[0].image for p in cluster.ready("db", 2)} == {"example.test/web:2.0"}


def test_a_broken_update_of_a_stateful_set_needs_its_pod_deleted(cluster: ClusterFixture) -> None:
    body = stateful_set("db", 1)
    cluster.apply("statefulsets", body, api=APPS)
    cluster.ready("db", 1)
    _rolled_out(cluster, "db", "statefulsets")
    unschedulable = stateful_set("db", 1, nodeSelector={"no-such": "node"})
    cluster.apply("statefulsets", unschedulable, api=APPS)

    def stuck() -> Any:
        pods = [p for p in cluster.pods("db") if p.spec.node_selector and not p.spec.node_name]
        return pods[0] if pods else None

    pod_before = cluster.eventually(stuck, "the new pod fits nowhere")
    # Reverting alone heals nothing: in order, a pod that is not ready holds up everything, itself included.
    cluster.apply("statefulsets", body, api=APPS)

    def observed() -> bool:
        observed_set = cluster.get("statefulsets", "db", api=APPS)
        return bool(observed_set["status"].get("observedGeneration") == observed_set["metadata"]["generation"])

    cluster.eventually(observed, "the reverted template is observed")
    assert stuck().metadata.uid == pod_before.metadata.uid
    cluster.delete("pods", "db-0")
    (healed,) = cluster.ready("db", 1)
    assert not healed.spec.node_selector


def test_a_job_completes(cluster: ClusterFixture) -> None:
    cluster.create("jobs", job("run"), api=BATCH)

    def done() -> Any:
        job = cluster.get("jobs", "run", api=BATCH)
        return job if _conditions(job).get("Complete", ("", ""))[0] == "True" else None

    completed = cluster.eventually(done, "the job is complete")
    assert completed["status"]["succeeded"] == 1
    assert completed["status"]["completionTime"]
    pods = cluster.core.list_namespaced_pod(cluster.namespace, label_selector="batch.kubernetes.io/job-name=run").items
    assert [p.status.phase for p in pods] == ["Succeeded"]


def test_deleting_a_deployment_deletes_its_pods(cluster: ClusterFixture) -> None:
    cluster.apply("deployments", deployment("web", 2), api=APPS)
    cluster.ready("web", 2)
    cluster.delete("deployments", "web", api=APPS)
    cluster.eventually(lambda: not cluster.pods("web"), "the pods are gone")
    assert cluster.raw("GET", cluster.path("replicasets", api=APPS))[1]["items"] == []


def test_an_object_whose_owner_was_deleted_is_garbage_collected(cluster: ClusterFixture) -> None:
    owner = cluster.create("configmaps", config_map("owner"))[1]["metadata"]
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["uid"]}
    cluster.create("configmaps", config_map("owned", ownerReferences=[reference]))
    cluster.delete("configmaps", "owner")
    cluster.eventually(lambda: cluster.status("configmaps", "owned") == 404, "the owned object is gone")


def test_pods_that_are_rejected_are_reported(cluster: ClusterFixture) -> None:
    cluster.create("resourcequotas", quota("small", pods="1"))
    cluster.eventually(
        lambda: "used" in cluster.get("resourcequotas", "small").get("status", {}), "the quota is counted"
    )
    cluster.apply("deployments", deployment("web", 2), api=APPS)

    def failed() -> Any:
        observed = cluster.get("deployments", "web", api=APPS)
        return _conditions(observed).get("ReplicaFailure") == ("True", "FailedCreate") and observed

    observed = cluster.eventually(failed, "the failure is shown")
    (failure,) = (c for c in observed["status"]["conditions"] if c["type"] == "ReplicaFailure")
    assert "exceeded quota: small, requested: pods=1, used: pods=1, limited: pods=1" in failure["message"]


def test_an_unschedulable_pod_has_a_condition(cluster: ClusterFixture) -> None:
    cluster.create("pods", pod("big", container={"resources": {"requests": {"cpu": "100000"}}}))

    def condition() -> Any:
        observed = cluster.get("pods", "big")
        return next((c for c in observed.get("status", {}).get("conditions", []) if c["type"] == "PodScheduled"), None)

    observed = cluster.eventually(condition, "the scheduler's verdict")
    assert (observed["status"], observed["reason"]) == ("False", "Unschedulable")
    assert "nodes are available" in observed["message"]
    assert "Insufficient cpu" in observed["message"]
    assert cluster.get("pods", "big")["status"]["phase"] == "Pending"


def test_a_cron_job_starts_jobs_only_when_due(cluster: ClusterFixture) -> None:
    body = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": "backup"},
        "spec": {"schedule": "0 0 30 2 *", "jobTemplate": {"spec": job("x")["spec"]}},
    }
    status, created = cluster.create("cronjobs", body, api=BATCH)
    assert status == 201
    assert created["spec"]["concurrencyPolicy"] == "Allow"
    assert cluster.raw("GET", cluster.path("jobs", api=BATCH))[1]["items"] == []
