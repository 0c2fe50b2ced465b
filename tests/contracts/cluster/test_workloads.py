"""Controllers: from a manifest to ready pods and back."""

from __future__ import annotations

from typing import Any

from tests.contracts.cluster.conftest import Cluster
from tests.contracts.cluster.manifests import config_map, deployment, job, pod, quota, service, stateful_set

APPS, BATCH = "apis/apps/v1", "apis/batch/v1"


def _conditions(obj: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c.get("reason", "")) for c in obj.get("status", {}).get("conditions", [])}


def _rolled_out(cluster: Cluster, name: str, kind: str = "deployments") -> Any:
    def look() -> dict[str, Any] | None:
        found = cluster.get(kind, name, api=APPS)
        status, wanted = found.get("status", {}), found["spec"]["replicas"]
        counts = [status.get(k, 0) for k in ("replicas", "readyReplicas", "updatedReplicas", "availableReplicas")]
        done = status.get("observedGeneration") == found["metadata"]["generation"] and counts == [wanted] * 4
        return found if done else None

    return cluster.eventually(look, f"{kind} {name} rolled out")


def test_a_deployment_becomes_available(cluster: Cluster) -> None:
    cluster.apply("deployments", deployment("web", 2), api=APPS)
    found = _rolled_out(cluster, "web")
    cluster.eventually(
        lambda: (
            _conditions(cluster.get("deployments", "web", api=APPS)).get("Progressing")
            == ("True", "NewReplicaSetAvailable")
        ),
        "progress is done",
    )
    assert _conditions(found)["Available"] == ("True", "MinimumReplicasAvailable")
    pods = cluster.ready("web", 2)
    for found_pod in pods:
        owner = found_pod.metadata.owner_references[0]
        assert (owner.kind, owner.controller) == ("ReplicaSet", True)
        assert found_pod.metadata.labels["pod-template-hash"]
        assert found_pod.status.phase == "Running"
        assert found_pod.status.pod_ip
        assert found_pod.spec.node_name


def test_a_new_template_replaces_every_pod(cluster: Cluster) -> None:
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


def test_recreate_ends_the_old_pods_first(cluster: Cluster) -> None:
    body = deployment("web", 1, spec={"strategy": {"type": "Recreate"}})
    cluster.apply("deployments", body, api=APPS)
    (old,) = cluster.ready("web", 1)
    body["spec"]["template"]["spec"]["containers"][0]["image"] = "example.test/web:2.0"
    cluster.apply("deployments", body, api=APPS)
    _rolled_out(cluster, "web")
    (new,) = cluster.ready("web", 1)
    assert new.metadata.uid != old.metadata.uid
    assert new.metadata.creation_timestamp >= old.metadata.creation_timestamp


def test_scaling_to_zero_removes_the_pods(cluster: Cluster) -> None:
    cluster.apply("deployments", deployment("web", 2), api=APPS)
    cluster.ready("web", 2)
    status, _ = cluster.patch("deployments", "web", {"spec": {"replicas": 0}}, api=APPS, sub="scale")
    assert status == 200
    cluster.eventually(lambda: not cluster.pods("web"), "no pods")
    _rolled_out(cluster, "web")


def test_a_deleted_pod_comes_back(cluster: Cluster) -> None:
    cluster.apply("deployments", deployment("web", 1), api=APPS)
    (first,) = cluster.ready("web", 1)
    status, answer = cluster.delete("pods", first.metadata.name)
    assert (status, answer["kind"]) == (200, "Pod")
    assert answer["metadata"]["deletionTimestamp"]

    def another() -> bool:
        found = [p for p in cluster.pods("web") if p.metadata.uid != first.metadata.uid]
        return bool(found) and all(
            any(c.type == "Ready" and c.status == "True" for c in p.status.conditions or ()) for p in found
        )

    cluster.eventually(another, "another pod")


