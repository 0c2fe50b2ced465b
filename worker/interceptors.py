"""What is recorded of each activity: a log line, metrics, and its failure. Never its contents."""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
import structlog
from sqlalchemy.exc import DBAPIError
from temporalio import activity
from temporalio.exceptions import ApplicationError, is_cancelled_exception
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from db.errors import describe_database_error
from worker.metrics import WorkerMetrics
from workflows.errors import ORDINARY_ACTIVITY_REQUIRED
from workflows.rules.errors import ErrorCode

log = structlog.get_logger(__name__)

ROOT = Path(__file__).resolve().parents[1]
LOGGED_FRAMES = 4
COMPLETED, REJECTED, FAILED, CANCELLED = "done", "refused", "failed", "cancelled"


class ActivityMetricsInterceptor(Interceptor):
    """Watches every activity of the workers that it is given to."""

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._metrics = metrics

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _MeteredActivity(next, self._metrics)


class _MeteredActivity(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, metrics: WorkerMetrics) -> None:
        super().__init__(next)
        self._metrics = metrics

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        info = activity.info()
        started_at, outcome = time.perf_counter(), COMPLETED
        waited = (info.started_time - info.current_attempt_scheduled_time).total_seconds()
        with structlog.contextvars.bound_contextvars(
            activity=info.activity_type,
            workflow_id=info.workflow_id,
            run_id=info.workflow_run_id,
            attempt=info.attempt,
            account=organization_id_of(input.args),
        ):
            try:
                return await super().execute_activity(input)
            except BaseException as error:
                outcome = classify_outcome(error)
                if outcome == FAILED:
                    log.warning("activity.failed", error=error_name(error), where=product_frames(error))
                reported = without_database_values(error)
                if reported is not error:
                    # The history keeps the cause of what is raised: the original must not be one.
                    raise reported.with_traceback(error.__traceback__) from None
                raise
            finally:
                seconds = time.perf_counter() - started_at
                self._metrics.record_activity(info.activity_type, info.task_queue, outcome, seconds, waited)
                log.info("activity", outcome=outcome, seconds=round(seconds, 4))


def classify_outcome(error: BaseException) -> str:
    """``refused``: a rule rejected the command, which is a result. ``failed``: the attempt is retried, or a bug."""
    if is_cancelled_exception(error) or not isinstance(error, Exception):
        return CANCELLED
    rejections = (*ErrorCode.__members__, ORDINARY_ACTIVITY_REQUIRED)
    refused = isinstance(error, ApplicationError) and error.type in rejections
    return REJECTED if refused else FAILED


def error_name(error: BaseException) -> str:
    """Return the name of an error's type: its message may contain personal data."""
    kind = error.type if isinstance(error, ApplicationError) and error.type else type(error).__name__
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    return f"{kind} {state}" if state else kind


def without_database_values(error: BaseException) -> BaseException:
    """Return the error as a workflow's history may keep it: without the values that a database's message quotes.

    An error of the database is replaced by one with the same type name, so that it is retried in the same way. One
    that only caused ``error`` is replaced there.
    """
    if isinstance(error, DBAPIError | psycopg.Error):
        return ApplicationError(describe_database_error(error), type=type(error).__name__)
    if error.__cause__ is not None:
        error.__cause__ = without_database_values(error.__cause__)
    return error


def product_frames(error: BaseException) -> list[str]:
    """Return the last of our own lines that the error passed, innermost last."""
    frames = traceback.extract_tb(error.__traceback__)
    own_frames = [
        frame for frame in frames if frame.filename.startswith(str(ROOT)) and "site-packages" not in frame.filename
    ]
    return [
        f"{Path(frame.filename).relative_to(ROOT)}:{frame.lineno} {frame.name}" for frame in own_frames[-LOGGED_FRAMES:]
    ]


def organization_id_of(arguments: Sequence[Any]) -> str | None:
    """Return the organization id of a command or of one of its fields, None when there is none."""
    for command in arguments[:1]:
        inner = (
            [getattr(command, field.name) for field in dataclasses.fields(command)]
            if _is_dataclass_instance(command)
            else []
        )
        for candidate in (command, *inner):
            organization_id = getattr(candidate, "organization_id", None)
            if isinstance(organization_id, str):
                return organization_id
    return None


def _is_dataclass_instance(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
