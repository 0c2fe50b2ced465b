"""StatefulSets: pods with ordinals, created in order and updated one at a time, the highest first."""

from __future__ import annotations

from deploy.local.cluster.controllers.base import Controller, Keys, digest, itself, owner_of, owner_reference
from deploy.local.cluster.controllers.workloads import active, is_ready, pod_of
from deploy.local.cluster.errors import ApiError
from deploy.local.cluster.resources import PODS, STATEFUL_SETS, Obj
from deploy.local.cluster.store import StoredObject, copy_of

HASH = "controller-revision-hash"


class StatefulSets(Controller):
    name = "statefulsets"

    def watches(self) -> dict[str, Keys]:
        return {"apps/statefulsets": itself, "/pods": owner_of("StatefulSet")}

    def reconcile(self, namespace: str, name: str) -> float | None:
        stored = self.store.get(STATEFUL_SETS, namespace, name)
        if stored is None or stored.obj["metadata"].get("deletionTimestamp"):
            return None
        try:
            self._step(stored)
        except ApiError as exc:
            text = f"create Pod in StatefulSet {name} failed error: {exc.message}"
            self.loop.event(stored.obj, "FailedCreate", text, source="statefulset-controller", warning=True)
            raise
        finally:
            self._write_status(stored)
        return None

    def _pods(self, obj: Obj) -> dict[int, StoredObject]:
        owned = self.store.owned(obj["metadata"]["uid"], PODS)
        return {int(pod.name.rpartition("-")[2]): pod for pod in owned}

    def _step(self, stored: StoredObject) -> None:
        """Make one change. A pod that is not ready holds back all that follow, its own update included."""
        obj = stored.obj
        pods, replicas = self._pods(obj), obj["spec"]["replicas"]
        ordered = obj["spec"].get("podManagementPolicy") != "Parallel"
        for ordinal in range(replicas):
            pod = pods.get(ordinal)
            if pod is None:
                self._create(stored, ordinal)
            elif pod.obj["status"]["phase"] in ("Succeeded", "Failed"):
                self.loop.delete(PODS, pod)
            elif is_ready(pod.obj):
                continue
            if ordered:
                return
        surplus = sorted((ordinal for ordinal in pods if ordinal >= replicas), reverse=True)
        for ordinal in surplus[:1] if ordered else surplus:
            self.loop.delete(PODS, pods[ordinal])
        if surplus or obj["spec"]["updateStrategy"]["type"] == "OnDelete":
            return
        for ordinal in sorted(pods, reverse=True):
            pod = pods[ordinal]
            if pod.obj["metadata"]["labels"].get(HASH) != _revision(obj):
                self.loop.delete(PODS, pod)
                return
            if not is_ready(pod.obj):
                return

    def _create(self, stored: StoredObject, ordinal: int) -> None:
        obj = copy_of(stored)
        name = f"{stored.name}-{ordinal}"
        template = obj["spec"]["template"]
        template["spec"] |= {"hostname": name, "subdomain": obj["spec"].get("serviceName", "")}
        pod = pod_of(template, stored.namespace, owner_reference(STATEFUL_SETS, obj), name=name)
        labels = {HASH: _revision(stored.obj), "statefulset.kubernetes.io/pod-name": name}
        pod["metadata"]["labels"] = {**(pod["metadata"].get("labels") or {}), **labels}
        self.loop.create(PODS, pod)
        text = f"create Pod {name} in StatefulSet {stored.name} successful"
        self.loop.event(obj, "SuccessfulCreate", text, source="statefulset-controller")

    def _write_status(self, stored: StoredObject) -> None:
        update = _revision(stored.obj)
        pods = [pod.obj for pod in active(self._pods(stored.obj).values())]
        ready = sum(map(is_ready, pods))
        updated = sum(pod["metadata"]["labels"].get(HASH) == update for pod in pods)

        def write(new: Obj) -> None:
            done = updated == len(pods) == new["spec"]["replicas"] == ready
            old = new.get("status") or {}
            status: Obj = {"observedGeneration": new["metadata"]["generation"], "replicas": len(pods)}
            counts = {"readyReplicas": ready, "availableReplicas": ready, "updatedReplicas": updated}
            status |= {key: value for key, value in counts.items() if value}
            status |= {"currentRevision": update if done else old.get("currentRevision", update)}
            status |= {"updateRevision": update}
            if status["currentRevision"] == update:
                status["currentReplicas"] = updated
            new["status"] = status

        self.registry.modify(STATEFUL_SETS, stored, write)


def _revision(obj: Obj) -> str:
    return f"{obj['metadata']['name']}-{digest(obj['spec']['template'])}"
