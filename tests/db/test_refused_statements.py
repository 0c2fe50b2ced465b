"""Statements that the database refuses, whichever program sends them."""

from __future__ import annotations

import psycopg
import pytest

from db.errors import violated_constraint
from deploy.local.postgres import Postgres
from tests.support.databases import TEMPLATE_DATABASE, DatabaseFixture
from tests.support.statements import (
    CHANGE,
    CHECK,
    CREDENTIALS,
    ENTRY,
    EVENT,
    FOREIGN,
    HOLD,
    NOT_PERMITTED,
    OPERATION,
    RECEIVE,
    REDEMPTION,
    REFUND,
    RESTRICT,
    TRANSACTION,
    UNIQUE,
    execute_in_transaction,
    fill,
    invoice,
    line,
    owned_by_other,
    payment,
)

REFUSED_STATEMENTS = [
    # Values that no invoice has.
    (invoice(status="banana"), CHECK, "ck_invoices_status"),
    (invoice(currency="usd"), CHECK, "ck_invoices_currency"),
    (invoice(end="2027-01-01"), CHECK, "ck_invoices_period"),
    (invoice(subtotal="90", tax="9"), CHECK, "ck_invoices_total"),
    (invoice(subtotal="101", tax="-1"), CHECK, "ck_invoices_total"),
    (invoice(due="101"), CHECK, "ck_invoices_valid_amounts"),
    (invoice(due="-1"), CHECK, "ck_invoices_valid_amounts"),
    (invoice(number="NULL"), CHECK, "ck_invoices_finalized_has_number"),
    (invoice(finalized="NULL"), CHECK, "ck_invoices_finalized_has_number"),
    (invoice(status="draft"), CHECK, "ck_invoices_draft_has_no_number"),
    (invoice(status="paid", paid="now()"), CHECK, "ck_invoices_paid_has_nothing_due"),
    (invoice(status="paid", due="0"), CHECK, "ck_invoices_paid_has_nothing_due"),
    (invoice(number="'BERTH-1'"), UNIQUE, "uq_invoices_number"),
    # A finalized invoice keeps its content, its lines and its owner.
    ("UPDATE invoices SET total_minor = 1, subtotal_minor = 1 WHERE id = 'inv_paid'", RESTRICT, ""),
    ("UPDATE invoices SET number = 'BERTH-2' WHERE id = 'inv_paid'", RESTRICT, ""),
    ("UPDATE invoices SET finalized_at = now() + interval '1 day' WHERE id = 'inv_paid'", RESTRICT, ""),
    ("UPDATE invoices SET organization_id = '{other}' WHERE id = 'inv_paid'", RESTRICT, ""),
    ("UPDATE invoices SET organization_id = '{other}' WHERE id = 'inv_draft'", RESTRICT, ""),
    ("DELETE FROM invoices WHERE id = 'inv_paid'", NOT_PERMITTED, ""),
    ("UPDATE invoices SET created_at = now() + interval '1 day' WHERE id = 'inv_draft'", RESTRICT, ""),
    ("UPDATE invoices SET paid_at = now() + interval '1 day' WHERE id = 'inv_paid'", RESTRICT, ""),
    ("UPDATE invoices SET status = 'open', paid_at = NULL WHERE id = 'inv_paid'", RESTRICT, ""),
    ("""UPDATE invoices SET explanation = '{"b": 1}' WHERE id = 'inv_paid'""", RESTRICT, ""),
    ("UPDATE invoices SET plan_change_id = 'ord_2' WHERE id = 'inv_paid'", RESTRICT, ""),
    ("UPDATE invoices SET plan_change_id = 'ord_2' WHERE id = 'inv_draft'", RESTRICT, ""),
    ("UPDATE invoices SET plan_change_id = NULL WHERE id = 'inv_draft'", RESTRICT, ""),
    (line("inv_paid", position=1), RESTRICT, ""),
    (
        "UPDATE invoices SET refunded_minor = 0 WHERE id = 'inv_paid'; " + line("inv_paid", position=1),
        RESTRICT,
        "",
    ),
    ("UPDATE invoice_lines SET invoice_id = 'inv_draft' WHERE invoice_id = 'inv_paid'", RESTRICT, ""),
    ("UPDATE invoice_lines SET invoice_id = 'inv_paid', position = 1 WHERE invoice_id = 'inv_draft'", RESTRICT, ""),
    ("UPDATE invoice_lines SET amount_minor = 1 WHERE invoice_id = 'inv_paid'", RESTRICT, ""),
    ("DELETE FROM invoice_lines WHERE invoice_id = 'inv_paid'", NOT_PERMITTED, ""),
    ("UPDATE invoice_allocations SET amount_minor = 1", NOT_PERMITTED, ""),
    ("DELETE FROM invoice_allocations", NOT_PERMITTED, ""),
    # A void invoice stays void; a payment and a refund keep their owner, their amounts and their outcome.
    (
        "UPDATE invoices SET status = 'void', voided_at = now(), amount_due_minor = 0 WHERE id = 'inv_draft';"
        " UPDATE invoices SET status = 'draft', amount_due_minor = 100 WHERE id = 'inv_draft'",
        RESTRICT,
        "",
    ),
    ("UPDATE payments SET amount_minor = 1 WHERE id = 'pay_1'", RESTRICT, ""),
    ("UPDATE payments SET currency = 'EUR' WHERE id = 'pay_1'", RESTRICT, ""),
    ("UPDATE payments SET organization_id = '{other}', subscription_id = NULL, payment_method_id = NULL", RESTRICT, ""),
    (f"{RECEIVE}; UPDATE payments SET captured_minor = 0", RESTRICT, ""),
    (REFUND.replace("{currency}", "USD") + "; UPDATE refunds SET amount_minor = 1", RESTRICT, ""),
    (
        REFUND.replace("{currency}", "USD")
        + "; UPDATE refunds SET status = 'succeeded'; UPDATE refunds SET status = 'pending'",
        RESTRICT,
        "",
    ),
    # No row refers to a row of another organization, or of another currency.
    (owned_by_other(invoice()), FOREIGN, "fk_invoices_subscription"),
    (owned_by_other(line("inv_draft", position=1)), FOREIGN, "fk_invoice_lines_invoice"),
    (
        owned_by_other(HOLD.replace("{key}", "other").replace("{status}", "released")),
        FOREIGN,
        "fk_holds_subscription",
    ),
    (owned_by_other(CHANGE), FOREIGN, "fk_subscription_changes_subscription"),
    (owned_by_other(EVENT), FOREIGN, "fk_timeline_events_subscription"),
    (owned_by_other(payment(subscription="'{subscription}'")), FOREIGN, "fk_payments_subscription"),
    (owned_by_other(payment(method="'pm_1'")), FOREIGN, "fk_payments_payment_method"),
    (owned_by_other(payment(invoice="'inv_paid'")), FOREIGN, "fk_payments_invoice"),
    (payment(invoice="'inv_1'"), FOREIGN, "fk_payments_invoice"),
    (payment(invoice="'inv_paid'").replace("'USD'", "'EUR'"), FOREIGN, "fk_payments_invoice"),
    (owned_by_other(REFUND.replace("{currency}", "USD")), FOREIGN, "fk_refunds_payment"),
    (REFUND.replace("{currency}", "EUR"), FOREIGN, "fk_refunds_payment"),
    ("UPDATE instances SET organization_id = '{other}'", FOREIGN, "fk_instances_subscription"),
    (
        owned_by_other(OPERATION.replace("{id}", "op_1").replace("{status}", "pending")),
        FOREIGN,
        "fk_instance_operations_instance",
    ),
    (owned_by_other(CREDENTIALS), FOREIGN, "fk_instance_credentials_instance"),
    (owned_by_other(REDEMPTION), FOREIGN, "fk_coupon_redemptions_subscription"),
    # One open hold, and only known statuses.
    (HOLD.replace("{key}", "second").replace("{status}", "held"), UNIQUE, "uq_holds_one_open_per_subscription"),
    (HOLD.replace("{key}", "third").replace("{status}", "lost"), CHECK, "ck_holds_status"),
    ("UPDATE subscriptions SET status = 'asleep'", CHECK, "ck_subscriptions_status"),
    # The ledger is append-only and knows its accounts; a key belongs to one transaction.
    ("UPDATE ledger_entries SET amount_minor = 6", RESTRICT, ""),
    ("DELETE FROM ledger_entries", NOT_PERMITTED, ""),
    ("UPDATE ledger_transactions SET customer_delta_minor = 6", RESTRICT, ""),
    ("TRUNCATE ledger_entries", NOT_PERMITTED, ""),
    ("UPDATE ledger_accounts SET balance_minor = 500", NOT_PERMITTED, ""),
    ("UPDATE customer_balances SET balance_minor = 500", NOT_PERMITTED, ""),
    (ENTRY.replace("{owner}", "'{organization}'").replace("{account}", "walet"), CHECK, "ck_ledger_entries_account"),
    (ENTRY.replace("{owner}", "'{organization}'").replace("{account}", "revenue"), CHECK, "ck_ledger_entries_account"),
    (ENTRY.replace("{owner}", "NULL").replace("{account}", "wallet"), CHECK, "ck_ledger_entries_account"),
    (ENTRY.replace("{owner}", "NULL").replace("{account}", "clearing:"), CHECK, "ck_ledger_entries_account"),
    (
        TRANSACTION.replace("{id}", "tx_1").replace("{currency}", "USD").replace("{delta}", "6"),
        UNIQUE,
        "ledger_transactions_same_content",
    ),
    ("CREATE TABLE mine (n int)", NOT_PERMITTED, ""),
]


