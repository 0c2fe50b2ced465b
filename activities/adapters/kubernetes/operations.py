"""Operations on a running instance: restart, scale, resize, back up. All are idempotent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from activities.adapters.kubernetes.client import STRATEGIC_MERGE_PATCH, KubernetesClient
from activities.adapters.kubernetes.diagnosis import WORKLOAD_LABEL, job_succeeded
from activities.adapters.kubernetes.errors import AlreadyExists, ClusterError
from activities.adapters.kubernetes.ownership import owner_of
from activities.adapters.kubernetes.redaction import redacted
from activities.adapters.kubernetes.resources import quantity_bytes
from activities.service_templates.manifests import Manifest
from activities.service_templates.registry import RenderedInstance
from workflows.rules.ids import to_dns_label
from workflows.rules.instance import FailureReason

OPERATION_ANNOTATION = "berth/operation"
SCALABLE_KINDS = ("StatefulSet", "Deployment")

FINISHED_JOB_SECONDS = 3 * 86_400
"""How long the Job of a manual backup and its logs are retained after it finishes."""

POLL_INTERVAL_SECONDS = 0.25
QUOTA_SYNC_TIMEOUT_SECONDS = 15.0
POD_SHUTDOWN_TIMEOUT_SECONDS = 110.0


async def restart(client: KubernetesClient, rendered: RenderedInstance, operation_id: str) -> None:
    """Restart every workload: annotate its pods with the operation's id. A repeated call changes nothing."""
    body = {"spec": {"template": {"metadata": {"annotations": {OPERATION_ANNOTATION: operation_id}}}}}
    await asyncio.gather(
        *(client.patch(kind, rendered.spec.namespace, name, body) for kind, name in _scalable_workloads(rendered))
    )


async def current_replicas(client: KubernetesClient, rendered: RenderedInstance) -> dict[str, int]:
    """Return the desired replicas by ``Kind/name``."""
    workloads = await asyncio.gather(
        *(client.get(kind, rendered.spec.namespace, name) for kind, name in _scalable_workloads(rendered))
    )
    return {
        f"{kind}/{name}": workload["spec"].get("replicas", 1)
        for (kind, name), workload in zip(_scalable_workloads(rendered), workloads, strict=True)
        if workload is not None
    }


async def scale_down(client: KubernetesClient, rendered: RenderedInstance) -> None:
    """Suspend the backups, scale to zero and wait until no pod remains."""
    await _suspend_backups(client, rendered, suspended=True)
    await _scale(client, rendered, {f"{kind}/{name}": 0 for kind, name in _scalable_workloads(rendered)})
    names = ",".join(sorted({name for _, name in _scalable_workloads(rendered)}))
    selector = f"{owner_of(rendered.spec).selector},{WORKLOAD_LABEL} in ({names})"
    deadline = time.monotonic() + POD_SHUTDOWN_TIMEOUT_SECONDS
    while await client.list("Pod", rendered.spec.namespace, labels=selector, limit=1):
        if time.monotonic() >= deadline:
            raise ClusterError(FailureReason.TERMINATING, "Pods are terminating.")
        await asyncio.sleep(POLL_INTERVAL_SECONDS)


async def scale_up(client: KubernetesClient, rendered: RenderedInstance, saved_replicas: Mapping[str, int]) -> None:
    """Restore the saved replicas and resume the backups. Without saved replicas use the template's."""
    template_replicas = {
        f"{manifest['kind']}/{manifest['metadata']['name']}": manifest["spec"].get("replicas", 1)
        for manifest in rendered.of_kind(*SCALABLE_KINDS)
    }
    await _scale(client, rendered, template_replicas | dict(saved_replicas))
    await _suspend_backups(client, rendered, suspended=False)


async def resize(client: KubernetesClient, rendered: RenderedInstance) -> None:
    """Change quota, volume claims, container resources and backup retention to the rendered plan. Nothing else."""
    namespace = rendered.spec.namespace
    claims = await client.list("PersistentVolumeClaim", namespace, labels=owner_of(rendered.spec).selector)
    live = {claim["metadata"]["name"]: claim for claim in claims}
    expansions: dict[str, str] = {}
    new_claims: list[Manifest] = []
    total_bytes = 0
    for manifest in rendered.of_kind("PersistentVolumeClaim"):
        name, size = manifest["metadata"]["name"], _storage(manifest)
        live_size = _storage(live[name]) if name in live else size
        if name not in live:
            new_claims.append(manifest)
        elif quantity_bytes(size) > quantity_bytes(live_size):
            if (live[name].get("status") or {}).get("phase") == "Bound":
                expansions[name] = size
            else:
                # An unbound claim holds no data, and its size cannot be changed: replace it.
                await client.delete("PersistentVolumeClaim", namespace, name)
                new_claims.append(manifest)
        # A volume cannot shrink, so the quota must allow its present size.
        total_bytes += max(quantity_bytes(size), quantity_bytes(live_size))
    for manifest in rendered.of_kind("ResourceQuota", "LimitRange"):
        if manifest["kind"] == "ResourceQuota":
            allowed = manifest["spec"]["hard"].get("requests.storage")
            if allowed is not None and quantity_bytes(allowed) < total_bytes:
                manifest = {
                    **manifest,
                    "spec": {"hard": manifest["spec"]["hard"] | {"requests.storage": str(total_bytes)}},
                }
        await client.apply(manifest, force=True)
    if expansions or new_claims:
        await _wait_for_quota_sync(client, rendered)
    for manifest in new_claims:
        await client.apply(manifest)
    for name, size in expansions.items():
        body: Manifest = {"spec": {"resources": {"requests": {"storage": size}}}}
        await client.patch("PersistentVolumeClaim", namespace, name, body)
    for manifest in rendered.of_kind(*SCALABLE_KINDS):
        await client.patch(
            manifest["kind"],
            namespace,
            manifest["metadata"]["name"],
            _resource_patch(manifest),
            content_type=STRATEGIC_MERGE_PATCH,
        )
    for manifest in rendered.of_kind("CronJob"):
        job = {"spec": {"jobTemplate": {"spec": _environment(manifest["spec"]["jobTemplate"]["spec"])}}}
        await client.patch("CronJob", namespace, manifest["metadata"]["name"], job, content_type=STRATEGIC_MERGE_PATCH)


