"""Attempts of cluster activities: their heartbeats, what one hands to the next, and when the last one has failed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.adapters.kubernetes.errors import ClusterError
from activities.adapters.kubernetes.readiness import ReadinessProgress
from activities.service_templates.manifests import InvalidTemplate
from workflows.errors import to_application_error
from workflows.rules.errors import RuleViolation
from workflows.rules.instance import FailureReason

HEARTBEAT_SECONDS = 3.0


def _first_attempt_started() -> datetime:
    """Return when the first attempt started, later by the time that the other attempts waited in the task queue.

    Each attempt hands it to the next one with its heartbeats. An attempt that receives none counts as the first.
    """
    info = activity.info()
    if info.attempt == 1 or not info.heartbeat_details:
        return info.started_time
    time_in_queue = info.started_time - info.current_attempt_scheduled_time
    return datetime.fromisoformat(info.heartbeat_details[0]) + time_in_queue


def _retry_delay(error: ClusterError) -> timedelta | None:
    """Return the delay that the cluster requests, but no less than that of the retry policy; None leaves it to that.

    The delay replaces that of the policy: an overloaded API server, which requests one second, would use up the
    attempts before the cluster is given up.
    """
    info = activity.info()
    if error.retry_after is None or info.retry_policy is None:
        return None
    policy, requested = info.retry_policy, timedelta(seconds=error.retry_after)
    delay = policy.initial_interval * policy.backoff_coefficient ** min(info.attempt - 1, 20)
    return max(requested, delay if policy.maximum_interval is None else min(delay, policy.maximum_interval))


@asynccontextmanager
async def heartbeating(
    *, give_up_after: timedelta | None = None, progress: ReadinessProgress | None = None
) -> AsyncIterator[None]:
    """Send heartbeats during the block, and raise its errors as ``ApplicationError``.

    The heartbeats let the server notice a dead worker and deliver a cancellation.

    Args:
        give_up_after: How long after the start of the first attempt an error of the cluster is still retried; time
            in the task queue does not count. None retries it until the activity's own timeout.
        progress: Handed to the next attempt with the heartbeats.
    """
    first_started = _first_attempt_started()

    def send_heartbeat() -> None:
        activity.heartbeat(first_started.isoformat(), *([] if progress is None else [progress.to_heartbeat()]))

    async def beat() -> None:
        while True:
            send_heartbeat()
            await asyncio.sleep(HEARTBEAT_SECONDS)

    heartbeat_task = asyncio.create_task(beat())
    try:
        yield
    except ClusterError as error:
        send_heartbeat()
        age = activity.info().started_time - first_started
        is_last_attempt = give_up_after is not None and age >= give_up_after
        raise ApplicationError(
            error.message,
            type=error.reason,
            non_retryable=error.is_permanent or is_last_attempt,
            next_retry_delay=_retry_delay(error),
        ) from error
    except RuleViolation as violation:
        raise to_application_error(violation) from violation
    except InvalidTemplate as error:
        raise ApplicationError(str(error), type=FailureReason.INVALID, non_retryable=True) from error
    finally:
        heartbeat_task.cancel()
