"""Changes to an instance that runs: roll, scale, resize, back up. Each bears being repeated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from activities.adapters.kubernetes.applying import ours
from activities.adapters.kubernetes.diagnosis import WORKLOAD_LABEL, finished
from activities.adapters.kubernetes.errors import ClusterError, Exists
from activities.adapters.kubernetes.gateway import STRATEGIC, KubernetesGateway, Object
from activities.adapters.kubernetes.kinds import amount_of
from activities.templates import Rendered
from workflows.rules.ids import dns_label
from workflows.rules.instance import Trouble

OPERATION = "berth/operation"
SCALED = ("StatefulSet", "Deployment")

PAUSE_SECONDS = 0.25
QUOTA_COUNTED_WITHIN_SECONDS = 15.0
PODS_GONE_WITHIN_SECONDS = 110.0


async def restart(gateway: KubernetesGateway, rendered: Rendered, operation_id: str) -> None:
    """Roll every workload. The operation's id is the mark, so a repeated call finds it there and nothing rolls."""
    body = {"spec": {"template": {"metadata": {"annotations": {OPERATION: operation_id}}}}}
    await asyncio.gather(
        *(gateway.patch(kind, rendered.spec.namespace, name, body) for kind, name in _scaled(rendered))
    )


async def replicas(gateway: KubernetesGateway, rendered: Rendered) -> dict[str, int]:
    """Return the wanted replicas by ``Kind/name``."""
    found = await asyncio.gather(
        *(gateway.get(kind, rendered.spec.namespace, name) for kind, name in _scaled(rendered))
    )
    return {
        f"{kind}/{name}": one["spec"].get("replicas", 1)
        for (kind, name), one in zip(_scaled(rendered), found, strict=True)
        if one is not None
    }


async def scale_down(gateway: KubernetesGateway, rendered: Rendered) -> None:
    """Suspend the backups, scale to zero, and return when no pod is left."""
    await _suspend_backups(gateway, rendered, suspended=True)
    await _scale(gateway, rendered, {f"{kind}/{name}": 0 for kind, name in _scaled(rendered)})
    names = ",".join(sorted({name for _, name in _scaled(rendered)}))
    deadline = time.monotonic() + PODS_GONE_WITHIN_SECONDS
    while await gateway.list("Pod", rendered.spec.namespace, labels=f"{WORKLOAD_LABEL} in ({names})", limit=1):
        if time.monotonic() >= deadline:
            raise ClusterError(Trouble.TERMINATING, "Pods are still shutting down.")
        await asyncio.sleep(PAUSE_SECONDS)


async def scale_up(gateway: KubernetesGateway, rendered: Rendered, remembered: Mapping[str, int]) -> None:
    """Go back to the remembered replicas; what is not remembered gets what its template says."""
    templated = {
        f"{made['kind']}/{made['metadata']['name']}": made["spec"].get("replicas", 1) for made in rendered.of(*SCALED)
    }
    await _scale(gateway, rendered, templated | dict(remembered))
    await _suspend_backups(gateway, rendered, suspended=False)


async def resize(gateway: KubernetesGateway, rendered: Rendered) -> None:
    """Give quota, claims and containers the rendered envelope. Nothing else of a running instance changes."""
    namespace = rendered.spec.namespace
    live = {found["metadata"]["name"]: found for found in await gateway.list("PersistentVolumeClaim", namespace)}
    grown: dict[str, str] = {}
    fresh: list[Object] = []
    total = 0
    for made in rendered.of("PersistentVolumeClaim"):
        name, wanted = made["metadata"]["name"], _storage(made)
        has = _storage(live[name]) if name in live else wanted
        if name not in live:
            fresh.append(made)
        elif amount_of(wanted) > amount_of(has):
            if (live[name].get("status") or {}).get("phase") == "Bound":
                grown[name] = wanted
            else:
                # Nobody has used it yet, so it holds nothing, and until somebody does its size cannot be changed.
                await gateway.delete("PersistentVolumeClaim", namespace, name)
                fresh.append(made)
        # A volume never shrinks, so neither does what the quota has to allow for it.
        total += max(amount_of(wanted), amount_of(has))
    for made in rendered.of("ResourceQuota", "LimitRange"):
        if made["kind"] == "ResourceQuota":
            allowed = made["spec"]["hard"].get("requests.storage")
            if allowed is not None and amount_of(allowed) < total:
                made = {**made, "spec": {"hard": made["spec"]["hard"] | {"requests.storage": str(total)}}}
        await gateway.apply(made, force=True)
    if grown or fresh:
        await _quotas_counted(gateway, rendered)
    for made in fresh:
        await gateway.apply(made)
    for name, wanted in grown.items():
        body: Object = {"spec": {"resources": {"requests": {"storage": wanted}}}}
        await gateway.patch("PersistentVolumeClaim", namespace, name, body)
    for made in rendered.of(*SCALED):
        await gateway.patch(made["kind"], namespace, made["metadata"]["name"], _envelope(made), content_type=STRATEGIC)


