"""What is equal, and what no row may show, after any sequence of commands on an account's money."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import tuple_row

NET_ALLOCATIONS = "SELECT COALESCE(sum(amount_minor), 0) FROM invoice_allocations"
BALANCE = "SELECT COALESCE(sum(balance_minor), 0) FROM ledger_accounts WHERE organization_id IS NOT NULL AND account"

EQUALITIES = {
    "held money is open holds, payments that wait for their invoice, and refunds that wait for the gateway": (
        f"({BALANCE} = 'held')",
        "(SELECT COALESCE(sum(wallet_minor + promotional_minor), 0) FROM holds WHERE status = 'held')"
        " + (SELECT COALESCE(sum(captured_minor), 0) FROM payments p WHERE purpose <> 'top_up'"
        " AND NOT credited_to_wallet"
        " AND NOT EXISTS (SELECT FROM invoice_allocations a WHERE a.payment_id = p.id))"
        " + (SELECT COALESCE(sum(from_wallet_minor), 0) FROM refunds WHERE status = 'pending')",
    ),
    "receivable is what open invoices are due": (
        f"-({BALANCE} = 'receivable')",
        "(SELECT COALESCE(sum(amount_due_minor), 0) FROM invoices WHERE status = 'open')",
    ),
    "debt is what invoices carried": (f"-({BALANCE} = 'debt')", f"({NET_ALLOCATIONS} WHERE source = 'debt')"),
    "promotional credit comes from grants and plan changes and is on balance, on hold or on invoices": (
        f"({BALANCE} = 'promotional') + ({NET_ALLOCATIONS} WHERE source = 'promotional')"
        " + (SELECT COALESCE(sum(promotional_minor), 0) FROM holds WHERE status = 'held')",
        "(SELECT COALESCE(sum(amount_minor), 0) FROM ledger_entries e JOIN ledger_transactions t"
        " ON t.id = e.transaction_id WHERE e.account = 'promotional'"
        " AND (t.idempotency_key LIKE 'promotional/%' OR t.idempotency_key LIKE 'plan_change/%/credit%'))",
    ),
    "wallet money comes from payments, adjustments and refunds and is on balance, on hold or on invoices": (
        f"({BALANCE} = 'wallet') + ({NET_ALLOCATIONS} WHERE source = 'wallet')"
        " + (SELECT COALESCE(sum(wallet_minor), 0) FROM holds WHERE status = 'held')",
        "(SELECT COALESCE(sum(captured_minor - refunded_minor - (SELECT COALESCE(sum(amount_minor), 0)"
        " FROM invoice_allocations a WHERE a.payment_id = p.id)), 0) FROM payments p WHERE purpose = 'top_up'"
        " OR credited_to_wallet OR EXISTS (SELECT FROM invoice_allocations a WHERE a.payment_id = p.id))"
        " + (SELECT COALESCE(sum(amount_minor), 0) FROM refunds WHERE destination = 'wallet'"
        " AND status = 'succeeded')"
        " + (SELECT COALESCE(sum(amount_minor), 0) FROM ledger_entries e JOIN ledger_transactions t"
        " ON t.id = e.transaction_id WHERE e.account = 'wallet'"
        " AND (t.idempotency_key LIKE 'adjustment/%' OR t.idempotency_key LIKE 'plan_change/%/credit_reversal'))",
    ),
}
"""Two SQL expressions each that are equal after every command."""

VIOLATIONS = {
    "an invoice's allocations are not what it received": (
        "SELECT i.id FROM invoices i WHERE (SELECT COALESCE(sum(amount_minor), 0) FROM invoice_allocations a"
        " WHERE a.invoice_id = i.id) <> CASE WHEN status IN ('draft', 'void') THEN 0"
        " ELSE total_minor - amount_due_minor - refunded_minor END"
    ),
    "an allocation is reversed by more than its amount": (
        "SELECT a.id FROM invoice_allocations a JOIN invoice_allocations r ON r.reverses_id = a.id"
        " GROUP BY a.id, a.amount_minor HAVING a.amount_minor + sum(r.amount_minor) < 0"
    ),
    "a ledger transaction does not sum to zero": (
        "SELECT transaction_id FROM ledger_entries GROUP BY transaction_id HAVING sum(amount_minor) <> 0"
    ),
    "a stored balance is not the sum of its entries": (
        "SELECT id FROM ledger_accounts a WHERE organization_id IS NOT NULL AND balance_minor <> (SELECT"
        " COALESCE(sum(amount_minor), 0) FROM ledger_entries e WHERE e.organization_id = a.organization_id"
        " AND e.account = a.account AND e.currency = a.currency)"
    ),
    "a balance of the customer is negative": (
        "SELECT id FROM ledger_accounts WHERE account IN ('wallet', 'promotional', 'held') AND balance_minor < 0"
    ),
    "a payment pays or returns more than it captured": (
        "SELECT id FROM payments p WHERE refunded_minor > captured_minor OR refunded_minor < 0 OR captured_minor <"
        " (SELECT COALESCE(sum(amount_minor), 0) FROM invoice_allocations a WHERE a.payment_id = p.id)"
    ),
    "an invoice is credited and refunded beyond what was paid": (
        "SELECT i.id FROM invoices i WHERE (SELECT COALESCE(sum(amount_minor), 0) FROM plan_change_credits c"
        " WHERE c.invoice_id = i.id) + refunded_minor > total_minor"
    ),
}
"""Queries that return no row after any command."""


def assert_money_is_conserved(rows: psycopg.Connection[dict[str, Any]]) -> None:
    """Assert every equality and the absence of every violation on the database of one organization."""
    for statement, query in VIOLATIONS.items():
        assert rows.execute(query).fetchall() == [], statement
    columns = ", ".join(f"({first})::bigint, ({second})::bigint" for first, second in EQUALITIES.values())
    values = rows.cursor(row_factory=tuple_row).execute(f"SELECT {columns}").fetchone()
    assert values is not None
    for number, statement in enumerate(EQUALITIES):
        assert values[2 * number] == values[2 * number + 1], (statement, values[2 * number : 2 * number + 2])
