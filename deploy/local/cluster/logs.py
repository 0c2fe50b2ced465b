"""Logs of pods: a few plausible lines, the same at every reading."""

from __future__ import annotations

from deploy.local.cluster import errors
from deploy.local.cluster.resources import Obj

_CRASH_LINES = (
    "FATAL: could not open configuration: environment variable is empty",
    "error: uncaught exception, giving up",
)


def lines(pod: Obj, container: str, *, previous: bool) -> list[str]:
    """Return the container's lines. Raises 400 where it has not started or, for `previous`, has never ended."""
    name = pod["metadata"]["name"]
    specs = {c["name"]: c for key in ("containers", "initContainers") for c in pod["spec"].get(key) or ()}
    container = container or next(iter(specs))
    if container not in specs:
        raise errors.bad_request(f"container {container} is not valid for pod {name}")
    status = pod.get("status", {})
    states = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
    container_status: Obj = next((state for state in states if state["name"] == container), {})
    state, last = container_status.get("state") or {}, (container_status.get("lastState") or {}).get("terminated")
    if previous and not last:
        raise errors.bad_request(f'previous terminated container "{container}" in pod "{name}" not found')
    ended = last if previous or "waiting" in state else state.get("terminated")
    if not ended and "running" not in state:
        reason = (state.get("waiting") or {}).get("reason") or "ContainerCreating"
        raise errors.bad_request(f'container "{container}" in pod "{name}" is waiting to start: {reason}')
    out = [f"{container}: starting {specs[container]['image']}"]
    if not ended:
        ports = ", ".join(str(port["containerPort"]) for port in specs[container].get("ports") or ())
        return [*out, f"{container}: listening on port {ports}" if ports else f"{container}: running"]
    if ended["exitCode"] == 137:
        return [*out, "Killed"]
    return [*out, *_CRASH_LINES] if ended["exitCode"] else [*out, f"{container}: done"]
