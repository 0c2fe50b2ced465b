"""The comparison of the migrated database with the models sees what Alembic's does not."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine, pool, text

from tests.checks.migrations import (
    describe_changed_objects,
    describe_drift,
    expected_objects,
    read_definitions,
    read_objects,
)
from tests.support.databases import DatabaseFixture

CHANGES = [
    ("ALTER TABLE invoices DROP CONSTRAINT ck_invoices_total", "ck_invoices_total"),
    (
        "ALTER TABLE invoices DROP CONSTRAINT ck_invoices_refunded,"
        " ADD CONSTRAINT ck_invoices_refunded CHECK (refunded_minor >= 0)",
        "ck_invoices_refunded",
    ),
    (
        "DROP INDEX uq_holds_one_open_per_subscription;"
        " CREATE UNIQUE INDEX uq_holds_one_open_per_subscription ON holds (subscription_id)"
        " WHERE status = 'released'",
        "uq_holds_one_open_per_subscription",
    ),
]


@pytest.mark.parametrize(("statement", "name"), CHANGES)
def test_a_changed_condition_is_drift(database: DatabaseFixture, statement: str, name: str) -> None:
    engine = create_engine(database.owner_url, poolclass=pool.NullPool)
    with engine.connect() as connection:
        before = read_definitions(connection)
        connection.execute(text(statement))
        after = read_definitions(connection)
        connection.rollback()
    engine.dispose()
    assert describe_drift(before, before) == []
    drift = describe_drift(after, before)
    assert drift
    assert all(name in line for line in drift)


OBJECT_CHANGES = [
    "DROP TRIGGER final ON invoices",
    "ALTER POLICY invoices_api ON invoices USING (true)",
    "ALTER TABLE invoices NO FORCE ROW LEVEL SECURITY",
    "GRANT UPDATE ON invoices TO berth_api",
    "GRANT UPDATE (role) ON users TO berth_api",
    "GRANT EXECUTE ON FUNCTION auth_find_credentials(text) TO PUBLIC",
    "ALTER FUNCTION ledger_update_balance() SECURITY INVOKER",
    "ALTER FUNCTION ledger_update_balance() RESET search_path",
]


@pytest.mark.parametrize("statement", OBJECT_CHANGES)
def test_a_changed_trigger_policy_function_or_privilege_is_drift(database: DatabaseFixture, statement: str) -> None:
    engine = create_engine(database.owner_url, poolclass=pool.NullPool)
    with engine.connect() as connection:
        before = read_objects(connection)
        connection.execute(text(statement))
        after = read_objects(connection)
        connection.rollback()
    engine.dispose()
    assert describe_changed_objects(before, expected_objects()) == []
    assert describe_changed_objects(after, expected_objects()) != []
