"""Pod logs: a few plausible lines, the same at every reading."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from deploy.local.cluster import errors
from deploy.local.cluster.resources import Obj

CRASH = (
    "FATAL: could not open configuration: environment variable is empty",
    "error: uncaught exception, giving up",
    "exit status 1",
)
OOM = ("allocating 512 MiB for the page cache", "Killed")


def _state(pod: Obj, container: str) -> Obj:
    for key in ("initContainerStatuses", "containerStatuses"):
        for state in pod.get("status", {}).get(key) or ():
            if state["name"] == container:
                found: Obj = state
                return found
    return {}


def lines(pod: Obj, container: str, *, previous: bool, timestamps: bool) -> list[str]:
    """The container's lines. 400 where it has not started or, for `previous`, never ended."""
    name = pod["metadata"]["name"]
    state = _state(pod, container)
    now, last = state.get("state") or {}, state.get("lastState") or {}
    ended = (last.get("terminated") or {}) if previous or now.get("waiting") else (now.get("terminated") or {})
    if previous and not last.get("terminated"):
        raise errors.bad_request(f'previous terminated container "{container}" in pod "{name}" not found')
    if not previous and not ended and not now.get("running"):
        waiting = now.get("waiting") or {}
        reason = waiting.get("reason") or "ContainerCreating"
        text = "trying and failing to pull image" if "ImagePull" in reason else reason
        raise errors.bad_request(f'container "{container}" in pod "{name}" is waiting to start: {text}')
    image = next(
        (
            c["image"]
            for k in ("initContainers", "containers")
            for c in pod["spec"].get(k) or ()
            if c["name"] == container
        ),
        "",
    )
    ports = [
        str(p["containerPort"])
        for c in pod["spec"].get("containers") or ()
        if c["name"] == container
        for p in c.get("ports") or ()
    ]
    said = [
        f"{container}: starting {image}",
        f"{container}: configuration read, {len(pod['spec'].get('volumes') or ())} volumes mounted",
    ]
    if ended.get("exitCode", 0) == 137:
        said += OOM
    elif ended.get("exitCode", 0):
        said += CRASH
    elif ended:
        said.append(f"{container}: done")
    else:
        said.append(f"{container}: listening on port {', '.join(ports)}" if ports else f"{container}: running")
    if not timestamps:
        return said
    began = (now.get("running") or ended).get("startedAt") or pod["metadata"]["creationTimestamp"]
    start = datetime.fromisoformat(began).astimezone(UTC)
    return [
        f"{(start + timedelta(milliseconds=137 * i)).strftime('%Y-%m-%dT%H:%M:%S.%f')}000Z {line}"
        for i, line in enumerate(said)
    ]
