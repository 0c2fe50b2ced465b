"""Local activities of a failing database do not occupy the worker."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from temporalio import activity, workflow
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from tests.support.temporal import TemporalFixture
from tests.support.wait import wait_until
from workflows.ports.billing import SubscriptionActivities
from workflows.ports.subscription import ReleaseReminders

with workflow.unsafe.imports_passed_through():
    from workflows import local_first

ENTITY_COUNT = 12
WORKFLOW_TASK_SLOTS = 4


class FlakyActivities:
    """An activity whose database is down until the test repairs it."""

    def __init__(self) -> None:
        self.down = True
        self.rejects = False
        self.local_attempts: dict[str, int] = {}
        self.ordinary_ids: set[str] = set()

    @activity.defn(name="subscriptions.release_reminders")
    async def release_reminders(self, command: ReleaseReminders) -> None:
        info = activity.info()
        if info.is_local:
            self.local_attempts[command.subscription_id] = info.attempt
        else:
            self.ordinary_ids.add(command.subscription_id)
        if self.rejects:
            raise ApplicationError("refused", type="CONFLICT", non_retryable=True)
        if self.down:
            raise ConnectionError("the database is down")


@workflow.defn
class Entity:
    @workflow.run
    async def run(self, command: ReleaseReminders) -> None:
        await local_first.execute(SubscriptionActivities.release_reminders, command)


@workflow.defn
class Unrelated:
    @workflow.run
    async def run(self) -> str:
        await workflow.sleep(timedelta(milliseconds=10))
        return "done"


def command(name: str) -> ReleaseReminders:
    now = datetime(2027, 1, 1, tzinfo=UTC)
    return ReleaseReminders(subscription_id=name, now=now)


async def test_workflows_whose_database_fails_do_not_occupy_the_worker(temporal: TemporalFixture) -> None:
    database, queue = FlakyActivities(), temporal.unique_id("local-first")
    worker = Worker(
        temporal.client,
        task_queue=queue,
        workflows=[Entity, Unrelated],
        activities=[database.release_reminders],
        max_concurrent_workflow_tasks=WORKFLOW_TASK_SLOTS,
        workflow_runner=UnsandboxedWorkflowRunner(),
    )
    async with worker:
        names = [temporal.unique_id("entity") for _ in range(ENTITY_COUNT)]
        handles = [
            await temporal.client.start_workflow(Entity.run, command(name), id=name, task_queue=queue) for name in names
        ]

        async def all_gave_way() -> bool:
            return database.ordinary_ids == set(names)

        await wait_until(all_gave_way, description="the ordinary activity of each entity")
        assert set(database.local_attempts.values()) == {3}
        async with asyncio.timeout(20):
            other = temporal.unique_id("unrelated")
            assert await temporal.client.execute_workflow(Unrelated.run, id=other, task_queue=queue) == "done"
        database.down = False
        async with asyncio.timeout(60):
            await asyncio.gather(*(handle.result() for handle in handles))
        history = await handles[0].fetch_history()
        kinds = [event.event_type for event in history.events]
        assert kinds.count(EventType.EVENT_TYPE_MARKER_RECORDED) == 1
        assert kinds.count(EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED) == 1


async def test_a_non_retryable_error_is_final_and_runs_no_ordinary_activity(temporal: TemporalFixture) -> None:
    database, queue = FlakyActivities(), temporal.unique_id("local-first")
    database.rejects = True
    worker = Worker(
        temporal.client,
        task_queue=queue,
        workflows=[Entity],
        activities=[database.release_reminders],
        workflow_runner=UnsandboxedWorkflowRunner(),
    )
    async with worker:
        name = temporal.unique_id("entity")
        handle = await temporal.client.start_workflow(Entity.run, command(name), id=name, task_queue=queue)
        with pytest.raises(WorkflowFailureError) as failed:
            await handle.result()
    assert "refused" in str(failed.value.cause)
    assert database.ordinary_ids == set()
    assert database.local_attempts == {name: 1}
