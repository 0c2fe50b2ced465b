"""What is seen of each activity: a line in the log with everything to find it by, and figures. Never its contents."""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog
from temporalio import activity
from temporalio.exceptions import ApplicationError, is_cancelled_exception
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from worker.metrics import Metrics
from workflows.rules.errors import Refusal

log = structlog.get_logger(__name__)

ROOT = Path(__file__).resolve().parents[1]
FRAMES = 4
DONE, REFUSED, FAILED, CANCELLED = "done", "refused", "failed", "cancelled"


class Sight(Interceptor):
    """Watches every activity of the workers that it is given to."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Watched(next, self._metrics)


class _Watched(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, metrics: Metrics) -> None:
        super().__init__(next)
        self._metrics = metrics

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        info = activity.info()
        begun, outcome = time.perf_counter(), DONE
        waited = (info.started_time - info.current_attempt_scheduled_time).total_seconds()
        with structlog.contextvars.bound_contextvars(
            activity=info.activity_type,
            workflow_id=info.workflow_id,
            run_id=info.workflow_run_id,
            attempt=info.attempt,
            account=account(input.args),
        ):
            try:
                return await super().execute_activity(input)
            except BaseException as error:
                outcome = outcome_of(error)
                if outcome == FAILED:
                    log.warning("activity.failed", error=name_of(error), where=where(error))
                raise
            finally:
                seconds = time.perf_counter() - begun
                self._metrics.activity(info.activity_type, info.task_queue, outcome, seconds, waited)
                log.info("activity", outcome=outcome, seconds=round(seconds, 4))


def outcome_of(error: BaseException) -> str:
    """``refused`` is a rule's no, which is an answer; ``failed`` is tried again, or somebody's fault."""
    if is_cancelled_exception(error) or not isinstance(error, Exception):
        return CANCELLED
    refused = isinstance(error, ApplicationError) and error.type in Refusal.__members__
    return REFUSED if refused else FAILED


def name_of(error: BaseException) -> str:
    """What an error is called: its text may hold somebody's words."""
    kind = error.type if isinstance(error, ApplicationError) and error.type else type(error).__name__
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    return f"{kind} {state}" if state else kind


def where(error: BaseException) -> list[str]:
    """Return the last of our own lines that the error passed, innermost last."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(str(ROOT)) and "site-packages" not in frame.filename]
    return [f"{Path(frame.filename).relative_to(ROOT)}:{frame.lineno} {frame.name}" for frame in ours[-FRAMES:]]


def account(arguments: Sequence[Any]) -> str | None:
    """Return the organisation that a command names, itself or one level below."""
    for command in arguments[:1]:
        inner = [getattr(command, one.name) for one in dataclasses.fields(command)] if _is_plain(command) else []
        for candidate in (command, *inner):
            found = getattr(candidate, "organization_id", None)
            if isinstance(found, str):
                return found
    return None


def _is_plain(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
