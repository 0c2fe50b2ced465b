"""An error of the database reaches histories and logs without the values of its statement."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio import activity
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

import worker.logs
from db.session import create_database_engine
from tests.support.databases import DatabaseFixture
from tests.support.failing_activity_workflow import FailingActivityWorkflow
from tests.support.log_capture import capture_log
from tests.support.temporal import TemporalFixture
from worker.interceptors import ActivityMetricsInterceptor
from worker.metrics import WorkerMetrics
from workflows.errors import non_retryable_error
from workflows.rules.errors import ErrorCode

SECRET = "Ada Augusta King"
INSERT = (
    "INSERT INTO organizations (id, name, currency, timezone, created_at, updated_at)"
    " VALUES (:id, :name, 'USD', 'UTC', now(), now())"
)


@pytest_asyncio.fixture
async def engine(database: DatabaseFixture) -> AsyncIterator[AsyncEngine]:
    engine = create_database_engine(database.owner_url, pool_size=1, pre_ping=False)
    try:
        async with engine.begin() as connection:
            await connection.execute(text(INSERT), {"id": SECRET, "name": SECRET})
        yield engine
    finally:
        await engine.dispose()


@pytest.fixture
def log_text() -> Iterator[io.StringIO]:
    with capture_log(worker.logs.configure_logging, level="DEBUG") as written:
        yield written


async def insert_again(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(INSERT), {"id": SECRET, "name": SECRET})


@pytest.mark.scenario("S12")
async def test_a_failed_statement_shows_no_parameters(engine: AsyncEngine) -> None:
    with pytest.raises(IntegrityError) as caught:
        await insert_again(engine)
    assert "pk_organizations" in str(caught.value)
    assert "SQL parameters hidden" in str(caught.value)


@pytest.mark.scenario("S12")
@pytest.mark.parametrize("is_cause", [False, True])
async def test_the_history_of_a_failed_activity_holds_no_values(
    temporal: TemporalFixture, engine: AsyncEngine, log_text: io.StringIO, is_cause: bool
) -> None:
    @activity.defn(name="database.fail")
    async def fail() -> None:
        if not is_cause:
            await insert_again(engine)
        try:
            await insert_again(engine)
        except IntegrityError as error:
            raise non_retryable_error(ErrorCode.CONFLICT, "This name is taken.") from error

    queue = temporal.unique_id("database-errors")
    async with Worker(
        temporal.client,
        task_queue=queue,
        workflows=[FailingActivityWorkflow],
        activities=[fail],
        interceptors=[ActivityMetricsInterceptor(WorkerMetrics())],
    ):
        handle = await temporal.client.start_workflow(
            FailingActivityWorkflow.run, "database.fail", id=temporal.unique_id("w"), task_queue=queue
        )
        with pytest.raises(WorkflowFailureError) as caught:
            await handle.result()
    failure = caught.value.cause.__cause__
    assert isinstance(failure, ApplicationError)
    if is_cause:
        assert (failure.type, failure.message, failure.non_retryable) == ("CONFLICT", "This name is taken.", True)
        failure = failure.__cause__
        assert isinstance(failure, ApplicationError)
    assert failure.type == "IntegrityError"
    assert failure.message == "IntegrityError (SQLSTATE 23505, table organizations, constraint pk_organizations)"
    assert not failure.non_retryable
    history = (await handle.fetch_history()).to_json()
    assert "IntegrityError" in history
    assert SECRET not in history
    assert SECRET not in log_text.getvalue()
    assert '"activity"' in log_text.getvalue()
