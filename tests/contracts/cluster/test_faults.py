"""Faults: each looks as the real trouble would, strikes where it was told to, and is over when it is cleared."""

from __future__ import annotations

import http.client
from typing import Any

import pytest
import urllib3

from tests.contracts.cluster.conftest import Cluster
from tests.contracts.cluster.manifests import config_map, deployment, job
from tests.contracts.cluster.targets import call

APPS, BATCH = "apis/apps/v1", "apis/batch/v1"


def _states(cluster: Cluster, app: str = "web") -> list[dict[str, Any]]:
    found = cluster.raw("GET", cluster.path("pods"), labelSelector=f"app={app}")[1]["items"]
    return [s for p in found for s in p["status"].get("containerStatuses", [])]


def _waiting(cluster: Cluster) -> set[str]:
    return {s["state"].get("waiting", {}).get("reason", "") for s in _states(cluster)}


def _events(cluster: Cluster, reason: str) -> list[str]:
    found = cluster.raw("GET", cluster.path("events"), fieldSelector=f"reason={reason}")[1]["items"]
    return [e["message"] for e in found]


# ---------------------------------------------------------------- pods


def test_images_that_cannot_be_pulled(sandbox: Cluster, fault: Any, clear: Any) -> None:
    fault("image_pull")
    sandbox.apply("deployments", deployment("web"), api=APPS)
    sandbox.eventually(lambda: "ErrImagePull" in _waiting(sandbox), "ErrImagePull")
    sandbox.eventually(lambda: "ImagePullBackOff" in _waiting(sandbox), "ImagePullBackOff")
    assert any('Failed to pull image "example.test/web:1.0"' in m for m in _events(sandbox, "Failed"))
    clear()
    sandbox.ready("web")


def test_containers_that_crash(sandbox: Cluster, fault: Any, clear: Any) -> None:
    fault("crash_loop")
    sandbox.apply("deployments", deployment("web"), api=APPS)
    sandbox.eventually(lambda: "CrashLoopBackOff" in _waiting(sandbox), "CrashLoopBackOff")
    (state,) = _states(sandbox)
    ended = state["lastState"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (1, "Error")
    assert state["restartCount"] >= 1
    assert not state["ready"]
    (found,) = sandbox.pods("web")
    status, text, _ = sandbox.raw(
        "GET", sandbox.path("pods", found.metadata.name, "log"), previous="true", tailLines="2"
    )
    assert status == 200
    assert "error: uncaught exception, giving up" in text
    assert len(text.splitlines()) == 2
    clear()
    sandbox.ready("web")


def test_containers_that_want_too_much_memory(sandbox: Cluster, fault: Any) -> None:
    fault("oom")
    sandbox.apply("deployments", deployment("web"), api=APPS)
    sandbox.eventually(lambda: "CrashLoopBackOff" in _waiting(sandbox), "CrashLoopBackOff")
    ended = _states(sandbox)[0]["lastState"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")


def test_a_job_whose_pods_crash_fails(sandbox: Cluster, fault: Any) -> None:
    fault("crash_loop")
    sandbox.create("jobs", job("run", spec={"backoffLimit": 1}), api=BATCH)

    def failed() -> Any:
        conditions = sandbox.get("jobs", "run", api=BATCH).get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == "Failed" and c["status"] == "True"), None)

    assert sandbox.eventually(failed, "the job fails")["reason"] == "BackoffLimitExceeded"
    assert sandbox.get("jobs", "run", api=BATCH)["status"]["failed"] == 2


def test_pods_that_are_slow(sandbox: Cluster, fault: Any, clear: Any) -> None:
    fault("slow_ready")
    sandbox.apply("deployments", deployment("web"), api=APPS)
    sandbox.eventually(lambda: _events(sandbox, "Unhealthy"), "the probe fails")
    (found,) = sandbox.pods("web")
    assert found.status.phase == "Running"
    assert not found.status.container_statuses[0].ready
    clear()
    sandbox.ready("web")


def test_pods_that_fit_nowhere(sandbox: Cluster, fault: Any, clear: Any) -> None:
    fault("unschedulable")
    sandbox.apply("deployments", deployment("web"), api=APPS)

    def condition() -> Any:
        found = sandbox.pods("web")
        conditions = (found[0].status.conditions or []) if found else []
        return next((c for c in conditions if c.type == "PodScheduled" and c.status == "False"), None)

    assert sandbox.eventually(condition, "Unschedulable").reason == "Unschedulable"
    assert _events(sandbox, "FailedScheduling")
    clear()
    sandbox.ready("web")


