"""Nodes: those that are there from the start, and what happens when one is lost and when it comes back."""

from __future__ import annotations

from collections.abc import Iterable

from deploy.local.cluster.controllers.base import Controller, Keys, condition, has_condition, own
from deploy.local.cluster.controllers.scheduler import NODES, PODS
from deploy.local.cluster.errors import ApiError
from deploy.local.cluster.resources import Obj
from deploy.local.cluster.store import Change, Record
from deploy.local.cluster.times import now

UNREACHABLE = "node.kubernetes.io/unreachable"
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
CAPACITY = {"cpu": "128", "memory": "512Gi", "ephemeral-storage": "2Ti", "pods": "2000"}


def default_node(number: int) -> Obj:
    """A worker node as it registers itself."""
    name = f"node-{number}"
    labels = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "topology.kubernetes.io/region": "local",
        "topology.kubernetes.io/zone": f"local-{number}",
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {"podCIDR": f"10.244.{number}.0/24", "providerID": f"simulated://{name}"},
    }


def node_status(number: int) -> Obj:
    """The status that goes with `default_node`."""
    status: Obj = {
        "capacity": dict(CAPACITY),
        "allocatable": dict(CAPACITY),
        "addresses": [
            {"type": "InternalIP", "address": f"10.0.0.{number}"},
            {"type": "Hostname", "address": f"node-{number}"},
        ],
        "nodeInfo": {
            "architecture": "amd64",
            "bootID": f"boot-{number}",
            "containerRuntimeVersion": "containerd://2.2.0",
            "kernelVersion": "6.12.0",
            "kubeProxyVersion": "v1.36.3",
            "kubeletVersion": "v1.36.3",
            "machineID": f"machine-{number}",
            "operatingSystem": "linux",
            "osImage": "Simulated Linux",
            "systemUUID": f"system-{number}",
        },
    }
    healthy(status)
    return status


def healthy(status: Obj) -> None:
    for kind, good, reason, message in (
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    ):
        condition(status, kind, good, reason, message, lastHeartbeatTime=now())


class Nodes(Controller):
    name = "nodes"

    def watches(self) -> dict[str, Keys]:
        return {"/nodes": own, "/pods": self._by_pod}

    def _by_pod(self, change: Change) -> Iterable[tuple[str, str]]:
        if change.type != "ADDED" or not self.faults.any("node_lost"):
            return ()
        node = change.new.obj["spec"].get("nodeName")
        return (("", node),) if node else ()

    def choose_victims(self) -> None:
        """Let each `node_lost` fault strike its nodes: the named one, or as many as its count says."""
        for fault in self.faults.of_kind("node_lost"):
            wanted = 1 if fault.node else fault.count or 1
            for record in sorted(self.store.every(NODES), key=lambda r: r.name):
                if len(fault.victims) >= wanted:
                    break
                if fault.node in (None, record.name) and has_condition(record.obj, "Ready"):
                    fault.victims.add(record.obj["metadata"]["uid"])
        for record in self.store.every(NODES):
            self.world.enqueue(self.name, "", record.name)

    def reconcile(self, namespace: str, name: str) -> float | None:
        record = self.store.get(NODES, "", name)
        if record is None:
            self._orphans(name)
            return None
        lost = self.faults.suffers("node_lost", record.obj["metadata"]["uid"])
        if lost:
            self._lose(record)
            return self._evict(record)
        taints = record.obj["spec"].get("taints") or ()
        ready = next((c for c in record.obj["status"].get("conditions") or () if c["type"] == "Ready"), None)
        if any(t["key"] == UNREACHABLE for t in taints) or ready is None or ready["status"] == "Unknown":
            self._return(record)
        return None

    def _orphans(self, name: str) -> None:
        for pod in self.store.every(PODS):
            if pod.obj["spec"].get("nodeName") == name:
                self.registry.delete(PODS, pod.namespace, pod.name, {"gracePeriodSeconds": 0})

    def _lose(self, record: Record) -> None:
        def write(obj: Obj) -> None:
            for kind in ("MemoryPressure", "DiskPressure", "PIDPressure", "Ready"):
                condition(obj["status"], kind, "Unknown", "NodeStatusUnknown", "Kubelet stopped posting node status.")
            taints = obj["spec"].setdefault("taints", [])
            for effect in ("NoSchedule", "NoExecute"):
                if not any(t["key"] == UNREACHABLE and t["effect"] == effect for t in taints):
                    taints.append({"key": UNREACHABLE, "effect": effect, "timeAdded": now()})

        live = self.registry.modify(NODES, record, write)
        if live.version != record.version:
            text = f"Node {record.name} status is now: NodeNotReady"
            self.world.event(record.obj, "NodeNotReady", text, source="node-controller")
        for pod in self._pods(record.name):

            def unready(obj: Obj) -> None:
                if obj["status"].get("phase") not in ("Succeeded", "Failed"):
                    condition(obj["status"], "Ready", "False", "NodeNotReady", "")

            self.registry.modify(PODS, pod, unready)

    def _pods(self, node: str) -> list[Record]:
        return [p for p in self.store.every(PODS) if p.obj["spec"].get("nodeName") == node]

    def _evict(self, record: Record) -> float | None:
        """Pods are marked for deletion when they no longer tolerate the loss, at once on a node out of service."""
        fenced = any(t["key"] == OUT_OF_SERVICE for t in record.obj["spec"].get("taints") or ())
        if fenced:
            for pod in self._pods(record.name):
                try:
                    self.registry.delete(PODS, pod.namespace, pod.name, {"gracePeriodSeconds": 0})
                except ApiError as exc:
                    if exc.code != 404:
                        raise
            return None
        live = self.store.get(NODES, "", record.name)
        if live is None:
            return None
        from deploy.local.cluster.times import seconds_since

        since = next((t["timeAdded"] for t in live.obj["spec"].get("taints") or () if t["key"] == UNREACHABLE), now())
        left = self.world.seconds(300.0) - seconds_since(since)
        if left > 0:
            return left
        for pod in self._pods(record.name):
            if not pod.obj["metadata"].get("deletionTimestamp"):
                self.world.delete(PODS, pod)
        return None

    def _return(self, record: Record) -> None:
        def write(obj: Obj) -> None:
            healthy(obj["status"])
            left = [t for t in obj["spec"].get("taints") or () if t["key"] != UNREACHABLE]
            if left:
                obj["spec"]["taints"] = left
            else:
                obj["spec"].pop("taints", None)

        self.registry.modify(NODES, record, write)
        for pod in self._pods(record.name):
            self.world.enqueue("pods", pod.namespace, pod.name)
