"""The roles may do what the product does, and no more."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.db.test_row_level_security import NOT_OF_THE_WORKER
from tests.support.databases import DatabaseFixture

PRIVILEGES = (
    "SELECT table_name, privilege_type FROM information_schema.role_table_grants WHERE grantee = %s"
    " AND table_schema = 'public'"
)
FUNCTIONS = (
    "SELECT p.proname FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace"
    " AND p.prorettype <> 'trigger'::regtype AND has_function_privilege(%s, p.oid, 'EXECUTE')"
    " AND NOT has_function_privilege('public', p.oid, 'EXECUTE')"
)


@pytest.fixture
def connection(database: DatabaseFixture) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database.superuser_dsn()) as connection:
        yield connection


def tables_with(connection: psycopg.Connection, role: str, privilege: str) -> set[str]:
    return {table for table, granted in connection.execute(PRIVILEGES, (role,)) if granted == privilege}


def test_the_worker_deletes_nothing_but_credentials(connection: psycopg.Connection) -> None:
    assert tables_with(connection, "berth_worker", "DELETE") == {"instance_credentials"}


def test_the_worker_reads_no_sign_ins_and_writes_no_accounts(connection: psycopg.Connection) -> None:
    readable = tables_with(connection, "berth_worker", "SELECT")
    assert not readable & NOT_OF_THE_WORKER
    assert {"users", "organizations", "memberships"} <= readable
    written = tables_with(connection, "berth_worker", "INSERT") | tables_with(connection, "berth_worker", "UPDATE")
    assert not written & {"users", "organizations", "memberships", "schema_migrations", *NOT_OF_THE_WORKER}


def test_the_api_deletes_nothing(connection: psycopg.Connection) -> None:
    assert tables_with(connection, "berth_api", "DELETE") == set()
    for role in ("berth_api", "berth_worker"):
        assert tables_with(connection, role, "TRUNCATE") == set()


def test_functions_that_read_past_row_level_security_are_the_apis_alone(connection: psycopg.Connection) -> None:
    granted = {
        role: {name for (name,) in connection.execute(FUNCTIONS, (role,))} for role in ("berth_api", "berth_worker")
    }
    assert granted["berth_worker"] == set()
    assert granted["berth_api"] == {
        "auth_find_credentials",
        "auth_find_refresh_token",
        "auth_consume_one_time_token",
        "auth_delete_expired",
        "identity_create_organization",
        "idempotency_claim_key",
        "idempotency_store_response",
    }
