"""Renewals that are due at once, and the memory of workers that hold thousands of idle subscriptions."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio.client import WorkflowHandle
from temporalio.common import WorkflowIDConflictPolicy

from db.queries.catalogue import plan_id
from tests.bench import bare
from tests.bench.ground import PLAN, Ground, Running
from tests.bench.results import Figure, Rule
from tests.support.wait import wait_until
from workflows import names
from workflows.ports.subscription import CommittedState, CreateSubscription, SubscriptionInput, SubscriptionState
from workflows.rules.periods import BillingPeriod
from workflows.rules.subscription import SubscriptionStatus

CONCURRENT_RENEWALS = 24
MARGIN = 1.4
"""How much longer than estimated the starting of a group may take before it falls due."""

HEAD_START = 2.0
"""Seconds that are allowed for beside it."""

ASLEEP = 5
"""Events of a history whose workflow sleeps: started, one task (scheduled, started, completed), a timer."""

FLAT = 1.6
"""Bound of the growth to a full cache: 1,500 more workflows of some 73 KiB each."""

Start = Callable[[str, datetime], Awaitable[str]]


class TooSlow(RuntimeError):
    """No group was started before it fell due."""


async def measure(ground: Ground, groups: Sequence[int], warm: Sequence[int]) -> list[Figure]:
    """Let groups of these sizes fall due, Berth's and bare ones in turn; each group adds to those that are idle."""
    rates: dict[bool, list[tuple[int, float]]] = {False: [], True: []}
    memory: dict[bool, list[tuple[int, float]]] = {False: [], True: []}
    counted = {False: "billing.start_period", True: bare.ASLEEP}
    async with ground.hand(bare=False, counted=counted[False], cluster=False) as subject:
        async with ground.hand(bare=True, counted=counted[True], cluster=False) as reference:
            pace = await _warm(ground, subject, reference, warm)
            for number, size in enumerate(groups):
                for is_bare, hand in ((False, subject), (True, reference)):
                    before, _ = hand.counter.read()
                    due, pace = await _group(ground, f"r{number}", size, pace, is_bare=is_bare)
                    memory[is_bare].append((sum(groups[: number + 1]), hand.mebibytes()))
                    late = (datetime.now(UTC) - due).total_seconds()
                    if late > 0:
                        sys.stderr.write(f"renewals: {size} took {late:.0f} s longer to start than was allowed for\n")
                    # Counted from the instant itself: this process may be woken later than the first is renewed.
                    began = time.monotonic() - late
                    await asyncio.sleep(max(-late, 0))
                    last = await hand.counts(before + size, timeout=120 + size / 5)
                    # Those that were late were renewed while others were started, and say nothing.
                    if late <= 0:
                        rates[is_bare].append((size, last - began))
    if not all(rates.values()):
        raise TooSlow("the machine never started a group in time: nothing was measured")
    figures = [
        Figure(
            name=f"renewals per second, {max(groups)} due at once",
            value=_rate(rates[False]),
            unit="1/s",
            reference=_rate(rates[True]),
            rule=Rule.RATIO_AT_LEAST,
            target=0.8,
        )
    ]
    figures += [
        Figure(name=f"worker memory, {idle} idle", value=value, unit="MiB", reference=other)
        for (idle, value), (_, other) in zip(memory[False], memory[True], strict=True)
    ]
    if len(groups) > 1:
        figures.append(
            Figure(
                name=f"growth of its memory, {memory[False][0][0]} to {memory[False][-1][0]} idle",
                value=_growth(memory[False]),
                unit="times",
                reference=_growth(memory[True]),
                rule=Rule.VALUE_AT_MOST,
                target=FLAT,
            )
        )
    return figures


async def _warm(ground: Ground, subject: Running, reference: Running, sizes: Sequence[int]) -> float:
    """A first few on each side: imports, connections and plans are made. Return how many start per second then."""
    pace = 1.0
    for number, size in enumerate(sizes):
        for is_bare, hand in ((True, reference), (False, subject)):
            before, _ = hand.counter.read()
            _, pace = await _group(ground, f"warm{number}", size, pace, is_bare=is_bare)
            await hand.counts(before + size, timeout=180)
    return pace


