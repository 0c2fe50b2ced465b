"""A transaction whose BEGIN is sent with its first query ends as any other, and so does the next on its connection."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from db.driver import DriverStatement, begin_and_fetch_one, fetch_one
from db.session import create_database_engine, session_factory
from tests.support.databases import DatabaseFixture

LOCKED = DriverStatement("SELECT pg_advisory_xact_lock(7), pg_backend_pid() AS pid", {})
HELD = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"


class _Aborted(Exception):
    pass


@pytest.mark.parametrize("fails", [False, True])
async def test_the_transaction_and_the_next_one_on_its_connection_end(database: DatabaseFixture, fails: bool) -> None:
    engine = create_database_engine(database.worker_url, pool_size=1, pre_ping=False)
    sessions = session_factory(engine)

    async def end(session: AsyncSession) -> None:
        assert await session.scalar(text(HELD)) == 1, "the lock ended with its statement: there is no transaction"
        if fails:
            raise _Aborted

    try:
        pids = set()
        for begin in (begin_and_fetch_one, fetch_one, begin_and_fetch_one):
            try:
                async with sessions.begin() as session:
                    row = await begin(session, LOCKED)
                    assert row is not None
                    pids.add(row["pid"])
                    await end(session)
            except _Aborted:
                assert fails
            async with sessions.begin() as session:
                assert await session.scalar(text(HELD)) == 0, "the transaction did not end"
        assert len(pids) == 1
    finally:
        await engine.dispose()
