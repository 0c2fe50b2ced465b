"""The faults that a test can order: what, how many times, for how long."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

BEFORE_EXECUTION = ("server_error", "reset")
AFTER_EXECUTION = ("stall", "lost_reply")
WEBHOOK = ("hold_webhook", "reorder_webhook", "duplicate_webhook")
FAULT_KINDS = (*BEFORE_EXECUTION, *AFTER_EXECUTION, *WEBHOOK)
MONEY_PATHS = ("/v1/payment_intents*", "/v1/refunds*")
_STALL_SECONDS = 30.0


@dataclass(slots=True, kw_only=True)
class Fault:
    """`count` is what is left of it (None: until cleared), `until` a monotonic instant, `seconds` as ordered."""

    kind: str
    count: int | None
    seconds: float | None
    until: float | None
    paths: tuple[str, ...]
    method: str

    def to_json(self) -> dict[str, Any]:
        return {
            "fault": self.kind,
            "count": self.count,
            "seconds": self.seconds,
            "path": list(self.paths),
            "method": self.method,
        }

    def matches(self, method: str, path: str) -> bool:
        return self.method in ("*", method) and any(fnmatchcase(path, glob) for glob in self.paths)


class FaultInjector:
    """Ordered faults, oldest first. They live in memory: a restart of the sandbox clears them."""

    def __init__(self) -> None:
        self._configured: list[Fault] = []

    def add(self, request: Mapping[str, Any]) -> Fault:
        """Add a fault from a request body; ValueError says what is wrong with it.

        Without `path` and `method` the faults of requests aim at what moves money (POSTs to payment intents and
        refunds), so that one meant for a charge is not used up by the customer that is created just before it.
        """
        kind = request.get("fault")
        if kind not in FAULT_KINDS:
            raise ValueError(f"fault must be one of {', '.join(FAULT_KINDS)}")
        count, seconds, path = request.get("count"), request.get("seconds"), request.get("path")
        method = request.get("method", "POST")
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise ValueError("count must be a positive integer")
        if seconds is not None and (not isinstance(seconds, int | float) or isinstance(seconds, bool) or seconds < 0):
            raise ValueError("seconds must be a number, zero or more")
        if path is not None and not isinstance(path, str):
            raise ValueError("path must be a glob over request paths")
        if method not in ("POST", "GET", "DELETE", "*"):
            raise ValueError("method must be POST, GET, DELETE or *")
        # For a stall `seconds` is how long an answer is held; for the others, how long the fault stays.
        timed = seconds is not None and kind != "stall"
        fault = Fault(
            kind=str(kind),
            count=count,
            seconds=(_STALL_SECONDS if seconds is None else seconds) if kind == "stall" else seconds,
            until=time.monotonic() + seconds if timed and seconds is not None else None,
            paths=MONEY_PATHS if path is None else (path,),
            method=method,
        )
        self._configured.append(fault)
        return fault

    def clear(self, kind: str | None = None) -> None:
        self._configured = [fault for fault in self._configured if kind is not None and fault.kind != kind]

    def active(self) -> list[Fault]:
        now = time.monotonic()
        self._configured = [
            fault
            for fault in self._configured
            if (fault.until is None or fault.until > now) and (fault.count is None or fault.count > 0)
        ]
        return list(self._configured)

    def consume(self, kinds: Iterable[str], method: str | None = None, path: str = "") -> Fault | None:
        """Use up one occurrence of the oldest fault that applies; for a request with its method and path."""
        accepted = tuple(kinds)
        for fault in self.active():
            if fault.kind in accepted and (method is None or fault.matches(method, path)):
                if fault.count is not None:
                    fault.count -= 1
                return fault
        return None