async def _group(ground: Ground, name: str, size: int, pace: float, *, is_bare: bool) -> tuple[datetime, float]:
    """Start ``size`` that are due together; return when, and how many were started per second."""
    due = datetime.now(UTC) + timedelta(seconds=size / pace * MARGIN + HEAD_START)
    began = time.monotonic()
    if is_bare:
        started = await start_bare(ground, name, size, due)
    else:
        started = await start(ground, name, size, due)
    # Tasks are done about in the order of the starts.
    await asleep(ground, started[-2 * CONCURRENT_RENEWALS :])
    return due, size / (time.monotonic() - began)


async def start_bare(ground: Ground, name: str, size: int, due: datetime) -> list[str]:
    """Start ``size`` sleepers that wake at ``due``; return their workflows' ids."""
    return await _all(_bare(ground), name, size, due)


async def start(ground: Ground, name: str, size: int, due: datetime) -> list[str]:
    """Start ``size`` subscriptions in the middle of their lives, with all their rows; return their workflows' ids."""
    return await start_in_period(ground, name, size, BillingPeriod(start=due - timedelta(days=30), end=due))


async def start_in_period(ground: Ground, name: str, size: int, period: BillingPeriod) -> list[str]:
    """Start ``size`` subscriptions that were paid for ``period``, their first, and return their workflows' ids."""
    ground.accounts(name, size, period.start)
    ground.subscriptions(name, size, period.start, period.end)
    return await _all(_entity(ground, period.start), name, size, period.end)


async def _all(start: Start, name: str, size: int, due: datetime) -> list[str]:
    waiting = iter(range(1, size + 1))
    started: list[str] = []

    async def starting() -> None:
        for number in waiting:
            started.append(await start(f"{name}-{number}", due))

    await asyncio.gather(*(starting() for _ in range(CONCURRENT_RENEWALS)))
    return started


def _bare(ground: Ground) -> Start:
    async def start(name: str, due: datetime) -> str:
        handle = await ground.client.start_workflow(
            bare.BareSleeper.run, bare.Sleep(until=due), id=f"bare/{name}", task_queue=bare.QUEUE
        )
        return handle.id

    return start


def _entity(ground: Ground, anchor: datetime) -> Start:
    """Entities in the middle of their lives: active and about to be renewed."""
    terms = ground.terms()

    async def start(name: str, at: datetime) -> str:
        state = SubscriptionState(
            committed=CommittedState(
                status=SubscriptionStatus.ACTIVE,
                plan_id=terms.plan_id,
                billing_anchor=anchor,
                period_start=anchor,
                period_end=at,
            ),
            terms=terms,
            instance_plan_id=terms.plan_id,
            instance_desired_running=True,
        )
        order = CreateSubscription(
            subscription_id=f"sub_{name}",
            instance_id=f"ins_{name}",
            organization_id=f"org_{name}",
            user_id="usr_bench",
            plan_id=plan_id(PLAN),
        )
        handle = await ground.client.start_workflow(
            names.SUBSCRIPTION,
            SubscriptionInput(command=order, state=state),
            id=names.subscription_workflow_id(order.subscription_id),
            task_queue=names.PLATFORM_QUEUE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            search_attributes=names.search_attributes(order.organization_id, "subscription"),
        )
        return handle.id

    return start


async def asleep(ground: Ground, workflow_ids: Iterable[str]) -> None:
    """Wait until these have done their first task and sleep: their histories end with a timer."""
    for workflow_id in workflow_ids:
        handle = ground.client.get_workflow_handle(workflow_id)

        async def sleeps(handle: WorkflowHandle[Any, Any] = handle) -> bool:
            return (await handle.describe()).history_length >= ASLEEP

        await wait_until(sleeps, timeout=300, description=f"{workflow_id} sleeps")


def _rate(measured: list[tuple[int, float]]) -> float:
    return sum(size for size, _ in measured) / sum(seconds for _, seconds in measured)


def _growth(memory: list[tuple[int, float]]) -> float:
    return memory[-1][1] / memory[0][1]
