"""Fit an instance's quota and volume claims to its plan. Claims only grow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace

from activities.adapters.kubernetes.apply import apply_object, is_terminating
from activities.adapters.kubernetes.client import KubernetesClient
from activities.adapters.kubernetes.errors import ClusterError
from activities.adapters.kubernetes.ownership import owner_of
from activities.adapters.kubernetes.resources import quantity_bytes
from activities.service_templates.manifests import InstanceSpec, Manifest
from activities.service_templates.registry import RenderedInstance
from workflows.rules.instance import FailureReason

POLL_INTERVAL_SECONDS = 0.25
QUOTA_SYNC_TIMEOUT_SECONDS = 15.0
CLAIM_DELETION_TIMEOUT_SECONDS = 15.0


async def fit_storage(client: KubernetesClient, rendered: RenderedInstance) -> RenderedInstance:
    """Apply quota and limits, and add and expand volume claims, as the rendered plan says.

    Returns:
        The instance with the quota that was applied: it also allows for claims that are larger than the plan's, which
        cannot shrink, and for those that the template no longer contains.
    """
    spec = rendered.spec
    claims = await client.list("PersistentVolumeClaim", spec.namespace, labels=owner_of(spec).selector)
    live = {claim["metadata"]["name"]: claim for claim in claims}
    sizes = {name: quantity_bytes(_storage(claim)) for name, claim in live.items()}
    expansions: dict[str, str] = {}
    new_claims: list[Manifest] = []
    for manifest in rendered.of_kind("PersistentVolumeClaim"):
        name, size = manifest["metadata"]["name"], _storage(manifest)
        if name not in live:
            new_claims.append(manifest)
        elif (live[name].get("status") or {}).get("phase") == "Bound":
            if quantity_bytes(size) > sizes[name]:
                expansions[name] = size
        elif quantity_bytes(size) > sizes[name] or is_terminating(live[name]):
            # An unbound claim holds no data, and its size cannot be changed: replace it. An earlier operation may have
            # begun to.
            await _delete_claim(client, spec, live[name])
            new_claims.append(manifest)
        sizes[name] = max(quantity_bytes(size), sizes.get(name, 0))
    fitted = replace(rendered, objects=tuple(_allow_claims(manifest, sizes) for manifest in rendered.objects))
    for manifest in fitted.of_kind("ResourceQuota", "LimitRange"):
        await apply_object(client, manifest, spec)
    if expansions or new_claims:
        await _wait_for_quota_sync(client, fitted)
    for manifest in new_claims:
        await apply_object(client, manifest, spec)
    for name, size in expansions.items():
        body: Manifest = {"spec": {"resources": {"requests": {"storage": size}}}}
        await client.patch("PersistentVolumeClaim", spec.namespace, name, body)
    return fitted


def _allow_claims(manifest: Manifest, sizes: Mapping[str, int]) -> Manifest:
    """Return a quota that allows claims of these sizes in bytes; other manifests unchanged."""
    if manifest["kind"] != "ResourceQuota":
        return manifest
    hard = dict(manifest["spec"]["hard"])
    for resource, used in (("requests.storage", sum(sizes.values())), ("persistentvolumeclaims", len(sizes))):
        if resource in hard and quantity_bytes(hard[resource]) < used:
            hard[resource] = str(used)
    return {**manifest, "spec": {**manifest["spec"], "hard": hard}}


async def _delete_claim(client: KubernetesClient, spec: InstanceSpec, claim: Manifest) -> None:
    """Delete a claim and wait until it is gone: what is being deleted cannot be applied again."""
    name, uid = claim["metadata"]["name"], claim["metadata"]["uid"]
    await client.delete("PersistentVolumeClaim", spec.namespace, name, uid=uid)
    deadline = time.monotonic() + CLAIM_DELETION_TIMEOUT_SECONDS
    while await client.get("PersistentVolumeClaim", spec.namespace, name) is not None:
        if time.monotonic() >= deadline:
            raise ClusterError(FailureReason.TERMINATING, f"PersistentVolumeClaim {name} is still being deleted.")
        await asyncio.sleep(POLL_INTERVAL_SECONDS)


async def _wait_for_quota_sync(client: KubernetesClient, rendered: RenderedInstance) -> None:
    """Wait until the controller has observed the new quota. Until then it rejects larger claims."""
    deadline = time.monotonic() + QUOTA_SYNC_TIMEOUT_SECONDS
    for manifest in rendered.of_kind("ResourceQuota"):
        while time.monotonic() < deadline:
            quota = await client.get("ResourceQuota", rendered.spec.namespace, manifest["metadata"]["name"])
            if quota is None or (quota.get("status") or {}).get("hard") == quota["spec"]["hard"]:
                break
            await asyncio.sleep(POLL_INTERVAL_SECONDS)


def _storage(claim: Manifest) -> str:
    return str(claim["spec"]["resources"]["requests"]["storage"])