def test_a_stateful_set_counts_its_pods(cluster: Cluster) -> None:
    cluster.apply("statefulsets", stateful_set("db", 3), api=APPS)
    pods = cluster.ready("db", 3)
    assert sorted(p.metadata.name for p in pods) == ["db-0", "db-1", "db-2"]
    made = {p.metadata.name: p.metadata.creation_timestamp for p in pods}
    assert made["db-0"] <= made["db-1"] <= made["db-2"]
    found = _rolled_out(cluster, "db", "statefulsets")
    assert found["status"]["currentRevision"] == found["status"]["updateRevision"]
    cluster.patch("statefulsets", "db", {"spec": {"replicas": 1}}, api=APPS)
    cluster.eventually(lambda: [p.metadata.name for p in cluster.pods("db")] == ["db-0"], "the highest go first")


def test_a_stateful_set_updates_its_pods_in_place(cluster: Cluster) -> None:
    body = stateful_set("db", 2)
    cluster.apply("statefulsets", body, api=APPS)
    cluster.ready("db", 2)
    _rolled_out(cluster, "db", "statefulsets")
    body["spec"]["template"]["spec"]["containers"][0]["image"] = "example.test/web:2.0"
    cluster.apply("statefulsets", body, api=APPS)
    _rolled_out(cluster, "db", "statefulsets")
    assert {p.spec.containers[0].image for p in cluster.ready("db", 2)} == {"example.test/web:2.0"}


def test_a_stateful_set_may_not_change_its_claims(cluster: Cluster) -> None:
    cluster.apply("statefulsets", stateful_set("db", 0), api=APPS)
    status, refusal = cluster.patch("statefulsets", "db", {"spec": {"serviceName": "other"}}, api=APPS)
    assert status == 422
    assert "updates to statefulset spec for fields other than" in refusal["message"]


