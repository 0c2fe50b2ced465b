"""A forgotten WHERE leaks nothing: the database itself shows an account its own rows, in every tenant's table."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

import db.models
from db.base import Base
from db.queries import identity
from db.session import act_as, session_factory
from tests.support.databases import Database

assert db.models.__doc__  # imported for its tables

# Tables that belong to nobody: what everybody may read, and what the platform counts.
PUBLIC = {"services", "plans", "prices", "coupons", "invoice_series", "alembic_version"}
# Of no account, and the API reads all of it whoever asks: opaque ids of ended sessions.
SHARED = {"revoked_tokens"}
# What gateways told us: seen by the route that has checked their signature, by no account.
INBOX = {"webhook_events"}

PLAIN_VALUES = {
    "text": "'x{n}'", "bigint": "{n}", "integer": "{n}", "boolean": "false", "jsonb": "'{{}}'::jsonb",
    "timestamp with time zone": "now()", "bytea": "'x{n}'::bytea", "date": "current_date", "numeric": "{n}",
}  # fmt: skip


def names(connection: psycopg.Connection[Any], query: str) -> set[str]:
    return {row[0] for row in connection.execute(query.encode())}


def fill(connection: psycopg.Connection[Any], table: str, organization: str, user: str, n: int) -> None:
    """One row of this account, whatever the table demands. Rules other than row-level security are off."""
    columns = connection.execute(
        "SELECT column_name, data_type FROM information_schema.columns WHERE table_schema = 'public'"
        " AND table_name = %s AND is_generated = 'NEVER' AND identity_generation IS NULL",
        [table],
    ).fetchall()
    values: dict[str, sql.Composable] = {}
    for name, kind in columns:
        if name == "organization_id" or (table, name) in {("organizations", "id"), ("audit_heads", "chain")}:
            values[name] = sql.Literal(organization)
        elif name == "user_id" or (table, name) == ("users", "id"):
            values[name] = sql.Literal(user)
        else:
            values[name] = sql.SQL(PLAIN_VALUES[kind].format(n=n))
    connection.execute(
        sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, values)),
            sql.SQL(", ").join(values.values()),
        )
    )


@pytest.fixture
def tables(database: Database) -> set[str]:
    with psycopg.connect(database.superuser_dsn()) as connection:
        return names(connection, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")


@pytest.fixture
def filled(database: Database, tables: set[str]) -> set[str]:
    """Two accounts with a row in every tenant's table each; returns those tables."""
    tenants = tables - PUBLIC
    with psycopg.connect(database.superuser_dsn()) as connection:
        # Foreign keys and triggers rest; checks are dropped: this database is thrown away.
        connection.execute("SET session_replication_role = replica")
        checks = connection.execute(
            "SELECT conrelid::regclass::text, conname FROM pg_constraint WHERE contype = 'c'"
            " AND connamespace = 'public'::regnamespace"
        ).fetchall()
        for table, name in checks:
            connection.execute(
                sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(sql.Identifier(table), sql.Identifier(name))
            )
        for table in sorted(tenants):
            fill(connection, table, "org_ada", "usr_ada", 1)
            fill(connection, table, "org_eve", "usr_eve", 2)
    return tenants


async def everything(engine: AsyncEngine, table: str, **who: str | None) -> list[dict[str, Any]]:
    """SELECT without WHERE."""
    async with session_factory(engine).begin() as session:
        if who:
            await act_as(session, **{"organization_id": None, "user_id": None, "role": None} | who)
        found = await session.execute(text(f'SELECT * FROM "{table}"'))
        return [dict(row) for row in found.mappings()]


def test_every_table_says_whose_it_is_and_is_protected(database: Database, tables: set[str]) -> None:
    with psycopg.connect(database.superuser_dsn()) as connection:
        forced = names(
            connection,
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
            " AND relrowsecurity AND relforcerowsecurity",
        )
        owned = names(
            connection,
            "SELECT DISTINCT table_name FROM information_schema.columns WHERE table_schema = 'public'"
            " AND column_name IN ('organization_id', 'user_id')",
        )
        views = names(connection, "SELECT viewname FROM pg_views WHERE schemaname = 'public'")
    assert tables - PUBLIC <= forced
    assert owned <= forced
    assert set(Base.metadata.tables) <= tables
    # A view would run with its owner's rights.
    assert views == set()


@pytest.mark.scenario("S1")
async def test_without_a_where_an_account_sees_its_own_rows_only(database: Database, filled: set[str]) -> None:
    for table in sorted(INBOX):
        assert await everything(database.api, table, organization_id="org_ada", user_id="usr_ada", role="USER") == []
    for table in sorted(filled - SHARED - INBOX):
        rows = await everything(database.api, table, organization_id="org_ada", user_id="usr_ada", role="USER")
        assert len(rows) == 1, table
        (row,) = rows
        owner = {value for name, value in row.items() if value in ("org_ada", "usr_ada", "org_eve", "usr_eve")}
        assert owner, table
        assert owner <= {"org_ada", "usr_ada"}, table


