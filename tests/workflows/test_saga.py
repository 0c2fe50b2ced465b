"""Sagas inside real workflows."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from temporalio import workflow
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.worker import Worker

from tests.support.temporal import TemporalFixture
from workflows.saga import Saga


@workflow.defn
class FailingSaga:
    """Adds three compensations, of which the second fails; then fails or waits for its cancellation."""

    def __init__(self) -> None:
        self._compensated: list[str] = []

    @workflow.run
    async def run(self, wait: bool) -> None:
        async with Saga() as saga:
            for name in ("first", "second", "third"):
                saga.add_compensation(partial(self._compensate, name))
            if wait:
                await workflow.wait_condition(lambda: False)
            raise ApplicationError("the last step failed", type="STEP", non_retryable=True)

    @workflow.query
    def compensated(self) -> list[str]:
        return self._compensated

    async def _compensate(self, name: str) -> None:
        await asyncio.sleep(0.01)
        if name == "second":
            raise ApplicationError("this compensation fails")
        self._compensated.append(name)


@workflow.defn
class SuccessfulSaga:
    @workflow.run
    async def run(self) -> str:
        async with Saga() as saga:
            saga.add_compensation(self._compensate)
        return "done"

    async def _compensate(self) -> None:
        raise ApplicationError("compensated after success", non_retryable=True)


async def test_every_compensation_runs_newest_first_and_the_error_is_raised(temporal: TemporalFixture) -> None:
    queue = temporal.unique_id("saga")
    async with Worker(temporal.client, task_queue=queue, workflows=[FailingSaga]):
        handle = await temporal.client.start_workflow(FailingSaga.run, False, id=queue, task_queue=queue)
        with pytest.raises(WorkflowFailureError) as failure:
            await handle.result()
        assert isinstance(failure.value.cause, ApplicationError)
        assert failure.value.cause.type == "STEP"
        assert await handle.query(FailingSaga.compensated) == ["third", "first"]


@pytest.mark.scenario("P14")
async def test_a_cancellation_is_raised_after_every_compensation(temporal: TemporalFixture) -> None:
    queue = temporal.unique_id("saga")
    async with Worker(temporal.client, task_queue=queue, workflows=[FailingSaga]):
        handle = await temporal.client.start_workflow(FailingSaga.run, True, id=queue, task_queue=queue)
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as failure:
            await handle.result()
        assert isinstance(failure.value.cause, CancelledError)
        assert await handle.query(FailingSaga.compensated) == ["third", "first"]


async def test_a_successful_saga_runs_no_compensation(temporal: TemporalFixture) -> None:
    queue = temporal.unique_id("saga")
    async with Worker(temporal.client, task_queue=queue, workflows=[SuccessfulSaga]):
        assert await temporal.client.execute_workflow(SuccessfulSaga.run, id=queue, task_queue=queue) == "done"
