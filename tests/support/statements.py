"""Statements that write single rows of billing, for tests of what the database refuses."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

CHECK, UNIQUE, RESTRICT, NOT_PERMITTED, FOREIGN = "23514", "23505", "23001", "42501", "23503"
"""SQLSTATE of refusals: check, unique, restrict, insufficient privilege, foreign key."""

INVOICE = (
    "INSERT INTO invoices (id, organization_id, subscription_id, billing_reason, number, status, currency,"
    " period_start, period_end, subtotal_minor, tax_minor, total_minor, amount_due_minor, finalized_at, paid_at,"
    " created_at) VALUES ('{id}', '{organization}', '{subscription}', 'plan_change', {number}, '{status}',"
    " '{currency}', '2027-01-31', '{end}', {subtotal}, {tax}, 100, {due}, {finalized}, {paid}, '2027-01-31')"
)
DEFAULTS = {
    "id": "inv_new", "number": "'BERTH-2027-000009'", "status": "open", "currency": "USD", "end": "2027-02-28",
    "subtotal": "100", "tax": "0", "due": "100", "finalized": "now()", "paid": "NULL",
}  # fmt: skip
TRANSACTION = (
    "INSERT INTO ledger_transactions (id, organization_id, kind, currency, customer_delta_minor, entry_count,"
    " posted_at, description, idempotency_key)"
    " VALUES ('{id}', '{organization}', 'top_up', '{currency}', {delta}, 2, now(), '', 'key')"
)
ENTRY = (
    "INSERT INTO ledger_entries (transaction_id, organization_id, account, currency, amount_minor)"
    " VALUES ('tx_1', {owner}, '{account}', 'USD', 1)"
)
HOLD = (
    "INSERT INTO holds (organization_id, subscription_id, dedup_key, currency, wallet_minor, promotional_minor,"
    " card_minor, payment_methods, status)"
    " VALUES ('{organization}', '{subscription}', '{key}', 'USD', 1, 0, 0, '[]', '{status}')"
)
LINE = (
    "INSERT INTO invoice_lines (invoice_id, position, organization_id, description, quantity,"
    " unit_price_minor, discount_minor, tax_minor, amount_minor, period_start, period_end)"
    " VALUES ('{invoice}', {position}, '{organization}', 'Plan', 1, 100, 0, 0, 100, '2027-01-31', '2027-02-28')"
)
PAYMENT = (
    "INSERT INTO payments (id, organization_id, subscription_id, payment_method_id, invoice_id, purpose, gateway,"
    " amount_minor, currency, status, idempotency_key, workflow_id, created_at, updated_at)"
    " VALUES ('{id}', '{organization}', {subscription}, {method}, {invoice}, 'invoice', 'stripe', 100, 'USD',"
    " 'created', '{id}', '{id}', now(), now())"
)
REFUND = (
    "INSERT INTO refunds (id, organization_id, payment_id, amount_minor, from_wallet_minor, currency, destination,"
    " status, reason, actor, idempotency_key, created_at, updated_at)"
    " VALUES ('re_1', '{organization}', 'pay_1', 100, 0, '{currency}', 'wallet', 'pending', '', '', 're_1', now(),"
    " now())"
)
RECEIVE = "UPDATE payments SET status = 'succeeded', captured_minor = 100, succeeded_at = now() WHERE id = 'pay_1'"
INSTANCE = (
    "INSERT INTO instances (id, organization_id, subscription_id, service_slug, version, hostname, namespace,"
    " cpu_millicores, memory_mib, storage_gib, created_at)"
    " VALUES ('{id}', '{organization}', '{subscription}', 'app', '1', '{id}', '{id}', 1, 1, 1, now())"
)
OPERATION = (
    "INSERT INTO instance_operations (id, organization_id, instance_id, kind, status, actor, created_at)"
    " VALUES ('{id}', '{organization}', 'ins_1', 'restart', '{status}', '', now())"
)
CREDENTIALS = (
    "INSERT INTO instance_credentials (instance_id, organization_id, sealed) VALUES ('ins_1', '{organization}', 'x')"
)
REDEMPTION = (
    "INSERT INTO coupon_redemptions (subscription_id, coupon_code, organization_id, status)"
    " VALUES ('{subscription}', 'HALF', '{organization}', 'reserved')"
)
CHANGE = (
    "INSERT INTO subscription_changes (organization_id, subscription_id, occurred_at, actor, field, reason,"
    " workflow_run_id) VALUES ('{organization}', '{subscription}', now(), '', 'status', '', '')"
)
EVENT = (
    "INSERT INTO timeline_events (organization_id, subscription_id, occurred_at, kind, message, dedup_key)"
    " VALUES ('{organization}', '{subscription}', now(), 'status', '', 'x')"
)


def invoice(**changes: str) -> str:
    """Return an ``INSERT`` of an open invoice of 1.00 USD that differs by ``changes``."""
    statement = INVOICE
    for name, value in (DEFAULTS | changes).items():
        statement = statement.replace("{" + name + "}", value)
    return statement


def payment(*, id: str = "pay_new", subscription: str = "NULL", method: str = "NULL", invoice: str = "NULL") -> str:
    """Return an ``INSERT`` of a payment; subscription, payment method and invoice are SQL expressions."""
    statement = PAYMENT.replace("{id}", id).replace("{subscription}", subscription)
    return statement.replace("{method}", method).replace("{invoice}", invoice)


def line(invoice_id: str, *, position: int = 0) -> str:
    """Return an ``INSERT`` of a line of an invoice."""
    return LINE.replace("{invoice}", invoice_id).replace("{position}", str(position))


def owned_by_other(statement: str) -> str:
    """Return the statement with the other organization in place of the one that its references belong to."""
    return statement.replace("{organization}", "{other}")


def fill(statement: str, ids: dict[str, str]) -> str:
    for name, value in ids.items():
        statement = statement.replace("{" + name + "}", value)
    return statement


async def execute_in_transaction(engine: AsyncEngine, statement: str) -> DBAPIError | None:
    """Execute the statement, check deferred constraints and roll back; return the error, if any."""
    async with engine.connect() as connection:
        try:
            await connection.execute(text(statement.replace(":", r"\:")))
            await connection.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
        except DBAPIError as error:
            return error
        finally:
            await connection.rollback()
    return None