@pytest.mark.scenario("S1")
async def test_who_is_not_named_sees_nothing_and_changes_nothing(database: Database, filled: set[str]) -> None:
    for table in sorted(filled - SHARED):
        assert await everything(database.api, table) == [], table
        assert await everything(database.api, table, organization_id="", user_id="", role="") == [], table
        assert await everything(database.api, table, organization_id="org_nobody", user_id="usr_nobody") == [], table
    for table in sorted(filled):
        async with session_factory(database.api)() as session:
            try:
                done = await session.execute(text(f'DELETE FROM "{table}"'))
            except DBAPIError as error:
                told = getattr(error.orig, "sqlstate", None)
            else:
                told = getattr(done, "rowcount", None)
        # Not permitted, append-only, or permitted and nothing there.
        assert told in ("42501", "23001", 0), table


async def test_an_administrator_and_the_worker_see_all(database: Database, filled: set[str]) -> None:
    for table in sorted(filled - {"notifications"}):
        found = await everything(database.api, table, organization_id="org_root", role="ADMINISTRATOR")
        assert len(found) == 2, table
        assert len(await everything(database.worker, table)) == 2, table
    for role in ("USER", "NODE_OPERATOR", "DASHBOARD_OPERATOR", "administrator"):
        assert await everything(database.api, "subscriptions", organization_id="org_root", role=role) == []


async def test_rows_cannot_be_written_into_another_account(database: Database, filled: set[str]) -> None:
    statements = (
        "INSERT INTO memberships (organization_id, user_id, role, created_at)"
        " VALUES ('org_eve', 'usr_eve2', 'owner', now())",
        "INSERT INTO sessions (id, user_id, organization_id, created_at, last_used_at, expires_at)"
        " VALUES ('ses_9', 'usr_eve', 'org_eve', now(), now(), now())",
        "INSERT INTO idempotency_records (organization_id, route, key, body_hash, claim, claimed_until, expires_at)"
        " VALUES ('org_eve', 'r', 'k', 'h', 'c', now(), now())",
        "INSERT INTO audit_log (organization_id, actor, action, at) VALUES ('org_eve', 'me', 'it', now())",
        "UPDATE sessions SET user_id = 'usr_eve'",
    )  # fmt: skip
    for statement in statements:
        async with session_factory(database.api)() as session:
            await act_as(session, organization_id="org_ada", user_id="usr_ada", role="USER")
            with pytest.raises(DBAPIError) as refused:
                await session.execute(text(statement))
            assert getattr(refused.value.orig, "sqlstate", None) == "42501", statement


@pytest.mark.scenario("S8")
async def test_no_request_can_make_the_api_write_roles_currencies_or_money(database: Database) -> None:
    statements = (
        "UPDATE users SET role = 'ADMINISTRATOR'",
        "UPDATE users SET email = 'other@example.com'",
        "INSERT INTO users (id, email, name, password_hash, password_changed_at, created_at, updated_at, role)"
        " VALUES ('usr_ada', 'a@example.com', 'A', 'h', now(), now(), now(), 'ADMINISTRATOR')",
        "UPDATE organizations SET currency = 'IDR'",
        "UPDATE memberships SET role = 'owner'",
        "UPDATE subscriptions SET status = 'active'",
        "UPDATE ledger_accounts SET balance_minor = 1",
        "DELETE FROM ledger_entries",
        "UPDATE invoices SET status = 'paid'",
        "UPDATE audit_log SET actor = 'other'",
        "UPDATE audit_heads SET hash = ''",
        "DELETE FROM revoked_tokens",
        "ALTER TABLE users DISABLE ROW LEVEL SECURITY",
        "SET ROLE berth_owner",
        "CREATE TABLE mine (n int)",
    )
    for statement in statements:
        async with session_factory(database.api)() as session:
            await act_as(session, organization_id="org_ada", user_id="usr_ada", role="ADMINISTRATOR")
            with pytest.raises(DBAPIError) as refused:
                await session.execute(text(statement))
            assert getattr(refused.value.orig, "sqlstate", None) == "42501", statement


async def test_a_pooled_connection_carries_nothing_over(database: Database, filled: set[str]) -> None:
    sessions = session_factory(database.api)
    async with sessions.begin() as session:
        first = await session.scalar(text("SELECT pg_backend_pid()"))
        await act_as(session, organization_id="org_ada", user_id="usr_ada", role="ADMINISTRATOR")
        assert await session.scalar(text("SELECT count(*) FROM organizations")) == 2
    async with sessions() as session:
        assert await session.scalar(text("SELECT pg_backend_pid()")) == first
        assert await session.scalar(text("SELECT count(*) FROM organizations")) == 0
        await session.rollback()


