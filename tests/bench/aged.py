"""Renewals of subscriptions that are a year old, beside new ones, with the product's cache of workflows and evicted.

A year is lived in the benchmark itself: the subscriptions begin a year before the instant at which they fall due, and
renew the periods between one after the other, each with its events and rows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

from tests.bench import bare
from tests.bench.ground import Ground, Running
from tests.bench.renewals import (
    CONCURRENT_RENEWALS,
    HEAD_START,
    MARGIN,
    TooSlow,
    asleep,
    start,
    start_bare,
    start_in_period,
)
from tests.bench.results import Figure, Rule
from workflows.client import WorkflowClient
from workflows.ports.subscription import CancelAt, CancelSubscription, LifecycleCommand
from workflows.rules.periods import billing_period

RENEWALS_PER_YEAR = 12
RENEWAL = "billing.start_period"
EVICTING_CACHE = 10
"""Workflows that a worker holds when nearly all have to be replayed."""

MINIMUM_RATIO = 0.8

MAX_ATTEMPTS = 4
"""Groups that are started, each with three times the time of the one before, until one is asleep when it falls due."""

StartGroup = Callable[[Ground, str, int, datetime], Awaitable[list[str]]]


async def measure(ground: Ground, size: int) -> list[Figure]:
    """Let ``size`` bare sleepers, new and year-old subscriptions fall due at once, with either size of the cache.

    New ones are compared with sleepers of the same cache, year-old ones with new ones of the same cache.
    """
    figures: list[Figure] = []
    for suffix, max_cached_workflows in (("", None), (", evicted", EVICTING_CACHE)):
        name = "evicted" if suffix else "cached"
        async with ground.hand(
            bare=True, counted=bare.ASLEEP, cluster=False, max_cached_workflows=max_cached_workflows
        ) as worker:
            await _rate(ground, worker, f"warm-{name}", min(size, 20), start_bare, pace=1.0)
            reference = await _rate(ground, worker, f"bare-{name}", size, start_bare, pace=10.0)
        async with ground.hand(
            bare=False, counted=RENEWAL, cluster=False, max_cached_workflows=max_cached_workflows
        ) as worker:
            await _rate(ground, worker, f"warm-{name}", min(size, 20), start, pace=1.0)
            new = await _rate(ground, worker, f"new-{name}", size, start, pace=10.0)
            old = await _rate_of_year_old(ground, worker, f"old-{name}", size, pace=new / 2)
        figures += [
            _figure(f"renewals per second, new{suffix}", new, reference),
            _figure(f"renewals per second, a year old{suffix}", old, new),
        ]
    return figures


def _figure(name: str, rate: float, reference: float) -> Figure:
    return Figure(
        name=name, value=rate, unit="1/s", reference=reference, rule=Rule.RATIO_AT_LEAST, target=MINIMUM_RATIO
    )


async def _rate(ground: Ground, worker: Running, name: str, size: int, begin: StartGroup, *, pace: float) -> float:
    """Start ``size`` that fall due at once, and return how many are done per second.

    Args:
        begin: Starts them.
        pace: Starts per second that the machine is expected to make.
    """
    for attempt in range(MAX_ATTEMPTS):
        before, _ = worker.counter.read()
        due = datetime.now(UTC) + timedelta(seconds=(size / pace * MARGIN + HEAD_START) * 3**attempt)
        workflow_ids = await begin(ground, f"{name}-{attempt}", size, due)
        rate = await _rate_when_due(ground, worker, workflow_ids, due, before)
        if rate is not None:
            return rate
        await worker.counts(before + size, timeout=120 + size / 5)
    raise TooSlow(f"{size} workflows were not started before they fell due")


async def _rate_of_year_old(ground: Ground, worker: Running, name: str, size: int, *, pace: float) -> float:
    """Let ``size`` subscriptions live through a year; return how many are renewed per second at its end.

    Args:
        pace: Renewals per second that the machine is expected to make during the year.
    """
    steps = size * RENEWALS_PER_YEAR
    for attempt in range(MAX_ATTEMPTS):
        before, _ = worker.counter.read()
        allowed = (steps / pace * MARGIN + HEAD_START) * 3**attempt
        due = datetime.now(UTC) + timedelta(seconds=allowed)
        anchor, renewals = _year_before(due)
        workflow_ids = await start_in_period(ground, f"{name}-{attempt}", size, billing_period(anchor, 0))
        lived = before + size * (renewals - 1)
        await worker.counts(lived, timeout=120 + steps / 5)
        await _renew_timers(ground, [f"sub_{name}-{attempt}-{number}" for number in range(1, size + 1)])
        rate = await _rate_when_due(ground, worker, workflow_ids, due, lived)
        if rate is not None:
            return rate
        await worker.counts(lived + size, timeout=120 + size / 5)
    raise TooSlow(f"{size} subscriptions did not reach their last period before it fell due")


async def _renew_timers(ground: Ground, subscription_ids: Sequence[str]) -> None:
    """Schedule and withdraw a cancellation of each.

    A timer is late by as much as the workflow task that sets it takes, and a year that is lived at once is one task.
    """
    workflows = WorkflowClient(ground.client)
    waiting = iter(subscription_ids)

    async def updating() -> None:
        for subscription_id in waiting:
            cancellation = CancelSubscription(
                update_id=f"c-{subscription_id}", actor="usr_bench", at=CancelAt.PERIOD_END
            )
            await workflows.cancel(subscription_id, cancellation)
            resumption = LifecycleCommand(update_id=f"r-{subscription_id}", actor="usr_bench")
            await workflows.resume(subscription_id, resumption)

    await asyncio.gather(*(updating() for _ in range(CONCURRENT_RENEWALS)))


async def _rate_when_due(
    ground: Ground, worker: Running, workflow_ids: Sequence[str], due: datetime, before: int
) -> float | None:
    """Wait until ``due`` and return how many per second are done then, or None when it has passed already.

    Args:
        before: The count until then.
    """
    await asleep(ground, workflow_ids[-1:])
    size = len(workflow_ids)
    remaining = (due - datetime.now(UTC)).total_seconds()
    if remaining < 0:
        return None
    # Counted from the instant itself: this process may be woken later than the first is renewed.
    began = time.monotonic() + remaining
    await asyncio.sleep(remaining)
    return size / (await worker.counts(before + size, timeout=120 + size / 5) - began)


def _year_before(due: datetime) -> tuple[datetime, int]:
    """Return the billing anchor a year before ``due``, and how many periods later ``due`` is."""
    if (due.month, due.day) == (2, 29):
        return due.replace(year=due.year - 1, month=3), RENEWALS_PER_YEAR - 1
    return due.replace(year=due.year - 1), RENEWALS_PER_YEAR