async def run_backup_job(
    client: KubernetesClient, rendered: RenderedInstance, operation_id: str, *, tail_lines: int = 20
) -> None:
    """Create a Job from the CronJob's template and wait until it finishes.

    Raises:
        ClusterError: ``JobFailed`` with the last log lines; ``Invalid`` if the service has no backup.
    """
    namespace, cron_name = rendered.spec.namespace, rendered.service.backup_cron_job
    cron = None if cron_name is None else await client.get("CronJob", namespace, cron_name)
    if cron is None:
        raise ClusterError(FailureReason.INVALID, "This service does not support backups.")
    template = cron["spec"]["jobTemplate"]
    name = f"backup-{to_dns_label(operation_id)}"[:63].rstrip("-")
    labels = {**(template.get("metadata", {}).get("labels") or {}), **rendered.spec.labels}
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
        if stored_job is not None and not owner_of(rendered.spec).owns(stored_job):
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
            lines = await _job_logs(client, rendered, name, tail_lines)
            raise ClusterError(FailureReason.JOB_FAILED, f"The backup failed. {lines}".strip(), permanent=True)
        await asyncio.sleep(POLL_INTERVAL_SECONDS * 4)


def _scalable_workloads(rendered: RenderedInstance) -> list[tuple[str, str]]:
    return [workload for workload in rendered.workloads if workload[0] in SCALABLE_KINDS]


async def _scale(client: KubernetesClient, rendered: RenderedInstance, replicas: Mapping[str, int]) -> None:
    steps = []
    for key, replica_count in replicas.items():
        kind, _, name = key.partition("/")
        steps.append(client.patch(kind, rendered.spec.namespace, name, {"spec": {"replicas": replica_count}}))
    await asyncio.gather(*steps)


async def _suspend_backups(client: KubernetesClient, rendered: RenderedInstance, *, suspended: bool) -> None:
    for manifest in rendered.of_kind("CronJob"):
        body = {"spec": {"suspend": suspended}}
        await client.patch("CronJob", rendered.spec.namespace, manifest["metadata"]["name"], body)


async def _wait_for_quota_sync(client: KubernetesClient, rendered: RenderedInstance) -> None:
    """Wait until the controller has observed the new quota. Until then it rejects larger claims."""
    deadline = time.monotonic() + QUOTA_SYNC_TIMEOUT_SECONDS
    for manifest in rendered.of_kind("ResourceQuota"):
        while time.monotonic() < deadline:
            quota = await client.get("ResourceQuota", rendered.spec.namespace, manifest["metadata"]["name"])
            if quota is None or (quota.get("status") or {}).get("hard") == quota["spec"]["hard"]:
                break
            await asyncio.sleep(POLL_INTERVAL_SECONDS)


async def _job_logs(client: KubernetesClient, rendered: RenderedInstance, job: str, lines: int) -> str:
    """Return the last log lines of a failed container, init containers included, of the newest pod that has logs."""
    namespace, owner = rendered.spec.namespace, owner_of(rendered.spec)
    pods = await client.list("Pod", namespace, labels=f"{owner.selector},batch.kubernetes.io/job-name={job}")
    for pod in sorted(pods, key=_created_at, reverse=True):
        for name in _failed_first(pod):
            text = await client.logs(namespace, pod["metadata"]["name"], name, previous=False, lines=lines)
            if text.strip():
                return f"Last lines:\n{await redacted(client, rendered.spec, text.strip()[-1500:])}"
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


def _storage(claim: Manifest) -> str:
    return str(claim["spec"]["resources"]["requests"]["storage"])


def _environment(job: Manifest) -> Manifest:
    """Return a strategic merge patch of the containers' variables, which include the plan's backup retention."""
    pod: Mapping[str, Any] = job["template"]["spec"]
    parts = {
        part: [{"name": container["name"], "env": container["env"]} for container in pod[part] if container.get("env")]
        for part in ("initContainers", "containers")
        if pod.get(part)
    }
    return {"template": {"spec": {part: containers for part, containers in parts.items() if containers}}}


def _resource_patch(manifest: Manifest) -> Manifest:
    """Return a strategic merge patch of the containers' resources, and of arguments that are derived from them."""
    pod: Mapping[str, Any] = manifest["spec"]["template"]["spec"]
    return {
        "spec": {
            "template": {
                "spec": {
                    part: [
                        {key: container[key] for key in ("name", "resources", "args") if key in container}
                        for container in pod[part]
                    ]
                    for part in ("initContainers", "containers")
                    if pod.get(part)
                }
            }
        }
    }
