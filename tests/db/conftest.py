"""Rows that the tests of refused statements start from."""

from __future__ import annotations

import psycopg
import pytest

from tests.support.databases import DatabaseFixture
from tests.support.inserts import insert_organization, insert_subscription, with_payment_in_full
from tests.support.statements import HOLD, INSTANCE, TRANSACTION, fill, invoice, line, payment


@pytest.fixture
async def ids(database: DatabaseFixture) -> dict[str, str]:
    """Insert two organizations, a paid invoice, a draft, a hold and a ledger transaction; return the ids by name."""
    organization, other = [await insert_organization(database.owner) for _ in range(2)]
    ids = {
        "organization": organization,
        "other": other,
        "subscription": await insert_subscription(database.owner, organization),
    }
    statements = (
        with_payment_in_full(invoice(id="inv_paid", status="paid", due="0", paid="now()", number="'BERTH-1'")),
        invoice(id="inv_draft", status="draft", number="NULL", finalized="NULL"),
        "UPDATE invoices SET plan_change_id = 'ord_1' WHERE id = 'inv_draft'",
        line("inv_paid"),
        line("inv_draft"),
        "INSERT INTO payment_methods (id, organization_id, gateway, gateway_reference, gateway_customer_reference,"
        " brand, last4, is_default, charge_order, created_at)"
        " VALUES ('pm_1', '{organization}', 'stripe', 'pm_1', 'cus_1', 'visa', '4242', true, 0, now())",
        payment(id="pay_1", subscription="'{subscription}'", method="'pm_1'"),
        INSTANCE.replace("{id}", "ins_1"),
        "INSERT INTO coupons (code, discount_type, percent, duration) VALUES ('HALF', 'percent', 50, 'once')",
        HOLD.replace("{key}", "first").replace("{status}", "held"),
        TRANSACTION.replace("{id}", "tx_1").replace("{currency}", "USD").replace("{delta}", "5"),
        "INSERT INTO ledger_entries (transaction_id, organization_id, account, currency, amount_minor) VALUES"
        " ('tx_1', '{organization}', 'wallet', 'USD', 5), ('tx_1', NULL, 'clearing:stripe', 'USD', -5)",
    )
    with psycopg.connect(database.superuser_dsn()) as connection:
        for statement in statements:
            connection.execute(fill(statement, ids).encode())
    return ids
