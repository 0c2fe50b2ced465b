"""Work that may take days: it continues after its update was answered, or beside the instance's operations."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

from temporalio import workflow
from temporalio.exceptions import FailureError

from workflows import policies


class BoundedTasks:
    """Tasks that run in the background, and may outlive the updates that have started them.

    Args:
        notify_failed: Called when a task failed with a bug; wakes the loop that calls ``raise_failure``.
    """

    def __init__(self, notify_failed: Callable[[], None]) -> None:
        self._notify_failed = notify_failed
        self._unfinished: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    @property
    def has_unfinished(self) -> bool:
        return bool(self._unfinished)

    async def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work``, which may await a payment for days, and return after ``UPDATE_ANSWERED_WITHIN`` at the latest.

        Unfinished work continues in the background. Raises what ``work`` raises before.
        """
        task = self.start(work)
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(task.done, timeout=policies.UPDATE_ANSWERED_WITHIN)
        if task.done():
            task.result()

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` in the background; the subscription's run does not end before it."""
        task = asyncio.create_task(work)
        self._unfinished.add(task)
        task.add_done_callback(self._record_finished)
        return task

    def raise_failure(self) -> None:
        """Raise the bug that a task ended with, if any: it fails the workflow task, as it would in a handler."""
        if self._failure is not None:
            raise self._failure

    def _record_finished(self, task: asyncio.Task[None]) -> None:
        self._unfinished.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, FailureError):
            workflow.logger.info("work in the background failed: %s", error)
        elif error is not None:
            self._failure = error
            self._notify_failed()
