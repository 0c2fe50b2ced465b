"""Faults of the API: which requests they strike, how often and for how long."""

from __future__ import annotations

import asyncio
import fnmatch
import time
from typing import Any

API_FAULTS = ("conflict", "throttle", "server_error", "quota", "lost_reply", "watch_close", "watch_stall", "gone")
POD_FAULTS = ("image_pull", "crash_loop", "oom", "slow_ready", "unschedulable", "node_lost")


class BadFault(ValueError):
    """The request does not describe a fault."""


def check(request: Any) -> dict[str, Any]:
    """Check `{"fault", "namespace"?: glob, "count"?, "seconds"?, "node"?}`. Raises `BadFault`."""
    if not isinstance(request, dict):
        raise BadFault("expected a JSON object")
    supported = (*API_FAULTS, *POD_FAULTS)
    if request.get("fault") not in supported:
        raise BadFault(f"fault must be one of {', '.join(supported)}")
    count, seconds = request.get("count"), request.get("seconds")
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise BadFault("count must be a positive integer")
    if seconds is not None and (not isinstance(seconds, int | float) or isinstance(seconds, bool) or seconds <= 0):
        raise BadFault("seconds must be a positive number")
    for name in ("namespace", "node"):
        if not isinstance(request.get(name), str | None):
            raise BadFault(f"{name} must be a string")
    return request


class ApiFault:
    """One fault of the API."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.kind: str = request["fault"]
        self.namespace: str | None = request.get("namespace")
        self.count: int | None = request.get("count")
        seconds = request.get("seconds")
        self.until = None if seconds is None else time.monotonic() + float(seconds)
        self.hits = 0
        self.cleared = asyncio.Event()

    def is_active(self) -> bool:
        """Whether the fault is neither cleared nor past its seconds."""
        return not self.cleared.is_set() and (self.until is None or time.monotonic() < self.until)

    async def wait_until_over(self) -> None:
        """Return when the fault is cleared or its seconds have passed."""
        try:
            async with asyncio.timeout(None if self.until is None else max(0.0, self.until - time.monotonic())):
                await self.cleared.wait()
        except TimeoutError:
            return

    def strikes(self, namespace: str) -> bool:
        """Whether a request in `namespace` (empty: in none) is struck."""
        in_scope = self.namespace is None or fnmatch.fnmatchcase(namespace, self.namespace)
        return in_scope and self.is_active() and not self.is_spent()

    def is_spent(self) -> bool:
        return self.count is not None and self.hits >= self.count

    def as_json(self) -> dict[str, Any]:
        """Return the fault as `GET /sandbox/faults` lists it."""
        out: dict[str, Any] = {"fault": self.kind, "hits": self.hits}
        if self.namespace is not None:
            out["namespace"] = self.namespace
        if self.count is not None:
            out["count"] = self.count
        if self.until is not None:
            out["seconds_left"] = round(max(0.0, self.until - time.monotonic()), 3)
        return out


class ApiFaults:
    """The active faults of the API."""

    def __init__(self) -> None:
        self._faults: list[ApiFault] = []

    def add(self, request: dict[str, Any]) -> ApiFault:
        fault = ApiFault(request)
        self._faults.append(fault)
        return fault

    def clear(self) -> None:
        for fault in self._faults:
            fault.cleared.set()
        self._faults.clear()

    def active(self) -> list[ApiFault]:
        self._faults = [fault for fault in self._faults if fault.is_active() and not fault.is_spent()]
        return self._faults

    def strike(self, kind: str, namespace: str) -> ApiFault | None:
        """Return the fault of this kind that strikes a request in `namespace`, and count the hit."""
        for fault in self._faults:
            if fault.kind == kind and fault.strikes(namespace):
                fault.hits += 1
                return fault
        return None
