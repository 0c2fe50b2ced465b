"""Rows that a constraint or trigger of the schema refuses: counted, logged, reported to the operators, retried slowly.

Most activities of the database are retried for ever, and hold the locks of their workflow meanwhile. An outage ends
by itself, a refused row does not: it needs a release that writes another one. The workflow waits for that release.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError
from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from api.outages import describe_outage
from db.errors import SchemaRejection, describe_database_error, find_schema_rejection
from db.queries import outbox
from db.queries.outbox import OutboxNotification
from db.session import SessionFactory
from worker.metrics import WorkerMetrics

log = structlog.get_logger(__name__)

LONGEST_RETRY_INTERVAL = timedelta(minutes=5)
"""How long a workflow waits at most after the release that lets its activity succeed."""

FIRST_RETRY_INTERVAL = timedelta(seconds=5)

ALERT_INTERVAL = timedelta(minutes=10)
"""One alert about the same constraint and activity per process: a release that writes wrong rows does so for every
subscription. The next alert names the next workflow."""


class RefusedRowsInterceptor(Interceptor):
    """Watches every activity of the workers that it is given to; it belongs inside of the metrics' interceptor.

    Args:
        sessions: Writes the alerts, each in a transaction after the one that was rolled back.
        longest_retry_interval: Between two attempts of an activity that is retried for ever.
    """

    def __init__(
        self,
        sessions: SessionFactory,
        metrics: WorkerMetrics,
        longest_retry_interval: timedelta = LONGEST_RETRY_INTERVAL,
    ) -> None:
        self._sessions = sessions
        self._metrics = metrics
        self._longest_retry_interval = longest_retry_interval
        self._alerted_at: dict[tuple[str, SchemaRejection], float] = {}

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _WatchedActivity(next, self)

    async def report(self, rejection: SchemaRejection) -> None:
        """Count and log a refused row; alert the operators once the activity's repetition was refused as well.

        The first attempt may have met a row that another transaction wrote at the same time. A local activity is
        repeated as an ordinary one.
        """
        info = activity.info()
        self._metrics.record_refused_row(info.activity_type, rejection)
        log.error("activity.row_refused", **rejection._asdict())
        limit = info.retry_policy.maximum_attempts if info.retry_policy is not None else 0
        if info.is_local or (info.attempt == 1 and limit != 1):
            return
        cause = (info.activity_type, rejection)
        if time.monotonic() - self._alerted_at.get(cause, float("-inf")) < ALERT_INTERVAL.total_seconds():
            return
        try:
            async with self._sessions.begin() as session:
                alert = _build_alert(_facts(rejection))
                if await outbox.is_enqueued(session, alert):
                    return
                await outbox.enqueue(session, alert)
        except (SQLAlchemyError, OSError) as error:
            # The next attempt reports it.
            log.warning("activity.alert_failed", **describe_outage(error))
            return
        self._alerted_at[cause] = time.monotonic()

    async def resolve(self) -> None:
        """Report that a repeated activity succeeded, if the operators were alerted of it."""
        info = activity.info()
        if info.is_local or info.attempt == 1:
            return
        try:
            async with self._sessions.begin() as session:
                if await outbox.is_enqueued(session, _build_alert("")):
                    await outbox.enqueue(session, _build_resolution())
                    log.info("activity.row_accepted")
        except (SQLAlchemyError, OSError) as error:
            log.warning("activity.alert_failed", **describe_outage(error))

    def retry_delay(self) -> timedelta | None:
        """Return the pause before the next attempt; None where attempts are limited, and after the first attempt."""
        info = activity.info()
        is_limited = info.retry_policy is None or info.retry_policy.maximum_attempts > 0
        if info.is_local or is_limited or info.attempt == 1:
            return None
        return min(FIRST_RETRY_INTERVAL * (1 << min(info.attempt - 2, 10)), self._longest_retry_interval)


class _WatchedActivity(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, rows: RefusedRowsInterceptor) -> None:
        super().__init__(next)
        self._rows = rows

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        try:
            result = await super().execute_activity(input)
        except Exception as error:
            rejection = find_schema_rejection(error)
            if rejection is None:
                raise
            await self._rows.report(rejection)
            raise ApplicationError(
                describe_database_error(error),  # type: ignore[arg-type]
                type=type(error).__name__,
                next_retry_delay=self._rows.retry_delay(),
            ).with_traceback(error.__traceback__) from None
        await self._rows.resolve()
        return result


def _facts(rejection: SchemaRejection) -> str:
    facts: Mapping[str, str] = {
        key.replace("sqlstate", "SQLSTATE"): value for key, value in rejection._asdict().items()
    }
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value)


def _build_alert(facts: str) -> OutboxNotification:
    """Build the alert of the current activity; its id does not depend on ``facts``."""
    info = activity.info()
    return outbox.build_operator_alert(
        _dedup_key(),
        info.current_attempt_scheduled_time,
        "The database refuses a row",
        f"The activity {info.activity_type} of the workflow {info.workflow_id} failed at attempt {info.attempt}:"
        f" {facts}. Its transaction was rolled back and is repeated, at least every"
        f" {int(LONGEST_RETRY_INTERVAL.total_seconds() // 60)} minutes; until it succeeds, the workflow waits and other"
        " commands that would change the same state are answered with CONFLICT. Repetitions alone do not help: deploy a"
        " correction (the workflow then goes on by itself). Others that fail in the same way are in the log"
        " (activity.row_refused) and counted by berth_activity_refused_rows_total.",
        severity="critical",
        workflow_id=info.workflow_id or "",
    )


def _build_resolution() -> OutboxNotification:
    info = activity.info()
    return outbox.build_operator_alert(
        f"{_dedup_key()}/resolved",
        info.current_attempt_scheduled_time,
        "The database accepts the row again",
        f"The activity {info.activity_type} of the workflow {info.workflow_id} succeeded at attempt {info.attempt}. The"
        " workflow goes on. No action is needed.",
        severity="warning",
        workflow_id=info.workflow_id or "",
    )


def _dedup_key() -> str:
    info = activity.info()
    return f"refused-row/{info.workflow_id}/{info.workflow_run_id}/{info.activity_id}"
