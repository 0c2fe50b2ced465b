"""The hash of an audit entry covers what was written, whatever columns are added later."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import psycopg
import pytest_asyncio

from db.queries import audit
from db.session import session_factory, set_rls_context
from tests.support.databases import DatabaseFixture

CHANGES = {
    "id": "DEFAULT",
    "organization_id": "'org_other'",
    "actor": "'other'",
    "action": "'other'",
    "object_id": "'other'",
    "before": """'{"other": 1}'""",
    "after": "NULL",
    "reason": "'other'",
    "ip": "NULL",
    "request_id": "'other'",
    "at": "at + interval '1 microsecond'",
    "sequence": "sequence + 1",
    "previous_hash": "'other'",
    "hash": "'other'",
}


@pytest_asyncio.fixture
async def connection(database: DatabaseFixture) -> AsyncIterator[psycopg.Connection]:
    async with session_factory(database.api).begin() as session:
        await set_rls_context(session, organization_id="org_ada", user_id="usr_ada", role="USER")
        await audit.append_audit_entry(
            session,
            organization_id="org_ada",
            actor="usr_ada",
            action="something.done",
            at=datetime(2027, 1, 31, tzinfo=UTC),
            object="obj_1",
            before={"amount": 1},
            after={"amount": 2},
            reason="because",
            ip="127.0.0.1",
            request_id="req_1",
        )
    with psycopg.connect(database.superuser_dsn()) as connection:
        connection.execute("ALTER TABLE audit_log DISABLE TRIGGER append_only")
        yield connection


def faults(connection: psycopg.Connection) -> set[str]:
    return {fault for (fault,) in connection.execute("SELECT fault FROM audit_verify_chain()")}


def test_a_change_of_any_column_is_an_edit(connection: psycopg.Connection) -> None:
    columns = connection.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'audit_log'"
    ).fetchall()
    assert {name for (name,) in columns} == set(CHANGES)
    assert faults(connection) == set()
    for column, value in CHANGES.items():
        with connection.transaction(force_rollback=True):
            connection.execute(f"UPDATE audit_log SET {column} = {value}".encode())
            assert "edited" in faults(connection), column


def test_a_column_that_is_added_leaves_the_chain_as_it_was(connection: psycopg.Connection) -> None:
    connection.execute("ALTER TABLE audit_log ADD COLUMN session_id text")
    assert faults(connection) == set()