def test_a_count_limits_how_many_pods_are_struck(sandbox: Cluster, fault: Any) -> None:
    fault("image_pull", count=1)
    sandbox.apply("deployments", deployment("web", 3), api=APPS)

    def look() -> bool:
        states = _states(sandbox)
        return len(states) == 3 and sum(s["ready"] for s in states) == 2

    sandbox.eventually(look, "two of three are ready")
    assert len(_waiting(sandbox) & {"ErrImagePull", "ImagePullBackOff"}) == 1


def test_a_fault_ends_by_itself(sandbox: Cluster, fault: Any) -> None:
    fault("image_pull", seconds=1)
    sandbox.apply("deployments", deployment("web"), api=APPS)
    sandbox.eventually(lambda: "ErrImagePull" in _waiting(sandbox), "ErrImagePull")
    sandbox.ready("web")
    assert call(f"{sandbox.target.sandbox}/sandbox/faults") == (200, {"faults": []})


def test_running_pods_are_spared(sandbox: Cluster, fault: Any) -> None:
    sandbox.apply("deployments", deployment("web"), api=APPS)
    (before,) = sandbox.ready("web")
    fault("crash_loop")
    sandbox.apply("deployments", deployment("other"), api=APPS)
    sandbox.eventually(lambda: any(s["restartCount"] for s in _states(sandbox, "other")), "the new pod crashes")
    (after,) = sandbox.ready("web")
    assert after.metadata.uid == before.metadata.uid
    assert after.status.container_statuses[0].restart_count == 0


# ---------------------------------------------------------------- nodes


