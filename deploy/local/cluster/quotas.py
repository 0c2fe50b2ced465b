"""Resource quotas: what an object uses, what a namespace uses, and the refusal when it would be too much."""

from __future__ import annotations

from deploy.local.cluster import errors
from deploy.local.cluster.quantities import milli, text
from deploy.local.cluster.resources import BY_KEY, Obj, Resource
from deploy.local.cluster.store import Store

QUOTAS = BY_KEY["/resourcequotas"]
_COUNTED = {
    "/pods": "pods",
    "/services": "services",
    "/secrets": "secrets",
    "/configmaps": "configmaps",
    "/persistentvolumeclaims": "persistentvolumeclaims",
    "/resourcequotas": "resourcequotas",
}
_BARE = {"cpu": "requests.cpu", "memory": "requests.memory"}
_SIZED = ("requests.cpu", "requests.memory", "limits.cpu", "limits.memory")


def usage(resource: Resource, obj: Obj) -> dict[str, int]:
    """What one object uses, in thousandths, by quota name."""
    used = {f"count/{resource.qualified}": 1000}
    counted = _COUNTED.get(resource.key)
    if counted:
        used[counted] = 1000
    if resource.key == "/pods":
        if obj.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return {f"count/{resource.qualified}": 1000}
        for side in ("requests", "limits"):
            for name, value in _pod_total(obj["spec"], side).items():
                used[f"{side}.{name}"] = value
    elif resource.key == "/persistentvolumeclaims":
        size = milli((obj["spec"].get("resources") or {}).get("requests", {}).get("storage", "0"))
        used["requests.storage"] = size
        storage_class = obj["spec"].get("storageClassName")
        if storage_class:
            used[f"{storage_class}.storageclass.storage.k8s.io/requests.storage"] = size
            used[f"{storage_class}.storageclass.storage.k8s.io/persistentvolumeclaims"] = 1000
    elif resource.key == "/services":
        kind = obj["spec"].get("type")
        if kind == "LoadBalancer":
            used["services.loadbalancers"] = 1000
        if kind in ("LoadBalancer", "NodePort"):
            used["services.nodeports"] = 1000 * len(obj["spec"].get("ports") or ())
    for bare, full in _BARE.items():
        if full in used:
            used[bare] = used[full]
    return used


def _pod_total(spec: Obj, side: str) -> dict[str, int]:
    total: dict[str, int] = {}
    for container in spec.get("containers") or ():
        for name, value in ((container.get("resources") or {}).get(side) or {}).items():
            total[name] = total.get(name, 0) + milli(value)
    for container in spec.get("initContainers") or ():
        for name, value in ((container.get("resources") or {}).get(side) or {}).items():
            total[name] = max(total.get(name, 0), milli(value))
    return total


def requests(spec: Obj) -> dict[str, int]:
    """A pod's requests in thousandths, as the scheduler counts them."""
    return _pod_total(spec, "requests")


_USERS = ("/pods", "/persistentvolumeclaims", "/services", "/secrets", "/configmaps", "/resourcequotas")


def used_in(store: Store, namespace: str, names: list[str]) -> dict[str, int]:
    """What a namespace uses of the quota names, in thousandths."""
    total = dict.fromkeys(names, 0)
    plain = any(not name.startswith("count/") for name in names)
    keys = set(_USERS) if plain else set()
    keys |= {key for key, r in BY_KEY.items() if f"count/{r.qualified}" in total and "delete" in r.verbs}
    for key in keys:
        resource = BY_KEY[key]
        for record in store.every(resource, namespace):
            for name, value in usage(resource, record.obj).items():
                if name in total:
                    total[name] += value
    return total


def judge(store: Store, resource: Resource, obj: Obj, old: Obj | None) -> None:
    """403 where a quota of the namespace would be exceeded."""
    namespace, name = obj["metadata"]["namespace"], obj["metadata"]["name"]
    if resource is QUOTAS:
        return
    for record in store.every(QUOTAS, namespace):
        hard: dict[str, str] = record.obj["spec"].get("hard") or {}
        if not hard or record.obj["metadata"].get("deletionTimestamp"):
            continue
        if resource.key == "/pods":
            _must_specify(resource, record.name, hard, obj)
        mine = usage(resource, obj)
        before = usage(resource, old) if old is not None else {}
        asked = {key: mine[key] - before.get(key, 0) for key in hard if mine.get(key, 0) > before.get(key, 0)}
        if not asked:
            continue
        used = used_in(store, namespace, list(asked))
        over = sorted(key for key in asked if used[key] + asked[key] > milli(hard[key]))
        if over:
            parts = (
                ",".join(f"{k}={text(asked[k], _like(k))}" for k in over),
                ",".join(f"{k}={text(used[k], _like(k))}" for k in over),
                ",".join(f"{k}={hard[k]}" for k in over),
            )
            raise errors.forbidden(
                resource,
                name,
                f"exceeded quota: {record.name}, requested: {parts[0]}, used: {parts[1]}, limited: {parts[2]}",
            )


def _like(name: str) -> str:
    return "bytes" if "memory" in name or "storage" in name.rpartition("/")[2].rpartition(".")[2] else ""


def _must_specify(resource: Resource, quota: str, hard: dict[str, str], obj: Obj) -> None:
    missing: dict[str, list[str]] = {}
    for name in hard:
        full = _BARE.get(name, name)
        if full not in _SIZED:
            continue
        side, _, what = full.partition(".")
        silent = [
            c["name"]
            for c in obj["spec"].get("containers") or ()
            if what not in ((c.get("resources") or {}).get(side) or {})
        ]
        if silent:
            missing[name] = silent
    if missing:
        said = "; ".join(f"{name} for: {','.join(names)}" for name, names in sorted(missing.items()))
        raise errors.forbidden(resource, obj["metadata"]["name"], f"failed quota: {quota}: must specify {said}")
