"""Faults of pods and nodes that can be switched on. Faults of the API are those of `deploy.local.cluster_proxy`."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable
from typing import Any

POD_FAULTS = ("image_pull", "crash_loop", "oom", "slow_ready", "unschedulable")
FAULTS = (*POD_FAULTS, "node_lost")


class BadFault(ValueError):
    """The request does not describe a fault of pods or nodes."""


class Fault:
    """One active fault. `victims` are the uids of the pods or nodes that it has struck."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.kind: str = request["fault"]
        self.namespace: str | None = request.get("namespace")
        self.count: int | None = request.get("count")
        self.node: str | None = request.get("node")
        seconds = request.get("seconds")
        self.until = None if seconds is None else time.monotonic() + float(seconds)
        self.victims: set[str] = set()

    def is_over(self) -> bool:
        return self.until is not None and time.monotonic() >= self.until

    def as_json(self) -> dict[str, Any]:
        """Return the fault as `GET /sandbox/faults` lists it."""
        out: dict[str, Any] = {"fault": self.kind, "hits": len(self.victims)}
        for key, value in (("namespace", self.namespace), ("count", self.count), ("node", self.node)):
            if value is not None:
                out[key] = value
        if self.until is not None:
            out["seconds_left"] = round(max(0.0, self.until - time.monotonic()), 3)
        return out


class FaultInjector:
    """The active faults. `changed` is called when one begins or is cleared."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._active: list[Fault] = []
        self.changed = changed

    def add(self, request: Any) -> Fault:
        """Switch on `{"fault", "namespace"?: glob, "count"?, "seconds"?, "node"?}`. Raises `BadFault`.

        The proxy has checked the types of the other values.
        """
        if not isinstance(request, dict) or request.get("fault") not in FAULTS:
            raise BadFault(f"fault must be one of {', '.join(FAULTS)}")
        fault = Fault(request)
        self._active.append(fault)
        self.changed()
        return fault

    def clear(self) -> None:
        self._active.clear()
        self.changed()

    def listed(self) -> list[dict[str, Any]]:
        return [fault.as_json() for fault in self.active()]

    def active(self, kind: str | None = None) -> list[Fault]:
        """Return the faults that last, of one kind or of all."""
        self._active = [fault for fault in self._active if not fault.is_over()]
        return [fault for fault in self._active if kind in (None, fault.kind)]

    def next_end(self) -> float | None:
        """Return the seconds until the next fault ends by itself, None where none does."""
        ends = [fault.until for fault in self.active() if fault.until is not None]
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def strikes(self, kind: str, namespace: str, uid: str) -> bool:
        """Whether the pod `uid` suffers from a fault of this kind; makes it a victim where the count allows."""
        for fault in self.active(kind):
            if uid in fault.victims:
                return True
            in_scope = fault.namespace is None or fnmatch.fnmatchcase(namespace, fault.namespace)
            if in_scope and (fault.count is None or len(fault.victims) < fault.count):
                fault.victims.add(uid)
                return True
        return False

    def has_struck(self, kind: str, uid: str) -> bool:
        """Whether `uid` is a victim of a fault of this kind."""
        return any(uid in fault.victims for fault in self.active(kind))
