"""ReplicaSets and Deployments."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from deploy.local.cluster.controllers.base import (
    Controller,
    Keys,
    controller_of,
    digest,
    has_condition,
    itself,
    owner_of,
    owner_reference,
    set_condition,
)
from deploy.local.cluster.errors import ApiError
from deploy.local.cluster.resources import DEPLOYMENTS, PODS, REPLICA_SETS, Obj
from deploy.local.cluster.store import Change, StoredObject, copy_of
from deploy.local.cluster.times import now

REVISION = "deployment.kubernetes.io/revision"
HASH = "pod-template-hash"
AVAILABLE_REASON = ("MinimumReplicasAvailable", "Deployment has minimum availability.")
UNAVAILABLE_REASON = ("MinimumReplicasUnavailable", "Deployment does not have minimum availability.")


def pod_of(template: Obj, namespace: str, owner: Obj, **meta: Any) -> Obj:
    """Return a pod of a template."""
    inner = template.get("metadata") or {}
    copied = {key: inner[key] for key in ("labels", "annotations") if inner.get(key)}
    metadata = {"namespace": namespace, "ownerReferences": [owner], **copied, **meta}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def is_ready(pod: Obj) -> bool:
    return has_condition(pod, "Ready") and not pod["metadata"].get("deletionTimestamp")


def active(pods: Iterable[StoredObject]) -> list[StoredObject]:
    """Return the pods that are neither being deleted nor ended."""
    return [
        pod
        for pod in pods
        if not pod.obj["metadata"].get("deletionTimestamp")
        and pod.obj["status"]["phase"] not in ("Succeeded", "Failed")
    ]


class ReplicaSets(Controller):
    name = "replicasets"

    def watches(self) -> dict[str, Keys]:
        return {"apps/replicasets": itself, "/pods": owner_of("ReplicaSet")}

    def reconcile(self, namespace: str, name: str) -> float | None:
        stored = self.store.get(REPLICA_SETS, namespace, name)
        if stored is None:
            return None
        obj = stored.obj
        pods = active(self.store.owned(obj["metadata"]["uid"], PODS))
        # Pods that are not ready go first, then the youngest.
        pods.sort(key=lambda pod: (not is_ready(pod.obj), pod.version))
        replicas = obj["spec"]["replicas"]
        failure: ApiError | None = None
        try:
            for _ in range(replicas - len(pods)):
                template = copy_of(stored)["spec"]["template"]
                owner = owner_reference(REPLICA_SETS, obj)
                created = self.loop.create(PODS, pod_of(template, namespace, owner, generateName=f"{name}-"))
                text = f"Created pod: {created['metadata']['name']}"
                self.loop.event(obj, "SuccessfulCreate", text, source="replicaset-controller")
        except ApiError as exc:
            failure = exc
            text = f"Error creating: {exc.message}"
            self.loop.event(obj, "FailedCreate", text, source="replicaset-controller", warning=True)
        for pod in pods[: max(0, len(pods) - replicas)]:
            self.loop.delete(PODS, pod)
        pods = active(self.store.owned(obj["metadata"]["uid"], PODS))
        ready = sum(is_ready(pod.obj) for pod in pods)

        def write(new: Obj) -> None:
            counts = {"readyReplicas": ready, "availableReplicas": ready}
            status = {"replicas": len(pods), "observedGeneration": new["metadata"]["generation"], **counts}
            old = new.get("status") or {}
            if failure is not None:
                status["conditions"] = old.get("conditions") or []
                set_condition(status, "ReplicaFailure", "True", "FailedCreate", failure.message)
            new["status"] = status

        self.registry.modify(REPLICA_SETS, stored, write)
        if failure is not None:
            raise failure
        return None


class Deployments(Controller):
    name = "deployments"

    def watches(self) -> dict[str, Keys]:
        return {"apps/deployments": itself, "apps/replicasets": owner_of("Deployment"), "/pods": self._by_pod}

    def _by_pod(self, change: Change) -> Iterable[tuple[str, str]]:
        """The strategy Recreate waits until the pods of the old sets are gone."""
        owner = controller_of(change.new.obj)
        if change.type != "DELETED" or owner is None or owner["kind"] != "ReplicaSet":
            return ()
        stored = self.store.get(REPLICA_SETS, change.new.namespace, owner["name"])
        above = controller_of(stored.obj) if stored else None
        return ((change.new.namespace, above["name"]),) if above else ()

    def reconcile(self, namespace: str, name: str) -> float | None:
        stored = self.store.get(DEPLOYMENTS, namespace, name)
        if stored is None or stored.obj["metadata"].get("deletionTimestamp"):
            return None
        obj = stored.obj
        sets = self.store.owned(obj["metadata"]["uid"], REPLICA_SETS)
        current = next(
            (replica_set for replica_set in sets if _template_of(replica_set) == obj["spec"]["template"]), None
        )
        if current is None:
            current = self._create_set(stored, sets)
        self._set_revision(stored, current, sets)
        others = [replica_set for replica_set in sets if replica_set.name != current.name]
        self._roll(obj, current, others)
        idle = sorted((s for s in others if not s.obj["spec"]["replicas"]), key=_revision)
        for replica_set in idle[: max(0, len(idle) - obj["spec"]["revisionHistoryLimit"])]:
            self.loop.delete(REPLICA_SETS, replica_set)
        self._write_status(stored, current.name)
        return None

    def _create_set(self, stored: StoredObject, sets: list[StoredObject]) -> StoredObject:
        obj = copy_of(stored)
        meta, spec = obj["metadata"], obj["spec"]
        tag = digest(spec["template"])
        template, selector = spec["template"], spec["selector"]
        template.setdefault("metadata", {}).setdefault("labels", {})[HASH] = tag
        selector.setdefault("matchLabels", {})[HASH] = tag
        name = f"{meta['name']}-{tag}"
        replica_set: Obj = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": name,
                "namespace": meta["namespace"],
                "labels": dict(template["metadata"]["labels"]),
                "annotations": {REVISION: str(1 + max(map(_revision, sets), default=0))},
                "ownerReferences": [owner_reference(DEPLOYMENTS, obj)],
            },
            "spec": {"replicas": 0, "selector": selector, "template": template},
        }
        self.loop.create(REPLICA_SETS, replica_set)
        return self.registry.get(REPLICA_SETS, meta["namespace"], name)

    def _set_revision(self, stored: StoredObject, current: StoredObject, sets: list[StoredObject]) -> None:
        """Number the current set as the newest revision, also after a return to an older template."""
        highest = max(map(_revision, sets), default=0)
        number = str(_revision(current) if _revision(current) >= highest else highest + 1)
        for resource, target in ((REPLICA_SETS, current), (DEPLOYMENTS, stored)):

            def write(new: Obj) -> None:
                new["metadata"].setdefault("annotations", {})[REVISION] = number

            self.registry.modify(resource, target, write)

    def _scale(self, obj: Obj, replica_set: StoredObject, replicas: int) -> None:
        before = replica_set.obj["spec"]["replicas"]
        if before != replicas:
            self.registry.modify(REPLICA_SETS, replica_set, lambda new: new["spec"].update(replicas=replicas))
            way = "up" if replicas > before else "down"
            text = f"Scaled {way} replica set {replica_set.name} from {before} to {replicas}"
            self.loop.event(obj, "ScalingReplicaSet", text, source="deployment-controller")

    def _roll(self, obj: Obj, current: StoredObject, others: list[StoredObject]) -> None:
        """Recreate: all old pods go, then the new ones come. RollingUpdate: old pods go as new ones become ready."""
        replicas = obj["spec"]["replicas"]
        if obj["spec"]["strategy"]["type"] == "Recreate":
            for replica_set in others:
                self._scale(obj, replica_set, 0)
            if not any(self.store.owned(replica_set.obj["metadata"]["uid"], PODS) for replica_set in others):
                self._scale(obj, current, replicas)
            return
        self._scale(obj, current, replicas)
        remaining = max(0, replicas - current.obj.get("status", {}).get("availableReplicas", 0))
        for replica_set in others:
            keep = min(remaining, replica_set.obj["spec"]["replicas"])
            remaining -= keep
            self._scale(obj, replica_set, keep)

    def _write_status(self, stored: StoredObject, current: str) -> None:
        sets = self.store.owned(stored.obj["metadata"]["uid"], REPLICA_SETS)
        statuses = {replica_set.name: replica_set.obj.get("status", {}) for replica_set in sets}

        def total(key: str) -> int:
            return sum(status.get(key, 0) for status in statuses.values())

        counts = {
            "replicas": total("replicas"),
            "updatedReplicas": statuses.get(current, {}).get("replicas", 0),
            "readyReplicas": total("readyReplicas"),
            "availableReplicas": total("availableReplicas"),
        }
        failures = [
            condition
            for status in statuses.values()
            for condition in status.get("conditions") or ()
            if condition["type"] == "ReplicaFailure"
        ]

        def write(new: Obj) -> None:
            old, replicas = new.get("status") or {}, new["spec"]["replicas"]
            status: Obj = {"observedGeneration": new["metadata"]["generation"]}
            status |= {key: value for key, value in counts.items() if value}
            status["conditions"] = [c for c in old.get("conditions") or () if c["type"] != "ReplicaFailure"]
            available = counts["availableReplicas"] >= replicas
            done = available and set(counts.values()) == {replicas}
            progress = "NewReplicaSetAvailable" if done else "ReplicaSetUpdated"
            stamp = {"lastUpdateTime": now()}
            set_condition(
                status,
                "Available",
                "True" if available else "False",
                *(AVAILABLE_REASON if available else UNAVAILABLE_REASON),
                **stamp,
            )
            set_condition(status, "Progressing", "True", progress, f'ReplicaSet "{current}"', **stamp)
            for failure in failures[:1]:
                set_condition(status, "ReplicaFailure", "True", failure["reason"], failure["message"], **stamp)
            new["status"] = status

        self.registry.modify(DEPLOYMENTS, stored, write)


def _template_of(replica_set: StoredObject) -> Obj:
    """Return the template of a ReplicaSet without the hash that its deployment added."""
    template: Obj = copy_of(replica_set)["spec"]["template"]
    template["metadata"]["labels"].pop(HASH, None)
    return template


def _revision(replica_set: StoredObject) -> int:
    return int((replica_set.obj["metadata"].get("annotations") or {}).get(REVISION, 0))
