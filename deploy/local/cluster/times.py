"""The clock in Kubernetes' spelling."""

from __future__ import annotations

import time
from datetime import UTC, datetime

_cached: tuple[int, str] = (0, "")


def now() -> str:
    """`2026-01-31T12:00:00Z`."""
    global _cached
    second = int(time.time())
    if _cached[0] != second:
        _cached = (second, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second)))
    return _cached[1]


def micro() -> str:
    """With microseconds, as events and leases have it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def seconds_since(stamp: str) -> float:
    """Seconds since an instant of `now`'s form."""
    then = datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return time.time() - then.timestamp()