async def test_the_worker_is_refused(database: DatabaseFixture, ids: dict[str, str]) -> None:
    unexpected = []
    for statement, sqlstate, constraint in REFUSED_STATEMENTS:
        error = await execute_in_transaction(database.worker, fill(statement, ids))
        outcome = (getattr(error.orig, "sqlstate", None), violated_constraint(error)) if error else None
        if outcome != (sqlstate, constraint):
            unexpected.append((statement, outcome, (sqlstate, constraint)))
    assert unexpected == []


async def test_the_owner_cannot_delete_what_was_issued(database: DatabaseFixture, ids: dict[str, str]) -> None:
    for table, row in (("invoices", "id = 'inv_paid'"), ("invoice_lines", "invoice_id = 'inv_paid'")):
        error = await execute_in_transaction(database.owner, f"DELETE FROM {table} WHERE {row}")
        assert error is not None, table
        assert getattr(error.orig, "sqlstate", None) == RESTRICT, table


async def test_the_api_is_not_permitted(database: DatabaseFixture, ids: dict[str, str]) -> None:
    accepted = []
    for statement, *_ in REFUSED_STATEMENTS:
        error = await execute_in_transaction(database.api, fill(statement, ids))
        if error is None or getattr(error.orig, "sqlstate", None) != NOT_PERMITTED:
            accepted.append((statement, error))
    assert accepted == []


