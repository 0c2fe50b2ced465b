"""Named time limits and retries. Call sites choose a name, never a number."""

from __future__ import annotations

from datetime import timedelta
from typing import TypedDict

from temporalio.common import RetryPolicy, WorkflowIDReusePolicy
from temporalio.workflow import ActivityCancellationType

TAKE_OVER = WorkflowIDReusePolicy.TERMINATE_IF_RUNNING
"""A child workflow under an id that only a lost run of its parent can have started: that one is terminated, and the new
one goes on from what its activities recorded. The server knows no other way to await a workflow of another run."""


class ActivityOptions(TypedDict, total=False):
    start_to_close_timeout: timedelta
    schedule_to_close_timeout: timedelta
    heartbeat_timeout: timedelta
    retry_policy: RetryPolicy
    cancellation_type: ActivityCancellationType


class LocalActivityOptions(TypedDict):
    start_to_close_timeout: timedelta
    schedule_to_close_timeout: timedelta
    retry_policy: RetryPolicy


DATABASE = ActivityOptions(
    start_to_close_timeout=timedelta(seconds=10),
    retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=200), maximum_interval=timedelta(seconds=10)),
)
"""One transaction. Retried for ever: the order is durable, so the database only has to come back."""

DATABASE_LOCAL = LocalActivityOptions(
    start_to_close_timeout=timedelta(seconds=5),
    schedule_to_close_timeout=timedelta(seconds=10),
    retry_policy=RetryPolicy(
        initial_interval=timedelta(milliseconds=200), maximum_interval=timedelta(seconds=1), maximum_attempts=3
    ),
)
"""The same as a local activity, tried three times. A local activity occupies its workflow task while it is retried, so
only ``local_first.execute`` uses this: it goes on with the ordinary activity."""

GATEWAY = ActivityOptions(
    start_to_close_timeout=timedelta(seconds=20),
    schedule_to_close_timeout=timedelta(minutes=30),
    retry_policy=RetryPolicy(
        initial_interval=timedelta(seconds=1), maximum_interval=timedelta(minutes=1), maximum_attempts=8
    ),
)
"""A call to a payment gateway, always with the same idempotency key; afterwards its outcome is unknown, not failed."""

CLUSTER_CALL = ActivityOptions(
    start_to_close_timeout=timedelta(minutes=2),
    heartbeat_timeout=timedelta(seconds=15),
    retry_policy=RetryPolicy(
        initial_interval=timedelta(milliseconds=500), maximum_interval=timedelta(seconds=10), maximum_attempts=300
    ),
    cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
)
"""Applying or scaling objects. The activity itself gives up once the cluster has failed for too long, and soon on an
error that no wait ends; attempts bound one that hangs, and an outage of the database. No limit from schedule to close:
it would run while the activity waits for a worker. A cancelled workflow goes on when the activity has ended, with its
next heartbeat or its result: what undoes it must not run beside it. ``cancellation.raise_if_cancelled`` comes after."""

CLUSTER_WAIT = ActivityOptions(
    start_to_close_timeout=timedelta(minutes=40),
    heartbeat_timeout=timedelta(seconds=15),
    retry_policy=RetryPolicy(
        initial_interval=timedelta(milliseconds=500), maximum_interval=timedelta(seconds=15), maximum_attempts=200
    ),
)
"""Waiting for readiness or for a backup. The activity ends by itself: when a failure reason has persisted, when the
start takes too long, or when the backup's Job has finished. Attempts bound an outage of the cluster's API or of the
database, which says nothing of the instance: 200 attempts with their pauses last at least 48 minutes. A cancelled
workflow does not await it: it changes no object that a rollback deletes."""

CLUSTER_CLEANUP = ActivityOptions(
    start_to_close_timeout=timedelta(minutes=5),
    heartbeat_timeout=timedelta(seconds=15),
    retry_policy=RetryPolicy(
        initial_interval=timedelta(seconds=1), maximum_interval=timedelta(minutes=1), maximum_attempts=4
    ),
    cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
)
"""Undoing. When it fails too, the instance is ``cleanup_pending`` and the next round goes on."""

NOTIFICATION_DRAIN = ActivityOptions(
    start_to_close_timeout=timedelta(minutes=2),
    heartbeat_timeout=timedelta(seconds=5),
    retry_policy=RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=10)),
)
"""Draining the outbox; each delivery keeps its own backoff in its row.

The heartbeat's limit is how long mails wait after a worker was killed. Two drains at once do no harm.
"""

PREVIOUS_UPDATE_WAIT = timedelta(seconds=1.5)
"""How long an order waits for the one before it to end; less than callers wait for an answer."""

UPDATE_ANSWERED_WITHIN = timedelta(seconds=10)
"""How long an update waits for the payment that it started. The payment goes on afterwards; the update is answered, so
that updates in flight stay below the server's limit (10 per workflow) and do not block continue-as-new."""

CONTINUE_AS_NEW_EVENTS = 36
"""History events after which a subscription continues as new at its next period start: every sixth one, since a renewal
adds 6. The new run costs some 20 ms once, replaying an evicted run 0.2 ms per event at each renewal: their sum is the
least at about six (`make bench`, "a year old" and "a year old, evicted")."""

DRAIN_DURATION = timedelta(seconds=55)
"""How long one drain keeps polling."""


def mail_outage_backoff(consecutive_outages: int) -> timedelta:
    """Return the wait after ``consecutive_outages`` failures of the mail server in a row: 0.5 s doubling to 10 s."""
    return _exponential_backoff(timedelta(milliseconds=500), timedelta(seconds=10), consecutive_outages)


def operation_backoff(consecutive_failures: int) -> timedelta:
    """Return the wait before the platform repeats an operation on an instance: 2 min doubling to 1 h."""
    return _exponential_backoff(timedelta(minutes=2), timedelta(hours=1), consecutive_failures)


def deletion_backoff(consecutive_failures: int) -> timedelta:
    """Return the wait before a blocked deletion is tried again: 15 s doubling to 10 min."""
    return _exponential_backoff(timedelta(seconds=15), timedelta(minutes=10), consecutive_failures)


def _exponential_backoff(initial: timedelta, maximum: timedelta, consecutive_failures: int) -> timedelta:
    return min(initial * (1 << min(consecutive_failures - 1, 10)), maximum)


RENDER_DOCUMENT = ActivityOptions(
    start_to_close_timeout=timedelta(seconds=15),
    schedule_to_close_timeout=timedelta(minutes=10),
    retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=200), maximum_interval=timedelta(seconds=10)),
)
"""Composing a document from the database."""

ORPHAN_CLEANUP = ActivityOptions(
    start_to_close_timeout=timedelta(hours=1),
    heartbeat_timeout=timedelta(seconds=15),
    retry_policy=RetryPolicy(
        initial_interval=timedelta(seconds=5), maximum_interval=timedelta(minutes=1), maximum_attempts=3
    ),
)
"""Removing orphaned objects. The schedule runs it again, so that few attempts suffice."""

RECONCILIATION = ActivityOptions(
    start_to_close_timeout=timedelta(minutes=5),
    retry_policy=RetryPolicy(
        initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=30), maximum_attempts=10
    ),
)
"""Reading across accounts. The schedule comes again here as well."""
