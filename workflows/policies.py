"""Named time limits and retries. Call sites choose a name, never a number."""

from __future__ import annotations

from datetime import timedelta
from typing import TypedDict

from temporalio.common import RetryPolicy


class Policy(TypedDict, total=False):
    start_to_close_timeout: timedelta
    schedule_to_close_timeout: timedelta
    heartbeat_timeout: timedelta
    retry_policy: RetryPolicy


class LocalPolicy(TypedDict):
    start_to_close_timeout: timedelta
    retry_policy: RetryPolicy


DATABASE = Policy(
    start_to_close_timeout=timedelta(seconds=10),
    retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=200), maximum_interval=timedelta(seconds=10)),
)
"""One transaction. Retried for ever: the order is durable, so the database only has to come back."""

DATABASE_LOCAL = LocalPolicy(
    start_to_close_timeout=timedelta(seconds=10),
    retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=200), maximum_interval=timedelta(seconds=10)),
)
"""The same as a local activity, for steps that are not worth a round trip of their own."""

GATEWAY = Policy(
    start_to_close_timeout=timedelta(seconds=20),
    schedule_to_close_timeout=timedelta(minutes=30),
    retry_policy=RetryPolicy(
        initial_interval=timedelta(seconds=1), maximum_interval=timedelta(minutes=1), maximum_attempts=8
    ),
)
"""A call to a payment gateway, always with the same idempotency key; afterwards its outcome is unknown, not failed."""

CLUSTER = Policy(
    start_to_close_timeout=timedelta(minutes=2),
    heartbeat_timeout=timedelta(seconds=15),
    retry_policy=RetryPolicy(
        initial_interval=timedelta(milliseconds=500), maximum_interval=timedelta(seconds=15), maximum_attempts=12
    ),
)
"""Applying or deleting objects. Bounded: an order gives up and undoes rather than waiting for ever."""

CLUSTER_APPLY = Policy(
    start_to_close_timeout=timedelta(minutes=2),
    schedule_to_close_timeout=timedelta(minutes=40),
    heartbeat_timeout=timedelta(seconds=15),
    retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=500), maximum_interval=timedelta(seconds=10)),
)
"""Making an order's objects. The activity gives up by itself once its patience with the cluster is over."""

CLUSTER_WAIT = Policy(
    start_to_close_timeout=timedelta(minutes=40),
    heartbeat_timeout=timedelta(seconds=15),
    retry_policy=RetryPolicy(
        initial_interval=timedelta(milliseconds=500), maximum_interval=timedelta(seconds=15), maximum_attempts=8
    ),
)
"""Watching until something is ready. The activity has limits of its own (patience, the service's longest start)."""

CLUSTER_CLEANUP = Policy(
    start_to_close_timeout=timedelta(minutes=5),
    heartbeat_timeout=timedelta(seconds=15),
    retry_policy=RetryPolicy(
        initial_interval=timedelta(seconds=1), maximum_interval=timedelta(minutes=1), maximum_attempts=4
    ),
)
"""Undoing. When it fails too, the instance is ``cleanup_pending`` and the next round goes on."""

MAIL = Policy(
    start_to_close_timeout=timedelta(minutes=2),
    heartbeat_timeout=timedelta(seconds=5),
    retry_policy=RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=10)),
)
"""Draining the outbox; each delivery keeps its own backoff in its row.

The heartbeat's limit is how long mails wait after a worker was killed. Two drains at once do no harm.
"""

HEARD_WITHIN = timedelta(seconds=1.5)
"""How long an order waits for the one before it to end; less than callers wait for an answer."""

DRAIN_FOR = timedelta(seconds=55)
"""How long one drain keeps polling."""


def away_pause(times: int) -> timedelta:
    """How long the dispatcher waits after the mail server was away ``times`` times in a row: 0.5 s doubling to 10 s."""
    return min(timedelta(milliseconds=250) * (1 << min(times, 10)), timedelta(seconds=10))


RENDER = Policy(
    start_to_close_timeout=timedelta(seconds=15),
    schedule_to_close_timeout=timedelta(minutes=10),
    retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=200), maximum_interval=timedelta(seconds=10)),
)
"""Composing a document from the database."""

SWEEP = Policy(
    start_to_close_timeout=timedelta(hours=1),
    heartbeat_timeout=timedelta(seconds=15),
    retry_policy=RetryPolicy(
        initial_interval=timedelta(seconds=5), maximum_interval=timedelta(minutes=1), maximum_attempts=3
    ),
)
"""Removing what nobody owns. The schedule comes again, so a sweep that fails is given up soon."""

AUDIT = Policy(
    start_to_close_timeout=timedelta(minutes=5),
    retry_policy=RetryPolicy(
        initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=30), maximum_attempts=10
    ),
)
"""Reading across accounts. The schedule comes again here as well."""
