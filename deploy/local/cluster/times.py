"""Instants in the spelling of Kubernetes: UTC, whole seconds."""

from __future__ import annotations

import time
from datetime import UTC, datetime

_cached: tuple[int, str] = (0, "")


def now() -> str:
    """Return the present instant, as `2026-01-31T12:00:00Z`."""
    global _cached
    second = int(time.time())
    if _cached[0] != second:
        _cached = (second, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second)))
    return _cached[1]


def seconds_since(stamp: str) -> float:
    """Return the seconds since an instant that `now` returned."""
    then = datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return time.time() - then.timestamp()
