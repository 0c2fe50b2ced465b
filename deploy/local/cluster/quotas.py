"""Resource quotas for pods and claims: what an object uses, what a namespace uses, and the refusal of what exceeds."""

from __future__ import annotations

from deploy.local.cluster import errors
from deploy.local.cluster.quantities import milli, text
from deploy.local.cluster.resources import PODS, QUOTAS, VOLUME_CLAIMS, Obj, Resource
from deploy.local.cluster.store import ObjectStore

Usage = dict[str, int]


def container_total(spec: Obj, side: str) -> Usage:
    """Return a pod's `requests` or `limits` in thousandths, as scheduler and quota count them."""
    total: Usage = {}
    for container in spec.get("containers") or ():
        for name, value in ((container.get("resources") or {}).get(side) or {}).items():
            total[name] = total.get(name, 0) + milli(value)
    for container in spec.get("initContainers") or ():
        for name, value in ((container.get("resources") or {}).get(side) or {}).items():
            total[name] = max(total.get(name, 0), milli(value))
    return total


def usage(resource: Resource, obj: Obj) -> Usage:
    """Return what one object uses, in thousandths, by the names of quotas."""
    if resource is VOLUME_CLAIMS:
        size = (obj["spec"].get("resources") or {}).get("requests", {}).get("storage", "0")
        return {"persistentvolumeclaims": 1000, "requests.storage": milli(size)}
    if resource is not PODS or obj.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        return {}
    used: Usage = {"pods": 1000}
    for side in ("requests", "limits"):
        used |= {f"{side}.{name}": value for name, value in container_total(obj["spec"], side).items()}
    return used


def used_in(store: ObjectStore, namespace: str) -> Usage:
    """Return what a namespace uses in thousandths."""
    total: Usage = {}
    for resource in (PODS, VOLUME_CLAIMS):
        for stored in store.every(resource, namespace):
            for name, value in usage(resource, stored.obj).items():
                total[name] = total.get(name, 0) + value
    return total


def format_quantity(name: str, value: int) -> str:
    """Return a quantity as a quota's status spells it."""
    return text(value, "bytes" if "memory" in name or name.endswith("storage") else "")


def check(store: ObjectStore, resource: Resource, obj: Obj, old: Obj | None) -> None:
    """Check a new or changed pod or claim against the quotas of its namespace. Raises ApiError 403."""
    if resource not in (PODS, VOLUME_CLAIMS):
        return
    namespace, name = obj["metadata"]["namespace"], obj["metadata"]["name"]
    before = usage(resource, old) if old is not None else {}
    growth = {key: value - before.get(key, 0) for key, value in usage(resource, obj).items()}
    for stored in store.every(QUOTAS, namespace):
        hard: dict[str, str] = stored.obj.get("spec", {}).get("hard") or {}
        requested = {key: value for key, value in growth.items() if value > 0 and key in hard}
        used = used_in(store, namespace) if requested else {}
        over = sorted(key for key, value in requested.items() if used.get(key, 0) + value > milli(hard[key]))
        if over:
            parts = (
                ",".join(f"{key}={format_quantity(key, requested[key])}" for key in over),
                ",".join(f"{key}={format_quantity(key, used.get(key, 0))}" for key in over),
                ",".join(f"{key}={hard[key]}" for key in over),
            )
            why = f"exceeded quota: {stored.name}, requested: {parts[0]}, used: {parts[1]}, limited: {parts[2]}"
            raise errors.forbidden(resource, name, why)
