"""Row-level security: a query without WHERE returns only the organization's rows, in every tenant table."""

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
from db.queries import audit, identity
from db.session import session_factory, set_rls_context
from tests.support.databases import DatabaseFixture

assert db.models.__doc__  # imported for its tables

# Tables without an owner: public catalogue and counters of the platform.
PUBLIC = {
    "services", "plans", "prices", "coupons", "invoice_number_sequences", "alembic_version", "installation",
    "schema_migrations",
}  # fmt: skip
# Opaque ids of revoked sessions: the API reads all of them for every caller.
SHARED = {"revoked_sessions"}
# What only the API reads and writes.
NOT_OF_THE_WORKER = {"user_sessions", "refresh_tokens", "one_time_tokens", "revoked_sessions", "idempotency_records"}
# Webhooks of gateways: visible to the route that verifies their signature, to no organization.
WEBHOOK_TABLES = {"webhook_events"}

PLAIN_VALUES = {
    "text": "'x{n}'", "bigint": "{n}", "integer": "{n}", "smallint": "{n}", "boolean": "false",
    "jsonb": "'{{}}'::jsonb",
    "timestamp with time zone": "now()", "bytea": "'x{n}'::bytea", "date": "current_date", "numeric": "{n}",
}  # fmt: skip


def names(connection: psycopg.Connection[Any], query: str) -> set[str]:
    return {row[0] for row in connection.execute(query.encode())}


