"""Faults of pods and nodes: each looks as the real failure does, strikes in its namespace, and ends when cleared."""

from __future__ import annotations

from typing import Any

from tests.contracts.cluster.conftest import ClusterFixture
from tests.contracts.cluster.manifests import deployment, job
from tests.contracts.cluster.targets import call

APPS, BATCH = "apis/apps/v1", "apis/batch/v1"


def _states(cluster: ClusterFixture, app: str = "web") -> list[dict[str, Any]]:
    pods = cluster.raw("GET", cluster.path("pods"), labelSelector=f"app={app}")[1]["items"]
    return [s for p in pods for s in p["status"].get("containerStatuses", [])]


def _waiting(cluster: ClusterFixture) -> set[str]:
    return {s["state"].get("waiting", {}).get("reason", "") for s in _states(cluster)}


def _events(cluster: ClusterFixture, reason: str) -> list[str]:
    events = cluster.raw("GET", cluster.path("events"), fieldSelector=f"reason={reason}")[1]["items"]
    return [e["message"] for e in events]


# ---------------------------------------------------------------- pods


def test_images_that_cannot_be_pulled(sandbox: ClusterFixture, fault: Any, clear: Any) -> None:
    fault("image_pull")
    sandbox.apply("deployments", deployment("web"), api=APPS)
    sandbox.eventually(lambda: "ErrImagePull" in _waiting(sandbox), "ErrImagePull")
    sandbox.eventually(lambda: "ImagePullBackOff" in _waiting(sandbox), "ImagePullBackOff")
    clear()
    sandbox.ready("web")


def test_containers_that_crash(sandbox: ClusterFixture, fault: Any, clear: Any) -> None:
    fault("crash_loop")
    sandbox.apply("deployments", deployment("web"), api=APPS)
    sandbox.eventually(lambda: "CrashLoopBackOff" in _waiting(sandbox), "CrashLoopBackOff")
    (state,) = _states(sandbox)
    ended = state["lastState"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (1, "Error")
    assert state["restartCount"] >= 1
    assert not state["ready"]
    clear()
    sandbox.ready("web")


def test_the_logs_of_a_crashed_container(simulated_cluster: ClusterFixture) -> None:
    body = {"fault": "crash_loop", "namespace": simulated_cluster.namespace}
    assert call(f"{simulated_cluster.target.sandbox}/sandbox/faults", "POST", body)[0] == 201
    simulated_cluster.apply("deployments", deployment("web"), api=APPS)
    simulated_cluster.eventually(lambda: "CrashLoopBackOff" in _waiting(simulated_cluster), "CrashLoopBackOff")
    (crashed_pod,) = simulated_cluster.pods("web")
    path = simulated_cluster.path("pods", crashed_pod.metadata.name, "log")
    status, text, _ = simulated_cluster.raw("GET", path, previous="true", tailLines="2")
    assert status == 200
    assert "error: uncaught exception, giving up" in text
    assert len(text.splitlines()) == 2


def test_containers_that_exceed_their_memory_limit(sandbox: ClusterFixture, fault: Any) -> None:
    fault("oom")
    sandbox.apply("deployments", deployment("web"), api=APPS)
    sandbox.eventually(lambda: "CrashLoopBackOff" in _waiting(sandbox), "CrashLoopBackOff")
    ended = _states(sandbox)[0]["lastState"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")


def test_a_job_whose_pods_crash_fails(sandbox: ClusterFixture, fault: Any) -> None:
    fault("crash_loop")
    sandbox.create("jobs", job("run", spec={"backoffLimit": 1}), api=BATCH)

    def failed() -> Any:
        conditions = sandbox.get("jobs", "run", api=BATCH).get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == "Failed" and c["status"] == "True"), None)

    assert sandbox.eventually(failed, "the job fails")["reason"] == "BackoffLimitExceeded"
    assert sandbox.get("jobs", "run", api=BATCH)["status"]["failed"] == 2


def test_pods_that_are_slow(sandbox: ClusterFixture, fault: Any, clear: Any) -> None:
    fault("slow_ready")
    sandbox.apply("deployments", deployment("web"), api=APPS)
    sandbox.eventually(lambda: _events(sandbox, "Unhealthy"), "the probe fails")
    (slow_pod,) = sandbox.pods("web")
    assert slow_pod.status.phase == "Running"
    assert not slow_pod.status.container_statuses[0].ready
    clear()
    sandbox.ready("web")


