"""The scheduler: which node a pod is bound to, and why to none. A pod that fits an empty node fits."""

from __future__ import annotations

from collections import Counter

from deploy.local.cluster.controllers.base import ControlLoop, has_condition
from deploy.local.cluster.quantities import milli
from deploy.local.cluster.quotas import container_total
from deploy.local.cluster.resources import NODES, STORAGE_CLASSES, VOLUME_CLAIMS, Obj
from deploy.local.cluster.store import ObjectStore, StoredObject


def place(store: ObjectStore, pod: Obj) -> tuple[str, str]:
    """Return a node and an empty text, or an empty name and why no node takes the pod."""
    reasons: Counter[str] = Counter()
    fitting: list[str] = []
    for stored in store.every(NODES):
        reason = _rejection_reason(stored.obj, pod)
        if reason:
            reasons[reason] += 1
        else:
            fitting.append(stored.name)
    if fitting:
        # The pod's uid spreads pods over the nodes without counting them.
        return sorted(fitting)[int(pod["metadata"]["uid"][:8], 16) % len(fitting)], ""
    listed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return "", f"0/{reasons.total()} nodes are available: {listed or 'no nodes'}."


def _rejection_reason(node: Obj, pod: Obj) -> str:
    labels = node["metadata"].get("labels") or {}
    tolerated = {toleration.get("key") for toleration in pod["spec"].get("tolerations") or ()}
    if node["spec"].get("unschedulable"):
        return "node(s) were unschedulable"
    for taint in node["spec"].get("taints") or ():
        if taint.get("effect") != "PreferNoSchedule" and taint["key"] not in tolerated:
            return f"node(s) had untolerated taint(s) {{{taint['key']}: {taint.get('value', '')}}}"
    if not has_condition(node, "Ready"):
        return "node(s) were not ready"
    if not (pod["spec"].get("nodeSelector") or {}).items() <= labels.items():
        return "node(s) didn't match Pod's node affinity/selector"
    room = node["status"]["allocatable"]
    for name, value in container_total(pod["spec"], "requests").items():
        if value > milli(room.get(name, "0")):
            return f"Insufficient {name}"
    return ""


def bind_claims(loop: ControlLoop, pod: StoredObject) -> str:
    """Bind the claims that the pod mounts, as their class allows; return why one of them holds the pod back."""
    for volume in pod.obj["spec"].get("volumes") or ():
        name = (volume.get("persistentVolumeClaim") or {}).get("claimName")
        if not name:
            continue
        claim = loop.store.get(VOLUME_CLAIMS, pod.namespace, name)
        if claim is None:
            return f'persistentvolumeclaim "{name}" not found.'
        if claim.obj["metadata"].get("deletionTimestamp"):
            return f'persistentvolumeclaim "{name}" is being deleted.'
        if claim.obj["status"]["phase"] == "Bound":
            continue
        storage_class = loop.store.get(STORAGE_CLASSES, "", claim.obj["spec"].get("storageClassName") or "")
        allowed = ((storage_class.obj.get("parameters") or {}).get("accessModes") or "") if storage_class else ""
        modes = set(claim.obj["spec"].get("accessModes") or ())
        if storage_class is None or (allowed and not modes <= set(allowed.split(","))):
            return "pod has unbound immediate PersistentVolumeClaims."

        def bind(obj: Obj) -> None:
            obj["spec"]["volumeName"] = f"pvc-{obj['metadata']['uid']}"
            size = obj["spec"]["resources"]["requests"]["storage"]
            obj["status"] = {"phase": "Bound", "accessModes": obj["spec"]["accessModes"], "capacity": {"storage": size}}

        loop.registry.modify(VOLUME_CLAIMS, claim, bind)
    return ""
