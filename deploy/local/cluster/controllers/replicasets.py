"""ReplicaSets: as many pods as were asked for."""

from __future__ import annotations

import orjson

from deploy.local.cluster.controllers.base import Controller, Keys, condition, own, owner_of, reference
from deploy.local.cluster.controllers.workloads import PODS, SETS, active, is_available, is_ready, pod_from
from deploy.local.cluster.errors import ApiError
from deploy.local.cluster.resources import Obj


class ReplicaSets(Controller):
    name = "replicasets"

    def watches(self) -> dict[str, Keys]:
        return {"apps/replicasets": own, "/pods": owner_of("ReplicaSet")}

    def reconcile(self, namespace: str, name: str) -> float | None:
        record = self.store.get(SETS, namespace, name)
        if record is None:
            return None
        obj = record.obj
        pods = active(self.store.owned(obj["metadata"]["uid"], PODS))
        wanted = obj["spec"].get("replicas", 1)
        failure: ApiError | None = None
        if not obj["metadata"].get("deletionTimestamp"):
            if len(pods) < wanted:
                failure = self._grow(obj, wanted - len(pods))
            elif len(pods) > wanted:
                # Those that are least along go first.
                pods.sort(key=lambda p: (is_ready(p.obj), bool(p.obj["spec"].get("nodeName")), -p.version))
                for pod in pods[: len(pods) - wanted]:
                    self.world.delete(PODS, pod)
                    self.world.event(
                        obj, "SuccessfulDelete", f"Deleted pod: {pod.name}", source="replicaset-controller"
                    )
        pods = active(self.store.owned(obj["metadata"]["uid"], PODS))
        minimum = obj["spec"].get("minReadySeconds", 0)

        def status(new: Obj) -> None:
            old = new.get("status") or {}
            ready = [p for p in pods if is_ready(p.obj)]
            available = sum(1 for p in ready if is_available(p.obj, minimum))
            new["status"] = out = {"replicas": len(pods), "observedGeneration": new["metadata"].get("generation", 1)}
            for key, value in (
                ("fullyLabeledReplicas", len(pods)),
                ("readyReplicas", len(ready)),
                ("availableReplicas", available),
            ):
                if value:
                    out[key] = value
            if old.get("conditions"):
                out["conditions"] = [c for c in old["conditions"] if c["type"] != "ReplicaFailure" or failure]
            if failure is not None:
                condition(out, "ReplicaFailure", "True", "FailedCreate", failure.message)
            if not out.get("conditions"):
                out.pop("conditions", None)

        self.registry.modify(SETS, record, status)
        if failure is not None:
            raise failure
        return 1.0 if minimum and any(is_ready(p.obj) and not is_available(p.obj, minimum) for p in pods) else None

    def _grow(self, obj: Obj, count: int) -> ApiError | None:
        meta = obj["metadata"]
        for _ in range(count):
            template = orjson.loads(orjson.dumps(obj["spec"]["template"]))
            pod = pod_from(template, meta["namespace"], reference(SETS, obj), generateName=f"{meta['name']}-")
            try:
                made = self.world.create(PODS, pod)
            except ApiError as exc:
                self.world.event(
                    obj,
                    "FailedCreate",
                    f"Error creating: {exc.message}",
                    source="replicaset-controller",
                    type_="Warning",
                )
                return exc
            self.world.event(
                obj, "SuccessfulCreate", f"Created pod: {made['metadata']['name']}", source="replicaset-controller"
            )
        return None
