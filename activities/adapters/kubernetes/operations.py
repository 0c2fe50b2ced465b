"""Operations on an instance: apply and run, scale down, back up. All are idempotent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace

from activities.adapters.kubernetes.apply import apply_instance
from activities.adapters.kubernetes.client import KubernetesClient
from activities.adapters.kubernetes.diagnosis import WORKLOAD_LABEL, has_ended, job_succeeded
from activities.adapters.kubernetes.errors import AlreadyExists, ClusterError
from activities.adapters.kubernetes.ownership import owner_of
from activities.adapters.kubernetes.redaction import redacted_tail
from activities.adapters.kubernetes.storage import fit_storage
from activities.service_templates.manifests import FIELD_MANAGER, InstanceSpec, Manifest
from activities.service_templates.registry import RenderedInstance
from workflows.rules.ids import to_dns_label
from workflows.rules.instance import FailureReason

OPERATION_ANNOTATION = "berth/operation"
REVISION_LABEL = "controller-revision-hash"
"""Label of a StatefulSet's pod: the revision of the template that it was created from."""

SCALABLE_KINDS = ("StatefulSet", "Deployment")
REMOVABLE_KINDS = (
    *SCALABLE_KINDS, "CronJob", "Ingress", "Service", "NetworkPolicy", "ConfigMap", "ServiceAccount", "ResourceQuota",
    "LimitRange",
)  # fmt: skip
"""Kinds of objects that are deleted once the template does not contain them. Claims hold data, Secrets may be needed to
read it, and finished Jobs are records: they stay until the namespace is deleted."""

FINISHED_JOB_SECONDS = 3 * 86_400
"""How long the Job of a manual backup and its logs are retained after it finishes."""

POLL_INTERVAL_SECONDS = 0.25
POD_SHUTDOWN_TIMEOUT_SECONDS = 110.0
REVISION_TIMEOUT_SECONDS = 15.0


async def apply_and_run(
    client: KubernetesClient,
    rendered: RenderedInstance,
    saved_replicas: Mapping[str, int],
    *,
    restart_id: str | None = None,
) -> dict[str, dict[str, str]]:
    """Apply the current revision of the instance's template, delete what it no longer contains, and run all workloads.

    An instance may have been provisioned under an earlier revision. Its volume claims and Secrets stay. Pods
    of StatefulSets that are not ready are replaced as well.

    Args:
        saved_replicas: By ``Kind/name``, of the workloads that are scaled to zero; without them the template's count.
        restart_id: Restarts every pod. A repeated call with the same id does not restart them again.

    Returns:
        The values of the instance's Secrets, as ``apply_instance``.
    """
    spec = rendered.spec
    # Before anything is applied: a replacement must not open a volume that the former workload still writes to.
    await _delete_removed_objects(client, rendered)
    rendered = await fit_storage(client, rendered)
    live = {_key(workload): workload for workload in await _list_owned(client, spec, *SCALABLE_KINDS)}
    objects = [
        _running(manifest, live.get(_key(manifest)), saved_replicas.get(_key(manifest), 0), restart_id)
        for manifest in rendered.objects
    ]
    secret_values = await apply_instance(client, replace(rendered, objects=tuple(objects)))
    await _delete_outdated_broken_pods(client, rendered)
    return secret_values


async def current_replicas(client: KubernetesClient, spec: InstanceSpec) -> dict[str, int]:
    """Return the desired replicas of the existing workloads by ``Kind/name``."""
    workloads = await _list_owned(client, spec, *SCALABLE_KINDS)
    return {_key(workload): workload["spec"].get("replicas", 1) for workload in workloads}


async def scale_down(client: KubernetesClient, spec: InstanceSpec) -> None:
    """Suspend the backups, scale the existing workloads to zero and wait until no pod of them runs."""
    for cron_job in await _list_owned(client, spec, "CronJob"):
        await client.patch("CronJob", spec.namespace, cron_job["metadata"]["name"], {"spec": {"suspend": True}})
    await _scale_to_zero(client, spec, await _list_owned(client, spec, *SCALABLE_KINDS))