def insert_row(connection: psycopg.Connection[Any], table: str, organization: str, user: str, n: int) -> None:
    """Insert a row of the organization with a placeholder in every column. Constraints and triggers must be off."""
    columns = connection.execute(
        "SELECT column_name, data_type FROM information_schema.columns WHERE table_schema = 'public'"
        " AND table_name = %s AND is_generated = 'NEVER' AND identity_generation IS NULL",
        [table],
    ).fetchall()
    values: dict[str, sql.Composable] = {}
    for name, kind in columns:
        if name == "organization_id" or (table, name) in {("organizations", "id"), ("audit_chain_heads", "chain")}:
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
def tables(database: DatabaseFixture) -> set[str]:
    with psycopg.connect(database.superuser_dsn()) as connection:
        return names(connection, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")


@pytest.fixture
def tenant_tables(database: DatabaseFixture, tables: set[str]) -> set[str]:
    """Insert a row of two organizations into every tenant table. Return those tables."""
    tenants = tables - PUBLIC
    with psycopg.connect(database.superuser_dsn()) as connection:
        # Foreign keys and triggers are off and checks are dropped: the database is dropped after the test.
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
            insert_row(connection, table, "org_ada", "usr_ada", 1)
            insert_row(connection, table, "org_eve", "usr_eve", 2)
    return tenants


async def select_all(engine: AsyncEngine, table: str, **who: str | None) -> list[dict[str, Any]]:
    """Return every row that a SELECT without WHERE sees."""
    async with session_factory(engine).begin() as session:
        if who:
            await set_rls_context(session, **{"organization_id": None, "user_id": None, "role": None} | who)
        selected = await session.execute(text(f'SELECT * FROM "{table}"'))
        return [dict(row) for row in selected.mappings()]


def test_every_table_of_an_organization_forces_row_level_security(database: DatabaseFixture, tables: set[str]) -> None:
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
async def test_a_select_without_where_returns_only_the_organizations_rows(
    database: DatabaseFixture, tenant_tables: set[str]
) -> None:
    for table in sorted(WEBHOOK_TABLES):
        assert await select_all(database.api, table, organization_id="org_ada", user_id="usr_ada", role="USER") == []
    for table in sorted(tenant_tables - SHARED - WEBHOOK_TABLES):
        rows = await select_all(database.api, table, organization_id="org_ada", user_id="usr_ada", role="USER")
        assert len(rows) == 1, table
        (row,) = rows
        owner = {value for name, value in row.items() if value in ("org_ada", "usr_ada", "org_eve", "usr_eve")}
        assert owner, table
        assert owner <= {"org_ada", "usr_ada"}, table


@pytest.mark.scenario("S1")
async def test_a_session_without_rls_context_reads_and_changes_no_row(
    database: DatabaseFixture, tenant_tables: set[str]
) -> None:
    for table in sorted(tenant_tables - SHARED):
        assert await select_all(database.api, table) == [], table
        assert await select_all(database.api, table, organization_id="", user_id="", role="") == [], table
        assert await select_all(database.api, table, organization_id="org_nobody", user_id="usr_nobody") == [], table
    for table in sorted(tenant_tables):
        async with session_factory(database.api)() as session:
            try:
                done = await session.execute(text(f'DELETE FROM "{table}"'))
            except DBAPIError as error:
                outcome = getattr(error.orig, "sqlstate", None)
            else:
                outcome = getattr(done, "rowcount", None)
        # Not permitted, append-only, or permitted and nothing there.
        assert outcome in ("42501", "23001", 0), table


async def test_an_administrator_and_the_worker_see_all(database: DatabaseFixture, tenant_tables: set[str]) -> None:
    for table in sorted(tenant_tables - {"notifications"}):
        rows = await select_all(database.api, table, organization_id="org_root", role="ADMINISTRATOR")
        assert len(rows) == 2, table
        if table not in NOT_OF_THE_WORKER:
            assert len(await select_all(database.worker, table)) == 2, table
    for role in ("USER", "NODE_OPERATOR", "DASHBOARD_OPERATOR", "administrator"):
        assert await select_all(database.api, "subscriptions", organization_id="org_root", role=role) == []


async def test_rows_cannot_be_written_into_another_organization(
    database: DatabaseFixture, tenant_tables: set[str]
) -> None:
    statements = (
        "INSERT INTO memberships (organization_id, user_id, role, created_at)"
        " VALUES ('org_eve', 'usr_eve2', 'owner', now())",
        "INSERT INTO user_sessions (id, user_id, organization_id, created_at, last_used_at, expires_at)"
        " VALUES ('ses_9', 'usr_eve', 'org_eve', now(), now(), now())",
        "INSERT INTO idempotency_records (organization_id, route, key, request_hash, claim_id, claimed_until)"
        " VALUES ('org_eve', 'r', 'k', 'h', 'c', now())",
        "INSERT INTO audit_log (organization_id, actor, action, at) VALUES ('org_eve', 'me', 'it', now())",
        "UPDATE user_sessions SET user_id = 'usr_eve'",
    )  # fmt: skip
    for statement in statements:
        async with session_factory(database.api)() as session:
            await set_rls_context(session, organization_id="org_ada", user_id="usr_ada", role="USER")
            with pytest.raises(DBAPIError) as refused:
                await session.execute(text(statement))
            assert getattr(refused.value.orig, "sqlstate", None) == "42501", statement


@pytest.mark.scenario("S1")
async def test_a_user_cannot_join_an_organization_by_inserting_a_membership(
    database: DatabaseFixture, tenant_tables: set[str]
) -> None:
    insert = "INSERT INTO memberships (organization_id, user_id, role, created_at) VALUES ('{}', '{}', '{}', now())"
    create = "SELECT identity_create_organization('{}', '{}', 'Mine', 'USD', NULL, 'UTC', now())"
    # SQLSTATE of the rejection: not permitted, or the organization exists already.
    attempts = [
        *((insert.format("org_eve", "usr_ada", role), "42501") for role in ("owner", "admin", "billing", "member")),
        (insert.format("org_ada", "usr_eve", "owner"), "42501"),
        (insert.format("org_new", "usr_ada", "owner"), "42501"),
        (create.format("org_eve", "usr_ada"), "23505"),
        (create.format("org_new", "usr_eve"), "42501"),
        ("UPDATE memberships SET organization_id = 'org_eve'", "42501"),
        ("DELETE FROM memberships", "42501"),
        (
            "INSERT INTO organizations (id, name, currency, timezone, created_at, updated_at)"
            " VALUES ('org_ada2', 'Mine', 'USD', 'UTC', now(), now())",
            "42501",
        ),
    ]
    for role in ("USER", "ADMINISTRATOR"):
        for statement, sqlstate in attempts:
            async with session_factory(database.api)() as session:
                await set_rls_context(session, organization_id="org_ada", user_id="usr_ada", role=role)
                with pytest.raises(DBAPIError) as refused:
                    await session.execute(text(statement))
                assert getattr(refused.value.orig, "sqlstate", None) == sqlstate, (role, statement)
    with psycopg.connect(database.superuser_dsn()) as connection:
        members = connection.execute("SELECT organization_id, user_id FROM memberships ORDER BY 1").fetchall()
    assert members == [("org_ada", "usr_ada"), ("org_eve", "usr_eve")]


async def test_a_new_organization_has_the_user_of_the_transaction_as_its_owner(database: DatabaseFixture) -> None:
    async with session_factory(database.api).begin() as session:
        await set_rls_context(session, organization_id="org_new", user_id="usr_new", role="USER")
        await session.execute(
            text(
                "INSERT INTO users (id, email, name, password_hash, password_changed_at, created_at, updated_at)"
                " VALUES ('usr_new', 'new@example.com', 'New', 'h', now(), now(), now())"
            )
        )
        await session.execute(
            text("SELECT identity_create_organization('org_new', 'usr_new', 'New', 'USD', NULL, 'UTC', now())")
        )
    (row,) = await select_all(database.worker, "memberships")
    assert (row["organization_id"], row["user_id"], row["role"]) == ("org_new", "usr_new", "owner")


@pytest.mark.scenario("S8")
async def test_no_request_can_make_the_api_write_roles_currencies_or_money(database: DatabaseFixture) -> None:
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
        "UPDATE audit_chain_heads SET hash = ''",
        "DELETE FROM revoked_sessions",
        "ALTER TABLE users DISABLE ROW LEVEL SECURITY",
        "SET ROLE berth_owner",
        "CREATE TABLE mine (n int)",
    )
    for statement in statements:
        async with session_factory(database.api)() as session:
            await set_rls_context(session, organization_id="org_ada", user_id="usr_ada", role="ADMINISTRATOR")
            with pytest.raises(DBAPIError) as refused:
                await session.execute(text(statement))
            assert getattr(refused.value.orig, "sqlstate", None) == "42501", statement


