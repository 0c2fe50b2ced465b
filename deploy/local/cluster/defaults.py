"""Values that the API fills in where a manifest is silent: those that clients or the controllers here read."""

from __future__ import annotations

import base64
from collections.abc import Callable

from deploy.local.cluster.resources import Obj


def _pod_spec(spec: Obj) -> None:
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("securityContext", {})
    for container in [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]:
        container.setdefault("imagePullPolicy", "IfNotPresent")
        resources = container.setdefault("resources", {})
        for name, value in (resources.get("limits") or {}).items():
            resources.setdefault("requests", {}).setdefault(name, value)
        for port in container.get("ports") or ():
            port.setdefault("protocol", "TCP")


def _template(spec: Obj) -> None:
    _pod_spec(spec.setdefault("template", {}).setdefault("spec", {}))


def _pod(obj: Obj) -> None:
    spec = obj.setdefault("spec", {})
    _pod_spec(spec)
    spec.setdefault("serviceAccountName", "default")
    obj.setdefault("status", {}).setdefault("phase", "Pending")


def _deployment(obj: Obj) -> None:
    spec = obj.setdefault("spec", {})
    spec.setdefault("replicas", 1)
    spec.setdefault("strategy", {}).setdefault("type", "RollingUpdate")
    spec.setdefault("revisionHistoryLimit", 10)
    _template(spec)


def _replica_set(obj: Obj) -> None:
    obj.setdefault("spec", {}).setdefault("replicas", 1)
    _template(obj["spec"])


def _stateful_set(obj: Obj) -> None:
    spec = obj.setdefault("spec", {})
    spec.setdefault("replicas", 1)
    spec.setdefault("updateStrategy", {}).setdefault("type", "RollingUpdate")
    _template(spec)


def _job(obj: Obj) -> None:
    spec, meta = obj.setdefault("spec", {}), obj["metadata"]
    for field, value in (("completions", 1), ("parallelism", 1), ("backoffLimit", 6), ("suspend", False)):
        spec.setdefault(field, value)
    _template(spec)
    if "uid" in meta and "selector" not in spec:
        owner = {"batch.kubernetes.io/controller-uid": meta["uid"]}
        labels = spec["template"].setdefault("metadata", {}).setdefault("labels", {})
        labels |= {**owner, "batch.kubernetes.io/job-name": meta["name"], "job-name": meta["name"]}
        spec["selector"] = {"matchLabels": owner}


def _cron_job(obj: Obj) -> None:
    spec = obj.setdefault("spec", {})
    for field, value in (
        ("concurrencyPolicy", "Allow"),
        ("suspend", False),
        ("successfulJobsHistoryLimit", 3),
        ("failedJobsHistoryLimit", 1),
    ):
        spec.setdefault(field, value)
    _template(spec.setdefault("jobTemplate", {}).setdefault("spec", {}))


def _service(obj: Obj) -> None:
    spec = obj.setdefault("spec", {})
    spec.setdefault("type", "ClusterIP")
    spec.setdefault("sessionAffinity", "None")
    for port in spec.get("ports") or ():
        port.setdefault("protocol", "TCP")
        port.setdefault("targetPort", port.get("port", 0))


def _secret(obj: Obj) -> None:
    obj.setdefault("type", "Opaque")
    for key, value in (obj.pop("stringData", None) or {}).items():
        obj.setdefault("data", {})[key] = base64.b64encode(value.encode()).decode()


def _claim(obj: Obj) -> None:
    obj.setdefault("spec", {}).setdefault("volumeMode", "Filesystem")
    obj.setdefault("status", {}).setdefault("phase", "Pending")


def _namespace(obj: Obj) -> None:
    if "deletionTimestamp" not in obj["metadata"]:
        obj.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
    obj.setdefault("status", {}).setdefault("phase", "Active")
    obj["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = obj["metadata"]["name"]


def _storage_class(obj: Obj) -> None:
    obj.setdefault("reclaimPolicy", "Delete")
    obj.setdefault("volumeBindingMode", "Immediate")


_DEFAULTS: dict[str, Callable[[Obj], None]] = {
    "/pods": _pod,
    "/services": _service,
    "/secrets": _secret,
    "/persistentvolumeclaims": _claim,
    "/namespaces": _namespace,
    "apps/deployments": _deployment,
    "apps/replicasets": _replica_set,
    "apps/statefulsets": _stateful_set,
    "batch/jobs": _job,
    "batch/cronjobs": _cron_job,
    "storage.k8s.io/storageclasses": _storage_class,
}


def fill(key: str, obj: Obj) -> None:
    """Fill in an object of the kind `key`, in place."""
    default = _DEFAULTS.get(key)
    if default is not None:
        default(obj)
