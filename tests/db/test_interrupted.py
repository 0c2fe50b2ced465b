"""A task that is cancelled in the middle of a statement leaves no connection that answers the next one wrongly."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from db.driver import DriverStatement, begin_and_fetch_one, execute_together, fetch_one
from db.session import create_database_engine, session_factory
from tests.support.databases import DatabaseFixture
from tests.support.wait import wait_until

LOCK = "SELECT pg_advisory_xact_lock(7)"
WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


async def _fetch(session: AsyncSession) -> None:
    await fetch_one(session, DriverStatement(LOCK, {}))


async def _execute(session: AsyncSession) -> None:
    await execute_together(session, DriverStatement("SELECT 1", {}), DriverStatement(LOCK, {}), commit=True)


async def _begin_and_fetch(session: AsyncSession) -> None:
    await begin_and_fetch_one(session, DriverStatement(LOCK, {}))


@pytest.mark.parametrize("send", [_fetch, _execute, _begin_and_fetch])
async def test_a_connection_that_was_interrupted_is_not_used_again(
    database: DatabaseFixture, send: Callable[[AsyncSession], Awaitable[None]]
) -> None:
    engine = create_database_engine(database.worker_url, pool_size=1, pre_ping=False)
    sessions = session_factory(engine)
    try:
        with psycopg.connect(database.superuser_dsn()) as holder:
            holder.execute(LOCK)

            async def work() -> None:
                async with sessions() as session:
                    await send(session)

            task = asyncio.create_task(work())

            def waits() -> bool:
                row = holder.execute(WAITING).fetchone()
                return row is not None and row[0] == 1

            await wait_until(waits, description="the statement waits for the lock")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            for number in range(3):
                async with sessions.begin() as session:
                    assert await session.scalar(text("SELECT CAST(:number AS int)"), {"number": number}) == number
                    row = await fetch_one(session, DriverStatement("SELECT %(number)s AS n", {"number": number}))
                    assert row == {"n": number}
            assert holder.execute(WAITING).fetchone() == (0,), "the interrupted statement still waits"
    finally:
        await engine.dispose()
