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
from tests.support.wait import eventually
from workflows import names
from workflows.ports.subscription import Life, Subscribe, Subscribed
from workflows.rules.subscription import State

AT_ONCE = 24
MARGIN = 1.4
"""How much longer than estimated the starting of a group may take before it falls due."""

HEAD_START = 2.0
"""Seconds that are allowed for beside it."""

ASLEEP = 5
"""Events of a history whose workflow sleeps: started, one task (scheduled, started, completed), a timer."""

FLAT = 1.25

Start = Callable[[str, datetime], Awaitable[str]]


class TooSlow(RuntimeError):
    """No group was started before it fell due."""


async def measure(ground: Ground, groups: Sequence[int], warm: Sequence[int]) -> list[Figure]:
    """Let groups of these sizes fall due, Berth's and bare ones in turn; each group adds to those that are idle."""
    rates: dict[bool, list[tuple[int, float]]] = {False: [], True: []}
    memory: dict[bool, list[tuple[int, float]]] = {False: [], True: []}
    counted = {False: "billing.renew", True: "bare.done"}
    async with ground.hand(bare=False, counted=counted[False], cluster=False) as ours:
        async with ground.hand(bare=True, counted=counted[True], cluster=False) as others:
            pace = await _warm(ground, ours, others, warm)
            for number, size in enumerate(groups):
                for is_bare, hand in ((False, ours), (True, others)):
                    before, _ = hand.counter.read()
                    due, pace = await _group(ground, f"r{number}", size, pace, is_bare=is_bare)
                    memory[is_bare].append((sum(groups[: number + 1]), hand.mebibytes()))
                    late = (datetime.now(UTC) - due).total_seconds()
                    if late > 0:
                        sys.stderr.write(f"renewals: {size} took {late:.0f} s longer to start than was allowed for\n")
                    await asyncio.sleep(max(-late, 0))
                    began = time.monotonic()
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
            target=0.6,
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


async def _warm(ground: Ground, ours: Running, others: Running, sizes: Sequence[int]) -> float:
    """A first few on each side: imports, connections and plans are made. Return how many start per second then."""
    pace = 1.0
    for number, size in enumerate(sizes):
        for is_bare, hand in ((True, others), (False, ours)):
            before, _ = hand.counter.read()
            _, pace = await _group(ground, f"warm{number}", size, pace, is_bare=is_bare)
            await hand.counts(before + size, timeout=180)
    return pace


async def _group(ground: Ground, name: str, size: int, pace: float, *, is_bare: bool) -> tuple[datetime, float]:
    """Start ``size`` that are due together; return when, and how many were started per second."""
    due = datetime.now(UTC) + timedelta(seconds=size / pace * MARGIN + HEAD_START)
    began = time.monotonic()
    if is_bare:
        started = await _all(_bare(ground), name, size, due)
    else:
        started = await start(ground, name, size, due)
    # Tasks are done about in the order of the starts.
    await _asleep(ground, started[-2 * AT_ONCE :])
    return due, size / (time.monotonic() - began)


async def start(ground: Ground, name: str, size: int, due: datetime) -> list[str]:
    """Start ``size`` subscriptions in the middle of their lives, with all their rows; return their workflows' ids."""
    opened = due - timedelta(days=30)
    ground.accounts(name, size, opened)
    ground.subscriptions(name, size, opened, due)
    return await _all(_entity(ground), name, size, due)


async def _all(start: Start, name: str, size: int, due: datetime) -> list[str]:
    waiting = iter(range(1, size + 1))
    started: list[str] = []

    async def starting() -> None:
        for number in waiting:
            started.append(await start(f"{name}-{number}", due))

    await asyncio.gather(*(starting() for _ in range(AT_ONCE)))
    return started


def _bare(ground: Ground) -> Start:
    async def start(name: str, due: datetime) -> str:
        handle = await ground.client.start_workflow(
            bare.BareSleeper.run, bare.Sleep(until=due), id=f"bare/{name}", task_queue=bare.QUEUE
        )
        return handle.id

    return start


def _entity(ground: Ground) -> Start:
    """Entities in the middle of their lives: active, reminded, and about to be renewed."""
    terms = ground.terms()

    async def start(name: str, at: datetime) -> str:
        life = Life(
            terms=terms,
            state=State.ACTIVE,
            anchor=at - timedelta(days=30),
            periods_billed=1,
            period_start=at - timedelta(days=30),
            period_end=at,
            reminded=1,
            applied_plan_id=terms.plan_id,
            instance_running=True,
        )
        order = Subscribe(
            subscription_id=f"sub_{name}",
            instance_id=f"ins_{name}",
            organization_id=f"org_{name}",
            user_id="usr_bench",
            plan_id=plan_id(PLAN),
        )
        handle = await ground.client.start_workflow(
            names.SUBSCRIPTION,
            Subscribed(order=order, life=life),
            id=names.subscription_workflow(order.subscription_id),
            task_queue=names.PLATFORM,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            search_attributes=names.attributes(order.organization_id, "subscription"),
        )
        return handle.id

    return start


async def _asleep(ground: Ground, workflow_ids: Iterable[str]) -> None:
    """Wait until these have done their first task and sleep: their histories end with a timer."""
    for workflow_id in workflow_ids:
        handle = ground.client.get_workflow_handle(workflow_id)

        async def asleep(handle: WorkflowHandle[Any, Any] = handle) -> bool:
            return (await handle.describe()).history_length >= ASLEEP

        await eventually(asleep, timeout=300, what=f"{workflow_id} sleeps")


def _rate(measured: list[tuple[int, float]]) -> float:
    return sum(size for size, _ in measured) / sum(seconds for _, seconds in measured)


def _growth(memory: list[tuple[int, float]]) -> float:
    return memory[-1][1] / memory[0][1]
