"""The dispatch of a channel never ends: it survives failing drains, dead workers and long histories."""

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

from tests.support.temporal import TemporalFixture
from tests.support.wait import wait_until
from worker.workflow_runner import sandboxed_runner
from workflows import names, policies
from workflows.notification_dispatch import NotificationDispatch
from workflows.ports.notifications import DispatchInput, DrainOutbox, DrainOutcome, NotificationActivities

EMPTY = DrainOutcome(sent=0, failures=0, server_unavailable=False)
UNAVAILABLE = DrainOutcome(sent=0, failures=0, server_unavailable=True)


@dataclass
class ScriptedOutbox(NotificationActivities):
    """Scripted drains in order: an outcome, an exception, or None to hang. Then a drain waits for ``stop_idling``."""

    script: list[DrainOutcome | Exception | None]
    drains: list[tuple[float, DrainOutbox]] = field(default_factory=list)
    stop_idling: asyncio.Event = field(default_factory=asyncio.Event)

    @activity.defn(name="notifications.drain_outbox")
    async def drain_outbox(self, command: DrainOutbox) -> DrainOutcome:
        self.drains.append((time.monotonic(), command))
        if not self.script:
            await self._idle()
            return EMPTY
        outcome = self.script.pop(0)
        if outcome is None:
            await asyncio.Event().wait()
        if isinstance(outcome, Exception):
            raise outcome
        assert isinstance(outcome, DrainOutcome)
        return outcome

    async def _idle(self) -> None:
        while not self.stop_idling.is_set() and not activity.is_worker_shutdown():
            activity.heartbeat()
            await asyncio.wait([asyncio.ensure_future(self.stop_idling.wait())], timeout=0.1)

    async def wait_for_drains(self, times: int, *, timeout: float = 15) -> None:
        await wait_until(lambda: len(self.drains) >= times, timeout=timeout, description=f"{times} drains")


@asynccontextmanager
async def run_dispatch(
    temporal: TemporalFixture,
    outbox: ScriptedOutbox,
    *,
    consecutive_outages: int = 0,
    interceptors: tuple[Interceptor, ...] = (),
) -> AsyncIterator[WorkflowHandle[Any, Any]]:
    queue = names.NOTIFICATIONS_QUEUE
    async with (
        Worker(
            temporal.client,
            task_queue=names.PLATFORM_QUEUE,
            workflows=[NotificationDispatch],
            workflow_runner=sandboxed_runner("tests"),
            interceptors=interceptors,
        ),
        Worker(temporal.client, task_queue=queue, activities=[outbox.drain_outbox]),
    ):
        handle = await temporal.client.start_workflow(
            names.NOTIFICATION_DISPATCH,
            DispatchInput(channel="email", consecutive_outages=consecutive_outages),
            id=temporal.unique_id("dispatch"),
            task_queue=names.PLATFORM_QUEUE,
        )
        try:
            yield handle
        finally:
            outbox.stop_idling.set()
            await handle.terminate()


async def test_the_outbox_is_drained_repeatedly(temporal: TemporalFixture) -> None:
    outbox = ScriptedOutbox([EMPTY, EMPTY, EMPTY])
    async with run_dispatch(temporal, outbox):
        await outbox.wait_for_drains(4)
    (command,) = {command for _, command in outbox.drains}
    assert command == DrainOutbox(channel="email", duration_seconds=policies.DRAIN_DURATION.total_seconds())


async def test_a_drain_that_fails_is_started_again(temporal: TemporalFixture) -> None:
    outbox = ScriptedOutbox([OSError("the database is unavailable"), ValueError("a programming error"), EMPTY])
    async with run_dispatch(temporal, outbox) as handle:
        await outbox.wait_for_drains(4)
        assert (await handle.describe()).status is WorkflowExecutionStatus.RUNNING


async def test_a_drain_whose_worker_died_is_started_elsewhere(temporal: TemporalFixture) -> None:
    outbox = ScriptedOutbox([None])
    async with run_dispatch(temporal, outbox):
        await outbox.wait_for_drains(2)
        (first, _), (second, _) = outbox.drains[:2]
    limit = policies.NOTIFICATION_DRAIN["heartbeat_timeout"].total_seconds()
    assert limit - 0.5 < second - first < limit + 5


async def test_the_pause_grows_while_the_mail_server_is_unavailable(temporal: TemporalFixture) -> None:
    outbox = ScriptedOutbox([UNAVAILABLE, UNAVAILABLE, EMPTY])
    async with run_dispatch(temporal, outbox):
        await outbox.wait_for_drains(4)
    first, second = (outbox.drains[at + 1][0] - outbox.drains[at][0] for at in (0, 1))
    assert policies.mail_outage_backoff(1).total_seconds() <= first
    assert policies.mail_outage_backoff(2).total_seconds() <= second
    assert [policies.mail_outage_backoff(times).total_seconds() for times in (1, 2, 3, 4, 5, 6, 99)] == [
        0.5,
        1,
        2,
        4,
        8,
        10,
        10,
    ]


async def test_the_wake_signal_ends_the_pause(temporal: TemporalFixture) -> None:
    outbox = ScriptedOutbox([UNAVAILABLE])
    async with run_dispatch(temporal, outbox, consecutive_outages=50) as handle:
        await outbox.wait_for_drains(1)
        started_at = time.monotonic()

        async def second_drain_started() -> bool:
            await handle.signal("wake")
            return len(outbox.drains) >= 2

        await wait_until(second_drain_started)
    assert outbox.drains[1][0] - started_at < policies.mail_outage_backoff(50).total_seconds() - 1


class InfoOfLongHistory(workflow.Info):
    """Suggests continue-as-new as the server does for a long history, after a few events."""

    def is_continue_as_new_suggested(self) -> bool:
        return self.get_current_history_length() > 12


class LongHistoryOutbound(WorkflowOutboundInterceptor):
    def info(self) -> workflow.Info:
        info = super().info()
        return InfoOfLongHistory(**{info_field.name: getattr(info, info_field.name) for info_field in fields(info)})


class LongHistoryInbound(WorkflowInboundInterceptor):
    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        super().init(LongHistoryOutbound(outbound))


class LongHistoryInterceptor(Interceptor):
    """Makes workflows continue as new after a few events."""

    def workflow_interceptor_class(self, input: WorkflowInterceptorClassInput) -> type[WorkflowInboundInterceptor]:
        return LongHistoryInbound


async def test_a_long_history_is_continued_in_a_new_one(temporal: TemporalFixture) -> None:
    outbox = ScriptedOutbox([UNAVAILABLE, UNAVAILABLE, EMPTY, EMPTY, EMPTY])
    async with run_dispatch(temporal, outbox, interceptors=(LongHistoryInterceptor(),)) as handle:
        await outbox.wait_for_drains(6, timeout=20)
        described = await temporal.client.get_workflow_handle(handle.id).describe()
        assert described.status is WorkflowExecutionStatus.RUNNING
        assert described.run_id != handle.first_execution_run_id
        history = await temporal.client.get_workflow_handle(handle.id).fetch_history()
        assert len(history.events) < 40
