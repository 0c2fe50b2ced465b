"""Faults that can be switched on: what goes wrong, where, how often and for how long."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable
from typing import Any

REQUEST_FAULTS = ("conflict", "throttle", "server_error", "lost_reply", "watch_close", "gone", "quota")
POD_FAULTS = ("image_pull", "crash_loop", "oom", "slow_ready", "unschedulable")
NODE_FAULTS = ("node_lost",)
OBJECT_FAULTS = ("undeletable",)
ALL = (*REQUEST_FAULTS, *POD_FAULTS, *NODE_FAULTS, *OBJECT_FAULTS)


class Fault:
    """One fault in force. `hits` are the uids (pods, nodes) or the number of requests that it has struck."""

    def __init__(
        self, kind: str, namespace: str | None, count: int | None, seconds: float | None, node: str | None
    ) -> None:
        self.kind = kind
        self.namespace = namespace
        self.count = count
        self.seconds = seconds
        self.node = node
        self.until = None if seconds is None else time.monotonic() + seconds
        self.requests = 0
        self.victims: set[str] = set()

    def alive(self) -> bool:
        return self.until is None or time.monotonic() < self.until

    def covers(self, namespace: str) -> bool:
        return self.namespace is None or fnmatch.fnmatchcase(namespace, self.namespace)

    def shown(self) -> dict[str, Any]:
        """As `GET /sandbox/faults` lists it."""
        out: dict[str, Any] = {"fault": self.kind, "hits": self.requests + len(self.victims)}
        if self.namespace is not None:
            out["namespace"] = self.namespace
        if self.count is not None:
            out["count"] = self.count
        if self.until is not None:
            out["seconds_left"] = round(max(0.0, self.until - time.monotonic()), 3)
        return out


class BadFault(ValueError):
    """Not a fault that can be switched on."""


class Faults:
    """All faults in force. `changed` is called when one starts or ends, so that pods and nodes react."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._active: list[Fault] = []
        self.changed = changed

    def add(self, wanted: dict[str, Any]) -> Fault:
        """Switch on `{"fault", "namespace"?, "count"?, "seconds"?, "node"?}`. Raises `BadFault`."""
        kind = wanted.get("fault")
        if kind not in ALL:
            raise BadFault(f"fault must be one of {', '.join(ALL)}")
        count, seconds, namespace, node = (wanted.get(k) for k in ("count", "seconds", "namespace", "node"))
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise BadFault("count must be a positive integer")
        if seconds is not None and (not isinstance(seconds, int | float) or isinstance(seconds, bool) or seconds <= 0):
            raise BadFault("seconds must be a positive number")
        for name, value in (("namespace", namespace), ("node", node)):
            if value is not None and not isinstance(value, str):
                raise BadFault(f"{name} must be a string")
        fault = Fault(kind, namespace, count, seconds, node)
        self._active.append(fault)
        self.changed()
        return fault

    def clear(self) -> None:
        self._active.clear()
        self.changed()

    @property
    def active(self) -> bool:
        """Whether any fault is in force."""
        return bool(self._active)

    def listed(self) -> list[dict[str, Any]]:
        self.sweep()
        return [fault.shown() for fault in self._active]

    def sweep(self) -> bool:
        """Drop what has run out; whether anything did."""
        before = len(self._active)
        self._active = [f for f in self._active if f.alive() and not self._spent(f)]
        return len(self._active) != before

    def next_end(self) -> float | None:
        """Seconds until the next fault runs out."""
        ends = [fault.until for fault in self._active if fault.until is not None]
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def strike(self, kind: str, namespace: str) -> bool:
        """Whether a request in `namespace` (empty: none) is hit; counts the hit."""
        for fault in self._active:
            if fault.kind == kind and fault.alive() and not self._spent(fault) and fault.covers(namespace):
                fault.requests += 1
                return True
        return False

    def any(self, kind: str) -> bool:
        return any(fault.kind == kind for fault in self._active)

    def holds(self, kind: str, namespace: str, uid: str) -> bool:
        """Whether the pod or node `uid` suffers from the fault; a new victim counts as a hit."""
        for fault in self._active:
            if fault.kind != kind or not fault.alive():
                continue
            if uid in fault.victims:
                return True
            if fault.covers(namespace) and (fault.count is None or len(fault.victims) < fault.count):
                fault.victims.add(uid)
                return True
        return False

    def suffers(self, kind: str, uid: str) -> bool:
        """Whether `uid` is already a victim, without making it one."""
        return any(f.kind == kind and f.alive() and uid in f.victims for f in self._active)

    def of_kind(self, kind: str) -> list[Fault]:
        return [fault for fault in self._active if fault.kind == kind and fault.alive()]

    @staticmethod
    def _spent(fault: Fault) -> bool:
        return fault.kind in REQUEST_FAULTS and fault.count is not None and fault.requests >= fault.count