async def test_accounts_at_the_same_time_do_not_mix(database: Database, filled: set[str]) -> None:
    async def look(name: str) -> set[str]:
        rows = await everything(database.api, "organizations", organization_id=f"org_{name}", role="USER")
        return {row["id"] for row in rows}

    found = await asyncio.gather(*(look(name) for name in ("ada", "eve") * 20))
    assert found == [{"org_ada"}, {"org_eve"}] * 20


def test_doors_for_the_nameless_are_few_and_fixed(database: Database) -> None:
    with psycopg.connect(database.superuser_dsn()) as connection:
        definers = connection.execute(
            "SELECT p.proname, p.proconfig, has_function_privilege('public', p.oid, 'EXECUTE'), r.rolname"
            " FROM pg_proc p JOIN pg_roles r ON r.oid = p.proowner"
            " WHERE p.pronamespace = 'public'::regnamespace AND p.prosecdef"
        ).fetchall()
        roles = connection.execute(
            "SELECT rolname FROM pg_roles WHERE rolname LIKE 'berth%' AND (rolsuper OR rolbypassrls)"
        ).fetchall()
    found = {name: (config, public, owner) for name, config, public, owner in definers}
    assert {"identity_sign_in", "identity_refresh", "identity_use_token", "identity_purge", "audit_chain"} <= set(found)
    for name, (config, public, owner) in found.items():
        assert config, name
        assert any(setting.startswith("search_path=pg_catalog") for setting in config), name
        assert not public, name
        assert owner == "berth_owner", name
    assert roles == []


async def test_the_doors_open_to_an_exact_secret_only(database: Database, filled: set[str]) -> None:
    async with session_factory(database.api).begin() as session:
        for guess in ("%", "x_", "", "' OR true --"):
            assert await identity.sign_in(session, guess) is None
            assert await identity.refreshed(session, guess) is None
        known = await identity.sign_in(session, "X1")
        assert known is not None
        assert known.user_id == "usr_ada"
        # It went through the door; nothing else became visible.
        assert await session.scalar(text("SELECT count(*) FROM users")) == 0


async def record(database: Database, organization: str, action: str) -> None:
    async with session_factory(database.api).begin() as session:
        await act_as(session, organization_id=organization, user_id="usr_1", role="USER")
        at = await session.scalar(text("SELECT now()"))
        await identity.record(
            session, organization_id=organization, actor="usr_1", action=action, at=at, after={"amount": 1}
        )


def faults(database: Database) -> list[tuple[str, int, str]]:
    with psycopg.connect(database.superuser_dsn()) as connection:
        return [tuple(row) for row in connection.execute("SELECT * FROM audit_faults() ORDER BY 1, 2, 3")]


def tamper(database: Database, statement: str) -> None:
    """What somebody with the keys of the database could do."""
    with psycopg.connect(database.superuser_dsn()) as connection:
        connection.execute("ALTER TABLE audit_log DISABLE TRIGGER append_only")
        connection.execute(statement.encode())
        connection.execute("ALTER TABLE audit_log ENABLE TRIGGER append_only")


@pytest.mark.scenario("S14")
async def test_the_audit_log_is_append_only_and_shows_tampering(database: Database) -> None:
    await asyncio.gather(*(record(database, "org_ada", f"act{n}") for n in range(5)), record(database, "org_eve", "x"))
    assert faults(database) == []
    for engine in (database.owner, database.worker):
        for statement in ("UPDATE audit_log SET actor = 'x'", "DELETE FROM audit_log", "TRUNCATE audit_log"):
            with pytest.raises(DBAPIError):
                async with engine.begin() as connection:
                    await connection.execute(text(statement))

    original = "UPDATE audit_log SET actor = '{}' WHERE organization_id = 'org_ada' AND sequence = 3"
    tamper(database, original.format("usr_other"))
    assert faults(database) == [("org_ada", 3, "edited")]
    tamper(database, original.format("usr_1"))
    assert faults(database) == []
    tamper(database, """UPDATE audit_log SET after = '{"amount": 2}' WHERE organization_id = 'org_eve'""")
    assert faults(database) == [("org_eve", 1, "edited")]
    tamper(database, """UPDATE audit_log SET after = '{"amount": 1}' WHERE organization_id = 'org_eve'""")
    # A row rewritten with its own hash breaks the one that follows.
    tamper(
        database,
        "UPDATE audit_log a SET actor = 'x', hash = (SELECT audit_hash(b) FROM"
        " (SELECT * FROM audit_log WHERE organization_id = 'org_ada' AND sequence = 2) AS b)"
        " WHERE organization_id = 'org_ada' AND sequence = 2",
    )
    assert ("org_ada", 2, "edited") in faults(database)
    tamper(database, "UPDATE audit_log a SET hash = audit_hash(a) WHERE organization_id = 'org_ada' AND sequence = 2")
    assert faults(database) == [("org_ada", 3, "does not follow")]
    tamper(database, "DELETE FROM audit_log WHERE organization_id = 'org_eve'")
    assert ("org_eve", 1, "end is missing") in faults(database)
