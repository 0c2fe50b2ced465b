"""Pods: bound to a node, started, ready, or failing as a fault says; and ended when they are deleted."""

from __future__ import annotations

import time
from collections.abc import Iterable

from deploy.local.cluster.controllers.base import (
    Controller,
    ControlLoop,
    Key,
    Keys,
    controller_of,
    has_condition,
    itself,
    set_condition,
)
from deploy.local.cluster.controllers.scheduler import bind_claims, place
from deploy.local.cluster.resources import CONFIG_MAPS, NODES, PODS, SECRETS, Obj, Resource
from deploy.local.cluster.store import Change, StoredObject
from deploy.local.cluster.times import now

# Simulated seconds of each step. A pod is ready some 0.3 s after its creation.
PULL_SECONDS, INIT_SECONDS, START_SECONDS, RUN_SECONDS, TERMINATION_SECONDS = 0.08, 0.05, 0.12, 0.2, 0.05
RETRY_SECONDS = 0.5
SLOW_READY_SECONDS = 20.0
FINAL_PHASES = ("Succeeded", "Failed")
EXITS = {"crash_loop": (1, "Error"), "oom": (137, "OOMKilled")}


class Pods(Controller):
    """The scheduler and the kubelets."""

    name = "pods"

    def __init__(self, loop: ControlLoop) -> None:
        super().__init__(loop)
        self._since: dict[tuple[str, str], float] = {}
        # Pods that wait for a node, a claim, a Secret or a ConfigMap.
        self._waiting: set[Key] = set()
        self._address = 0

    def watches(self) -> dict[str, Keys]:
        return {
            "/pods": self._keys,
            **dict.fromkeys(("/persistentvolumeclaims", "/nodes", "/secrets", "/configmaps"), self._waiters),
        }

    def _keys(self, change: Change) -> Iterable[Key]:
        if change.type == "DELETED":
            uid = change.new.obj["metadata"]["uid"]
            self._since = {key: began for key, began in self._since.items() if key[0] != uid}
            self._waiting.discard((change.new.namespace, change.new.name))
        return itself(change)

    def _waiters(self, change: Change) -> Iterable[Key]:
        return [key for key in self._waiting if change.new.namespace in ("", key[0])]

    def faults_changed(self) -> None:
        """Reconcile every pod: a fault began or ended."""
        self.loop.enqueue_all(self.name, PODS)

    def _remaining_seconds(self, pod: StoredObject, step: str, simulated: float) -> float:
        """Return the real seconds until a step, which begins with the first call, has lasted `simulated`."""
        began = self._since.setdefault((pod.obj["metadata"]["uid"], step), time.monotonic())
        return max(0.0, began + self.loop.seconds(simulated) - time.monotonic())

    def _restart(self, pod: StoredObject, *steps: str) -> None:
        for step in steps:
            self._since.pop((pod.obj["metadata"]["uid"], step), None)

    def _strikes(self, kind: str, pod: StoredObject) -> bool:
        return self.faults.strikes(kind, pod.namespace, pod.obj["metadata"]["uid"])

    # ------------------------------------------------------------ steps

    def reconcile(self, namespace: str, name: str) -> float | None:
        pod = self.store.get(PODS, namespace, name)
        if pod is None:
            return None
        obj, node = pod.obj, pod.obj["spec"].get("nodeName", "")
        if obj["metadata"].get("deletionTimestamp"):
            return self._end(pod, node)
        if obj["status"]["phase"] in FINAL_PHASES:
            return None
        if not node:
            return self._schedule(pod)
        if self._is_lost(node):
            return None
        return self._start(pod) if obj["status"]["phase"] == "Pending" else self._run(pod)

    def _is_lost(self, node: str) -> bool:
        stored = self.store.get(NODES, "", node)
        return stored is None or self.faults.has_struck("node_lost", stored.obj["metadata"]["uid"])

    def _end(self, pod: StoredObject, node: str) -> float | None:
        held = pod.obj["metadata"].get("finalizers") and not pod.obj["metadata"].get("deletionGracePeriodSeconds")
        if held or (self.store.get(NODES, "", node) is not None and self._is_lost(node)):
            # A lost node confirms no end: the pod stays until the node returns or the deletion is forced.
            return None
        remaining = self._remaining_seconds(pod, "stop", TERMINATION_SECONDS)
        if remaining > 0:
            return remaining
        self.registry.finish_pod(pod)
        return None

    def _schedule(self, pod: StoredObject) -> float | None:
        key = (pod.namespace, pod.name)
        if self._strikes("unschedulable", pod):
            node, why = "", "0/3 nodes are available: 3 Insufficient cpu."
        else:
            node, why = place(self.store, pod.obj)
        if node:
            why = bind_claims(self.loop, pod)
        if why:
            self._waiting.add(key)

            def refuse(new: Obj) -> None:
                set_condition(new["status"], "PodScheduled", "False", "Unschedulable", why)

            if self.registry.modify(PODS, pod, refuse).version != pod.version:
                self.loop.event(pod.obj, "FailedScheduling", why, source="default-scheduler", warning=True)
            return None
        self._waiting.discard(key)

        def bind(new: Obj) -> None:
            new["spec"]["nodeName"] = node
            spec, status = new["spec"], new["status"]
            status["startTime"] = now()
            set_condition(status, "PodScheduled", "True")
            _set_unready(status, spec)
            state = {"waiting": {"reason": "ContainerCreating"}}
            for part, statuses in (("containers", "containerStatuses"), ("initContainers", "initContainerStatuses")):
                if spec.get(part):
                    status[statuses] = [_initial(container, state) for container in spec[part]]

        self.registry.modify(PODS, pod, bind)
        text = f"Successfully assigned {pod.namespace}/{pod.name} to {node}"
        self.loop.event(pod.obj, "Scheduled", text, source="default-scheduler")
        return self.loop.seconds(PULL_SECONDS)

    def _start(self, pod: StoredObject) -> float | None:
        """Wait for the Secrets and ConfigMaps that the pod needs and for the image, then run the containers."""
        missing = self._missing(pod)
        if missing:
            self._waiting.add((pod.namespace, pod.name))
            return self._fail_to_start(pod, "CreateContainerConfigError", missing)
        self._waiting.discard((pod.namespace, pod.name))
        if self._strikes("image_pull", pod):
            image = pod.obj["spec"]["containers"][0]["image"]
            first = (pod.obj["status"].get("initContainerStatuses") or pod.obj["status"]["containerStatuses"])[0]
            is_retry = (first["state"].get("waiting") or {}).get("reason") == "ErrImagePull"
            why = f'failed to pull image "{image}": {image}: not found'
            text = f'Back-off pulling image "{image}"' if is_retry else why
            return self._fail_to_start(pod, "ImagePullBackOff" if is_retry else "ErrImagePull", text)
        initial = pod.obj["spec"].get("initContainers") or ()
        remaining = self._remaining_seconds(pod, "pull", PULL_SECONDS + INIT_SECONDS * len(initial))
        if remaining > 0:
            return remaining
        self._address += 1
        # Loopback like everything in the sandbox: a client that dials a pod reaches no other network.
        address = f"127.{100 + self._address // 62500 % 100}.{self._address // 250 % 250}.{self._address % 250 + 1}"

        def write(new: Obj) -> None:
            status = new["status"]
            status |= {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
            set_condition(status, "Initialized", "True")
            for state in status.get("initContainerStatuses") or ():
                state |= {"ready": True, "state": {"terminated": _terminated(state, 0, "Completed")}}
            for state in status["containerStatuses"]:
                state |= {"started": True, "state": {"running": {"startedAt": now()}}}

        self.registry.modify(PODS, pod, write)
        self.loop.event(pod.obj, "Started", "Started containers", source="kubelet")
        return self.loop.seconds(START_SECONDS)

    def _fail_to_start(self, pod: StoredObject, reason: str, message: str) -> float | None:
        key = (pod.obj["metadata"]["uid"], "retry")
        remaining = self._since.get(key, 0.0) - time.monotonic()
        if remaining > 0:
            return remaining
        self._since[key] = time.monotonic() + self.loop.seconds(RETRY_SECONDS)

        def write(new: Obj) -> None:
            for state in new["status"].get("initContainerStatuses") or new["status"]["containerStatuses"]:
                state["state"] = {"waiting": {"reason": reason, "message": message}}

        self.registry.modify(PODS, pod, write)
        self.loop.event(pod.obj, "Failed", f"Error: {message}", source="kubelet", warning=True)
        return self.loop.seconds(RETRY_SECONDS)

    def _missing(self, pod: StoredObject) -> str | None:
        """Name a Secret or ConfigMap, or a key in one, that the pod needs and that does not exist."""
        spec = pod.obj["spec"]
        sources = [source for volume in spec.get("volumes") or () for source in _volume_sources(volume)]
        for container in [*(spec.get("initContainers") or ()), *spec["containers"]]:
            for entry in [
                *((env.get("valueFrom") or {}) for env in container.get("env") or ()),
                *(container.get("envFrom") or ()),
            ]:
                sources += [(SECRETS, entry[key]) for key in ("secretKeyRef", "secretRef") if key in entry]
                sources += [(CONFIG_MAPS, entry[key]) for key in ("configMapKeyRef", "configMapRef") if key in entry]
        for resource, reference in sources:
            if reference.get("optional"):
                continue
            name = reference.get("secretName") or reference.get("name", "")
            referenced = self.store.get(resource, pod.namespace, name)
            if referenced is None:
                return f'{resource.kind.lower()} "{name}" not found'
            if "key" in reference and reference["key"] not in (referenced.obj.get("data") or {}):
                return f"couldn't find key {reference['key']} in {resource.kind} {pod.namespace}/{name}"
        return None

    # ------------------------------------------------------------ running

    def _run(self, pod: StoredObject) -> float | None:
        obj, uid = pod.obj, pod.obj["metadata"]["uid"]
        ready = has_condition(obj, "Ready")
        for kind in EXITS:
            # Pods that were ready before the fault began are spared.
            if self.faults.has_struck(kind, uid) or (not ready and self._strikes(kind, pod)):
                self._restart(pod, "start", "run")
                return self._crash(pod, kind)
        if any("waiting" in state["state"] for state in obj["status"]["containerStatuses"]):
            self._restart(pod, "start", "slow", "crash")
            self.registry.modify(PODS, pod, lambda new: _each(new, {"state": {"running": {"startedAt": now()}}}))
            return self.loop.seconds(START_SECONDS)
        owner = controller_of(obj)
        ends = obj["spec"]["restartPolicy"] != "Always" and (owner is None or owner["kind"] == "Job")
        if ready:
            return self._complete(pod) if ends else None
        if self._strikes("slow_ready", pod):
            remaining = self._remaining_seconds(pod, "slow", SLOW_READY_SECONDS)
            if remaining > 0:
                why = "Readiness probe failed: HTTP probe failed with statuscode: 503"
                self.loop.event(obj, "Unhealthy", why, source="kubelet", warning=True)
                return remaining
        remaining = self._remaining_seconds(pod, "start", START_SECONDS)
        if remaining > 0:
            return remaining

        def write(new: Obj) -> None:
            _each(new, {"ready": True, "started": True})
            set_condition(new["status"], "ContainersReady", "True")
            set_condition(new["status"], "Ready", "True")

        self.registry.modify(PODS, pod, write)
        return self.loop.seconds(RUN_SECONDS) if ends else None

    def _complete(self, pod: StoredObject) -> float | None:
        remaining = self._remaining_seconds(pod, "run", RUN_SECONDS)
        if remaining > 0:
            return remaining
        self._finish(pod, "Succeeded", 0, "Completed")
        return None

    def _finish(self, pod: StoredObject, phase: str, code: int, reason: str) -> None:
        def write(new: Obj) -> None:
            new["status"]["phase"] = phase
            for state in new["status"]["containerStatuses"]:
                state |= {"ready": False, "state": {"terminated": _terminated(state, code, reason)}}
            for kind in ("Ready", "ContainersReady"):
                set_condition(new["status"], kind, "False", "PodCompleted" if not code else "PodFailed")

        self.registry.modify(PODS, pod, write)

    def _crash(self, pod: StoredObject, kind: str) -> float | None:
        """End the containers: for good in a pod that is never restarted, else into CrashLoopBackOff."""
        remaining = self._remaining_seconds(pod, "crash", START_SECONDS)
        if remaining > 0:
            return remaining
        code, reason = EXITS[kind]
        if pod.obj["spec"]["restartPolicy"] == "Never":
            self._finish(pod, "Failed", code, reason)
            return None
        self._since[(pod.obj["metadata"]["uid"], "crash")] = time.monotonic() + self.loop.seconds(
            RETRY_SECONDS - START_SECONDS
        )

        def write(new: Obj) -> None:
            for state in new["status"]["containerStatuses"]:
                text = f"back-off restarting failed container={state['name']} pod={pod.name}_{pod.namespace}"
                state |= {
                    "ready": False,
                    "restartCount": state["restartCount"] + 1,
                    "lastState": {"terminated": _terminated(state, code, reason)},
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": text}},
                }
            _set_unready(new["status"], new["spec"])

        live = self.registry.modify(PODS, pod, write)
        self.loop.event(live.obj, "BackOff", "Back-off restarting failed container", source="kubelet", warning=True)
        return self.loop.seconds(RETRY_SECONDS)


def _volume_sources(volume: Obj) -> list[tuple[Resource, Obj]]:
    sources: list[tuple[Resource, Obj]] = []
    if "secret" in volume:
        sources.append((SECRETS, volume["secret"]))
    if "configMap" in volume:
        sources.append((CONFIG_MAPS, volume["configMap"]))
    return sources


def _initial(container: Obj, state: Obj) -> Obj:
    identity = {"name": container["name"], "image": container["image"], "imageID": ""}
    return {**identity, "ready": False, "started": False, "restartCount": 0, "state": state, "lastState": {}}


def _terminated(state: Obj, code: int, reason: str) -> Obj:
    began = (state["state"].get("running") or {}).get("startedAt", now())
    return {"exitCode": code, "reason": reason, "startedAt": began, "finishedAt": now()}


def _each(pod: Obj, change: Obj) -> None:
    for state in pod["status"]["containerStatuses"]:
        state |= change


def _set_unready(status: Obj, spec: Obj) -> None:
    text = f"containers with unready status: [{' '.join(c['name'] for c in spec['containers'])}]"
    for kind in ("Ready", "ContainersReady"):
        set_condition(status, kind, "False", "ContainersNotReady", text)
