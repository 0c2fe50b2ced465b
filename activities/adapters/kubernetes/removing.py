"""Taking an instance out of the cluster, and finding out whether anything is left."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import datetime

from activities.adapters.kubernetes.applying import going, ours
from activities.adapters.kubernetes.errors import ClusterError
from activities.adapters.kubernetes.gateway import KubernetesGateway, Object
from activities.adapters.kubernetes.kinds import OWNED
from activities.templates import INSTANCE, MANAGED_BY, MANAGER
from workflows.rules.instance import Trouble

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 2.0

# Where something of an instance could be outside its namespace, should anybody have moved a label.
ASTRAY = ("Namespace", "StatefulSet", "Deployment", "Pod", "Ingress", "Secret", "PersistentVolumeClaim")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A namespace that bears our labels, and whose it says it is."""

    namespace: str
    instance_id: str
    created_at: datetime


async def remove_instance(
    gateway: KubernetesGateway, instance_id: str, namespace: str, *, within_seconds: float
) -> tuple[str, ...]:
    """Delete the namespace if it is this instance's, wait, verify. Return what is left; empty means clean.

    Finalizers are reported, never stripped: they stand for something outside that would be lost sight of.
    """
    deadline = time.monotonic() + within_seconds
    if not await _gone(gateway, instance_id, namespace, deadline):
        return await blocking(gateway, namespace)
    strays = [
        (kind, found)
        for kind in ASTRAY
        for found in await gateway.list(kind, labels=f"{MANAGED_BY}={MANAGER},{INSTANCE}={instance_id}")
    ]
    for kind, found in strays:
        metadata = found["metadata"]
        await gateway.delete(kind, metadata.get("namespace"), metadata["name"], uid=metadata["uid"])
    return tuple(f"{kind}/{found['metadata']['name']}" for kind, found in strays)


async def await_namespace_gone(gateway: KubernetesGateway, namespace: str, *, within_seconds: float) -> None:
    """Wait for a deletion that is under way. Raises ``Terminating`` when it takes longer."""
    deadline = time.monotonic() + within_seconds
    pause = FIRST_PAUSE
    while (found := await gateway.get("Namespace", None, namespace)) is not None and going(found):
        if time.monotonic() >= deadline:
            raise ClusterError(Trouble.TERMINATING, f"Namespace {namespace} is still being deleted.")
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE)


async def blocking(gateway: KubernetesGateway, namespace: str) -> tuple[str, ...]:
    """Name what keeps a namespace from going, kind first."""
    left = []
    for kind in OWNED:
        for found in await gateway.list(kind, namespace):
            finalizers = found["metadata"].get("finalizers") or []
            held = f" (held by {', '.join(finalizers)})" if finalizers else ""
            left.append(f"{kind}/{found['metadata']['name']}{held}")
    # What kinds we do not know hold, the namespace's own conditions say.
    found_namespace = await gateway.get("Namespace", None, namespace)
    for condition in ((found_namespace or {}).get("status") or {}).get("conditions") or []:
        if condition.get("status") == "True" and condition.get("type", "").endswith(("Remaining", "Failure")):
            left.append(f"{condition['type']}: {condition.get('message', '')}")
    return tuple(left) or (f"Namespace/{namespace}",)


async def claimed_namespaces(gateway: KubernetesGateway) -> list[Claimed]:
    """Return every namespace with our labels."""
    return [
        Claimed(
            namespace=found["metadata"]["name"],
            instance_id=found["metadata"]["labels"][INSTANCE],
            created_at=datetime.fromisoformat(found["metadata"]["creationTimestamp"]),
        )
        for found in await gateway.list("Namespace", labels=f"{MANAGED_BY}={MANAGER},{INSTANCE}")
    ]


async def _gone(gateway: KubernetesGateway, instance_id: str, namespace: str, deadline: float) -> bool:
    pause = FIRST_PAUSE
    while True:
        found: Object | None = await gateway.get("Namespace", None, namespace)
        if found is None or not ours(found, instance_id):
            return True
        if not going(found):
            await gateway.delete("Namespace", None, namespace, uid=found["metadata"]["uid"])
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE)
