"""What the API refuses to change: fields that stay as they were created."""

from __future__ import annotations

from deploy.local.cluster.errors import Cause, not_allowed, wrong
from deploy.local.cluster.quantities import milli
from deploy.local.cluster.resources import Obj

IMMUTABLE = "field is immutable"

# Fields of the spec that may change on an update, for kinds where only some may.
_MUTABLE: dict[str, tuple[str, ...]] = {
    "apps/statefulsets": (
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ),
}


def _frozen(spec: Obj, old: Obj, *names: str) -> list[Cause]:
    return [wrong(f"spec.{name}", spec.get(name), IMMUTABLE) for name in names if spec.get(name) != old.get(name)]


def check_update(key: str, obj: Obj, old: Obj) -> list[Cause]:
    """Problems of changing `old` into `obj`."""
    spec, was = obj.get("spec") or {}, old.get("spec") or {}
    if key in ("apps/deployments", "apps/replicasets", "apps/daemonsets"):
        return _frozen(spec, was, "selector")
    if key == "apps/statefulsets":
        kept = _MUTABLE[key]
        if {k: v for k, v in spec.items() if k not in kept} != {k: v for k, v in was.items() if k not in kept}:
            names = ", ".join(f"'{name}'" for name in kept[:-1])
            return [
                not_allowed(
                    "spec",
                    f"updates to statefulset spec for fields other than {names} and '{kept[-1]}' are forbidden",
                )
            ]
        return []
    if key == "batch/jobs":
        return _frozen(spec, was, "selector", "template", "completionMode")
    if key == "/services":
        if was.get("clusterIP") and spec.get("type") != "ExternalName" and spec.get("clusterIP") != was["clusterIP"]:
            return [wrong("spec.clusterIPs[0]", spec.get("clusterIP"), "may not change once set")]
        return []
    if key in ("/secrets", "/configmaps"):
        problems = []
        if obj.get("type") != old.get("type"):
            problems.append(wrong("type", obj.get("type"), IMMUTABLE))
        if old.get("immutable"):
            if obj.get("data") != old.get("data"):
                problems.append(not_allowed("data", "field is immutable when `immutable` is set"))
            if not obj.get("immutable"):
                problems.append(not_allowed("immutable", "field is immutable when `immutable` is set"))
        return problems
    if key == "/persistentvolumeclaims":
        return _claim_update(spec, was, bound=(old.get("status") or {}).get("phase") == "Bound")
    if key == "/pods":
        return _pod_update(spec, was)
    if key == "storage.k8s.io/storageclasses":
        return [
            not_allowed(
                name, "updates to provisioner are forbidden." if name == "provisioner" else "updates are forbidden"
            )
            for name in ("provisioner", "parameters", "reclaimPolicy", "volumeBindingMode")
            if obj.get(name) != old.get(name)
        ]
    return []


def _claim_update(spec: Obj, was: Obj, *, bound: bool) -> list[Cause]:
    free = ("resources", "volumeName", "volumeAttributesClassName") if bound else ("volumeName",)
    if {k: v for k, v in spec.items() if k not in free} != {k: v for k, v in was.items() if k not in free}:
        return [
            not_allowed(
                "spec",
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound "
                "claims",
            )
        ]
    size, before = ((s.get("resources") or {}).get("requests", {}).get("storage", "0") for s in (spec, was))
    if milli(size) < milli(before):
        return [not_allowed("spec.resources.requests.storage", "field can not be less than status.capacity")]
    return []


def _pod_update(spec: Obj, was: Obj) -> list[Cause]:
    def bare(value: Obj) -> Obj:
        out = {
            k: v
            for k, v in value.items()
            if k
            not in (
                "activeDeadlineSeconds",
                "terminationGracePeriodSeconds",
                "tolerations",
                "nodeName",
                "schedulingGates",
            )
        }
        for name in ("containers", "initContainers"):
            out[name] = [{k: v for k, v in c.items() if k != "image"} for c in value.get(name) or ()]
        return out

    if bare(spec) != bare(was):
        return [
            not_allowed(
                "spec",
                "pod updates may not change fields other than `spec.containers[*].image`,"
                "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,"
                "`spec.tolerations` (only additions to existing tolerations),"
                "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
            )
        ]
    return []
