"""Claims that get their volumes, quotas that know what is used, and disruption budgets that know who is healthy."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from deploy.local.cluster import quotas
from deploy.local.cluster.controllers.base import Controller, Keys, own
from deploy.local.cluster.controllers.scheduler import SELECTED
from deploy.local.cluster.controllers.workloads import PODS, active, is_ready
from deploy.local.cluster.quantities import text
from deploy.local.cluster.resources import BY_KEY, Obj
from deploy.local.cluster.selectors import matches
from deploy.local.cluster.store import Change, Record

CLAIMS, VOLUMES, CLASSES = (
    BY_KEY["/persistentvolumeclaims"],
    BY_KEY["/persistentvolumes"],
    BY_KEY["storage.k8s.io/storageclasses"],
)
QUOTAS, BUDGETS = BY_KEY["/resourcequotas"], BY_KEY["policy/poddisruptionbudgets"]
PROTECTION = "kubernetes.io/pvc-protection"


class Claims(Controller):
    """Dynamic provisioning and the protection of claims in use."""

    name = "claims"

    def watches(self) -> dict[str, Keys]:
        return {"/persistentvolumeclaims": own, "/pods": self._by_pod, "storage.k8s.io/storageclasses": self._pending}

    def _by_pod(self, change: Change) -> Iterable[tuple[str, str]]:
        if change.type != "DELETED" and change.new.obj["status"].get("phase") not in ("Succeeded", "Failed"):
            return ()
        names = (
            (v.get("persistentVolumeClaim") or {}).get("claimName") for v in change.new.obj["spec"].get("volumes") or ()
        )
        return [(change.new.namespace, name) for name in names if name]

    def _pending(self, change: Change) -> Iterable[tuple[str, str]]:
        return [(r.namespace, r.name) for r in self.store.every(CLAIMS) if r.obj["status"].get("phase") == "Pending"]

    def reconcile(self, namespace: str, name: str) -> float | None:
        claim = self.store.get(CLAIMS, namespace, name)
        if claim is None:
            self._release(namespace, name)
            return None
        obj = claim.obj
        if obj["metadata"].get("deletionTimestamp"):
            self._unprotect(claim)
            return None
        if obj["status"].get("phase") == "Bound":
            self._resize(claim)
            return None
        wanted = obj["spec"].get("storageClassName")
        storage = self.store.get(CLASSES, "", wanted) if wanted else None
        if storage is None:
            text_ = (
                f'storageclass.storage.k8s.io "{wanted}" not found'
                if wanted
                else "no persistent volumes available for this claim and no storage class is set"
            )
            self.world.event(
                obj,
                "ProvisioningFailed" if wanted else "FailedBinding",
                text_,
                source="persistentvolume-controller",
                type_="Warning" if wanted else "Normal",
            )
            return None
        node = (obj["metadata"].get("annotations") or {}).get(SELECTED)
        if storage.obj["volumeBindingMode"] == "WaitForFirstConsumer" and not node:
            self.world.event(
                obj,
                "WaitForFirstConsumer",
                "waiting for first consumer to be created before binding",
                source="persistentvolume-controller",
            )
            return None
        modes = obj["spec"].get("accessModes") or []
        allowed = (storage.obj.get("parameters") or {}).get("accessModes")
        if allowed and not set(modes) <= set(allowed.split(",")):
            text_ = (
                f'failed to provision volume with StorageClass "{wanted}": unsupported access mode {", ".join(modes)}'
            )
            self.world.event(obj, "ProvisioningFailed", text_, source=storage.obj["provisioner"], type_="Warning")
            return None
        self._bind(claim, storage)
        return None

    def _bind(self, claim: Record, storage: Record) -> None:
        obj = claim.obj
        volume = f"pvc-{obj['metadata']['uid']}"
        size = obj["spec"]["resources"]["requests"]["storage"]
        if self.store.get(VOLUMES, "", volume) is None:
            self.world.create(
                VOLUMES,
                {
                    "apiVersion": "v1",
                    "kind": "PersistentVolume",
                    "metadata": {"name": volume},
                    "spec": {
                        "capacity": {"storage": size},
                        "accessModes": obj["spec"]["accessModes"],
                        "persistentVolumeReclaimPolicy": storage.obj["reclaimPolicy"],
                        "storageClassName": storage.name,
                        "volumeMode": "Filesystem",
                        "claimRef": {
                            "kind": "PersistentVolumeClaim",
                            "apiVersion": "v1",
                            "namespace": claim.namespace,
                            "name": claim.name,
                            "uid": obj["metadata"]["uid"],
                        },
                        "hostPath": {"path": f"/var/simulated/{volume}"},
                    },
                },
            )
            made = self.store.get(VOLUMES, "", volume)
            if made is not None:
                self.registry.modify(VOLUMES, made, lambda new: new.update(status={"phase": "Bound"}))

        def write(new: Obj) -> None:
            new["spec"]["volumeName"] = volume
            notes = new["metadata"].setdefault("annotations", {})
            notes["pv.kubernetes.io/bind-completed"] = "yes"
            notes["pv.kubernetes.io/bound-by-controller"] = "yes"
            new["status"] = {"phase": "Bound", "accessModes": new["spec"]["accessModes"], "capacity": {"storage": size}}

        self.registry.modify(CLAIMS, claim, write)

    def _resize(self, claim: Record) -> None:
        size = claim.obj["spec"]["resources"]["requests"]["storage"]

        def write(new: Obj) -> None:
            new["status"].setdefault("capacity", {})["storage"] = size

        self.registry.modify(CLAIMS, claim, write)

    def _unprotect(self, claim: Record) -> None:
        for pod in self.store.every(PODS, claim.namespace):
            uses = any(
                (v.get("persistentVolumeClaim") or {}).get("claimName") == claim.name
                for v in pod.obj["spec"].get("volumes") or ()
            )
            if uses and pod.obj["status"].get("phase") not in ("Succeeded", "Failed"):
                return

        def free(obj: Obj) -> None:
            left = [f for f in obj["metadata"].get("finalizers") or () if f != PROTECTION]
            if left:
                obj["metadata"]["finalizers"] = left
            else:
                obj["metadata"].pop("finalizers", None)

        self.registry.modify(CLAIMS, claim, free)

    def _release(self, namespace: str, name: str) -> None:
        for volume in list(self.store.every(VOLUMES)):
            ref = volume.obj["spec"].get("claimRef") or {}
            if ref.get("namespace") == namespace and ref.get("name") == name:
                if volume.obj["spec"].get("persistentVolumeReclaimPolicy") == "Delete":
                    self.world.delete(VOLUMES, volume)
                else:
                    self.registry.modify(VOLUMES, volume, lambda new: new.update(status={"phase": "Released"}))


class Quotas(Controller):
    """`status.used` of quotas."""

    name = "quotas"

    def watches(self) -> dict[str, Keys]:
        keys = (
            "/pods",
            "/persistentvolumeclaims",
            "/services",
            "/secrets",
            "/configmaps",
            "apps/deployments",
            "apps/statefulsets",
            "batch/jobs",
        )
        watched: dict[str, Keys] = dict.fromkeys(keys, self._within)
        watched["/resourcequotas"] = own
        return watched

    def _within(self, change: Change) -> Iterable[tuple[str, str]]:
        if change.type == "MODIFIED" and change.resource.key not in ("/persistentvolumeclaims", "/pods"):
            return ()
        running = change.resource is PODS and change.new.obj["status"].get("phase") not in ("Succeeded", "Failed")
        if change.type == "MODIFIED" and running:
            return ()
        return [(r.namespace, r.name) for r in self.store.every(QUOTAS, change.new.namespace)]

    def reconcile(self, namespace: str, name: str) -> float | None:
        record = self.store.get(QUOTAS, namespace, name)
        if record is None:
            return None
        hard: dict[str, str] = record.obj["spec"].get("hard") or {}
        used = quotas.used_in(self.store, namespace, list(hard))

        def write(obj: Obj) -> None:
            obj["status"] = {
                "hard": hard,
                "used": {
                    k: text(v, "bytes" if "memory" in k or k.endswith("storage") else "") for k, v in used.items()
                },
            }

        self.registry.modify(QUOTAS, record, write)
        return None


def _amount(value: Any, total: int) -> int:
    if isinstance(value, int):
        return value
    return math.ceil(int(str(value).rstrip("%")) * total / 100)


class Budgets(Controller):
    """`status` of disruption budgets."""

    name = "budgets"

    def watches(self) -> dict[str, Keys]:
        return {"policy/poddisruptionbudgets": own, "/pods": self._by_pod}

    def _by_pod(self, change: Change) -> Iterable[tuple[str, str]]:
        labels = change.new.obj["metadata"].get("labels") or {}
        return [
            (r.namespace, r.name)
            for r in self.store.every(BUDGETS, change.new.namespace)
            if matches(r.obj["spec"].get("selector"), labels)
        ]

    def reconcile(self, namespace: str, name: str) -> float | None:
        record = self.store.get(BUDGETS, namespace, name)
        if record is None:
            return None
        spec = record.obj["spec"]
        pods = active(
            p
            for p in self.store.every(PODS, namespace)
            if matches(spec.get("selector"), p.obj["metadata"].get("labels") or {})
        )
        healthy = sum(1 for p in pods if is_ready(p.obj))
        if "maxUnavailable" in spec:
            needed = max(0, len(pods) - _amount(spec["maxUnavailable"], len(pods)))
        else:
            needed = _amount(spec.get("minAvailable", 1), len(pods))

        def write(obj: Obj) -> None:
            obj["status"] = {
                "observedGeneration": obj["metadata"].get("generation", 1),
                "expectedPods": len(pods),
                "currentHealthy": healthy,
                "desiredHealthy": needed,
                "disruptionsAllowed": max(0, healthy - needed),
            }

        self.registry.modify(BUDGETS, record, write)
        return None
