"""Reading a namespace: is everything up, and if not, what is wrong. Pure: objects in, a verdict out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from activities.adapters.kubernetes.errors import refused_creation
from workflows.rules.instance import Trouble

Object = dict[str, Any]
Workload = tuple[str, str]

IMAGE = frozenset(
    {
        "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError",
        "RegistryUnavailable",
    }
)  # fmt: skip
CRASH = frozenset({"CrashLoopBackOff", "RunContainerError"})
CONFIGURATION = frozenset({"CreateContainerConfigError", "CreateContainerError"})

UNSCHEDULABLE = ("PodScheduled", "False", "Unschedulable")

WORKLOAD_LABEL = "app.kubernetes.io/name"
"""Templates put the workload's name there, on its pods."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What was seen of a namespace at one time."""

    workloads: Mapping[Workload, Object]
    pods: tuple[Object, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``ready``, or ``trouble`` (None: just not there yet) with a sentence; ``pod`` and ``container`` have the logs."""

    ready: bool
    trouble: Trouble | None = None
    message: str = ""
    pod: Object | None = field(default=None, repr=False)
    container: str | None = None
    waiting_for: tuple[Workload, ...] = ()


def judge(expected: Iterable[Workload], generations: Mapping[Workload, int], snapshot: Snapshot) -> Verdict:
    """Judge a snapshot.

    Args:
        expected: What has to run (Deployment, StatefulSet) or to complete (Job).
        generations: The least generation that a workload's status must speak of; an older status is no news.
    """
    waiting = tuple(
        workload
        for workload in expected
        if not _is_up(workload, snapshot.workloads.get(workload), generations.get(workload, 0))
    )
    if not waiting:
        return Verdict(ready=True)
    names = {name for _, name in waiting}
    for workload in waiting:
        found = snapshot.workloads.get(workload)
        verdict = _trouble_of_workload(workload, found) if found is not None else None
        if verdict is not None:
            return verdict
    for pod in snapshot.pods:
        metadata = pod["metadata"]
        if (metadata.get("labels") or {}).get(WORKLOAD_LABEL) in names and "deletionTimestamp" not in metadata:
            verdict = _trouble_of_pod(pod)
            if verdict is not None:
                return verdict
    return Verdict(ready=False, waiting_for=waiting)


def finished(job: Object) -> bool | None:
    """Return whether a job succeeded, None while it runs."""
    for condition in (job.get("status") or {}).get("conditions") or []:
        if condition["status"] == "True" and condition["type"] in ("Complete", "Failed"):
            return bool(condition["type"] == "Complete")
    return None


def unbound_claims(pod: Object) -> tuple[str, ...]:
    """Return the names of the claims that a pod mounts."""
    volumes = pod.get("spec", {}).get("volumes") or []
    return tuple(v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v)


def _is_up(workload: Workload, found: Object | None, generation: int) -> bool:
    if found is None:
        return False
    kind, _ = workload
    status = found.get("status") or {}
    if kind == "Job":
        return finished(found) is True
    wanted = found["spec"].get("replicas", 1)
    observed = status.get("observedGeneration", 0)
    if observed < generation or observed < found["metadata"].get("generation", 0):
        return False
    available = status.get("availableReplicas" if kind == "Deployment" else "readyReplicas", 0)
    counts = (status.get("replicas", 0), status.get("updatedReplicas", 0), available)
    return all(count == wanted for count in counts)


def _trouble_of_workload(workload: Workload, found: Object) -> Verdict | None:
    kind, name = workload
    if kind == "Job" and finished(found) is False:
        return Verdict(ready=False, trouble=Trouble.JOB_FAILED, message=f"Job {name} failed.", waiting_for=(workload,))
    for condition in (found.get("status") or {}).get("conditions") or []:
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            trouble = refused_creation(condition.get("message", "")) or Trouble.INVALID
            return Verdict(ready=False, trouble=trouble, message=condition.get("message", ""))
        if condition["type"] == "Progressing" and condition["status"] == "False":
            return Verdict(
                ready=False,
                trouble=Trouble.DEADLINE_EXCEEDED,
                message=condition.get("message", f"{kind} {name} is stuck."),
            )
    return None


def _trouble_of_pod(pod: Object) -> Verdict | None:
    status = pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if (condition["type"], condition["status"], condition.get("reason")) == UNSCHEDULABLE:
            message = condition.get("message", "No node has room.")
            return Verdict(ready=False, trouble=Trouble.UNSCHEDULABLE, message=message, pod=pod)
    for container in _containers(status):
        verdict = _trouble_of_container(pod, container)
        if verdict is not None:
            return verdict
    return None


def _containers(status: Mapping[str, Any]) -> Iterator[Object]:
    yield from status.get("initContainerStatuses") or []
    yield from status.get("containerStatuses") or []


def _trouble_of_container(pod: Object, container: Object) -> Verdict | None:
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    reason = waiting.get("reason", "")
    name = container["name"]
    if reason in IMAGE:
        return Verdict(
            ready=False, trouble=Trouble.IMAGE_PULL, pod=pod, container=name,
            message=f"{container.get('image', '')}: {waiting.get('message') or reason}",
        )  # fmt: skip
    if reason in CONFIGURATION:
        return Verdict(
            ready=False,
            trouble=Trouble.CONFIGURATION,
            pod=pod,
            container=name,
            message=waiting.get("message") or reason,
        )
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
    failed = bool(ended) and (ended.get("exitCode") != 0 or ended.get("reason") == "OOMKilled")
    # A container that has crashed more than once and is not ready is crashing, also in the second in which it runs.
    crashing = reason in CRASH or (failed and container.get("restartCount", 0) >= 2 and not container.get("ready"))
    if crashing or (failed and state.get("terminated")):
        code, why = ended.get("exitCode"), ended.get("reason") or reason
        message = f"Container {name} ended with exit code {code} ({why})." if ended else f"Container {name}: {reason}."
        return Verdict(ready=False, trouble=Trouble.CRASH_LOOP, message=message, pod=pod, container=name)
    return None
