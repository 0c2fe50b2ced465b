"""Attempts of cluster activities: their heartbeats, what one hands to the next, and when the last one has failed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from temporalio import activity
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError

from activities.adapters.kubernetes.errors import ClusterError
from activities.adapters.kubernetes.readiness import ReadinessProgress
from activities.service_templates.manifests import InvalidTemplate
from db.errors import is_database_unavailable
from workflows.errors import to_application_error
from workflows.rules.errors import RuleViolation
from workflows.rules.instance import FailureReason

HEARTBEAT_SECONDS = 3.0
MAX_UNEXPECTED_ERRORS = 5
"""Attempts that may fail for a cause that no wait ends, such as a fault of this code. The attempts of the retry policy
are for outages of the cluster and of the database."""


@dataclass(slots=True, kw_only=True)
class _AttemptSeries:
    """The attempts of one activity so far.

    Attributes:
        age: For how long the earlier attempts have tried, with the pauses of the retry policy between them. Neither the
            task queue nor an outage of Temporal adds to it: nothing is asked of the cluster meanwhile.
        unexpected_errors: How many attempts failed for a cause other than the cluster or the database.
        requested_pause: The pause that this attempt asks for before the next; None leaves it to the retry policy.
    """

    age: timedelta = timedelta()
    unexpected_errors: int = 0
    requested_pause: timedelta | None = None
    _started: float = field(default_factory=time.monotonic)

    @classmethod
    def continued(cls) -> _AttemptSeries:
        """Return what the previous attempt handed over with its heartbeats; one that receives nothing is the first."""
        info = activity.info()
        handed_over = info.heartbeat_details[0] if info.heartbeat_details else None
        # A worker of an earlier release hands over a time of its clock.
        if info.attempt == 1 or not isinstance(handed_over, dict):
            return cls()
        # A worker of an earlier release hands over no pause.
        requested_pause = handed_over.get("requested_pause_seconds")
        if requested_pause is not None:
            pause = timedelta(seconds=requested_pause)
        else:
            pause = timedelta() if info.retry_policy is None else _backoff(info.retry_policy, info.attempt - 1)
        age = timedelta(seconds=handed_over["age_seconds"]) + pause
        return cls(age=age, unexpected_errors=handed_over["unexpected_errors"])

    def to_heartbeat(self) -> dict[str, Any]:
        age_seconds = self.age.total_seconds() + time.monotonic() - self._started
        pause = self.requested_pause
        return {
            "age_seconds": age_seconds,
            "unexpected_errors": self.unexpected_errors,
            "requested_pause_seconds": None if pause is None else pause.total_seconds(),
        }


def _backoff(policy: RetryPolicy, failures: int) -> timedelta:
    """Return the pause of the retry policy after so many failed attempts."""
    delay = policy.initial_interval * policy.backoff_coefficient ** min(failures - 1, 20)
    return delay if policy.maximum_interval is None else min(delay, policy.maximum_interval)


def _retry_delay(error: ClusterError) -> timedelta | None:
    """Return the delay that the cluster requests, but no less than that of the retry policy; None leaves it to that.

    The delay replaces that of the policy: an overloaded API server, which requests one second, would use up the
    attempts before the cluster is given up.
    """
    info = activity.info()
    if error.retry_after is None or info.retry_policy is None:
        return None
    return max(timedelta(seconds=error.retry_after), _backoff(info.retry_policy, info.attempt))


@asynccontextmanager
async def cluster_attempt(
    *, give_up_after: timedelta | None = None, progress: ReadinessProgress | None = None
) -> AsyncIterator[None]:
    """Run the block as one attempt of an activity: send heartbeats, and raise its errors as ``ApplicationError``.

    The heartbeats let the server notice a dead worker and deliver a cancellation.

    Args:
        give_up_after: For how long attempts that the cluster fails are followed by another; only the time of attempts
            and of the pauses between them counts. None retries until the activity's own limits.
        progress: Handed to the next attempt with the heartbeats.
    """
    series = _AttemptSeries.continued()

    def send_heartbeat() -> None:
        activity.heartbeat(series.to_heartbeat(), *([] if progress is None else [progress.to_heartbeat()]))

    async def beat() -> None:
        while True:
            send_heartbeat()
            await asyncio.sleep(HEARTBEAT_SECONDS)

    heartbeat_task = asyncio.create_task(beat())
    try:
        yield
    except ClusterError as error:
        series.requested_pause = _retry_delay(error)
        send_heartbeat()
        is_last_attempt = give_up_after is not None and series.age >= give_up_after
        raise ApplicationError(
            error.message,
            type=error.reason,
            non_retryable=error.is_permanent or is_last_attempt,
            next_retry_delay=series.requested_pause,
        ) from error
    except RuleViolation as violation:
        raise to_application_error(violation) from violation
    except InvalidTemplate as error:
        raise ApplicationError(str(error), type=FailureReason.INVALID, non_retryable=True) from error
    except Exception as error:
        if is_database_unavailable(error):
            raise
        series.unexpected_errors += 1
        send_heartbeat()
        if series.unexpected_errors < MAX_UNEXPECTED_ERRORS:
            raise
        # Not the error's own message: it may quote values.
        kind = type(error).__name__
        raise ApplicationError(f"Unexpected error: {kind}.", type=kind, non_retryable=True) from error
    finally:
        heartbeat_task.cancel()
