"""What the application holds: engines, clients and keepers, made once per process."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import structlog
from fastapi import Request
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from api.metrics import Metrics
from api.passwords import Passwords
from api.ratelimit import RateLimits
from api.revocations import Revocations
from api.settings import Settings
from api.tokens import Tokens
from db.session import Sessions
from workflows.client import Orchestrator

log = structlog.get_logger("api.context")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    settings: Settings
    sessions: Sessions
    orchestrator: Orchestrator
    tokens: Tokens
    passwords: Passwords
    revocations: Revocations
    rate_limits: RateLimits
    metrics: Metrics
    _left: set[asyncio.Task[None]] = field(default_factory=set)

    def abandon(self, work: asyncio.Future[Any], session: AsyncSession) -> None:
        """Leave work that hangs to end by itself: a connection that hangs cannot be closed in time either."""
        work.cancel()
        self._keep(_close_after(work, session))

    def _keep(self, ending: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(ending)
        self._left.add(task)
        task.add_done_callback(self._left.discard)

    async def forget_abandoned(self) -> None:
        """At the end of the process nobody waits for them any more."""
        for task in tuple(self._left):
            task.cancel()
        await asyncio.gather(*self._left, return_exceptions=True)


async def _close_after(work: asyncio.Future[Any], session: AsyncSession) -> None:
    await asyncio.wait({work})
    if not work.cancelled() and (error := work.exception()) is not None:
        log.warning("a connection that hung has ended", error=type(error).__name__)
    try:
        await session.close()
    except (SQLAlchemyError, OSError) as error:
        log.warning("a connection that hung was not closed", error=type(error).__name__)


def context(request: Request) -> Context:
    found: Context = request.app.state.context
    return found