ACCEPTED = [
    invoice(),
    "UPDATE invoice_lines SET amount_minor = amount_minor WHERE invoice_id = 'inv_draft'",
    "UPDATE invoices SET refunded_minor = 0 WHERE id = 'inv_paid'",
    "UPDATE holds SET status = 'captured'",
    line("inv_draft", position=1),
    payment(invoice="'inv_paid'"),
    payment(subscription="'{subscription}'", method="'pm_1'"),
    OPERATION.replace("{id}", "op_1").replace("{status}", "pending"),
    CREDENTIALS,
    REDEMPTION,
    CHANGE,
    EVENT,
    TRANSACTION.replace("{id}", "tx_1").replace("{currency}", "USD").replace("{delta}", "5"),
]


async def test_the_worker_may_write_what_the_rules_allow(database: DatabaseFixture, ids: dict[str, str]) -> None:
    """The refusals above are those of the statement's content, not of the table."""
    for statement in ACCEPTED:
        assert await execute_in_transaction(database.worker, fill(statement, ids)) is None, statement


def test_every_function_has_a_fixed_search_path(database: DatabaseFixture) -> None:
    """A temporary table must not shadow a table in a function."""
    with psycopg.connect(database.superuser_dsn()) as connection:
        without = connection.execute(
            "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND NOT coalesce("
            " 'search_path=pg_catalog, public, pg_temp' = ANY(proconfig), false)"
        ).fetchall()
    assert without == []


@pytest.mark.parametrize("role", ["berth_api", "berth_worker"])
def test_no_role_may_create_temporary_tables(postgres_server: Postgres, role: str) -> None:
    """Databases that tests copy lose the template's privileges, so the migrated template itself is asked."""
    with postgres_server.superuser() as connection:
        (row,) = connection.execute(
            "SELECT has_database_privilege(%s, %s, 'TEMP')", (role, TEMPLATE_DATABASE)
        ).fetchall()
    assert row == (False,)
