"""The undo stack, inside real workflows."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from temporalio import workflow
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.worker import Worker

from tests.support.temporal import Temporal
from workflows.saga import Saga


@workflow.defn
class Undoing:
    """Arms three undos, the second of which fails, and then fails or waits for its cancellation."""

    def __init__(self) -> None:
        self._told: list[str] = []

    @workflow.run
    async def run(self, wait: bool) -> None:
        async with Saga() as saga:
            for name in ("first", "second", "third"):
                saga.on_failure(partial(self._undo, name))
            if wait:
                await workflow.wait_condition(lambda: False)
            raise ApplicationError("the deed failed", type="DEED", non_retryable=True)

    @workflow.query
    def told(self) -> list[str]:
        return self._told

    async def _undo(self, name: str) -> None:
        await asyncio.sleep(0.01)
        if name == "second":
            raise ApplicationError("this undo fails")
        self._told.append(name)


@workflow.defn
class Content:
    @workflow.run
    async def run(self) -> str:
        async with Saga() as saga:
            saga.on_failure(self._undo)
        return "done"

    async def _undo(self) -> None:
        raise ApplicationError("undone without need", non_retryable=True)


async def test_undos_run_newest_first_each_one_and_the_failure_goes_on(temporal: Temporal) -> None:
    queue = temporal.unique("saga")
    async with Worker(temporal.client, task_queue=queue, workflows=[Undoing]):
        handle = await temporal.client.start_workflow(Undoing.run, False, id=queue, task_queue=queue)
        with pytest.raises(WorkflowFailureError) as failure:
            await handle.result()
        assert isinstance(failure.value.cause, ApplicationError)
        assert failure.value.cause.type == "DEED"
        assert await handle.query(Undoing.told) == ["third", "first"]


@pytest.mark.scenario("P14")
async def test_a_cancellation_is_undone_in_full_before_it_goes_on(temporal: Temporal) -> None:
    queue = temporal.unique("saga")
    async with Worker(temporal.client, task_queue=queue, workflows=[Undoing]):
        handle = await temporal.client.start_workflow(Undoing.run, True, id=queue, task_queue=queue)
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as failure:
            await handle.result()
        assert isinstance(failure.value.cause, CancelledError)
        assert await handle.query(Undoing.told) == ["third", "first"]


async def test_what_succeeds_is_not_undone(temporal: Temporal) -> None:
    queue = temporal.unique("saga")
    async with Worker(temporal.client, task_queue=queue, workflows=[Content]):
        assert await temporal.client.execute_workflow(Content.run, id=queue, task_queue=queue) == "done"