async def test_a_pooled_connection_carries_nothing_over(database: DatabaseFixture, tenant_tables: set[str]) -> None:
    sessions = session_factory(database.api)
    async with sessions.begin() as session:
        first = await session.scalar(text("SELECT pg_backend_pid()"))
        await set_rls_context(session, organization_id="org_ada", user_id="usr_ada", role="ADMINISTRATOR")
        assert await session.scalar(text("SELECT count(*) FROM organizations")) == 2
    async with sessions() as session:
        assert await session.scalar(text("SELECT pg_backend_pid()")) == first
        assert await session.scalar(text("SELECT count(*) FROM organizations")) == 0
        await session.rollback()


async def test_concurrent_organizations_see_only_their_rows(database: DatabaseFixture, tenant_tables: set[str]) -> None:
    async def list_organization_ids(name: str) -> set[str]:
        rows = await select_all(database.api, "organizations", organization_id=f"org_{name}", role="USER")
        return {row["id"] for row in rows}

    organization_ids = await asyncio.gather(*(list_organization_ids(name) for name in ("ada", "eve") * 20))
    assert organization_ids == [{"org_ada"}, {"org_eve"}] * 20


def test_security_definer_functions_have_a_fixed_search_path_and_no_public_grant(database: DatabaseFixture) -> None:
    with psycopg.connect(database.superuser_dsn()) as connection:
        definers = connection.execute(
            "SELECT p.proname, p.proconfig, has_function_privilege('public', p.oid, 'EXECUTE'), r.rolname"
            " FROM pg_proc p JOIN pg_roles r ON r.oid = p.proowner"
            " WHERE p.pronamespace = 'public'::regnamespace AND p.prosecdef"
        ).fetchall()
        roles = connection.execute(
            "SELECT rolname FROM pg_roles WHERE rolname LIKE 'berth%' AND (rolsuper OR rolbypassrls)"
        ).fetchall()
    functions = {name: (config, public, owner) for name, config, public, owner in definers}
    assert {
        "auth_find_credentials",
        "auth_find_refresh_token",
        "auth_consume_one_time_token",
        "auth_delete_expired",
        "audit_append_to_chain",
    } <= set(functions)
    for name, (config, public, owner) in functions.items():
        assert config, name
        assert any(setting.startswith("search_path=pg_catalog") for setting in config), name
        assert not public, name
        assert owner == "berth_owner", name
    assert roles == []