async def backup(gateway: KubernetesGateway, rendered: Rendered, operation_id: str, *, tail_lines: int = 20) -> None:
    """Make a Job from the CronJob's template and wait for its end.

    Raises:
        ClusterError: ``JobFailed`` with the last log lines; ``Invalid`` when the service has no backup.
    """
    namespace, cron_name = rendered.spec.namespace, rendered.service.backup_cron_job
    cron = None if cron_name is None else await gateway.get("CronJob", namespace, cron_name)
    if cron is None:
        raise ClusterError(Trouble.INVALID, "This service has no backup.")
    template = cron["spec"]["jobTemplate"]
    name = f"backup-{dns_label(operation_id)}"[:63].rstrip("-")
    labels = {**(template.get("metadata", {}).get("labels") or {}), **rendered.spec.labels}
    job: Object = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace, "labels": labels, "annotations": {OPERATION: operation_id}},
        "spec": template["spec"],
    }
    try:
        await gateway.create(job)
    except Exists:
        found = await gateway.get("Job", namespace, name)
        if found is not None and not ours(found, rendered.spec.instance_id):
            raise
    while True:
        found = await gateway.get("Job", namespace, name)
        if found is None:
            raise ClusterError(Trouble.JOB_FAILED, "The backup's job was deleted while it ran.", permanent=True)
        succeeded = finished(found)
        if succeeded is True:
            return
        if succeeded is False:
            lines = await _job_logs(gateway, namespace, name, tail_lines)
            raise ClusterError(Trouble.JOB_FAILED, f"The backup failed. {lines}".strip(), permanent=True)
        await asyncio.sleep(PAUSE_SECONDS * 4)


def _scaled(rendered: Rendered) -> list[tuple[str, str]]:
    return [workload for workload in rendered.workloads if workload[0] in SCALED]


async def _scale(gateway: KubernetesGateway, rendered: Rendered, wanted: Mapping[str, int]) -> None:
    steps = []
    for key, count in wanted.items():
        kind, _, name = key.partition("/")
        steps.append(gateway.patch(kind, rendered.spec.namespace, name, {"spec": {"replicas": count}}))
    await asyncio.gather(*steps)


async def _suspend_backups(gateway: KubernetesGateway, rendered: Rendered, *, suspended: bool) -> None:
    for made in rendered.of("CronJob"):
        body = {"spec": {"suspend": suspended}}
        await gateway.patch("CronJob", rendered.spec.namespace, made["metadata"]["name"], body)


async def _quotas_counted(gateway: KubernetesGateway, rendered: Rendered) -> None:
    """Wait until the controller has taken note of the new quota; a claim grown before would be refused."""
    deadline = time.monotonic() + QUOTA_COUNTED_WITHIN_SECONDS
    for made in rendered.of("ResourceQuota"):
        while time.monotonic() < deadline:
            found = await gateway.get("ResourceQuota", rendered.spec.namespace, made["metadata"]["name"])
            if found is None or (found.get("status") or {}).get("hard") == found["spec"]["hard"]:
                break
            await asyncio.sleep(PAUSE_SECONDS)


async def _job_logs(gateway: KubernetesGateway, namespace: str, job: str, lines: int) -> str:
    pods = await gateway.list("Pod", namespace, labels=f"batch.kubernetes.io/job-name={job}")
    for pod in reversed(pods):
        for container in pod["spec"].get("containers") or []:
            name = pod["metadata"]["name"]
            text = await gateway.logs(namespace, name, container["name"], previous=False, lines=lines)
            if text.strip():
                return f"Last lines:\n{text.strip()[-1500:]}"
    return ""


def _storage(claim: Object) -> str:
    return str(claim["spec"]["resources"]["requests"]["storage"])


def _envelope(made: Object) -> Object:
    """A strategic merge patch of what depends on the envelope: containers' resources, and arguments made from them."""
    pod: Mapping[str, Any] = made["spec"]["template"]["spec"]
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
