"""A row that the schema refuses: an alert, commands that are answered, and a workflow that waits for the correction."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from temporalio.client import WorkflowUpdateStage

import worker.logs
from db.session import session_factory
from tests.support.databases import DatabaseFixture
from tests.support.log_capture import capture_log
from tests.support.subscription_fixture import SubscriptionFixture, run_subscription_fixture
from tests.support.temporal import TemporalFixture
from tests.support.wait import wait_until
from worker.interceptors import ActivityMetricsInterceptor
from worker.metrics import WorkerMetrics
from worker.refused_rows import RefusedRowsInterceptor
from workflows.ports.subscription import CancelAt, CancelSubscription, CustomerOperation, StartOperation
from workflows.rules.errors import RuleViolation

REFUSE_PAUSES = "ALTER TABLE subscriptions ADD CONSTRAINT ck_subscriptions_no_pause CHECK (status <> 'paused')"
ACCEPT_PAUSES = "ALTER TABLE subscriptions DROP CONSTRAINT ck_subscriptions_no_pause"


@pytest.fixture
def metrics() -> WorkerMetrics:
    return WorkerMetrics()


@pytest_asyncio.fixture
async def subscriptions(
    temporal: TemporalFixture, database: DatabaseFixture, metrics: WorkerMetrics
) -> AsyncIterator[SubscriptionFixture]:
    rows = RefusedRowsInterceptor(session_factory(database.worker), metrics, timedelta(seconds=1))
    interceptors = [ActivityMetricsInterceptor(metrics), rows]
    async with run_subscription_fixture(temporal, database, interceptors=interceptors) as fixture:
        yield fixture


async def _alerts(subscriptions: SubscriptionFixture) -> list[Mapping[str, Any]]:
    rows = await subscriptions.rows(
        "SELECT template_context FROM notifications WHERE kind = 'operator_alert' ORDER BY created_at, id"
    )
    return [row["template_context"] for row in rows]


async def _refused_attempts(metrics: WorkerMetrics) -> float:
    labels = {"activity": "subscriptions.change_status", "sqlstate": "23514", "constraint": "ck_subscriptions_no_pause"}
    return metrics.registry.get_sample_value("berth_activity_refused_rows_total", labels) or 0.0


async def test_a_refused_row_is_reported_and_its_workflow_goes_on_once_it_is_accepted(
    subscriptions: SubscriptionFixture, metrics: WorkerMetrics
) -> None:
    await subscriptions.top_up(600)
    subscription = await subscriptions.create_active_subscription("starter")
    await subscriptions.execute_as_owner(REFUSE_PAUSES)
    command = subscriptions.lifecycle_command("pause")
    with capture_log(worker.logs.configure_logging, level="INFO") as written:
        pause = await subscriptions.handle(subscription).start_update(
            "pause", command, id=command.update_id, wait_for_stage=WorkflowUpdateStage.ACCEPTED
        )

        async def is_refused_often() -> bool:
            return await _refused_attempts(metrics) >= 4

        await wait_until(is_refused_often)
        (alert,) = await _alerts(subscriptions)
        assert alert["title"] == "The database refuses a row"
        assert "SQLSTATE 23514, table subscriptions, constraint ck_subscriptions_no_pause" in alert["details"]
        assert alert["workflow_id"] == f"subscription/{subscription}"
        await subscriptions.execute_as_owner(ACCEPT_PAUSES)
        await pause.result()
    await subscriptions.wait_for_status(subscription, "paused")
    assert [alert["title"] for alert in await _alerts(subscriptions)] == [
        "The database refuses a row",
        "The database accepts the row again",
    ]
    refused, *_ = _lines(written, "activity.row_refused")
    assert refused["level"] == "error"
    assert refused["constraint"] == "ck_subscriptions_no_pause"
    assert (refused["sqlstate"], refused["table"]) == ("23514", "subscriptions")
    assert refused["workflow_id"] == f"subscription/{subscription}"


def _lines(written: io.StringIO, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in written.getvalue().splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("event") == event]


async def test_commands_of_a_subscription_whose_row_is_refused_are_answered(
    subscriptions: SubscriptionFixture,
) -> None:
    """None waits for the release that corrects the row: the server admits few updates in flight."""
    await subscriptions.top_up(600)
    subscription = await subscriptions.create_active_subscription("starter")
    await subscriptions.execute_as_owner(REFUSE_PAUSES)
    command = subscriptions.lifecycle_command("pause")
    handle = subscriptions.handle(subscription)
    pause = await handle.start_update(
        "pause", command, id=command.update_id, wait_for_stage=WorkflowUpdateStage.ACCEPTED
    )
    cancel = CancelSubscription(update_id="cancel-1", actor="operator", at=CancelAt.NOW)
    backup = StartOperation(update_id="backup-1", operation_id="op_1", actor="operator", kind=CustomerOperation.BACKUP)
    responses = await asyncio.gather(
        subscriptions.workflows.cancel(subscription, cancel),
        subscriptions.workflows.start_operation(subscription, backup),
        subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause")),
        subscriptions.change_plan(subscription, "pro"),
        return_exceptions=True,
    )
    for response in responses:
        assert isinstance(response, RuleViolation), response
        assert (response.code, response.is_retryable) == ("CONFLICT", True)
    assert (await subscriptions.subscription(subscription))["status"] == "active"
    await subscriptions.execute_as_owner(ACCEPT_PAUSES)
    await pause.result()
    cancelled = await subscriptions.cancel(subscription)
    assert cancelled is not None
    assert cancelled.state == "cancelled"


async def test_a_row_that_is_refused_once_is_no_alert(
    subscriptions: SubscriptionFixture, metrics: WorkerMetrics
) -> None:
    """A row that a concurrent transaction wrote first: the repeated activity finds it."""
    await subscriptions.top_up(600)
    subscription = await subscriptions.create_active_subscription("starter")
    await subscriptions.execute_as_owner(
        "CREATE FUNCTION refuse_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF nextval('refusals') = 1 THEN RAISE EXCEPTION 'taken' USING ERRCODE = 'unique_violation'; END IF;"
        " RETURN NEW; END $$"
    )
    await subscriptions.execute_as_owner("CREATE SEQUENCE refusals")
    await subscriptions.execute_as_owner("GRANT USAGE ON refusals TO berth_worker")
    await subscriptions.execute_as_owner(
        "CREATE TRIGGER refuse_once BEFORE UPDATE OF status ON subscriptions FOR EACH ROW"
        " EXECUTE FUNCTION refuse_once()"
    )
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    await subscriptions.wait_for_status(subscription, "paused")
    labels = {"activity": "subscriptions.change_status", "sqlstate": "23505", "constraint": "refuse_once"}
    assert metrics.registry.get_sample_value("berth_activity_refused_rows_total", labels) == 1
    assert await _alerts(subscriptions) == []
