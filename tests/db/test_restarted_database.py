"""After PostgreSQL was restarted, one of the pool's idle connections fails a statement, not each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from db.driver import DriverStatement, begin_and_fetch_one, fetch_one_alone
from db.session import create_database_engine, session_factory
from tests.support.databases import DatabaseFixture

ONE = DriverStatement("SELECT 1 AS one", {})


async def _through_sqlalchemy(session: AsyncSession) -> None:
    await session.execute(text("SELECT 1"))


async def _begin(session: AsyncSession) -> None:
    await begin_and_fetch_one(session, ONE)


async def _alone(session: AsyncSession) -> None:
    await fetch_one_alone(session, ONE)


@pytest.mark.parametrize(
    ("send", "in_block", "expected_failures"),
    [(_through_sqlalchemy, False, 1), (_begin, False, 0), (_begin, True, 1), (_alone, False, 1)],
)
async def test_one_connection_that_was_left_behind_fails_at_most(
    database: DatabaseFixture,
    send: Callable[[AsyncSession], Awaitable[None]],
    in_block: bool,
    expected_failures: int,
) -> None:
    engine = create_database_engine(database.worker_url, pool_size=16, pre_ping=False)
    sessions = session_factory(engine)
    opens = sessions.begin if in_block else sessions
    try:
        each_is_connected = asyncio.Barrier(12)

        async def occupy() -> None:
            async with sessions() as session:
                await begin_and_fetch_one(session, ONE)
                await each_is_connected.wait()

        await asyncio.gather(*(occupy() for _ in range(12)))
        with psycopg.connect(database.superuser_dsn(), autocommit=True) as operator:
            operator.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                " AND datname = current_database()"
            )
        failures = 0
        while failures < 50:
            try:
                async with opens() as session:
                    await send(session)
                break
            except DBAPIError:
                failures += 1
        assert failures == expected_failures
    finally:
        await engine.dispose()


async def test_a_statement_that_ends_its_connection_fails_and_is_not_sent_for_ever(database: DatabaseFixture) -> None:
    engine = create_database_engine(database.worker_url, pool_size=2, pre_ping=False)
    sessions = session_factory(engine)
    ends_connection = DriverStatement("SELECT pg_terminate_backend(pg_backend_pid())", {})
    try:
        async with asyncio.timeout(20), sessions() as session:
            with pytest.raises(DBAPIError):
                await begin_and_fetch_one(session, ends_connection)
    finally:
        await engine.dispose()