async def run_backup_job(
    client: KubernetesClient, spec: InstanceSpec, cron_name: str | None, operation_id: str, *, tail_lines: int = 20
) -> None:
    """Create a Job from the template of the backup's CronJob and wait until it finishes.

    Args:
        cron_name: As the service names it; None if the service has no backup.

    Raises:
        ClusterError: ``JobFailed`` with the last log lines; ``Invalid`` if the service or the instance has no backup.
    """
    namespace = spec.namespace
    if cron_name is None:
        raise ClusterError(FailureReason.INVALID, "This service does not support backups.")
    cron = await client.get("CronJob", namespace, cron_name)
    if cron is None:
        raise ClusterError(
            FailureReason.INVALID, "The instance predates the backups of its service. Restart it, then back it up."
        )
    template = cron["spec"]["jobTemplate"]
    name = f"backup-{to_dns_label(operation_id)}"[:63].rstrip("-")
    labels = {**(template.get("metadata", {}).get("labels") or {}), **spec.labels}
    job: Manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": labels,
            "annotations": {OPERATION_ANNOTATION: operation_id},
        },
        # The CronJob's history limits do not apply: they count only Jobs that the CronJob created.
        "spec": template["spec"] | {"ttlSecondsAfterFinished": FINISHED_JOB_SECONDS},
    }
    try:
        await client.create(job)
    except AlreadyExists:
        stored_job = await client.get("Job", namespace, name)
        if stored_job is not None and not owner_of(spec).owns(stored_job):
            raise
    while True:
        stored_job = await client.get("Job", namespace, name)
        if stored_job is None:
            raise ClusterError(
                FailureReason.JOB_FAILED, "The backup Job was deleted while it was running.", permanent=True
            )
        succeeded = job_succeeded(stored_job)
        if succeeded is True:
            return
        if succeeded is False:
            lines = await _job_logs(client, spec, name, tail_lines)
            raise ClusterError(FailureReason.JOB_FAILED, f"The backup failed. {lines}".strip(), permanent=True)
        await asyncio.sleep(POLL_INTERVAL_SECONDS * 4)


async def _delete_removed_objects(client: KubernetesClient, rendered: RenderedInstance) -> None:
    """Delete what an earlier revision of the template contained and the current one does not."""
    spec = rendered.spec
    expected = {_key(manifest) for manifest in rendered.objects}
    removed = [
        stored
        for stored in await _list_owned(client, spec, *REMOVABLE_KINDS)
        if _key(stored) not in expected and _is_applied_by_platform(stored)
    ]
    # A workload whose pods have not ended is found again by the next attempt.
    await _scale_to_zero(client, spec, [stored for stored in removed if stored["kind"] in SCALABLE_KINDS])
    for stored in removed:
        metadata = stored["metadata"]
        await client.delete(stored["kind"], spec.namespace, metadata["name"], uid=metadata["uid"])


def _is_applied_by_platform(stored: Manifest) -> bool:
    """Return False for an object that an operator or a controller created with copied labels."""
    return any(
        entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply"
        for entry in stored["metadata"].get("managedFields") or []
    )


def _running(manifest: Manifest, stored: Manifest | None, saved_replicas: int, restart_id: str | None) -> Manifest:
    """Return the manifest of a workload that runs, or of a CronJob that is not suspended; other manifests unchanged.

    Args:
        stored: The workload in the cluster: it keeps its replicas, and its pods unless ``restart_id`` restarts them.
    """
    if manifest["kind"] == "CronJob":
        return {**manifest, "spec": {**manifest["spec"], "suspend": False}}
    if manifest["kind"] not in SCALABLE_KINDS:
        return manifest
    result: Manifest = deepcopy(manifest)
    spec, stored_spec = result["spec"], stored["spec"] if stored else {}
    spec["replicas"] = stored_spec.get("replicas") or saved_replicas or spec.get("replicas", 1)
    stored_annotations = (stored_spec.get("template", {}).get("metadata") or {}).get("annotations") or {}
    restarted_by = restart_id or stored_annotations.get(OPERATION_ANNOTATION)
    if restarted_by is not None:
        spec["template"]["metadata"].setdefault("annotations", {})[OPERATION_ANNOTATION] = restarted_by
    return result


