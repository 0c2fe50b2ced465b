"""Readiness of workloads by their reported status, and ownership by labels: rules without a cluster."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from activities.adapters.kubernetes.diagnosis import NamespaceSnapshot, diagnose
from activities.adapters.kubernetes.ownership import Owner
from workflows.rules.instance import FailureReason

DEPLOYMENT, STATEFUL_SET, JOB = ("Deployment", "app"), ("StatefulSet", "database"), ("Job", "install")


def workload(*, generation: int = 3, desired: int = 2, **status: Any) -> dict[str, Any]:
    """Return a workload with this status; its counts are the desired one unless they are given."""
    counts = dict.fromkeys(("replicas", "updatedReplicas", "availableReplicas", "readyReplicas"), desired)
    return {
        "metadata": {"generation": generation},
        "spec": {"replicas": desired},
        "status": {"observedGeneration": generation, **counts, **status},
    }


def is_ready(kind: tuple[str, str], stored: dict[str, Any], *, generation: int = 0) -> bool:
    return diagnose([kind], {kind: generation}, NamespaceSnapshot(workloads={kind: stored}, pods=())).ready


@pytest.mark.parametrize("kind", [DEPLOYMENT, STATEFUL_SET])
@pytest.mark.parametrize(
    ("stored", "required", "ready"),
    [
        (workload(), 3, True),
        (workload(), 0, True),
        # The status is of an older specification.
        (workload(observedGeneration=2), 0, False),
        # A cached object is older than the specification that was applied, and its status agrees with it.
        (workload(generation=2), 3, False),
        # A pod of the old template still runs, or one of the new does not yet.
        (workload(replicas=3), 3, False),
        (workload(updatedReplicas=1), 3, False),
        (workload() | {"spec": {"replicas": 3}}, 3, False),
        (workload(availableReplicas=1, readyReplicas=1), 3, False),
        (workload(desired=0), 3, True),
        # One replica is the default.
        (workload() | {"spec": {}}, 3, False),
        (workload(desired=1) | {"spec": {}}, 3, True),
        ({"metadata": {"generation": 1}, "spec": {}, "status": {}}, 0, False),
    ],
)
def test_a_workload_is_ready_when_the_applied_generation_is_available_in_full(
    kind: tuple[str, str], stored: dict[str, Any], required: int, ready: bool
) -> None:
    assert is_ready(kind, stored, generation=required) is ready


@pytest.mark.parametrize("count", ["replicas", "updatedReplicas"])
@pytest.mark.parametrize("difference", [-1, 1])
def test_each_count_has_to_be_the_desired_one(count: str, difference: int) -> None:
    for kind, available in ((DEPLOYMENT, "availableReplicas"), (STATEFUL_SET, "readyReplicas")):
        for name in (count, available):
            assert not is_ready(kind, workload(**{name: 2 + difference}))


def test_pods_that_are_ready_only_for_a_moment_make_no_deployment_ready() -> None:
    assert not is_ready(DEPLOYMENT, workload(availableReplicas=0))
    assert is_ready(STATEFUL_SET, workload(availableReplicas=0))


@pytest.mark.parametrize(
    ("conditions", "ready"),
    [
        ([], False),
        ([{"type": "Complete", "status": "False"}], False),
        ([{"type": "SuccessCriteriaMet", "status": "True"}], False),
        ([{"type": "Complete", "status": "True"}], True),
        ([{"type": "Failed", "status": "True"}], False),
    ],
)
def test_a_job_is_ready_when_it_is_complete(conditions: list[dict[str, str]], ready: bool) -> None:
    assert is_ready(JOB, {"metadata": {}, "spec": {}, "status": {"conditions": conditions}}) is ready


def test_every_workload_has_to_exist() -> None:
    snapshot = NamespaceSnapshot(workloads={DEPLOYMENT: workload()}, pods=())
    assert diagnose([DEPLOYMENT, STATEFUL_SET], {}, snapshot).waiting_for == (STATEFUL_SET,)


def crashing_pod(**metadata: Any) -> dict[str, Any]:
    state = {"waiting": {"reason": "CrashLoopBackOff"}}
    return {
        "metadata": {"labels": {"app.kubernetes.io/name": "app"}, **metadata},
        "status": {"containerStatuses": [{"name": "app", "state": state}]},
    }


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        (crashing_pod(), "CrashLoop"),
        # Its replacement is on the way, or it is of a workload that is ready.
        (crashing_pod(deletionTimestamp="2026-01-01T00:00:00Z"), None),
        (crashing_pod(labels={"app.kubernetes.io/name": "database"}), None),
    ],
)
def test_only_pods_that_a_workload_waits_for_explain_it(pod: dict[str, Any], reason: str | None) -> None:
    workloads = {DEPLOYMENT: workload(availableReplicas=1), STATEFUL_SET: workload()}
    snapshot = NamespaceSnapshot(workloads=workloads, pods=(pod,))
    assert diagnose([DEPLOYMENT, STATEFUL_SET], {}, snapshot).reason == reason


LABELS = {
    "app.kubernetes.io/managed-by": "berth",
    "berth/installation": "installation-1",
    "berth/instance": "ins_1",
}
OWNER = Owner(installation_id="installation-1", instance_id="ins_1")


def test_an_object_is_owned_when_manager_installation_and_instance_are_the_owners() -> None:
    assert OWNER.owns({"metadata": {"labels": LABELS | {"note": "theirs"}}})
    for size in range(1, len(LABELS) + 1):
        for names in combinations(LABELS, size):
            for other in ("", "other", "ins_10"):
                assert not OWNER.owns({"metadata": {"labels": LABELS | dict.fromkeys(names, other)}})
            assert not OWNER.owns({"metadata": {"labels": {k: v for k, v in LABELS.items() if k not in names}}})
    assert not OWNER.owns({"metadata": {"labels": None}})


def test_the_selector_of_an_owner_names_every_label() -> None:
    assert dict(part.split("=") for part in OWNER.selector.split(",")) == LABELS


@pytest.mark.parametrize(
    ("kind", "reason"), [(DEPLOYMENT, None), (STATEFUL_SET, None), (JOB, FailureReason.CRASH_LOOP)]
)
def test_a_pod_that_was_evicted_explains_only_why_a_job_is_not_complete(
    kind: tuple[str, str], reason: FailureReason | None
) -> None:
    """A node leaves the pods that it evicted in the cluster, and their controller starts others."""
    labels = {"app.kubernetes.io/name": kind[1]}

    def pod(name: str, phase: str, state: dict[str, Any]) -> dict[str, Any]:
        containers = [{"name": "app", "ready": False, "restartCount": 0, "state": state}]
        return {
            "metadata": {"name": name, "labels": labels},
            "status": {"phase": phase, "containerStatuses": containers},
        }

    evicted = pod("1", "Failed", {"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown"}})
    starting = pod("2", "Running", {"running": {}})
    stored = workload(desired=1, availableReplicas=0, readyReplicas=0)
    verdict = diagnose([kind], {}, NamespaceSnapshot(workloads={kind: stored}, pods=(evicted, starting)))
    assert (verdict.ready, verdict.reason) == (False, reason)
