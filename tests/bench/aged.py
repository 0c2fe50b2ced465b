"""Renewals of subscriptions that are a year old, beside new ones, with the product's cache of workflows and evicted.

A year is lived in the benchmark itself: the subscriptions begin a year before the instant at which they fall due, and
renew the periods between one after the other, each with its events and rows.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

from tests.bench.ground import Ground, Running
from tests.bench.renewals import HEAD_START, MARGIN, TooSlow, asleep, start, start_in_period
from tests.bench.results import Figure, Rule
from workflows.rules.periods import billing_period

RENEWALS_PER_YEAR = 12
RENEWAL = "billing.start_period"
EVICTING_CACHE = 10
"""Workflows that a worker holds when nearly all have to be replayed."""

MINIMUM_RATIO = 0.8


async def measure(ground: Ground, size: int) -> list[Figure]:
    """Let ``size`` new and ``size`` year-old subscriptions fall due at once, with either size of the cache."""
    rates: dict[str, float] = {}
    for label, max_cached_workflows in (("", None), (", evicted", EVICTING_CACHE)):
        async with ground.hand(
            bare=False, counted=RENEWAL, cluster=False, max_cached_workflows=max_cached_workflows
        ) as worker:
            suffix = "evicted" if label else "cached"
            await _rate(ground, worker, f"warm-{suffix}", min(size, 20), is_year_old=False, pace=1.0)
            new = await _rate(ground, worker, f"new-{suffix}", size, is_year_old=False, pace=10.0)
            old = await _rate(ground, worker, f"old-{suffix}", size, is_year_old=True, pace=new / 2)
            rates["new" + label], rates["a year old" + label] = new, old
    return [
        Figure(
            name=f"renewals per second, {name}",
            value=rate,
            unit="1/s",
            reference=rates["new"],
            rule=Rule.RATIO_AT_LEAST,
            target=MINIMUM_RATIO,
        )
        for name, rate in rates.items()
        if name != "new"
    ]


async def _rate(ground: Ground, worker: Running, name: str, size: int, *, is_year_old: bool, pace: float) -> float:
    """Start ``size`` subscriptions whose last period ends at once, and return its renewals per second.

    Args:
        is_year_old: Whether each lives through a year of renewals before that.
        pace: Starts and renewals per second that the machine is expected to make before.
    """
    before, _ = worker.counter.read()
    steps = size * (RENEWALS_PER_YEAR if is_year_old else 1)
    due = datetime.now(UTC) + timedelta(seconds=steps / pace * MARGIN + HEAD_START)
    lived = before
    if is_year_old:
        anchor, renewals = _year_before(due)
        workflow_ids = await start_in_period(ground, name, size, billing_period(anchor, 0))
        lived += size * (renewals - 1)
        await worker.counts(lived, timeout=120 + steps / 5)
    else:
        workflow_ids = await start(ground, name, size, due)
    await asleep(ground, workflow_ids[-1:])
    late = (datetime.now(UTC) - due).total_seconds()
    if late > 0:
        raise TooSlow(f"{size} subscriptions took {late:.0f} s longer to reach their last period than was allowed for")
    await asyncio.sleep(-late)
    began = time.monotonic()
    return size / (await worker.counts(lived + size, timeout=120 + size / 5) - began)


def _year_before(due: datetime) -> tuple[datetime, int]:
    """Return the billing anchor a year before ``due``, and how many periods later ``due`` is."""
    if (due.month, due.day) == (2, 29):
        return due.replace(year=due.year - 1, month=3), RENEWALS_PER_YEAR - 1
    return due.replace(year=due.year - 1), RENEWALS_PER_YEAR
