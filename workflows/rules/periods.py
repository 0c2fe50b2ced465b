"""When billing periods begin and end.

Every boundary is computed from the original anchor, never from the previous boundary, so that Jan 31 gives Feb 28 and
then Mar 31. The anchor's day and time of day are those of the account's time zone; a local time that a DST change
skips moves forward by the gap, one that occurs twice means the first occurrence.
"""

from __future__ import annotations

import calendar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo


class Interval(StrEnum):
    MONTH = "month"
    YEAR = "year"


MONTHS_PER_INTERVAL = {Interval.MONTH: 1, Interval.YEAR: 12}

MEAN_MONTH = timedelta(days=365.2425 / 12)


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingPeriod:
    """A half-open billing period ``[start, end)``, both aware and in UTC."""

    start: datetime
    end: datetime

    @property
    def seconds(self) -> int:
        return int((self.end - self.start).total_seconds())


def period_boundary(anchor: datetime, n: int, interval: Interval, timezone: str) -> datetime:
    """Return the instant at which period ``n`` (from zero) since ``anchor`` begins, in UTC."""
    if n == 0:
        return anchor.astimezone(UTC)
    local = anchor.astimezone(ZoneInfo(timezone))
    years, month0 = divmod(local.month - 1 + n * MONTHS_PER_INTERVAL[interval], 12)
    year, month = local.year + years, month0 + 1
    day = min(local.day, calendar.monthrange(year, month)[1])
    # fold=0 picks the first of two equal local times, and carries a skipped one forward when converted to UTC.
    return local.replace(year=year, month=month, day=day, fold=0).astimezone(UTC)


def count_periods(anchor: datetime, boundary: datetime, interval: Interval) -> int:
    """Return how many periods lie between ``anchor`` and a boundary that was counted from it.

    Rounded: the time-zone data may have changed since ``boundary`` was computed, which moves boundaries by hours.
    """
    return round((boundary - anchor) / (MEAN_MONTH * MONTHS_PER_INTERVAL[interval]))


def next_period(anchor: datetime, start: datetime, interval: Interval, timezone: str) -> BillingPeriod:
    """Return the period that starts at the boundary ``start`` and ends at the following boundary since ``anchor``."""
    end = period_boundary(anchor, count_periods(anchor, start, interval) + 1, interval, timezone)
    return BillingPeriod(start=start, end=end)


def add_calendar_days(instant: datetime, days: int, timezone: str) -> datetime:
    """Return the same local time ``days`` calendar days after ``instant``, in UTC: a DST change does not move it."""
    local = instant.astimezone(ZoneInfo(timezone)) + timedelta(days=days)
    return local.replace(fold=0).astimezone(UTC)


def billing_period(
    anchor: datetime, n: int, interval: Interval = Interval.MONTH, timezone: str = "UTC"
) -> BillingPeriod:
    """Return the ``n``-th period since ``anchor``, counted from zero."""
    return BillingPeriod(
        start=period_boundary(anchor, n, interval, timezone),
        end=period_boundary(anchor, n + 1, interval, timezone),
    )