async def test_functions_before_sign_in_need_the_exact_secret(
    database: DatabaseFixture, tenant_tables: set[str]
) -> None:
    async with session_factory(database.api).begin() as session:
        for guess in ("%", "x_", "", "' OR true --"):
            assert await identity.find_credentials(session, guess) is None
            assert await identity.find_refresh_token(session, guess) is None
        credentials = await identity.find_credentials(session, "X1")
        assert credentials is not None
        assert credentials.user_id == "usr_ada"
        # The function returned the credentials; the table itself stays invisible.
        assert await session.scalar(text("SELECT count(*) FROM users")) == 0


async def append_audit_entry(database: DatabaseFixture, organization: str, action: str) -> None:
    async with session_factory(database.api).begin() as session:
        await set_rls_context(session, organization_id=organization, user_id="usr_1", role="USER")
        at = await session.scalar(text("SELECT now()"))
        await audit.append_audit_entry(
            session, organization_id=organization, actor="usr_1", action=action, at=at, after={"amount": 1}
        )


def verify_chain(database: DatabaseFixture) -> list[tuple[str, int, str]]:
    with psycopg.connect(database.superuser_dsn()) as connection:
        return [tuple(row) for row in connection.execute("SELECT * FROM audit_verify_chain() ORDER BY 1, 2, 3")]


def tamper(database: DatabaseFixture, statement: str) -> None:
    """Change the audit log as a superuser can."""
    with psycopg.connect(database.superuser_dsn()) as connection:
        connection.execute("ALTER TABLE audit_log DISABLE TRIGGER append_only")
        connection.execute(statement.encode())
        connection.execute("ALTER TABLE audit_log ENABLE TRIGGER append_only")


@pytest.mark.scenario("S14")
async def test_the_audit_log_is_append_only_and_shows_tampering(database: DatabaseFixture) -> None:
    await asyncio.gather(
        *(append_audit_entry(database, "org_ada", f"act{n}") for n in range(5)),
        append_audit_entry(database, "org_eve", "x"),
    )
    assert verify_chain(database) == []
    for engine in (database.owner, database.worker):
        for statement in ("UPDATE audit_log SET actor = 'x'", "DELETE FROM audit_log", "TRUNCATE audit_log"):
            with pytest.raises(DBAPIError):
                async with engine.begin() as connection:
                    await connection.execute(text(statement))

    original = "UPDATE audit_log SET actor = '{}' WHERE organization_id = 'org_ada' AND sequence = 3"
    tamper(database, original.format("usr_other"))
    assert verify_chain(database) == [("org_ada", 3, "edited")]
    tamper(database, original.format("usr_1"))
    assert verify_chain(database) == []
    tamper(database, """UPDATE audit_log SET after = '{"amount": 2}' WHERE organization_id = 'org_eve'""")
    assert verify_chain(database) == [("org_eve", 1, "edited")]
    tamper(database, """UPDATE audit_log SET after = '{"amount": 1}' WHERE organization_id = 'org_eve'""")
    # A row rewritten with its own hash breaks the one that follows.
    tamper(
        database,
        "UPDATE audit_log a SET actor = 'x', hash = (SELECT audit_hash(b) FROM"
        " (SELECT * FROM audit_log WHERE organization_id = 'org_ada' AND sequence = 2) AS b)"
        " WHERE organization_id = 'org_ada' AND sequence = 2",
    )
    assert ("org_ada", 2, "edited") in verify_chain(database)
    tamper(database, "UPDATE audit_log a SET hash = audit_hash(a) WHERE organization_id = 'org_ada' AND sequence = 2")
    assert verify_chain(database) == [("org_ada", 3, "broken_link")]
    tamper(database, "DELETE FROM audit_log WHERE organization_id = 'org_eve'")
    assert ("org_eve", 1, "truncated") in verify_chain(database)
