"""What the application holds: engines, clients and keepers, made once per process."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from api.metrics import ApiMetrics
from api.outages import describe_outage
from api.passwords import PasswordHasher
from api.ratelimit import RateLimiter
from api.revocations import RevocationCache
from api.settings import ApiSettings
from api.tokens import AccessTokens
from db.session import SessionFactory
from workflows.client import WorkflowClient

log = structlog.get_logger("api.app_context")


@dataclass(frozen=True, slots=True, kw_only=True)
class AppContext:
    settings: ApiSettings
    engine: AsyncEngine
    sessions: SessionFactory
    workflows: WorkflowClient
    tokens: AccessTokens
    passwords: PasswordHasher
    revocations: RevocationCache
    rate_limits: RateLimiter
    metrics: ApiMetrics
    _detached_tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _tasks_after_responses: set[asyncio.Task[None]] = field(default_factory=set)

    def detach_hanging_work(self, work: asyncio.Future[Any], session: AsyncSession | None = None) -> None:
        """Leave work that hangs to end by itself: a connection that hangs cannot be closed in time either.

        ``session`` is closed after it.
        """
        work.cancel()
        _start(_close_after(work, session), self._detached_tasks)

    def run_after_response(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin work that the client need not wait for, and that may fail: it is logged. The process ends after it."""
        _start(_log_failure(work), self._tasks_after_responses)

    async def wait_for_tasks_after_responses(self) -> None:
        """Wait for the work that ``run_after_response`` began; for what hangs, as long as the database may take."""
        if self._tasks_after_responses:
            await asyncio.wait(self._tasks_after_responses, timeout=2 * self.settings.database_timeout_seconds)

    async def cancel_detached(self) -> None:
        """Cancel the detached tasks at the end of the process."""
        for task in tuple(self._detached_tasks):
            task.cancel()
        await asyncio.gather(*self._detached_tasks, return_exceptions=True)


def _start(work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
    task = asyncio.create_task(work)
    # The event loop holds no reference to it.
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def _log_failure(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception as error:  # noqa: BLE001 - the client has its response; nothing else would report it.
        log.warning("response.not_stored", error=type(error).__name__)


async def _close_after(work: asyncio.Future[Any], session: AsyncSession | None) -> None:
    await asyncio.wait({work})
    if not work.cancelled() and (error := work.exception()) is not None:
        log.warning("database.hung_connection_ended", **describe_outage(error))
    if session is None:
        return
    try:
        await session.close()
    except (SQLAlchemyError, OSError) as error:
        log.warning("database.hung_connection_close_failed", **describe_outage(error))
