"""The dispatcher of a channel never ends: it outlives failing drains, dead workers and long histories."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from temporalio import activity, workflow
from temporalio.client import WorkflowExecutionStatus, WorkflowHandle
from temporalio.worker import (
    Interceptor,
    Worker,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowOutboundInterceptor,
)

from tests.support.temporal import Temporal
from tests.support.wait import eventually
from workflows import names, policies
from workflows.notification import NotificationDispatch
from workflows.ports.notifications import Dispatch, Drain, Drained, Notifications

EMPTY = Drained(sent=0, setbacks=0, away=False)
AWAY = Drained(sent=0, setbacks=0, away=True)


@dataclass
class Outbox(Notifications):
    """What each drain does, in order: an answer, an exception, or None to hang silently. Then it waits for ``more``."""

    script: list[Drained | Exception | None]
    drains: list[tuple[float, Drain]] = field(default_factory=list)
    more: asyncio.Event = field(default_factory=asyncio.Event)

    @activity.defn(name="notifications.drain")
    async def drain(self, command: Drain) -> Drained:
        self.drains.append((time.monotonic(), command))
        if not self.script:
            await self._idle()
            return EMPTY
        answer = self.script.pop(0)
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Drained)
        return answer

    async def _idle(self) -> None:
        while not self.more.is_set() and not activity.is_worker_shutdown():
            activity.heartbeat()
            await asyncio.wait([asyncio.ensure_future(self.more.wait())], timeout=0.1)

    async def drained(self, times: int, *, timeout: float = 15) -> None:
        await eventually(lambda: len(self.drains) >= times, timeout=timeout, what=f"{times} drains")


@asynccontextmanager
async def dispatching(
    temporal: Temporal, outbox: Outbox, *, away: int = 0, interceptors: tuple[Interceptor, ...] = ()
) -> AsyncIterator[WorkflowHandle[Any, Any]]:
    queue = names.NOTICES
    async with (
        Worker(temporal.client, task_queue=names.PLATFORM, workflows=[NotificationDispatch], interceptors=interceptors),
        Worker(temporal.client, task_queue=queue, activities=[outbox.drain]),
    ):
        handle = await temporal.client.start_workflow(
            names.NOTIFICATION_DISPATCH,
            Dispatch(channel="email", away=away),
            id=temporal.unique("dispatch"),
            task_queue=names.PLATFORM,
        )
        try:
            yield handle
        finally:
            outbox.more.set()
            await handle.terminate()


async def test_it_drains_again_and_again(temporal: Temporal) -> None:
    outbox = Outbox([EMPTY, EMPTY, EMPTY])
    async with dispatching(temporal, outbox):
        await outbox.drained(4)
    (command,) = {command for _, command in outbox.drains}
    assert command == Drain(channel="email", seconds=policies.DRAIN_FOR.total_seconds())


async def test_a_drain_that_fails_is_started_again(temporal: Temporal) -> None:
    outbox = Outbox([OSError("the database is away"), ValueError("a fault of ours"), EMPTY])
    async with dispatching(temporal, outbox) as handle:
        await outbox.drained(4)
        assert (await handle.describe()).status is WorkflowExecutionStatus.RUNNING


async def test_a_drain_whose_worker_died_is_started_elsewhere(temporal: Temporal) -> None:
    outbox = Outbox([None])
    async with dispatching(temporal, outbox):
        await outbox.drained(2)
        (first, _), (second, _) = outbox.drains[:2]
    limit = policies.MAIL["heartbeat_timeout"].total_seconds()
    assert limit - 0.5 < second - first < limit + 5


async def test_while_the_server_is_away_it_waits_longer_each_time(temporal: Temporal) -> None:
    outbox = Outbox([AWAY, AWAY, EMPTY])
    async with dispatching(temporal, outbox):
        await outbox.drained(4)
    first, second = (outbox.drains[at + 1][0] - outbox.drains[at][0] for at in (0, 1))
    assert policies.away_pause(1).total_seconds() <= first
    assert policies.away_pause(2).total_seconds() <= second
    assert [policies.away_pause(times).total_seconds() for times in (1, 2, 3, 4, 5, 6, 99)] == [0.5, 1, 2, 4, 8, 10, 10]


async def test_a_wake_up_ends_the_pause(temporal: Temporal) -> None:
    outbox = Outbox([AWAY])
    async with dispatching(temporal, outbox, away=50) as handle:
        await outbox.drained(1)
        begun = time.monotonic()

        async def woken() -> bool:
            await handle.signal("wake")
            return len(outbox.drains) >= 2

        await eventually(woken)
    assert outbox.drains[1][0] - begun < policies.away_pause(50).total_seconds() - 1


class Suggesting(workflow.Info):
    """Says what the server says of a long history, some events in."""

    def is_continue_as_new_suggested(self) -> bool:
        return self.get_current_history_length() > 12


class SuggestingOutbound(WorkflowOutboundInterceptor):
    def info(self) -> workflow.Info:
        found = super().info()
        return Suggesting(**{one.name: getattr(found, one.name) for one in fields(found)})


class SuggestingInbound(WorkflowInboundInterceptor):
    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        super().init(SuggestingOutbound(outbound))


class Short(Interceptor):
    """Lets histories be short."""

    def workflow_interceptor_class(self, input: WorkflowInterceptorClassInput) -> type[WorkflowInboundInterceptor]:
        return SuggestingInbound


async def test_a_long_history_is_continued_in_a_new_one(temporal: Temporal) -> None:
    outbox = Outbox([AWAY, AWAY, EMPTY, EMPTY, EMPTY])
    async with dispatching(temporal, outbox, interceptors=(Short(),)) as handle:
        await outbox.drained(6, timeout=20)
        described = await temporal.client.get_workflow_handle(handle.id).describe()
        assert described.status is WorkflowExecutionStatus.RUNNING
        assert described.run_id != handle.first_execution_run_id
        history = await temporal.client.get_workflow_handle(handle.id).fetch_history()
        assert len(history.events) < 40