def test_pods_that_cannot_be_scheduled(sandbox: ClusterFixture, fault: Any, clear: Any) -> None:
    fault("unschedulable")
    sandbox.apply("deployments", deployment("web"), api=APPS)

    def condition() -> Any:
        pods = sandbox.pods("web")
        conditions = (pods[0].status.conditions or []) if pods else []
        return next((c for c in conditions if c.type == "PodScheduled" and c.status == "False"), None)

    assert sandbox.eventually(condition, "Unschedulable").reason == "Unschedulable"
    # The scheduler writes its events beside the conditions.
    sandbox.eventually(lambda: _events(sandbox, "FailedScheduling"), "FailedScheduling")
    clear()
    sandbox.ready("web")


def test_a_count_limits_how_many_pods_a_fault_affects(sandbox: ClusterFixture, fault: Any) -> None:
    fault("image_pull", count=1)
    sandbox.apply("deployments", deployment("web", 3), api=APPS)

    def one_pod_failed() -> bool:
        states = _states(sandbox)
        return len(states) == 3 and sum(s["ready"] for s in states) == 2

    sandbox.eventually(one_pod_failed, "two of three are ready")
    assert len(_waiting(sandbox) & {"ErrImagePull", "ImagePullBackOff"}) == 1


def test_faults_are_counted_among_so_many_pods_that_their_list_is_compressed(
    sandbox: ClusterFixture, fault: Any
) -> None:
    """The API server compresses a list of more than 128 KiB."""
    fault("image_pull", count=1)
    large = deployment("web", 3)
    large["spec"]["template"]["metadata"]["annotations"] = {"example.com/padding": "x" * 70_000}
    sandbox.apply("deployments", large, api=APPS)
    sandbox.eventually(lambda: sum(state["ready"] for state in _states(sandbox)) == 2, "two of three are ready")


def test_a_fault_ends_by_itself(sandbox: ClusterFixture, fault: Any) -> None:
    fault("image_pull", seconds=8)
    sandbox.apply("deployments", deployment("web"), api=APPS)
    sandbox.eventually(lambda: "ErrImagePull" in _waiting(sandbox), "ErrImagePull")
    sandbox.ready("web")
    assert call(f"{sandbox.target.sandbox}/sandbox/faults") == (200, {"faults": []})


def test_running_pods_are_not_affected(sandbox: ClusterFixture, fault: Any) -> None:
    sandbox.apply("deployments", deployment("web"), api=APPS)
    (before,) = sandbox.ready("web")
    fault("crash_loop")
    sandbox.apply("deployments", deployment("other"), api=APPS)
    sandbox.eventually(lambda: any(s["restartCount"] for s in _states(sandbox, "other")), "the new pod crashes")
    (after,) = sandbox.ready("web")
    assert after.metadata.uid == before.metadata.uid
    assert after.status.container_statuses[0].restart_count == 0


# ---------------------------------------------------------------- nodes


def test_pods_of_a_lost_node_become_unready(sandbox: ClusterFixture, fault: Any, clear: Any) -> None:
    sandbox.apply("deployments", deployment("web"), api=APPS)
    (lost_pod,) = sandbox.ready("web")
    node = lost_pod.spec.node_name
    fault("node_lost", node=node)

    def ready() -> str:
        conditions = sandbox.raw("GET", f"/api/v1/nodes/{node}")[1]["status"]["conditions"]
        return str(next(c["status"] for c in conditions if c["type"] == "Ready"))

    sandbox.eventually(lambda: ready() == "Unknown", "the node is lost")

    def tainted() -> bool:
        lost_pod = sandbox.raw("GET", f"/api/v1/nodes/{node}")[1]["spec"].get("taints", ())
        return ("node.kubernetes.io/unreachable", "NoSchedule") in {(t["key"], t["effect"]) for t in lost_pod}

    sandbox.eventually(tainted, "the taint")

    def unready() -> bool:
        conditions = sandbox.pods("web")[0].status.conditions
        return any(c.type == "Ready" and c.status == "False" for c in conditions)

    sandbox.eventually(unready, "its pod is not ready")
    clear()
    sandbox.eventually(lambda: ready() == "True", "the node is back")


def test_pods_of_a_node_that_returns_recover(sandbox: ClusterFixture, fault: Any, clear: Any) -> None:
    sandbox.apply("deployments", deployment("web"), api=APPS)
    (pod_before,) = sandbox.ready("web")
    fault("node_lost", node=pod_before.spec.node_name)
    sandbox.eventually(
        lambda: any(c.type == "Ready" and c.status == "False" for c in sandbox.pods("web")[0].status.conditions), "lost"
    )
    clear()
    (pod_after,) = sandbox.ready("web")
    assert pod_after.metadata.uid == pod_before.metadata.uid
