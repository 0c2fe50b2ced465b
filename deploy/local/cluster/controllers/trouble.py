"""What a pod in trouble looks like: images that cannot be pulled, containers that crash, things that are missing."""

from __future__ import annotations

from deploy.local.cluster.controllers.base import World, condition
from deploy.local.cluster.resources import BY_KEY, Obj
from deploy.local.cluster.store import Record
from deploy.local.cluster.times import now

PODS = BY_KEY["/pods"]
CRASHES = ("crash_loop", "oom")
_EXITS = {"crash_loop": (1, "Error"), "oom": (137, "OOMKilled")}


class Trouble:
    """Writes the status and events of failing pods."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.registry = world.registry

    # ------------------------------------------------------------ before the start

    def missing(self, pod: Record) -> tuple[str, str, str] | None:
        """(waiting reason, message, event reason) where a Secret or ConfigMap that the pod needs is not there."""
        store, spec = self.world.store, pod.obj["spec"]
        for volume in spec.get("volumes") or ():
            for field, name_key, key in (("secret", "secretName", "/secrets"), ("configMap", "name", "/configmaps")):
                source = volume.get(field)
                if (
                    source
                    and not source.get("optional")
                    and store.get(BY_KEY[key], pod.namespace, source.get(name_key, "")) is None
                ):
                    text = (
                        f'MountVolume.SetUp failed for volume "{volume["name"]}" : {field.lower()} '
                        f'"{source.get(name_key, "")}" not found'
                    )
                    return "ContainerCreating", text, "FailedMount"
        for container in [*(spec.get("initContainers") or ()), *spec["containers"]]:
            references = [(e.get("valueFrom") or {}) for e in container.get("env") or ()] + list(
                container.get("envFrom") or ()
            )
            for source in references:
                for fields, key in (
                    (("secretKeyRef", "secretRef"), "/secrets"),
                    (("configMapKeyRef", "configMapRef"), "/configmaps"),
                ):
                    wanted = source.get(fields[0]) or source.get(fields[1])
                    if not wanted or wanted.get("optional"):
                        continue
                    found = store.get(BY_KEY[key], pod.namespace, wanted.get("name", ""))
                    kind = key.strip("/").rstrip("s")
                    if found is None:
                        return "CreateContainerConfigError", f'{kind} "{wanted.get("name", "")}" not found', "Failed"
                    if "key" in wanted and wanted["key"] not in {
                        **(found.obj.get("data") or {}),
                        **(found.obj.get("binaryData") or {}),
                    }:
                        text = (
                            f"couldn't find key {wanted['key']} in {kind.capitalize()} {pod.namespace}/{wanted['name']}"
                        )
                        return "CreateContainerConfigError", text, "Failed"
        return None

    def _wait(self, pod: Record, reason: str, message: str) -> Record:
        def write(new: Obj) -> None:
            key = "initContainerStatuses" if new["status"].get("initContainerStatuses") else "containerStatuses"
            waiting: Obj = {"reason": reason}
            if message and reason != "ContainerCreating":
                waiting["message"] = message
            for state in new["status"][key]:
                state["state"] = {"waiting": waiting}

        return self.registry.modify(PODS, pod, write)

    def cannot_start(self, pod: Record, reason: str, message: str, event: str) -> None:
        self._wait(pod, reason, message)
        text = message if event == "FailedMount" else f"Error: {message}"
        self.world.event(pod.obj, event, text, source="kubelet", type_="Warning")

    @staticmethod
    def _not_found(image: str) -> str:
        return (
            f'rpc error: code = NotFound desc = failed to pull and unpack image "{image}": failed to resolve reference '
            f'"{image}": {image}: not found'
        )

    def pull_fails(self, pod: Record) -> None:
        """ErrImagePull and ImagePullBackOff in turn, as the kubelet shows them."""
        image = pod.obj["spec"]["containers"][0]["image"]
        states = pod.obj["status"].get("initContainerStatuses") or pod.obj["status"]["containerStatuses"]
        reason = (states[0].get("state", {}).get("waiting") or {}).get("reason")
        if reason == "ErrImagePull":
            message = f'Back-off pulling image "{image}": ErrImagePull: {self._not_found(image)}'
            self._wait(pod, "ImagePullBackOff", message)
            self.world.event(pod.obj, "BackOff", f'Back-off pulling image "{image}"', source="kubelet")
            self.world.event(pod.obj, "Failed", "Error: ImagePullBackOff", source="kubelet", type_="Warning")
            return
        message = self._not_found(image)
        self._wait(pod, "ErrImagePull", message)
        self.world.event(pod.obj, "Pulling", f'Pulling image "{image}"', source="kubelet")
        self.world.event(
            pod.obj, "Failed", f'Failed to pull image "{image}": {message}', source="kubelet", type_="Warning"
        )

    # ------------------------------------------------------------ after the start

    @staticmethod
    def _terminated(state: Obj, kind: str) -> Obj:
        code, reason = _EXITS[kind]
        stamp = now()
        began = (state.get("state", {}).get("running") or {}).get("startedAt", stamp)
        return {
            "exitCode": code,
            "reason": reason,
            "startedAt": began,
            "finishedAt": stamp,
            "containerID": state.get("containerID", ""),
        }

    def crashes(self, pod: Record, kind: str) -> None:
        """The container ends badly and is held back before its next start."""

        def write(new: Obj) -> None:
            name = new["metadata"]["name"]
            for state in new["status"]["containerStatuses"]:
                state["lastState"] = {"terminated": self._terminated(state, kind)}
                state["restartCount"] = state.get("restartCount", 0) + 1
                wait = min(300, 10 * 2 ** min(state["restartCount"] - 1, 5))
                text = (
                    f"back-off {wait}s restarting failed container={state['name']} "
                    f"pod={name}_{new['metadata']['namespace']}({new['metadata']['uid']})"
                )
                state |= {
                    "ready": False,
                    "started": False,
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": text}},
                }
            self._unready(new)

        live = self.registry.modify(PODS, pod, write)
        state = live.obj["status"]["containerStatuses"][0]
        self.world.event(
            live.obj,
            "BackOff",
            f"Back-off restarting failed container {state['name']} in pod {pod.name}_{pod.namespace}",
            source="kubelet",
            type_="Warning",
        )

    def fails(self, pod: Record, kind: str) -> None:
        """The container of a pod that is never restarted ends badly."""

        def write(new: Obj) -> None:
            new["status"]["phase"] = "Failed"
            for state in new["status"]["containerStatuses"]:
                state |= {"ready": False, "started": False, "state": {"terminated": self._terminated(state, kind)}}
            condition(new["status"], "Ready", "False", "PodFailed")
            condition(new["status"], "ContainersReady", "False", "PodFailed")

        self.registry.modify(PODS, pod, write)

    @staticmethod
    def is_down(obj: Obj) -> bool:
        """Whether a running pod's containers are held back."""
        return any(
            (s.get("state", {}).get("waiting") or {}).get("reason") == "CrashLoopBackOff"
            for s in obj["status"].get("containerStatuses") or ()
        )

    def restarts(self, pod: Record) -> None:
        def write(new: Obj) -> None:
            for state in new["status"]["containerStatuses"]:
                state |= {"started": True, "state": {"running": {"startedAt": now()}}}

        self.registry.modify(PODS, pod, write)

    @staticmethod
    def _unready(new: Obj) -> None:
        names = " ".join(s["name"] for s in new["status"]["containerStatuses"])
        text = f"containers with unready status: [{names}]"
        condition(new["status"], "Ready", "False", "ContainersNotReady", text)
        condition(new["status"], "ContainersReady", "False", "ContainersNotReady", text)

    def not_ready_yet(self, pod: Record) -> None:
        self.world.event(
            pod.obj,
            "Unhealthy",
            "Readiness probe failed: HTTP probe failed with statuscode: 503",
            source="kubelet",
            type_="Warning",
        )
