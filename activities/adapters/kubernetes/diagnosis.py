"""Diagnose a namespace from its objects: ready, or the failure reason. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from activities.adapters.kubernetes.errors import admission_failure_reason
from activities.service_templates.manifests import Manifest
from workflows.rules.instance import FailureReason

Workload = tuple[str, str]

IMAGE_PULL_REASONS = frozenset(
    {
        "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError",
        "RegistryUnavailable",
    }
)  # fmt: skip
CRASH_REASONS = frozenset({"CrashLoopBackOff", "RunContainerError"})
CONFIGURATION_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError"})

UNSCHEDULABLE = ("PodScheduled", "False", "Unschedulable")

WORKLOAD_LABEL = "app.kubernetes.io/name"
"""Label of a pod that the templates set to the name of its workload."""

ENDED_PHASES = ("Succeeded", "Failed")
"""Phases of pods whose containers have ended for good. Pods that a node evicted stay in the cluster: their controller
does not count them as replicas, and does not delete them when it scales down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceSnapshot:
    """Observed workloads and pods of a namespace at one instant."""

    workloads: Mapping[Workload, Manifest]
    pods: tuple[Manifest, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Readiness of a namespace.

    Attributes:
        reason: Why it is not ready; None while it only needs more time.
        pod: The pod, and ``container`` the container, whose logs explain the failure.
    """

    ready: bool
    reason: FailureReason | None = None
    message: str = ""
    pod: Manifest | None = field(default=None, repr=False)
    container: str | None = None
    waiting_for: tuple[Workload, ...] = ()


def diagnose(
    expected: Iterable[Workload], generations: Mapping[Workload, int], snapshot: NamespaceSnapshot
) -> Diagnosis:
    """Diagnose a snapshot.

    Args:
        expected: Workloads that must be available (Deployment, StatefulSet) or complete (Job).
        generations: Minimum observed generation by workload. An older status is ignored.
    """
    waiting = tuple(
        workload
        for workload in expected
        if not _is_ready(workload, snapshot.workloads.get(workload), generations.get(workload, 0))
    )
    if not waiting:
        return Diagnosis(ready=True)
    kinds = {name: kind for kind, name in waiting}
    for workload in waiting:
        stored_workload = snapshot.workloads.get(workload)
        verdict = _diagnose_workload(workload, stored_workload) if stored_workload is not None else None
        if verdict is not None:
            return verdict
    for pod in snapshot.pods:
        metadata = pod["metadata"]
        kind = kinds.get((metadata.get("labels") or {}).get(WORKLOAD_LABEL, ""))
        # The pods of Jobs end by themselves: those that failed explain why the Job is not complete.
        if kind is None or "deletionTimestamp" in metadata or (kind != "Job" and has_ended(pod)):
            continue
        verdict = _diagnose_pod(pod)
        if verdict is not None:
            return verdict
    return Diagnosis(ready=False, waiting_for=waiting)


def job_succeeded(job: Manifest) -> bool | None:
    """Return whether a job succeeded, None while it runs."""
    for condition in (job.get("status") or {}).get("conditions") or []:
        if condition["status"] == "True" and condition["type"] in ("Complete", "Failed"):
            return bool(condition["type"] == "Complete")
    return None


def has_ended(pod: Manifest) -> bool:
    """Return whether the containers of a pod have ended for good."""
    return (pod.get("status") or {}).get("phase") in ENDED_PHASES


def mounted_claim_names(pod: Manifest) -> tuple[str, ...]:
    """Return the names of the claims that a pod mounts."""
    volumes = pod.get("spec", {}).get("volumes") or []
    return tuple(v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v)


def _is_ready(workload: Workload, stored: Manifest | None, generation: int) -> bool:
    if stored is None:
        return False
    kind, _ = workload
    status = stored.get("status") or {}
    if kind == "Job":
        return job_succeeded(stored) is True
    desired_replicas = stored["spec"].get("replicas", 1)
    observed = status.get("observedGeneration", 0)
    if observed < generation or observed < stored["metadata"].get("generation", 0):
        return False
    available = status.get("availableReplicas" if kind == "Deployment" else "readyReplicas", 0)
    counts = (status.get("replicas", 0), status.get("updatedReplicas", 0), available)
    return all(count == desired_replicas for count in counts)


def _diagnose_workload(workload: Workload, stored: Manifest) -> Diagnosis | None:
    kind, name = workload
    if kind == "Job" and job_succeeded(stored) is False:
        return Diagnosis(
            ready=False, reason=FailureReason.JOB_FAILED, message=f"Job {name} failed.", waiting_for=(workload,)
        )
    for condition in (stored.get("status") or {}).get("conditions") or []:
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            reason = admission_failure_reason(condition.get("message", "")) or FailureReason.INVALID
            return Diagnosis(ready=False, reason=reason, message=condition.get("message", ""))
        if condition["type"] == "Progressing" and condition["status"] == "False":
            return Diagnosis(
                ready=False,
                reason=FailureReason.DEADLINE_EXCEEDED,
                message=condition.get("message", f"{kind} {name} exceeded its progress deadline."),
            )
    return None


def _diagnose_pod(pod: Manifest) -> Diagnosis | None:
    status = pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if (condition["type"], condition["status"], condition.get("reason")) == UNSCHEDULABLE:
            message = condition.get("message", "No node has enough capacity.")
            return Diagnosis(ready=False, reason=FailureReason.UNSCHEDULABLE, message=message, pod=pod)
    for container in _containers(status):
        verdict = _diagnose_container(pod, container)
        if verdict is not None:
            return verdict
    return None


def _containers(status: Mapping[str, Any]) -> Iterator[Manifest]:
    yield from status.get("initContainerStatuses") or []
    yield from status.get("containerStatuses") or []


def _diagnose_container(pod: Manifest, container: Manifest) -> Diagnosis | None:
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    reason = waiting.get("reason", "")
    name = container["name"]
    if reason in IMAGE_PULL_REASONS:
        return Diagnosis(
            ready=False, reason=FailureReason.IMAGE_PULL, pod=pod, container=name,
            message=f"{container.get('image', '')}: {waiting.get('message') or reason}",
        )  # fmt: skip
    if reason in CONFIGURATION_REASONS:
        return Diagnosis(
            ready=False,
            reason=FailureReason.CONFIGURATION,
            pod=pod,
            container=name,
            message=waiting.get("message") or reason,
        )
    terminated = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
    failed = bool(terminated) and (terminated.get("exitCode") != 0 or terminated.get("reason") == "OOMKilled")
    # A container that crashed more than once and is not ready counts as crashing, even between two crashes.
    crashing = reason in CRASH_REASONS or (
        failed and container.get("restartCount", 0) >= 2 and not container.get("ready")
    )
    if crashing or (failed and state.get("terminated")):
        exit_code, exit_reason = terminated.get("exitCode"), terminated.get("reason") or reason
        message = (
            f"Container {name} ended with exit code {exit_code} ({exit_reason})."
            if terminated
            else f"Container {name}: {reason}."
        )
        return Diagnosis(ready=False, reason=FailureReason.CRASH_LOOP, message=message, pod=pod, container=name)
    return None
