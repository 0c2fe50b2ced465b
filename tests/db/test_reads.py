"""Prepared reads: what they may see, and what becomes of their connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

import psycopg
import pytest
import pytest_asyncio
from sqlalchemy import any_, bindparam, func, literal, select
from sqlalchemy.dialects.postgresql import array
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from db.models.identity import Organization
from db.reads import PreparedQuery, SessionReader, prepare, read_alone
from db.session import RlsContext, create_database_engine, session_factory
from tests.support.databases import DatabaseFixture
from tests.support.inserts import insert_organization
from tests.support.wait import wait_until

PUBLIC = RlsContext(organization_id=None, user_id=None, role=None)


class Backend(NamedTuple):
    pid: int
    organization: str


class Identifier(NamedTuple):
    id: str


BACKEND = prepare(
    select(func.pg_backend_pid().label("pid"), func.current_setting("berth.organization", True).label("organization")),
    Backend,
)
ORGANIZATIONS = prepare(select(Organization.id), Identifier)


@pytest_asyncio.fixture
async def engine(database: DatabaseFixture) -> AsyncIterator[AsyncEngine]:
    """An engine of the API's role with one connection."""
    engine = create_database_engine(database.api_url, pool_size=1, explicit_begin=True)
    yield engine
    await engine.dispose()


async def test_a_read_sees_the_rows_of_its_context_and_leaves_none_behind(
    database: DatabaseFixture, engine: AsyncEngine
) -> None:
    mine, _ = await insert_organization(database.owner), await insert_organization(database.owner)
    context = RlsContext(organization_id=mine, user_id=None, role="USER")
    assert await read_alone(engine, context, ORGANIZATIONS, {}) == [Identifier(mine)]
    ((pid, organization),) = await read_alone(engine, context, BACKEND, {})
    assert organization == mine
    assert await read_alone(engine, PUBLIC, ORGANIZATIONS, {}) == []
    async with session_factory(engine)() as session:
        ((same_pid, remaining),) = await SessionReader(session).fetch(BACKEND, {})
    assert (same_pid, remaining) == (pid, "")


async def test_a_connection_that_the_server_closed_is_replaced(database: DatabaseFixture, engine: AsyncEngine) -> None:
    ((pid, _),) = await read_alone(engine, PUBLIC, BACKEND, {})
    with psycopg.connect(database.superuser_dsn()) as superuser:
        superuser.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    ((other_pid, _),) = await read_alone(engine, PUBLIC, BACKEND, {})
    assert other_pid != pid


async def test_a_failed_read_raises_the_error_of_sqlalchemy_and_the_connection_serves_the_next(
    engine: AsyncEngine,
) -> None:
    failing: PreparedQuery[Identifier] = prepare(select((literal(1) / bindparam("by")).label("id")), Identifier)
    ((pid, _),) = await read_alone(engine, PUBLIC, BACKEND, {})
    with pytest.raises(DBAPIError) as refused:
        await read_alone(engine, PUBLIC, failing, {"by": 0})
    assert isinstance(refused.value.orig, psycopg.errors.DivisionByZero)
    ((same_pid, _),) = await read_alone(engine, PUBLIC, BACKEND, {})
    assert same_pid == pid


async def test_an_interrupted_read_does_not_return_its_connection(
    database: DatabaseFixture, engine: AsyncEngine
) -> None:
    sleeping = prepare(select(func.pg_sleep(bindparam("seconds")).label("id")), Identifier)
    ((pid, _),) = await read_alone(engine, PUBLIC, BACKEND, {})
    reading = asyncio.create_task(read_alone(engine, PUBLIC, sleeping, {"seconds": 3600.0}))
    with psycopg.connect(database.superuser_dsn(), autocommit=True) as superuser:

        def is_sleeping() -> bool:
            return bool(
                superuser.execute(
                    "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
                ).fetchall()
            )

        await wait_until(is_sleeping, description="the read")
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    ((other_pid, _),) = await read_alone(engine, PUBLIC, BACKEND, {})
    assert other_pid != pid


def test_a_query_is_prepared_only_if_its_columns_and_its_text_are_certain() -> None:
    with pytest.raises(ValueError, match="has the fields"):
        prepare(select(Organization.name), Identifier)
    with pytest.raises(ValueError, match="any_"):
        prepare(select(Organization.id).where(Organization.id.in_(["org_1"])), Identifier)
    assert prepare(select(Organization.id).where(Organization.id == any_(array(["org_1"]))), Identifier).constants
