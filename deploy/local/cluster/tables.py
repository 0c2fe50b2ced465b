"""Server-side tables and partial metadata: what `kubectl get` shows."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from deploy.local.cluster.resources import Obj, Resource

Column = tuple[str, str, Callable[[Obj], Any]]


def _age(obj: Obj) -> str:
    return _span(obj["metadata"].get("creationTimestamp"))


def _span(stamp: str | None) -> str:
    if not stamp:
        return "<unknown>"
    then = datetime.fromisoformat(stamp.replace("Z", "+00:00")).astimezone(UTC)
    return _duration(max(0, int(time.time() - then.timestamp())))


def _duration(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds}s"
    if seconds < 600:
        return f"{seconds // 60}m{seconds % 60}s" if seconds % 60 else f"{seconds // 60}m"
    if seconds < 3 * 3600:
        return f"{seconds // 60}m"
    if seconds < 48 * 3600:
        hours, minutes = seconds // 3600, seconds % 3600 // 60
        return f"{hours}h{minutes}m" if seconds < 8 * 3600 and minutes else f"{hours}h"
    return f"{seconds // 86400}d"


def _at(obj: Any, path: str, default: Any = "<none>") -> Any:
    for step in path.strip(".").split("."):
        name, bracket, kind = step.partition("[")
        obj = obj.get(name) if isinstance(obj, dict) else None
        if bracket and isinstance(obj, list):
            obj = next((c.get("status") for c in obj if c.get("type") == kind.rstrip("]")), None)
    return default if obj is None else obj


def _field(path: str, default: Any = "<none>") -> Callable[[Obj], Any]:
    return lambda obj: _at(obj, path, default)


def pod_status(obj: Obj) -> str:
    """The STATUS column of a pod."""
    status = obj.get("status", {})
    reason: str = status.get("reason") or status.get("phase", "Unknown")
    initial = obj["spec"].get("initContainers") or ()
    for index, state in enumerate(status.get("initContainerStatuses") or ()):
        inner = state.get("state", {})
        if (inner.get("terminated") or {}).get("exitCode") == 0:
            continue
        waiting = (inner.get("waiting") or {}).get("reason")
        if inner.get("terminated"):
            reason = "Init:" + (inner["terminated"].get("reason") or "Error")
        elif waiting and waiting != "PodInitializing":
            reason = "Init:" + waiting
        else:
            reason = f"Init:{index}/{len(initial)}"
        break
    else:
        for state in status.get("containerStatuses") or ():
            inner = state.get("state", {})
            if (inner.get("waiting") or {}).get("reason"):
                reason = inner["waiting"]["reason"]
            elif (inner.get("terminated") or {}).get("reason"):
                reason = inner["terminated"]["reason"]
    if obj["metadata"].get("deletionTimestamp"):
        reason = "Terminating"
    return reason


def _pod_ready(obj: Obj) -> str:
    states = obj.get("status", {}).get("containerStatuses") or ()
    return f"{sum(1 for s in states if s.get('ready'))}/{len(obj['spec'].get('containers') or ())}"


def _restarts(obj: Obj) -> int:
    return sum(s.get("restartCount", 0) for s in obj.get("status", {}).get("containerStatuses") or ())


def _ports(obj: Obj) -> str:
    ports = obj["spec"].get("ports") or ()
    return (
        ",".join(
            f"{p['port']}{':' + str(p['nodePort']) if p.get('nodePort') else ''}/{p.get('protocol', 'TCP')}"
            for p in ports
        )
        or "<none>"
    )


def _node_status(obj: Obj) -> str:
    ready = _at(obj, "status.conditions[Ready]", "Unknown")
    text = {"True": "Ready", "False": "NotReady"}.get(ready, "NotReady")
    return text + (",SchedulingDisabled" if obj["spec"].get("unschedulable") else "")


def _images(path: str) -> Callable[[Obj], Any]:
    return lambda obj: ",".join(c.get("image", "") for c in _at(obj, path, []))


def _job_span(obj: Obj) -> str:
    start, end = _at(obj, "status.startTime", None), _at(obj, "status.completionTime", None)
    if not start:
        return ""
    if not end:
        return _span(start)
    return _duration(int(datetime.fromisoformat(end).timestamp() - datetime.fromisoformat(start).timestamp()))


def _job_status(obj: Obj) -> str:
    for kind, text in (("Complete", "Complete"), ("Failed", "Failed"), ("Suspended", "Suspended")):
        if _at(obj, f"status.conditions[{kind}]", "False") == "True":
            return text
    return "Terminating" if obj["metadata"].get("deletionTimestamp") else "Running"


_MODES = {"ReadWriteOnce": "RWO", "ReadWriteMany": "RWX", "ReadOnlyMany": "ROX", "ReadWriteOncePod": "RWOP"}


def _modes(obj: Obj) -> str:
    return ",".join(_MODES.get(mode, mode) for mode in obj["spec"].get("accessModes", ()))


def _claim_status(obj: Obj) -> Any:
    return "Terminating" if obj["metadata"].get("deletionTimestamp") else _at(obj, "status.phase")


def _last(obj: Obj) -> str:
    stamp = _at(obj, "status.lastScheduleTime", None)
    return _span(stamp) if stamp else "<none>"


_AGE: Column = ("Age", "string", _age)
_COLUMNS: dict[str, tuple[Column, ...]] = {
    "/pods": (
        ("Ready", "string", _pod_ready),
        ("Status", "string", pod_status),
        ("Restarts", "string", _restarts),
        _AGE,
        ("IP", "string", _field("status.podIP")),
        ("Node", "string", _field("spec.nodeName")),
        ("Nominated Node", "string", _field("status.nominatedNodeName")),
        ("Readiness Gates", "string", lambda o: "<none>"),
    ),
    "/namespaces": (("Status", "string", _field("status.phase")), _AGE),
    "/nodes": (
        ("Status", "string", _node_status),
        ("Roles", "string", lambda o: "<none>"),
        _AGE,
        ("Version", "string", _field("status.nodeInfo.kubeletVersion")),
    ),
    "/services": (
        ("Type", "string", _field("spec.type")),
        ("Cluster-IP", "string", _field("spec.clusterIP")),
        ("External-IP", "string", _field("spec.externalName")),
        ("Port(s)", "string", _ports),
        _AGE,
    ),
    "/secrets": (
        ("Type", "string", _field("type")),
        ("Data", "integer", lambda o: len(o.get("data") or {})),
        _AGE,
    ),
    "/configmaps": (("Data", "integer", lambda o: len(o.get("data") or {})), _AGE),
    "/persistentvolumeclaims": (
        ("Status", "string", _claim_status),
        ("Volume", "string", _field("spec.volumeName", "")),
        ("Capacity", "string", _field("status.capacity.storage", "")),
        ("Access Modes", "string", _modes),
        ("StorageClass", "string", _field("spec.storageClassName", "")),
        _AGE,
    ),
    "/events": (
        ("Last Seen", "string", lambda o: _span(o.get("lastTimestamp"))),
        ("Type", "string", _field("type")),
        ("Reason", "string", _field("reason")),
        ("Object", "string", lambda o: f"{_at(o, 'involvedObject.kind').lower()}/{_at(o, 'involvedObject.name')}"),
        ("Message", "string", _field("message")),
    ),
    "apps/deployments": (
        ("Ready", "string", lambda o: f"{_at(o, 'status.readyReplicas', 0)}/{o['spec']['replicas']}"),
        ("Up-to-date", "integer", _field("status.updatedReplicas", 0)),
        ("Available", "integer", _field("status.availableReplicas", 0)),
        _AGE,
        ("Images", "string", _images("spec.template.spec.containers")),
    ),
    "apps/statefulsets": (
        ("Ready", "string", lambda o: f"{_at(o, 'status.readyReplicas', 0)}/{o['spec']['replicas']}"),
        _AGE,
        ("Images", "string", _images("spec.template.spec.containers")),
    ),
    "apps/replicasets": (
        ("Desired", "integer", _field("spec.replicas", 0)),
        ("Current", "integer", _field("status.replicas", 0)),
        ("Ready", "integer", _field("status.readyReplicas", 0)),
        _AGE,
    ),
    "batch/jobs": (
        ("Status", "string", _job_status),
        ("Completions", "string", lambda o: f"{_at(o, 'status.succeeded', 0)}/{_at(o, 'spec.completions', 1)}"),
        ("Duration", "string", _job_span),
        _AGE,
    ),
    "batch/cronjobs": (
        ("Schedule", "string", _field("spec.schedule")),
        ("Timezone", "string", _field("spec.timeZone")),
        ("Suspend", "boolean", _field("spec.suspend", False)),
        ("Active", "integer", lambda o: len(_at(o, "status.active", []))),
        ("Last Schedule", "string", _last),
        _AGE,
    ),
    "networking.k8s.io/ingresses": (
        ("Class", "string", _field("spec.ingressClassName")),
        ("Hosts", "string", lambda o: ",".join(r.get("host", "*") for r in o["spec"].get("rules") or ()) or "*"),
        ("Address", "string", lambda o: ",".join(i.get("ip", "") for i in _at(o, "status.loadBalancer.ingress", []))),
        ("Ports", "string", lambda o: "80, 443" if o["spec"].get("tls") else "80"),
        _AGE,
    ),
    "storage.k8s.io/storageclasses": (
        ("Provisioner", "string", _field("provisioner")),
        ("ReclaimPolicy", "string", _field("reclaimPolicy")),
        ("VolumeBindingMode", "string", _field("volumeBindingMode")),
        _AGE,
    ),
}


def partial(obj: Obj) -> Obj:
    """`PartialObjectMetadata` of an object."""
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}


def table(resource: Resource, objs: list[Obj], meta: Obj, include: str) -> Obj:
    """A `Table`; `include` is what each row carries of its object: Metadata, Object or None."""
    columns: tuple[Column, ...] = _COLUMNS.get(resource.key, ())
    if not columns:
        columns = (*((name, "string", _field(path, "")) for name, path in resource.columns), _AGE)
    definitions = [{"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0}]
    hidden = {"IP", "Node", "Nominated Node", "Readiness Gates", "Images"}
    for name, kind, _ in columns:
        definitions.append(
            {"name": name, "type": kind, "format": "", "description": "", "priority": 1 if name in hidden else 0}
        )
    rows = []
    for obj in objs:
        row: Obj = {"cells": [obj["metadata"]["name"], *(cell(obj) for _, _, cell in columns)]}
        if include == "Object":
            row["object"] = obj
        elif include != "None":
            row["object"] = partial(obj)
        rows.append(row)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": meta,
        "columnDefinitions": definitions,
        "rows": rows,
    }