def test_a_lost_node_takes_its_pods_out_of_service(sandbox: Cluster, fault: Any, clear: Any) -> None:
    sandbox.apply("deployments", deployment("web"), api=APPS)
    (found,) = sandbox.ready("web")
    node = found.spec.node_name
    fault("node_lost", node=node)

    def ready() -> str:
        conditions = sandbox.raw("GET", f"/api/v1/nodes/{node}")[1]["status"]["conditions"]
        return str(next(c["status"] for c in conditions if c["type"] == "Ready"))

    sandbox.eventually(lambda: ready() == "Unknown", "the node is lost")
    taints = sandbox.raw("GET", f"/api/v1/nodes/{node}")[1]["spec"]["taints"]
    assert {(t["key"], t["effect"]) for t in taints} >= {
        ("node.kubernetes.io/unreachable", "NoSchedule"),
        ("node.kubernetes.io/unreachable", "NoExecute"),
    }

    def unready() -> bool:
        conditions = sandbox.pods("web")[0].status.conditions
        return any(c.type == "Ready" and c.status == "False" for c in conditions)

    sandbox.eventually(unready, "its pod is not ready")
    # A deleted pod stays: nobody there confirms its end. Its successor runs elsewhere.
    sandbox.delete("pods", found.metadata.name)

    def elsewhere() -> bool:
        pods = {p.metadata.uid: p for p in sandbox.pods("web")}
        return found.metadata.uid in pods and any(
            p.spec.node_name not in (None, node) and p.status.phase == "Running" for p in pods.values()
        )

    sandbox.eventually(elsewhere, "a successor elsewhere")
    # Declared out of service, it gives its pods up.
    out = {
        "spec": {
            "taints": [
                *taints,
                {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"},
            ]
        }
    }
    kind = "application/merge-patch+json"
    assert sandbox.raw("PATCH", f"/api/v1/nodes/{node}", out, kind=kind)[0] == 200
    sandbox.eventually(lambda: len(sandbox.pods("web")) == 1, "the lost pod is given up")
    clear()
    sandbox.eventually(lambda: ready() == "True", "the node is back")
    assert sandbox.raw("PATCH", f"/api/v1/nodes/{node}", {"spec": {"taints": None}}, kind=kind)[0] == 200


def test_pods_of_a_node_that_returns_recover(sandbox: Cluster, fault: Any, clear: Any) -> None:
    sandbox.apply("deployments", deployment("web"), api=APPS)
    (found,) = sandbox.ready("web")
    fault("node_lost", node=found.spec.node_name)
    sandbox.eventually(
        lambda: any(c.type == "Ready" and c.status == "False" for c in sandbox.pods("web")[0].status.conditions), "lost"
    )
    clear()
    (again,) = sandbox.ready("web")
    assert again.metadata.uid == found.metadata.uid


# ---------------------------------------------------------------- requests


def test_throttling_says_when_to_come_back(sandbox: Cluster, fault: Any) -> None:
    fault("throttle", count=2)
    for _ in range(2):
        status, refusal, headers = sandbox.raw("GET", sandbox.path("pods"))
        assert (status, refusal["reason"]) == (429, "TooManyRequests")
        assert headers["Retry-After"] == "1"
        assert refusal["details"]["retryAfterSeconds"] == 1
    assert sandbox.raw("GET", sandbox.path("pods"))[0] == 200


def test_server_errors(sandbox: Cluster, fault: Any) -> None:
    fault("server_error", count=2)
    answers = [sandbox.create("configmaps", config_map("one")) for _ in range(2)]
    assert {(status, refusal["reason"]) for status, refusal in answers} == {
        (503, "ServiceUnavailable"),
        (500, "InternalError"),
    }
    assert all(refusal["status"] == "Failure" for _, refusal in answers)
    assert sandbox.create("configmaps", config_map("one"))[0] == 201


def test_conflicts_strike_writes_only(sandbox: Cluster, fault: Any) -> None:
    fault("conflict", count=1)
    assert sandbox.raw("GET", sandbox.path("configmaps"))[0] == 200
    status, refusal = sandbox.apply("configmaps", config_map("one"))
    assert (status, refusal["reason"]) == (409, "Conflict")
    assert "the object has been modified" in refusal["message"]
    assert sandbox.apply("configmaps", config_map("one"))[0] == 201


def test_a_lost_reply_was_applied_all_the_same(sandbox: Cluster, fault: Any) -> None:
    fault("lost_reply", count=1)
    with pytest.raises((urllib3.exceptions.HTTPError, http.client.HTTPException)):
        sandbox.apply("configmaps", config_map("one", {"a": "1"}))
    assert sandbox.get("configmaps", "one")["data"] == {"a": "1"}
    assert sandbox.apply("configmaps", config_map("one", {"a": "1"}))[0] == 200


def test_a_quota_that_is_full(sandbox: Cluster, fault: Any) -> None:
    fault("quota", count=1)
    status, refusal = sandbox.create("configmaps", config_map("one"))
    assert (status, refusal["reason"]) == (403, "Forbidden")
    assert "exceeded quota" in refusal["message"]


def test_what_cannot_be_deleted_goes_once_it_can(sandbox: Cluster, fault: Any, clear: Any) -> None:
    sandbox.create("configmaps", config_map("one"))
    fault("undeletable")
    sandbox.delete("configmaps", "one")
    assert sandbox.get("configmaps", "one")["metadata"]["deletionTimestamp"]
    clear()
    sandbox.eventually(lambda: sandbox.status("configmaps", "one") == 404, "it is gone")


def test_faults_stay_in_their_namespace(sandbox: Cluster, fault: Any) -> None:
    fault("throttle", namespace="nobody-*")
    assert sandbox.raw("GET", sandbox.path("pods"))[0] == 200
    assert sandbox.raw("GET", "/api/v1/namespaces/nobody-here/pods")[0] == 429
    assert sandbox.raw("GET", "/api/v1/namespaces/nobody-here")[0] == 429


@pytest.mark.parametrize(
    "body", [{"fault": "weather"}, {}, {"fault": "throttle", "count": 0}, {"fault": "throttle", "seconds": "soon"}, []]
)
def test_what_is_no_fault_is_refused(sandbox: Cluster, body: Any) -> None:
    status, answer = call(f"{sandbox.target.sandbox}/sandbox/faults", "POST", body)
    assert status == 400
    assert answer["error"]


def test_faults_are_listed(sandbox: Cluster, fault: Any) -> None:
    fault("throttle", count=3)
    sandbox.raw("GET", sandbox.path("pods"))
    status, answer = call(f"{sandbox.target.sandbox}/sandbox/faults")
    assert status == 200
    assert answer["faults"] == [{"fault": "throttle", "hits": 1, "namespace": sandbox.namespace, "count": 3}]
