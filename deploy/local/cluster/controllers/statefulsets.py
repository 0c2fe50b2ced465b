"""StatefulSets: pods in order, each with claims of its own; and DaemonSets, one pod per node."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from deploy.local.cluster.controllers.base import Controller, Keys, own, owner_of, reference
from deploy.local.cluster.controllers.workloads import PODS, active, digest, is_available, is_ready, pod_from
from deploy.local.cluster.errors import ApiError
from deploy.local.cluster.resources import BY_KEY, Obj
from deploy.local.cluster.store import Record

SETS, CLAIMS = BY_KEY["apps/statefulsets"], BY_KEY["/persistentvolumeclaims"]
DAEMONS, NODES = BY_KEY["apps/daemonsets"], BY_KEY["/nodes"]
HASH = "controller-revision-hash"


def _revision(obj: Obj) -> str:
    return f"{obj['metadata']['name']}-{digest(obj['spec']['template'])}"


def _ended(pod: Obj) -> bool:
    return pod["status"].get("phase") in ("Succeeded", "Failed")


class StatefulSets(Controller):
    name = "statefulsets"

    def watches(self) -> dict[str, Keys]:
        return {"apps/statefulsets": own, "/pods": owner_of("StatefulSet")}

    def reconcile(self, namespace: str, name: str) -> float | None:
        record = self.store.get(SETS, namespace, name)
        if record is None or record.obj["metadata"].get("deletionTimestamp"):
            return None
        obj = record.obj
        problem = None
        try:
            self._step(obj)
        except ApiError as exc:
            problem = exc
            self.world.event(
                obj,
                "FailedCreate",
                f"create Pod in StatefulSet {name} failed error: {exc.message}",
                source="statefulset-controller",
                type_="Warning",
            )
        again = self._status(record)
        if problem is not None:
            raise problem
        return again

    def _pods(self, obj: Obj) -> dict[int, Record]:
        found = {}
        for pod in self.store.owned(obj["metadata"]["uid"], PODS):
            ordinal = pod.name.rpartition("-")[2]
            if ordinal.isdigit():
                found[int(ordinal)] = pod
        return found

    def _step(self, obj: Obj) -> None:
        """One pass over the ordinals. In order, a pod that is not ready yet holds up all that follow."""
        spec = obj["spec"]
        start = (spec.get("ordinals") or {}).get("start", 0)
        wanted = range(start, start + spec["replicas"])
        ordered = spec["podManagementPolicy"] == "OrderedReady"
        pods = self._pods(obj)
        update, current = _revision(obj), obj.get("status", {}).get("currentRevision")
        partition = ((spec.get("updateStrategy") or {}).get("rollingUpdate") or {}).get("partition", 0)
        minimum = spec.get("minReadySeconds", 0)
        for ordinal in wanted:
            pod = pods.get(ordinal)
            if pod is not None and _ended(pod.obj) and not pod.obj["metadata"].get("deletionTimestamp"):
                self.world.delete(PODS, pod)
                return
            if pod is None:
                self._create(obj, ordinal)
                if ordered:
                    return
                continue
            if ordered and (pod.obj["metadata"].get("deletionTimestamp") or not is_available(pod.obj, minimum)):
                return
        for ordinal in sorted((o for o in pods if o not in wanted), reverse=True):
            pod = pods[ordinal]
            if not pod.obj["metadata"].get("deletionTimestamp"):
                self.world.delete(PODS, pod)
                self.world.event(
                    obj,
                    "SuccessfulDelete",
                    f"delete Pod {pod.name} in StatefulSet {obj['metadata']['name']} successful",
                    source="statefulset-controller",
                )
            if ordered:
                return
        if (spec.get("updateStrategy") or {}).get("type") == "OnDelete" or (current == update and not pods):
            return
        for ordinal in sorted(pods, reverse=True):
            pod = pods[ordinal]
            if ordinal - start < partition:
                continue
            labels = pod.obj["metadata"].get("labels") or {}
            if pod.obj["metadata"].get("deletionTimestamp"):
                return
            if labels.get(HASH) != update:
                self.world.delete(PODS, pod)
                return
            if not is_available(pod.obj, minimum):
                return

    def _create(self, obj: Obj, ordinal: int) -> None:
        meta, spec = obj["metadata"], orjson.loads(orjson.dumps(obj["spec"]))
        name = f"{meta['name']}-{ordinal}"
        template = spec["template"]
        volumes = [
            v
            for v in template["spec"].get("volumes") or ()
            if v["name"] not in {c["metadata"]["name"] for c in spec.get("volumeClaimTemplates") or ()}
        ]
        for claim in spec.get("volumeClaimTemplates") or ():
            claim_name = f"{claim['metadata']['name']}-{name}"
            if self.store.get(CLAIMS, meta["namespace"], claim_name) is None:
                labels = {**(claim["metadata"].get("labels") or {}), **(spec["selector"].get("matchLabels") or {})}
                made: Obj = {"name": claim_name, "namespace": meta["namespace"], "labels": labels}
                if claim["metadata"].get("annotations"):
                    made["annotations"] = claim["metadata"]["annotations"]
                if (spec.get("persistentVolumeClaimRetentionPolicy") or {}).get("whenDeleted") == "Delete":
                    made["ownerReferences"] = [
                        {**reference(SETS, obj), "controller": False, "blockOwnerDeletion": False}
                    ]
                self.world.create(
                    CLAIMS,
                    {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": made, "spec": claim["spec"]},
                )
            volumes.append({"name": claim["metadata"]["name"], "persistentVolumeClaim": {"claimName": claim_name}})
        if volumes:
            template["spec"]["volumes"] = volumes
        template["spec"]["hostname"] = name
        if spec.get("serviceName"):
            template["spec"]["subdomain"] = spec["serviceName"]
        pod = pod_from(template, meta["namespace"], reference(SETS, obj), name=name)
        pod["metadata"]["labels"] = {
            **(pod["metadata"].get("labels") or {}),
            HASH: _revision(obj),
            "statefulset.kubernetes.io/pod-name": name,
            "apps.kubernetes.io/pod-index": str(ordinal),
        }
        self.world.create(PODS, pod)
        self.world.event(
            obj,
            "SuccessfulCreate",
            f"create Pod {name} in StatefulSet {meta['name']} successful",
            source="statefulset-controller",
        )

    def _status(self, record: Record) -> float | None:
        live = self.store.get(SETS, record.namespace, record.name)
        if live is None:
            return None
        obj = live.obj
        pods = [p.obj for p in active(self._pods(obj).values())]
        update = _revision(obj)
        minimum = obj["spec"].get("minReadySeconds", 0)
        updated = sum(1 for p in pods if (p["metadata"].get("labels") or {}).get(HASH) == update)
        ready = sum(1 for p in pods if is_ready(p))
        available = sum(1 for p in pods if is_available(p, minimum))

        def write(new: Obj) -> None:
            old = new.get("status") or {}
            current = old.get("currentRevision") or update
            if updated == len(pods) == obj["spec"]["replicas"] and ready == updated:
                current = update
            new["status"] = out = {
                "observedGeneration": new["metadata"]["generation"],
                "replicas": len(pods),
                "availableReplicas": available,
                "currentRevision": current,
                "updateRevision": update,
                "collisionCount": 0,
            }
            same = sum(1 for p in pods if (p["metadata"].get("labels") or {}).get(HASH) == current)
            for key, value in (("readyReplicas", ready), ("currentReplicas", same), ("updatedReplicas", updated)):
                if value:
                    out[key] = value
            if old.get("conditions"):
                out["conditions"] = old["conditions"]

        self.registry.modify(SETS, live, write)
        return 1.0 if ready > available else None


class DaemonSets(Controller):
    name = "daemonsets"

    def watches(self) -> dict[str, Keys]:
        return {"apps/daemonsets": own, "/pods": owner_of("DaemonSet"), "/nodes": self._all}

    def _all(self, change: Any) -> Iterable[tuple[str, str]]:
        if change.type == "MODIFIED":
            return ()
        return [(r.namespace, r.name) for r in self.store.every(DAEMONS)]

    def reconcile(self, namespace: str, name: str) -> float | None:
        record = self.store.get(DAEMONS, namespace, name)
        if record is None or record.obj["metadata"].get("deletionTimestamp"):
            return None
        obj = record.obj
        tag = digest(obj["spec"]["template"])
        selector = obj["spec"]["template"]["spec"].get("nodeSelector") or {}
        nodes = {
            n.name
            for n in self.store.every(NODES)
            if all((n.obj["metadata"].get("labels") or {}).get(k) == v for k, v in selector.items())
        }
        held: dict[str, Record] = {}
        for pod in self.store.owned(obj["metadata"]["uid"], PODS):
            node = pod.obj["spec"].get("nodeName", "")
            stale = (pod.obj["metadata"].get("labels") or {}).get(HASH) != tag
            if pod.obj["metadata"].get("deletionTimestamp"):
                held.setdefault(node, pod)
            elif node not in nodes or stale or node in held or _ended(pod.obj):
                self.world.delete(PODS, pod)
            else:
                held[node] = pod
        for node in sorted(nodes - held.keys()):
            template = orjson.loads(orjson.dumps(obj["spec"]["template"]))
            pod_obj = pod_from(template, namespace, reference(DAEMONS, obj), generateName=f"{name}-")
            pod_obj["metadata"]["labels"] = {**(pod_obj["metadata"].get("labels") or {}), HASH: tag}
            pod_obj["spec"]["nodeName"] = node
            self.world.create(PODS, pod_obj)
        pods = [p.obj for p in active(self.store.owned(obj["metadata"]["uid"], PODS))]
        ready = sum(1 for p in pods if is_ready(p))

        def write(new: Obj) -> None:
            new["status"] = {
                "observedGeneration": new["metadata"]["generation"],
                "desiredNumberScheduled": len(nodes),
                "currentNumberScheduled": len(pods),
                "numberMisscheduled": 0,
                "numberReady": ready,
                "numberAvailable": ready,
                "updatedNumberScheduled": len(pods),
                **({"numberUnavailable": len(nodes) - ready} if len(nodes) > ready else {}),
            }

        self.registry.modify(DAEMONS, record, write)
        return None
