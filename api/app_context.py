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

    def detach_hanging_work(self, work: asyncio.Future[Any], session: AsyncSession | None = None) -> None:
        """Leave work that hangs to end by itself: a connection that hangs cannot be closed in time either.

        ``session`` is closed after it.
        """
        work.cancel()
        self._track(_close_after(work, session))

    def _track(self, ending: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(ending)
        self._detached_tasks.add(task)
        task.add_done_callback(self._detached_tasks.discard)

    async def cancel_detached(self) -> None:
        """Cancel the detached tasks at the end of the process."""
        for task in tuple(self._detached_tasks):
            task.cancel()
        await asyncio.gather(*self._detached_tasks, return_exceptions=True)


async def _close_after(work: asyncio.Future[Any], session: AsyncSession | None) -> None:
    await asyncio.wait({work})
    if not work.cancelled() and (error := work.exception()) is not None:
        log.warning("database.hung_connection_ended", error=type(error).__name__)
    if session is None:
        return
    try:
        await session.close()
    except (SQLAlchemyError, OSError) as error:
        log.warning("database.hung_connection_close_failed", error=type(error).__name__)
