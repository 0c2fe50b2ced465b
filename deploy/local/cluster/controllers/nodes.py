"""Nodes: created at the start, marked unreachable by the fault `node_lost` and ready again after it."""

from __future__ import annotations

from deploy.local.cluster.controllers.base import Controller, Keys, has_condition, itself, set_condition
from deploy.local.cluster.resources import NODES, PODS, Obj
from deploy.local.cluster.store import StoredObject
from deploy.local.cluster.times import now

UNREACHABLE = "node.kubernetes.io/unreachable"
NODE_CAPACITY = {"cpu": "128", "memory": "512Gi", "ephemeral-storage": "2Ti", "pods": "2000"}


def node(number: int) -> Obj:
    """Return a worker node as its kubelet registers it."""
    name = f"node-{number}"
    labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
    labels["topology.kubernetes.io/zone"] = f"local-{number}"
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": {}}


def healthy_status(status: Obj) -> None:
    """Write the status of a node whose kubelet answers."""
    status |= {"capacity": dict(NODE_CAPACITY), "allocatable": dict(NODE_CAPACITY)}
    status |= {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]}
    status |= {"nodeInfo": {"kubeletVersion": "v1.36.3", "operatingSystem": "linux", "architecture": "amd64"}}
    for kind in ("MemoryPressure", "DiskPressure", "PIDPressure"):
        set_condition(status, kind, "False", f"KubeletHasNo{kind}", lastHeartbeatTime=now())
    set_condition(status, "Ready", "True", "KubeletReady", "kubelet is posting ready status", lastHeartbeatTime=now())


class Nodes(Controller):
    """Marks lost nodes and their pods as not ready, and heals them when they return."""

    name = "nodes"

    def watches(self) -> dict[str, Keys]:
        return {"/nodes": itself}

    def faults_changed(self) -> None:
        """Let each `node_lost` strike its nodes: the named one, or as many as its count says (default 1)."""
        ready = sorted((r for r in self.store.every(NODES) if has_condition(r.obj, "Ready")), key=lambda r: r.name)
        for fault in self.faults.active("node_lost"):
            candidates = [stored for stored in ready if fault.node in (None, stored.name)]
            missing = (1 if fault.node else fault.count or 1) - len(fault.victims)
            fault.victims |= {stored.obj["metadata"]["uid"] for stored in candidates[: max(0, missing)]}
        self.loop.enqueue_all(self.name, NODES)

    def reconcile(self, namespace: str, name: str) -> float | None:
        stored = self.store.get(NODES, "", name)
        if stored is None:
            return None
        if self.faults.has_struck("node_lost", stored.obj["metadata"]["uid"]):
            self._lose(stored)
        elif has_condition(stored.obj, "Ready", "Unknown"):
            self._return(stored)
        return None

    def _pods(self, stored: StoredObject) -> list[StoredObject]:
        return [pod for pod in self.store.every(PODS) if pod.obj["spec"].get("nodeName") == stored.name]

    def _lose(self, stored: StoredObject) -> None:
        def write(obj: Obj) -> None:
            set_condition(
                obj["status"], "Ready", "Unknown", "NodeStatusUnknown", "Kubelet stopped posting node status."
            )
            taints = [taint for taint in obj["spec"].get("taints") or () if taint["key"] != UNREACHABLE]
            effects = ("NoSchedule", "NoExecute")
            obj["spec"]["taints"] = [*taints, *({"key": UNREACHABLE, "effect": effect} for effect in effects)]

        self.registry.modify(NODES, stored, write)
        for pod in self._pods(stored):
            if pod.obj["status"]["phase"] == "Running":
                self.registry.modify(
                    PODS, pod, lambda obj: set_condition(obj["status"], "Ready", "False", "NodeNotReady")
                )

    def _return(self, stored: StoredObject) -> None:
        def write(obj: Obj) -> None:
            healthy_status(obj["status"])
            obj["spec"]["taints"] = [taint for taint in obj["spec"].get("taints") or () if taint["key"] != UNREACHABLE]

        self.registry.modify(NODES, stored, write)
        for pod in self._pods(stored):
            self.loop.enqueue("pods", pod.namespace, pod.name)
