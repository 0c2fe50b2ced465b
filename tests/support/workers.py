"""Workers of tests: the named workflows in the product's sandbox, and every activity of the given objects."""

from __future__ import annotations

from typing import Any

from temporalio.worker import Worker

from tests.support.temporal import TemporalFixture
from worker.registry import activity_methods
from worker.workflow_runner import sandboxed_runner


def build_worker(
    temporal: TemporalFixture, queue: str, *owners: object, workflows: list[type] | None = None, **options: Any
) -> Worker:
    """Return a worker that polls ``queue``.

    Args:
        owners: Objects whose activities it runs, of the product or fakes.
        options: Further arguments of `temporalio.worker.Worker`.
    """
    return Worker(
        temporal.client,
        task_queue=queue,
        workflows=workflows or [],
        workflow_runner=sandboxed_runner("tests"),
        activities=[method for owner in owners for method in activity_methods(owner)],
        **options,
    )