async def _delete_outdated_broken_pods(client: KubernetesClient, rendered: RenderedInstance) -> None:
    """Delete the pods of StatefulSets that are neither ready nor of the current template.

    Their controller waits for a pod to become ready before it updates it. One that never does (no node has enough
    capacity, its image does not exist) would keep the former template: kubernetes/kubernetes#67250.
    """
    spec = rendered.spec
    names = [manifest["metadata"]["name"] for manifest in rendered.objects if manifest["kind"] == "StatefulSet"]
    for name in names:
        revision = await _observed_revision(client, spec, name)
        selector = f"{owner_of(spec).selector},{WORKLOAD_LABEL}={name}"
        for pod in await client.list("Pod", spec.namespace, labels=selector):
            metadata = pod["metadata"]
            pod_revision = metadata["labels"].get(REVISION_LABEL)
            if revision is not None and pod_revision not in (None, revision) and not _is_ready(pod):
                await client.delete("Pod", spec.namespace, metadata["name"], uid=metadata["uid"])


async def _observed_revision(client: KubernetesClient, spec: InstanceSpec, name: str) -> str | None:
    """Wait until its controller has observed a StatefulSet, and return the revision of its template.

    Returns:
        None if there is no such StatefulSet.

    Raises:
        ClusterError: ``Unavailable`` if the controller has not observed it in time.
    """
    deadline = time.monotonic() + REVISION_TIMEOUT_SECONDS
    while (stored := await client.get("StatefulSet", spec.namespace, name)) is not None:
        status = stored.get("status") or {}
        if status.get("observedGeneration", 0) >= stored["metadata"]["generation"]:
            return str(status["updateRevision"])
        if time.monotonic() >= deadline:
            raise ClusterError(FailureReason.UNAVAILABLE, f"StatefulSet {name} is not being reconciled.")
        await asyncio.sleep(POLL_INTERVAL_SECONDS)
    return None


def _is_ready(pod: Manifest) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


async def _scale_to_zero(client: KubernetesClient, spec: InstanceSpec, workloads: Sequence[Manifest]) -> None:
    """Scale the workloads to zero and wait until no pod of them runs."""
    if not workloads:
        return
    body = {"spec": {"replicas": 0}}
    await asyncio.gather(
        *(client.patch(stored["kind"], spec.namespace, stored["metadata"]["name"], body) for stored in workloads)
    )
    names = ",".join(sorted({stored["metadata"]["name"] for stored in workloads}))
    selector = f"{owner_of(spec).selector},{WORKLOAD_LABEL} in ({names})"
    deadline = time.monotonic() + POD_SHUTDOWN_TIMEOUT_SECONDS
    while not all(has_ended(pod) for pod in await client.list("Pod", spec.namespace, labels=selector)):
        if time.monotonic() >= deadline:
            raise ClusterError(FailureReason.TERMINATING, "Pods are terminating.")
        await asyncio.sleep(POLL_INTERVAL_SECONDS)


async def _list_owned(client: KubernetesClient, spec: InstanceSpec, *kinds: str) -> list[Manifest]:
    """Return the objects of these kinds with the instance's labels in its namespace, each with its kind."""
    selector = owner_of(spec).selector
    lists = await asyncio.gather(*(client.list(kind, spec.namespace, labels=selector) for kind in kinds))
    # The items of a list do not name their kind.
    return [{**item, "kind": kind} for kind, items in zip(kinds, lists, strict=True) for item in items]


def _key(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


async def _job_logs(client: KubernetesClient, spec: InstanceSpec, job: str, lines: int) -> str:
    """Return the last log lines of a failed container, init containers included, of the newest pod that has logs."""
    namespace, owner = spec.namespace, owner_of(spec)
    pods = await client.list("Pod", namespace, labels=f"{owner.selector},batch.kubernetes.io/job-name={job}")
    for pod in sorted(pods, key=_created_at, reverse=True):
        for name in _failed_first(pod):
            text = await client.logs(namespace, pod["metadata"]["name"], name, previous=False, lines=lines)
            if text.strip():
                return f"Last lines:\n{await redacted_tail(client, spec, text)}"
    return ""


def _created_at(pod: Manifest) -> str:
    return str(pod["metadata"].get("creationTimestamp") or "")


def _failed_first(pod: Manifest) -> list[str]:
    """Return the names of a pod's containers in start order, failed ones first."""
    status = pod.get("status") or {}
    statuses = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    failed = {
        container["name"]
        for container in statuses
        if ((container.get("state") or {}).get("terminated") or {}).get("exitCode")
    }
    names = [
        container["name"] for part in ("initContainers", "containers") for container in pod["spec"].get(part) or []
    ]
    return sorted(names, key=lambda name: name not in failed)
