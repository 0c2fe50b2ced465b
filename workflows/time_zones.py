"""Which time-zone data a process uses."""

from __future__ import annotations

import zoneinfo
from functools import cache


def use_packaged_time_zones() -> None:
    """Read time zones from the pinned ``tzdata`` package alone.

    By default ``zoneinfo`` prefers the machine's data, whose version differs between machines: two processes would bill
    by different boundaries. Every entry point calls this before it computes anything; the same as ``PYTHONTZPATH=``.
    """
    zoneinfo.reset_tzpath(to=())
    zoneinfo.ZoneInfo.clear_cache()
    _names.cache_clear()


def is_time_zone(name: str) -> bool:
    """Return whether ``name`` is an IANA time zone of the data in use."""
    return name in _names()


@cache
def _names() -> frozenset[str]:
    """Listing the names reads hundreds of files."""
    return frozenset(zoneinfo.available_timezones())
