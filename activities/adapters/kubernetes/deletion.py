"""Delete an instance from the cluster and verify that no object remains."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import datetime

from activities.adapters.kubernetes.apply import is_terminating
from activities.adapters.kubernetes.client import KubernetesClient
from activities.adapters.kubernetes.errors import ClusterError
from activities.adapters.kubernetes.ownership import Owner, installation_selector
from activities.adapters.kubernetes.resources import NAMESPACED_KINDS
from activities.service_templates.manifests import INSTANCE_LABEL, Manifest
from workflows.rules.instance import FailureReason

INITIAL_POLL_INTERVAL = 0.1
MAX_POLL_INTERVAL = 2.0

# Kinds that are searched for the instance's labels outside its namespace: an operator may have copied a label.
STRAY_KINDS = ("Namespace", "StatefulSet", "Deployment", "Pod", "Ingress", "Secret", "PersistentVolumeClaim")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedNamespace:
    """A namespace of this installation, and the instance that its label names."""

    namespace: str
    instance_id: str
    created_at: datetime
    terminating: bool


async def delete_instance(
    client: KubernetesClient, owner: Owner, namespace: str, *, within_seconds: float
) -> tuple[str, ...]:
    """Delete the namespace if this instance owns it, wait for the deletion and verify it.

    Finalizers are reported, never removed: each protects an external resource that would otherwise leak.

    Returns:
        The remaining objects, ``Kind/name``; empty if the deletion is complete.
    """
    deadline = time.monotonic() + within_seconds
    if not await _is_namespace_deleted(client, owner, namespace, deadline):
        return await list_blockers(client, namespace)
    strays = [(kind, stray) for kind in STRAY_KINDS for stray in await client.list(kind, labels=owner.selector)]
    for kind, stray in strays:
        metadata = stray["metadata"]
        await client.delete(kind, metadata.get("namespace"), metadata["name"], uid=metadata["uid"])
    return tuple(f"{kind}/{stray['metadata']['name']}" for kind, stray in strays)


async def wait_for_namespace_deletion(client: KubernetesClient, namespace: str, *, within_seconds: float) -> None:
    """Wait for a pending deletion of the namespace.

    Raises:
        ClusterError: ``Terminating`` if the namespace still exists after ``within_seconds``.
    """
    deadline = time.monotonic() + within_seconds
    interval = INITIAL_POLL_INTERVAL
    while (existing := await client.get("Namespace", None, namespace)) is not None and is_terminating(existing):
        if time.monotonic() >= deadline:
            raise ClusterError(FailureReason.TERMINATING, f"Namespace {namespace} is still being deleted.")
        await asyncio.sleep(interval)
        interval = min(interval * 1.5, MAX_POLL_INTERVAL)


async def list_blockers(client: KubernetesClient, namespace: str) -> tuple[str, ...]:
    """Return the objects and conditions that block the deletion of a namespace, ``Kind/name``."""
    remaining = []
    for kind in NAMESPACED_KINDS:
        for item in await client.list(kind, namespace):
            finalizers = item["metadata"].get("finalizers") or []
            suffix = f" (held by {', '.join(finalizers)})" if finalizers else ""
            remaining.append(f"{kind}/{item['metadata']['name']}{suffix}")
    # The conditions of the namespace name blockers of other kinds.
    existing = await client.get("Namespace", None, namespace)
    for condition in ((existing or {}).get("status") or {}).get("conditions") or []:
        if condition.get("status") == "True" and condition.get("type", "").endswith(("Remaining", "Failure")):
            remaining.append(f"{condition['type']}: {condition.get('message', '')}")
    return tuple(remaining) or (f"Namespace/{namespace}",)


async def list_owned_namespaces(client: KubernetesClient, installation_id: str) -> list[OwnedNamespace]:
    """Return every namespace of this installation."""
    return [
        OwnedNamespace(
            namespace=item["metadata"]["name"],
            instance_id=item["metadata"]["labels"][INSTANCE_LABEL],
            created_at=datetime.fromisoformat(item["metadata"]["creationTimestamp"]),
            terminating=is_terminating(item),
        )
        for item in await client.list("Namespace", labels=f"{installation_selector(installation_id)},{INSTANCE_LABEL}")
    ]


async def _is_namespace_deleted(client: KubernetesClient, owner: Owner, namespace: str, deadline: float) -> bool:
    interval = INITIAL_POLL_INTERVAL
    while True:
        existing: Manifest | None = await client.get("Namespace", None, namespace)
        if existing is None or not owner.owns(existing):
            return True
        if not is_terminating(existing):
            await client.delete("Namespace", None, namespace, uid=existing["metadata"]["uid"])
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(interval)
        interval = min(interval * 1.5, MAX_POLL_INTERVAL)
