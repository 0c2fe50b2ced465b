"""Deployments, and what all workloads share."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import orjson

from deploy.local.cluster.controllers.base import (
    Controller,
    Keys,
    condition,
    controller_of,
    has_condition,
    own,
    owner_of,
    reference,
)
from deploy.local.cluster.resources import BY_KEY, Obj
from deploy.local.cluster.store import Record, thaw
from deploy.local.cluster.times import now, seconds_since

PODS, SETS, DEPLOYMENTS = BY_KEY["/pods"], BY_KEY["apps/replicasets"], BY_KEY["apps/deployments"]
REVISION = "deployment.kubernetes.io/revision"
HASH = "pod-template-hash"
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


def digest(value: Any) -> str:
    """A short name-safe hash of a JSON value."""
    number = int.from_bytes(hashlib.blake2b(orjson.dumps(value, option=orjson.OPT_SORT_KEYS), digest_size=7).digest())
    out = ""
    while number and len(out) < 10:
        number, rest = divmod(number, len(_ALPHABET))
        out += _ALPHABET[rest]
    return out


def pod_from(template: Obj, namespace: str, owner: Obj, **meta: Any) -> Obj:
    """A pod of a template."""
    inner = template.get("metadata") or {}
    made: Obj = {"namespace": namespace, "ownerReferences": [owner], **meta}
    for key in ("labels", "annotations", "finalizers"):
        if inner.get(key):
            made[key] = inner[key]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": made, "spec": template["spec"]}


def is_ready(pod: Obj) -> bool:
    return has_condition(pod, "Ready") and not pod["metadata"].get("deletionTimestamp")


def is_available(pod: Obj, minimum: int) -> bool:
    """Ready for at least `minimum` seconds."""
    if not is_ready(pod):
        return False
    if minimum <= 0:
        return True
    since = next((c["lastTransitionTime"] for c in pod["status"]["conditions"] if c["type"] == "Ready"), None)
    return since is not None and seconds_since(since) >= minimum


def active(pods: Iterable[Record]) -> list[Record]:
    """Pods that count: neither ending nor ended."""
    return [
        p
        for p in pods
        if not p.obj["metadata"].get("deletionTimestamp")
        and p.obj["status"].get("phase") not in ("Succeeded", "Failed")
    ]


def _share(value: Any, total: int, *, up: bool) -> int:
    if isinstance(value, int):
        return value
    part = int(str(value).rstrip("%")) * total / 100
    return math.ceil(part) if up else math.floor(part)


class Deployments(Controller):
    name = "deployments"

    def watches(self) -> dict[str, Keys]:
        return {"apps/deployments": own, "apps/replicasets": owner_of("Deployment"), "/pods": self._by_pod}

    def _by_pod(self, change: Any) -> Iterable[tuple[str, str]]:
        # Only a pod's going matters here: Recreate waits for it.
        if change.type != "DELETED":
            return ()
        owner = controller_of(change.new.obj)
        if owner is None or owner["kind"] != "ReplicaSet":
            return ()
        record = self.store.get(SETS, change.new.namespace, owner["name"])
        above = controller_of(record.obj) if record else None
        return ((change.new.namespace, above["name"]),) if above else ()

    def reconcile(self, namespace: str, name: str) -> float | None:
        record = self.store.get(DEPLOYMENTS, namespace, name)
        if record is None or record.obj["metadata"].get("deletionTimestamp"):
            return None
        obj = record.obj
        sets = self.store.owned(obj["metadata"]["uid"], SETS)
        current = self._current(obj, sets)
        if current is None and not obj["spec"].get("paused"):
            current = self._new_set(record, sets)
            if current is None:
                return 0.01
        if current is not None:
            self._revision(record, current)
            others = [s for s in sets if s.name != current.name]
            self._roll(obj, current, others)
            self._prune(obj, others)
        return self._status(self.store.get(DEPLOYMENTS, namespace, name))

    @staticmethod
    def _template(obj: Obj) -> Obj:
        template: Obj = obj["spec"]["template"]
        return template

    def _current(self, obj: Obj, sets: list[Record]) -> Record | None:
        wanted = self._template(obj)
        for found in sets:
            template = thaw(found)["spec"]["template"]
            labels = (template.get("metadata") or {}).get("labels") or {}
            labels.pop(HASH, None)
            if template == wanted:
                return found
        return None

    def _new_set(self, record: Record, sets: list[Record]) -> Record | None:
        obj = thaw(record)
        meta, spec = obj["metadata"], obj["spec"]
        tag = digest([spec["template"], obj.get("status", {}).get("collisionCount", 0)])
        template = spec["template"]
        template.setdefault("metadata", {}).setdefault("labels", {})[HASH] = tag
        selector = spec["selector"]
        selector.setdefault("matchLabels", {})[HASH] = tag
        revision = 1 + max(
            (int((s.obj["metadata"].get("annotations") or {}).get(REVISION, 0)) for s in sets), default=0
        )
        notes = {k: v for k, v in (meta.get("annotations") or {}).items() if "last-applied-configuration" not in k}
        made: Obj = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": f"{meta['name']}-{tag}",
                "namespace": meta["namespace"],
                "labels": dict(template["metadata"]["labels"]),
                "annotations": {**notes, REVISION: str(revision)},
                "ownerReferences": [reference(DEPLOYMENTS, obj)],
            },
            "spec": {
                "replicas": 0,
                "selector": selector,
                "template": template,
                "minReadySeconds": spec.get("minReadySeconds", 0),
            },
        }
        name = made["metadata"]["name"]
        if self.store.get(SETS, meta["namespace"], name) is None:
            self.world.create(SETS, made)
        found = self.store.get(SETS, meta["namespace"], name)

        def started(new: Obj) -> None:
            condition(
                new.setdefault("status", {}),
                "Progressing",
                "True",
                "NewReplicaSetCreated",
                f'Created new replica set "{name}"',
                lastUpdateTime=now(),
            )

        self.registry.modify(DEPLOYMENTS, record, started)
        return found

    def _revision(self, record: Record, current: Record) -> None:
        highest = max(
            int((s.obj["metadata"].get("annotations") or {}).get(REVISION, 0))
            for s in self.store.owned(record.obj["metadata"]["uid"], SETS)
        )
        mine = (current.obj["metadata"].get("annotations") or {}).get(REVISION, "0")
        if int(mine) < highest:
            # Rolled back: the old set becomes the newest revision.
            mine = str(highest + 1)

            def newest(new: Obj) -> None:
                new["metadata"].setdefault("annotations", {})[REVISION] = mine

            self.registry.modify(SETS, current, newest)

        def noted(new: Obj) -> None:
            new["metadata"].setdefault("annotations", {})[REVISION] = mine

        self.registry.modify(DEPLOYMENTS, record, noted)

    def _scale(self, obj: Obj, found: Record, replicas: int) -> None:
        before = found.obj["spec"]["replicas"]
        if before == replicas:
            return

        def scale(new: Obj) -> None:
            new["spec"]["replicas"] = replicas

        self.registry.modify(SETS, found, scale)
        way = "up" if replicas > before else "down"
        text = f"Scaled {way} replica set {found.name} from {before} to {replicas}"
        self.world.event(obj, "ScalingReplicaSet", text, source="deployment-controller")

    def _roll(self, obj: Obj, current: Record, others: list[Record]) -> None:
        spec = obj["spec"]
        wanted = spec["replicas"]
        old = [s for s in others if s.obj["spec"]["replicas"] > 0]
        if spec.get("paused"):
            self._scale(obj, current, wanted - sum(s.obj["spec"]["replicas"] for s in old) if old else wanted)
            return
        if spec["strategy"]["type"] == "Recreate":
            for found in old:
                self._scale(obj, found, 0)
            left = [p for s in others for p in self.store.owned(s.obj["metadata"]["uid"], PODS)]
            if any(p.obj["status"].get("phase") not in ("Succeeded", "Failed") for p in left):
                return
            self._scale(obj, current, wanted)
            return
        if not old:
            self._scale(obj, current, wanted)
            return
        rolling = spec["strategy"].get("rollingUpdate") or {}
        surge = _share(rolling.get("maxSurge", "25%"), wanted, up=True)
        missing = _share(rolling.get("maxUnavailable", "25%"), wanted, up=False)
        if surge == 0 and missing == 0:
            missing = 1
        total = current.obj["spec"]["replicas"] + sum(s.obj["spec"]["replicas"] for s in old)
        room = max(0, wanted + surge - total)
        target = min(wanted, current.obj["spec"]["replicas"] + room)
        if current.obj["spec"]["replicas"] > wanted:
            target = wanted
        self._scale(obj, current, target)
        available = sum(s.obj.get("status", {}).get("availableReplicas", 0) for s in [*old, current])
        unready_new = max(
            0, current.obj["spec"]["replicas"] - current.obj.get("status", {}).get("availableReplicas", 0)
        )
        may_go = total - (wanted - missing) - unready_new
        # Pods of old sets that never became available can go at any time; they hold nothing up.
        for found in old:
            have, good = found.obj["spec"]["replicas"], found.obj.get("status", {}).get("availableReplicas", 0)
            drop = min(have - good, max(0, may_go)) if have > good else 0
            if drop:
                self._scale(obj, found, have - drop)
                may_go -= drop
        spare = available - (wanted - missing)
        for found in old:
            live = self.store.get(SETS, found.namespace, found.name)
            if live is None or spare <= 0:
                continue
            have = live.obj["spec"]["replicas"]
            drop = min(have, spare)
            if drop:
                self._scale(obj, live, have - drop)
                spare -= drop

    def _prune(self, obj: Obj, others: list[Record]) -> None:
        idle = [s for s in others if s.obj["spec"]["replicas"] == 0 and not s.obj.get("status", {}).get("replicas")]
        idle.sort(key=lambda s: int((s.obj["metadata"].get("annotations") or {}).get(REVISION, 0)))
        for found in idle[: max(0, len(idle) - obj["spec"].get("revisionHistoryLimit", 10))]:
            self.world.delete(SETS, found)

    def _status(self, record: Record | None) -> float | None:
        if record is None:
            return None
        obj = record.obj
        sets = self.store.owned(obj["metadata"]["uid"], SETS)
        current = self._current(obj, sets)
        wanted = obj["spec"]["replicas"]
        rolling = obj["spec"]["strategy"].get("rollingUpdate") or {}
        missing = _share(rolling.get("maxUnavailable", 0), wanted, up=False)
        again: list[float] = []

        def total(key: str) -> int:
            return sum(s.obj.get("status", {}).get(key, 0) for s in sets)

        updated = current.obj.get("status", {}).get("replicas", 0) if current else 0
        available, replicas, ready = total("availableReplicas"), total("replicas"), total("readyReplicas")
        failure = next(
            (c for s in sets for c in s.obj.get("status", {}).get("conditions") or () if c["type"] == "ReplicaFailure"),
            None,
        )

        def write(new: Obj) -> None:
            old = new.get("status") or {}
            out: Obj = {"observedGeneration": new["metadata"]["generation"]}
            new["status"] = out
            counts = (
                ("replicas", replicas),
                ("updatedReplicas", updated),
                ("readyReplicas", ready),
                ("availableReplicas", available),
                ("unavailableReplicas", max(0, wanted - available)),
            )
            for key, value in counts:
                if value:
                    out[key] = value
            if "collisionCount" in old:
                out["collisionCount"] = old["collisionCount"]
            out["conditions"] = [c for c in old.get("conditions") or () if c["type"] != "ReplicaFailure"]
            if failure:
                condition(out, "ReplicaFailure", "True", failure["reason"], failure["message"])
            if available >= wanted - missing:
                condition(
                    out,
                    "Available",
                    "True",
                    "MinimumReplicasAvailable",
                    "Deployment has minimum availability.",
                    lastUpdateTime=now(),
                )
            else:
                condition(
                    out,
                    "Available",
                    "False",
                    "MinimumReplicasUnavailable",
                    "Deployment does not have minimum availability.",
                    lastUpdateTime=now(),
                )
            done = updated == wanted and replicas == wanted and available == wanted and current is not None
            again.extend(self._progress(new, old, current, done=done))

        self.registry.modify(DEPLOYMENTS, record, write)
        return min(again) if again else None

    def _progress(self, obj: Obj, old: Obj, current: Record | None, *, done: bool) -> list[float]:
        """Set Progressing; the seconds until its deadline where it is running."""
        status = obj["status"]
        name = current.name if current else ""
        deadline = obj["spec"].get("progressDeadlineSeconds", 600)
        before: Obj = next((c for c in status["conditions"] if c["type"] == "Progressing"), {})
        if done:
            condition(
                status,
                "Progressing",
                "True",
                "NewReplicaSetAvailable",
                f'ReplicaSet "{name}" has successfully progressed.',
                lastUpdateTime=now(),
            )
            return []
        if obj["spec"].get("paused"):
            condition(
                status, "Progressing", "Unknown", "DeploymentPaused", "Deployment is paused", lastUpdateTime=now()
            )
            return []
        keys = ("updatedReplicas", "readyReplicas", "availableReplicas")
        moved = any(status.get(k, 0) > old.get(k, 0) for k in keys) or status.get("replicas", 0) - status.get(
            "updatedReplicas", 0
        ) < old.get("replicas", 0) - old.get("updatedReplicas", 0)
        fresh = obj["metadata"]["generation"] != old.get("observedGeneration")
        if (
            moved
            or not before
            or (fresh and before.get("reason") in ("NewReplicaSetAvailable", "ProgressDeadlineExceeded"))
        ):
            status["conditions"] = [c for c in status["conditions"] if c["type"] != "Progressing"]
            condition(
                status,
                "Progressing",
                "True",
                "ReplicaSetUpdated",
                f'ReplicaSet "{name}" is progressing.',
                lastUpdateTime=now(),
            )
            if before.get("status") == "True":
                status["conditions"][-1]["lastTransitionTime"] = before["lastTransitionTime"]
            return [deadline + 0.5]
        if before.get("reason") == "ProgressDeadlineExceeded":
            return []
        waited = seconds_since(before.get("lastUpdateTime") or before["lastTransitionTime"])
        if before.get("reason") == "NewReplicaSetAvailable" or waited < deadline:
            return [deadline - waited + 0.5] if before.get("reason") != "NewReplicaSetAvailable" else []
        condition(
            status,
            "Progressing",
            "False",
            "ProgressDeadlineExceeded",
            f'ReplicaSet "{name}" has timed out progressing.',
            lastUpdateTime=now(),
        )
        return []
