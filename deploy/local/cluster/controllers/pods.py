"""Pods: scheduled, pulled, started, ready; or failing as a fault says; and ended when they are deleted."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from deploy.local.cluster.controllers.base import Controller, Keys, World, condition, controller_of, own
from deploy.local.cluster.controllers.scheduler import NODES, PODS, Scheduler
from deploy.local.cluster.controllers.trouble import CRASHES, Trouble
from deploy.local.cluster.naming import suffix
from deploy.local.cluster.resources import Obj
from deploy.local.cluster.store import Change, Record
from deploy.local.cluster.times import now

# Pretended seconds of each step; together a pod is ready about 0.3 s after it was made.
PULL, INIT, BOOT, RUN, STOP = 0.08, 0.05, 0.12, 0.2, 0.05
RETRY = 0.5
SLOWNESS = 20.0
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
IDLE = ("Succeeded", "Failed")


class Pods(Controller):
    """Scheduler and kubelets."""

    name = "pods"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.scheduler = Scheduler(world)
        self.trouble = Trouble(world)
        self._since: dict[tuple[str, str], float] = {}
        self._waiting: set[tuple[str, str]] = set()
        self._address = 0

    def watches(self) -> dict[str, Keys]:
        return {
            "/pods": self._own,
            "/persistentvolumeclaims": self._waiters,
            "/nodes": self._waiters,
            "/secrets": self._waiters,
            "/configmaps": self._waiters,
        }

    def _own(self, change: Change) -> Iterable[tuple[str, str]]:
        self.scheduler.changed(change)
        if change.type == "DELETED":
            uid = change.new.obj["metadata"]["uid"]
            for step in ("pull", "init", "boot", "run", "stop", "crash", "slow", "retry"):
                self._since.pop((uid, step), None)
            self._waiting.discard((change.new.namespace, change.new.name))
            if self._waiting:
                # Room on a node: those who found none may fit now.
                return list(self._waiting)
        return own(change)

    def _waiters(self, change: Change) -> Iterable[tuple[str, str]]:
        namespace = change.new.namespace
        return [key for key in self._waiting if not namespace or key[0] == namespace]

    def wake(self) -> None:
        """Faults changed: look at every pod that is not simply running."""
        for record in self.store.every(PODS):
            self.world.enqueue(self.name, record.namespace, record.name)

    def _left(self, pod: Record, step: str, pretended: float) -> float:
        """Real seconds until the step that began at the first call has lasted `pretended`; 0 when it has."""
        key = (pod.obj["metadata"]["uid"], step)
        began = self._since.setdefault(key, time.monotonic())
        return max(0.0, began + self.world.seconds(pretended) - time.monotonic())

    def _reset(self, pod: Record, *steps: str) -> None:
        for step in steps:
            self._since.pop((pod.obj["metadata"]["uid"], step), None)

    # ------------------------------------------------------------ steps

    def reconcile(self, namespace: str, name: str) -> float | None:
        pod = self.store.get(PODS, namespace, name)
        if pod is None:
            return None
        obj = pod.obj
        key = (namespace, name)
        node = obj["spec"].get("nodeName", "")
        if obj["metadata"].get("deletionTimestamp"):
            return self._end(pod, node)
        if obj["status"].get("phase") in IDLE:
            return None
        if not node:
            return self._schedule(pod, key)
        if self._lost(node):
            return None
        if not obj["status"].get("containerStatuses"):
            self.registry.modify(PODS, pod, self._creating)
            return self.world.seconds(PULL)
        if obj["status"]["phase"] == "Pending":
            return self._begin(pod, key)
        return self._run(pod)

    def _lost(self, node: str) -> bool:
        record = self.store.get(NODES, "", node)
        return record is None or self.faults.suffers("node_lost", record.obj["metadata"]["uid"])

    def _end(self, pod: Record, node: str) -> float | None:
        if pod.obj["metadata"].get("deletionGracePeriodSeconds") == 0 and pod.obj["metadata"].get("finalizers"):
            return None
        record = self.store.get(NODES, "", node) if node else None
        fenced = record is not None and any(t["key"] == OUT_OF_SERVICE for t in record.obj["spec"].get("taints") or ())
        if record is not None and not fenced and self._lost(node):
            # Nobody answers there: the pod stays until it is forced or the node is declared out of service.
            self._waiting.add((pod.namespace, pod.name))
            return None
        left = self._left(pod, "stop", STOP)
        if left > 0:
            return left
        self.registry.finish_pod(pod)
        return None

    def _schedule(self, pod: Record, key: tuple[str, str]) -> float | None:
        obj = pod.obj
        if obj["spec"].get("schedulingGates"):
            return None
        if self.faults.holds("unschedulable", pod.namespace, obj["metadata"]["uid"]):
            total = sum(1 for _ in self.store.every(NODES))
            why = (
                f"0/{total} nodes are available: {total} Insufficient cpu. preemption: 0/{total} nodes are available: "
                f"{total} No preemption victims found for incoming pod."
            )
            self._unschedulable(pod, key, why)
            return None
        node, why = self.scheduler.place(obj)
        held = self.scheduler.volumes(pod, node)
        if held or not node:
            self._unschedulable(pod, key, held or why)
            return None
        if held == "":
            self._waiting.add(key)
            return None
        self._waiting.discard(key)

        def bind(new: Obj) -> None:
            new["spec"]["nodeName"] = node
            self._creating(new)

        self.registry.modify(PODS, pod, bind)
        text = f"Successfully assigned {pod.namespace}/{pod.name} to {node}"
        self.world.event(obj, "Scheduled", text, source="default-scheduler")
        return self.world.seconds(PULL)

    def _unschedulable(self, pod: Record, key: tuple[str, str], why: str) -> None:
        self._waiting.add(key)

        def write(new: Obj) -> None:
            condition(new["status"], "PodScheduled", "False", "Unschedulable", why)

        before = pod.version
        if self.registry.modify(PODS, pod, write).version != before:
            self.world.event(pod.obj, "FailedScheduling", why, source="default-scheduler", type_="Warning")

    @staticmethod
    def _creating(new: Obj) -> None:
        status, spec = new["status"], new["spec"]
        initial = spec.get("initContainers") or ()
        status["startTime"] = now()
        status["hostIP"] = "10.0.0.1"
        for name, value, reason, message in (
            ("PodReadyToStartContainers", "False", "", ""),
            ("Initialized", "False" if initial else "True", "ContainersNotInitialized" if initial else "", ""),
            (
                "Ready",
                "False",
                "ContainersNotReady",
                f"containers with unready status: [{' '.join(c['name'] for c in spec['containers'])}]",
            ),
            (
                "ContainersReady",
                "False",
                "ContainersNotReady",
                f"containers with unready status: [{' '.join(c['name'] for c in spec['containers'])}]",
            ),
            ("PodScheduled", "True", "", ""),
        ):
            condition(status, name, value, reason, message)
        waiting = {"waiting": {"reason": "PodInitializing" if initial else "ContainerCreating"}}
        status["containerStatuses"] = [_blank(c, waiting) for c in spec["containers"]]
        if initial:
            status["initContainerStatuses"] = [_blank(c, {"waiting": {"reason": "PodInitializing"}}) for c in initial]

    def _begin(self, pod: Record, key: tuple[str, str]) -> float | None:
        """ContainerCreating until what it needs is there and the image is pulled, then initialised and running."""
        missing = self.trouble.missing(pod)
        if missing:
            self._waiting.add(key)
            self.trouble.cannot_start(pod, *missing)
            return self.world.seconds(5.0)
        self._waiting.discard(key)
        uid = pod.obj["metadata"]["uid"]
        if self.faults.holds("image_pull", pod.namespace, uid):
            self._reset(pod, "pull", "init")
            return self._retry(pod, lambda: self.trouble.pull_fails(pod))
        left = self._left(pod, "pull", PULL)
        if left > 0:
            return left
        initial = pod.obj["spec"].get("initContainers") or ()
        left = self._left(pod, "init", INIT * len(initial))
        if left > 0:
            return left
        self._start(pod)
        return self.world.seconds(BOOT)

    def _retry(self, pod: Record, attempt: Any) -> float:
        """Run `attempt` now and then every `RETRY` pretended seconds."""
        key = (pod.obj["metadata"]["uid"], "retry")
        due = self._since.get(key, 0.0)
        if time.monotonic() >= due:
            attempt()
            self._since[key] = due = time.monotonic() + self.world.seconds(RETRY)
        return max(0.01, due - time.monotonic())

    def _start(self, pod: Record) -> None:
        self._address += 1
        number = self._address
        address = f"10.{244 + number // 65536 % 8}.{number // 256 % 256}.{number % 255 + 1}"

        def write(new: Obj) -> None:
            status = new["status"]
            status["phase"] = "Running"
            status["podIP"] = address
            status["podIPs"] = [{"ip": address}]
            condition(status, "PodReadyToStartContainers", "True")
            condition(status, "Initialized", "True")
            stamp = now()
            for state in status.get("initContainerStatuses") or ():
                done = {
                    "exitCode": 0,
                    "reason": "Completed",
                    "startedAt": stamp,
                    "finishedAt": stamp,
                    "containerID": state.get("containerID", ""),
                }
                state |= {"ready": True, "started": False, "state": {"terminated": done}}
            for state in status["containerStatuses"]:
                _started(state, stamp)

        live = self.registry.modify(PODS, pod, write)
        names = ", ".join(c["name"] for c in pod.obj["spec"]["containers"])
        self.world.event(
            live.obj,
            "Pulled",
            f'Container image "{pod.obj["spec"]["containers"][0]["image"]}" already present on machine',
            source="kubelet",
        )
        self.world.event(live.obj, "Started", f"Started container {names}", source="kubelet")

    # ------------------------------------------------------------ running

    def _run(self, pod: Record) -> float | None:
        obj = pod.obj
        uid = obj["metadata"]["uid"]
        finite = obj["spec"]["restartPolicy"] != "Always" and self._is_job(obj)
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in obj["status"].get("conditions") or ())
        crash = next((kind for kind in CRASHES if self.faults.suffers(kind, uid)), None)
        if crash is None and not ready:
            crash = next((kind for kind in CRASHES if self.faults.holds(kind, pod.namespace, uid)), None)
        if crash is not None:
            self._reset(pod, "boot", "run")
            if obj["spec"]["restartPolicy"] == "Never":
                left = self._left(pod, "crash", BOOT)
                if left > 0:
                    return left
                self.trouble.fails(pod, crash)
                return None
            return self._retry(pod, lambda: self.trouble.crashes(pod, crash))
        if self.trouble.is_down(obj):
            # The fault is over: the containers start again.
            self._reset(pod, "retry", "boot", "slow")
            self.trouble.restarts(pod)
            return self.world.seconds(BOOT)
        if ready:
            return self._finish(pod) if finite else None
        if self.faults.holds("slow_ready", pod.namespace, uid):
            left = self._left(pod, "slow", SLOWNESS)
            if left > 0:
                self.trouble.not_ready_yet(pod)
                return left
        left = self._left(pod, "boot", BOOT)
        if left > 0:
            return left
        self._ready(pod)
        return self.world.seconds(RUN) if finite else None

    @staticmethod
    def _is_job(obj: Obj) -> bool:
        owner = controller_of(obj)
        return owner is None or owner["kind"] == "Job"

    def _ready(self, pod: Record) -> None:
        def write(new: Obj) -> None:
            for state in new["status"]["containerStatuses"]:
                state |= {"ready": True, "started": True}
            condition(new["status"], "ContainersReady", "True")
            condition(new["status"], "Ready", "True")

        self.registry.modify(PODS, pod, write)

    def _finish(self, pod: Record) -> float | None:
        left = self._left(pod, "run", RUN)
        if left > 0:
            return left

        def write(new: Obj) -> None:
            status = new["status"]
            status["phase"] = "Succeeded"
            stamp = now()
            for state in status["containerStatuses"]:
                began = (state.get("state", {}).get("running") or {}).get("startedAt", stamp)
                done = {
                    "exitCode": 0,
                    "reason": "Completed",
                    "startedAt": began,
                    "finishedAt": stamp,
                    "containerID": state.get("containerID", ""),
                }
                state |= {"ready": False, "started": False, "state": {"terminated": done}}
            condition(status, "Ready", "False", "PodCompleted")
            condition(status, "ContainersReady", "False", "PodCompleted")

        self.registry.modify(PODS, pod, write)
        return None


def _blank(container: Obj, state: Obj) -> Obj:
    return {
        "name": container["name"],
        "image": container["image"],
        "imageID": "",
        "ready": False,
        "started": False,
        "restartCount": 0,
        "state": state,
        "lastState": {},
    }


def _started(state: Obj, stamp: str) -> None:
    state |= {
        "imageID": f"{state['image'].partition('@')[0]}@sha256:{'0' * 64}",
        "containerID": f"containerd://{suffix(32)}",
        "started": True,
        "state": {"running": {"startedAt": stamp}},
    }
