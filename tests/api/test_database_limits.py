"""What the API's connections and its expiry function may do to others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from api.revocations import PURGE_BATCH_SIZE, RevocationCache
from db.queries import identity
from db.session import SessionFactory, create_database_engine, session_factory
from tests.support.api import ApiFixture, serve_api, settings
from tests.support.databases import DatabaseFixture
from tests.support.inserts import insert_organization, insert_user


@pytest.mark.parametrize(("seconds", "idle", "statement"), [(10.0, "10s", "8s"), (2.5, "2500ms", "2500ms")])
async def test_an_abandoned_transaction_ends_with_the_limit_of_a_request(
    database: DatabaseFixture, seconds: float, idle: str, statement: str
) -> None:
    async with (
        serve_api(settings(database.api_url, request_timeout_seconds=seconds), database.superuser_dsn()) as api,
        api.context.sessions() as session,
    ):
        assert await session.scalar(text("SHOW idle_in_transaction_session_timeout")) == idle
        assert await session.scalar(text("SHOW statement_timeout")) == statement


@pytest_asyncio.fixture
async def sessions(database: DatabaseFixture) -> AsyncIterator[SessionFactory]:
    """Sessions as the API opens them, without the API: it deletes what has expired by itself."""
    engine = create_database_engine(database.api_url, pool_size=1, explicit_begin=True)
    yield session_factory(engine)
    await engine.dispose()


def query(database: DatabaseFixture, statement: str, *values: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(database.superuser_dsn()) as connection:
        cursor = connection.execute(statement.encode(), values)
        return cursor.fetchall() if cursor.description else []


def insert_revocations(database: DatabaseFixture, count: int, expires_at: datetime) -> None:
    query(
        database,
        "INSERT INTO revoked_sessions (session_id, revoked_at, expires_at)"
        " SELECT %s || n, now(), %s FROM generate_series(1, %s) AS n",
        *(f"{expires_at.isoformat()}/", expires_at, count),
    )


def count_revocations(database: DatabaseFixture) -> int:
    ((count,),) = query(database, "SELECT count(*) FROM revoked_sessions")
    return int(count)


async def test_what_has_expired_is_deleted_in_batches_and_nothing_else(
    database: DatabaseFixture, sessions: SessionFactory
) -> None:
    now = datetime.now(UTC)
    user_id, organization_id = await insert_user(database.owner), await insert_organization(database.owner)
    insert_revocations(database, 5, now - timedelta(minutes=1))
    insert_revocations(database, 2, now + timedelta(minutes=1))
    for days in (29, 31):
        query(
            database,
            "INSERT INTO user_sessions (id, user_id, organization_id, created_at, last_used_at, expires_at)"
            " VALUES (%s, %s, %s, now(), now(), %s)",
            *(f"ses_{days}", user_id, organization_id, now - timedelta(days=days)),
        )
    remaining = []
    async with sessions() as session:
        while await identity.delete_expired(session, batch_size=2):
            remaining.append(count_revocations(database))
    assert remaining == [5, 3]
    assert count_revocations(database) == 2
    assert query(database, "SELECT id FROM user_sessions") == [("ses_29",)]


async def test_a_backlog_is_deleted_batch_after_batch(database: DatabaseFixture, sessions: SessionFactory) -> None:
    cache = RevocationCache(sessions, every=3600)
    insert_revocations(database, 2 * PURGE_BATCH_SIZE + 1, datetime.now(UTC) - timedelta(minutes=1))
    remaining = []
    for _ in range(4):
        await cache.purge()
        remaining.append(count_revocations(database))
    assert remaining == [PURGE_BATCH_SIZE + 1, 1, 0, 0]


async def test_a_refresh_token_belongs_to_the_user_of_its_session(api: ApiFixture, database: DatabaseFixture) -> None:
    ada, eve = await api.register_verified_user(), await api.register_verified_user()
    (session_row,) = api.query_as_superuser("SELECT id FROM user_sessions WHERE user_id = %s", ada.user_id)

    async def add(session: AsyncSession, user_id: str) -> None:
        now = datetime.now(UTC)
        await identity.add_refresh_token(
            session, f"hash of {user_id}", session_id=session_row["id"], user_id=user_id, at=now, expires_at=now
        )

    async with session_factory(database.owner).begin() as session:
        await add(session, ada.user_id)
    with pytest.raises(IntegrityError, match="fk_refresh_tokens_session"):
        async with session_factory(database.owner).begin() as session:
            await add(session, eve.user_id)