def test_claims_of_a_stateful_set_are_bound_and_outlive_it(cluster: Cluster) -> None:
    template = {
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    body = stateful_set("db", 1, spec={"volumeClaimTemplates": [template]})
    body["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    cluster.apply("statefulsets", body, api=APPS)
    cluster.ready("db", 1)
    found = cluster.get("persistentvolumeclaims", "data-db-0")
    assert found["status"]["phase"] == "Bound"
    assert found["status"]["capacity"] == {"storage": "1Gi"}
    cluster.delete("statefulsets", "db", api=APPS, propagationPolicy="Foreground")
    cluster.eventually(lambda: not cluster.pods("db"), "the pods are gone")
    assert cluster.get("persistentvolumeclaims", "data-db-0")["metadata"]["uid"] == found["metadata"]["uid"]


def test_a_broken_update_of_a_stateful_set_needs_its_pod_deleted(cluster: Cluster) -> None:
    body = stateful_set("db", 1)
    cluster.apply("statefulsets", body, api=APPS)
    cluster.ready("db", 1)
    _rolled_out(cluster, "db", "statefulsets")
    broken = stateful_set("db", 1, nodeSelector={"no-such": "node"})
    cluster.apply("statefulsets", broken, api=APPS)

    def stuck() -> Any:
        found = [p for p in cluster.pods("db") if p.spec.node_selector and not p.spec.node_name]
        return found[0] if found else None

    pod_before = cluster.eventually(stuck, "the new pod fits nowhere")
    # Reverting alone heals nothing: in order, a pod that is not ready holds up everything, itself included.
    cluster.apply("statefulsets", body, api=APPS)

    def observed() -> bool:
        found = cluster.get("statefulsets", "db", api=APPS)
        return bool(found["status"].get("observedGeneration") == found["metadata"]["generation"])

    cluster.eventually(observed, "the reverted template is observed")
    assert stuck().metadata.uid == pod_before.metadata.uid
    cluster.delete("pods", "db-0")
    (healed,) = cluster.ready("db", 1)
    assert not healed.spec.node_selector


def test_a_job_completes(cluster: Cluster) -> None:
    cluster.create("jobs", job("run"), api=BATCH)

    def done() -> Any:
        found = cluster.get("jobs", "run", api=BATCH)
        return found if _conditions(found).get("Complete", ("", ""))[0] == "True" else None

    found = cluster.eventually(done, "the job is complete")
    assert found["status"]["succeeded"] == 1
    assert found["status"]["completionTime"]
    pods = cluster.core.list_namespaced_pod(cluster.namespace, label_selector="batch.kubernetes.io/job-name=run").items
    assert [p.status.phase for p in pods] == ["Succeeded"]


def test_deleting_a_deployment_takes_its_pods_along(cluster: Cluster) -> None:
    cluster.apply("deployments", deployment("web", 2), api=APPS)
    cluster.ready("web", 2)
    cluster.delete("deployments", "web", api=APPS)
    cluster.eventually(lambda: not cluster.pods("web"), "the pods are gone")
    assert cluster.raw("GET", cluster.path("replicasets", api=APPS))[1]["items"] == []


def test_foreground_deletion_waits_for_the_pods(cluster: Cluster) -> None:
    cluster.apply("deployments", deployment("web", 1), api=APPS)
    cluster.ready("web", 1)
    status, answer = cluster.delete("deployments", "web", {"propagationPolicy": "Foreground"}, api=APPS)
    assert status == 200
    assert "foregroundDeletion" in answer["metadata"]["finalizers"]
    cluster.eventually(lambda: cluster.status("deployments", "web", api=APPS) == 404, "the deployment is gone")
    assert not cluster.pods("web")


def test_orphans_stay(cluster: Cluster) -> None:
    cluster.apply("deployments", deployment("web", 1), api=APPS)
    cluster.ready("web", 1)
    cluster.delete("deployments", "web", {"propagationPolicy": "Orphan"}, api=APPS)
    cluster.eventually(lambda: cluster.status("deployments", "web", api=APPS) == 404, "the deployment is gone")
    sets = cluster.raw("GET", cluster.path("replicasets", api=APPS))[1]["items"]
    assert len(sets) == 1
    assert "ownerReferences" not in sets[0]["metadata"]
    assert len(cluster.ready("web", 1)) == 1


def test_an_object_whose_owner_is_gone_is_collected(cluster: Cluster) -> None:
    owner = cluster.create("configmaps", config_map("owner"))[1]["metadata"]
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["uid"]}
    cluster.create("configmaps", config_map("owned", ownerReferences=[reference]))
    cluster.delete("configmaps", "owner")
    cluster.eventually(lambda: cluster.status("configmaps", "owned") == 404, "the owned object is gone")


def test_endpoints_follow_the_pods(cluster: Cluster) -> None:
    cluster.apply("services", service("web", "web"))
    cluster.apply("deployments", deployment("web", 1), api=APPS)
    (ready,) = cluster.ready("web", 1)

    def addresses() -> list[str]:
        status, found, _ = cluster.raw("GET", cluster.path("endpoints", "web"))
        subsets = found.get("subsets", []) if status == 200 else []
        return [a["ip"] for s in subsets for a in s.get("addresses", [])]

    cluster.eventually(lambda: addresses() == [ready.status.pod_ip], "the pod's address")
    cluster.patch("deployments", "web", {"spec": {"replicas": 0}}, api=APPS)
    cluster.eventually(lambda: addresses() == [], "no address")


def test_a_service_answers_when_it_has_ready_pods(sandbox: Cluster) -> None:
    sandbox.apply("services", service("web", "web"))
    probe = sandbox.path("services", "web:http", "proxy") + "/healthz"
    status, refusal, _ = sandbox.raw("GET", probe)
    assert (status, refusal["reason"]) == (503, "ServiceUnavailable")
    assert refusal["message"] == 'no endpoints available for service "web"'
    sandbox.apply("deployments", deployment("web", 1), api=APPS)
    sandbox.eventually(lambda: sandbox.raw("GET", probe)[0] == 200, "the service answers")


def test_pods_that_may_not_be_made_are_reported(cluster: Cluster) -> None:
    cluster.create("resourcequotas", quota("small", pods="1"))
    cluster.eventually(
        lambda: "used" in cluster.get("resourcequotas", "small").get("status", {}), "the quota is counted"
    )
    cluster.apply("deployments", deployment("web", 2), api=APPS)

    def failed() -> Any:
        found = cluster.get("deployments", "web", api=APPS)
        return _conditions(found).get("ReplicaFailure") == ("True", "FailedCreate") and found

    found = cluster.eventually(failed, "the failure is shown")
    (failure,) = (c for c in found["status"]["conditions"] if c["type"] == "ReplicaFailure")
    assert "exceeded quota: small, requested: pods=1, used: pods=1, limited: pods=1" in failure["message"]


def test_progress_has_a_deadline(cluster: Cluster) -> None:
    body = deployment("web", 1, spec={"progressDeadlineSeconds": 1}, nodeSelector={"no-such": "node"})
    cluster.apply("deployments", body, api=APPS)

    def exceeded() -> bool:
        found = cluster.get("deployments", "web", api=APPS)
        return _conditions(found).get("Progressing") == ("False", "ProgressDeadlineExceeded")

    cluster.eventually(exceeded, "the deadline is exceeded")


def test_a_pod_that_fits_nowhere_says_so(cluster: Cluster) -> None:
    cluster.create("pods", pod("big", container={"resources": {"requests": {"cpu": "100000"}}}))

    def condition() -> Any:
        found = cluster.get("pods", "big")
        return next((c for c in found.get("status", {}).get("conditions", []) if c["type"] == "PodScheduled"), None)

    found = cluster.eventually(condition, "the scheduler's verdict")
    assert (found["status"], found["reason"]) == ("False", "Unschedulable")
    assert "nodes are available" in found["message"]
    assert "Insufficient cpu" in found["message"]
    assert cluster.get("pods", "big")["status"]["phase"] == "Pending"


def test_a_disruption_budget_blocks_an_eviction(cluster: Cluster) -> None:
    cluster.apply("deployments", deployment("web", 1), api=APPS)
    (found,) = cluster.ready("web", 1)
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "web"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}},
    }
    cluster.create("poddisruptionbudgets", budget, api="apis/policy/v1")
    cluster.eventually(
        lambda: (
            cluster.get("poddisruptionbudgets", "web", api="apis/policy/v1").get("status", {}).get("currentHealthy")
            == 1
        ),
        "the budget counts its pods",
    )
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": found.metadata.name}}
    path = cluster.path("pods", found.metadata.name, "eviction")
    status, refusal, _ = cluster.raw("POST", path, eviction)
    assert (status, refusal["reason"]) == (429, "TooManyRequests")
    assert refusal["details"]["causes"][0]["reason"] == "DisruptionBudget"
    cluster.delete("poddisruptionbudgets", "web", api="apis/policy/v1")
    assert cluster.raw("POST", path, eviction)[0] == 201


def test_a_cron_job_starts_jobs_only_when_due(cluster: Cluster) -> None:
    body = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": "backup"},
        "spec": {"schedule": "0 0 30 2 *", "jobTemplate": {"spec": job("x")["spec"]}},
    }
    status, made = cluster.create("cronjobs", body, api=BATCH)
    assert status == 201
    assert made["spec"]["concurrencyPolicy"] == "Allow"
    status, refusal = cluster.patch("cronjobs", "backup", {"spec": {"schedule": "whenever"}}, api=BATCH)
    assert (status, refusal["details"]["causes"][0]["field"]) == (422, "spec.schedule")
    assert cluster.raw("GET", cluster.path("jobs", api=BATCH))[1]["items"] == []
