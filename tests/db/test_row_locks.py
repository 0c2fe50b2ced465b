"""The locks of payments, refunds and invoices: one holder at a time, beside inserts of rows that refer to theirs."""

from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from db.queries import invoices, payments
from db.session import session_factory
from tests.support.databases import DatabaseFixture
from tests.support.inserts import NOW, insert_organization, insert_subscription

_INSERT_PAYMENT = (
    "INSERT INTO payments (id, organization_id, subscription_id, purpose, gateway, amount_minor, currency,"
    " captured_minor, refunded_minor, status, idempotency_key, workflow_id, created_at, updated_at, succeeded_at)"
    " VALUES ('pay_1', :organization, :subscription, 'order', 'stripe', 100, 'USD', 100, 100, 'succeeded', 'pay_1',"
    " 'payment/pay_1', :now, :now, :now)"
)
_INSERT_REFUND = (
    "INSERT INTO refunds (id, organization_id, payment_id, amount_minor, from_wallet_minor, currency, destination,"
    " status, reason, actor, idempotency_key, created_at, updated_at)"
    " VALUES ('re_1', :organization, 'pay_1', 100, 0, 'USD', 'source', 'pending', '', 'usr_1', 're_1', :now, :now)"
)
_INSERT_INVOICE = (
    "INSERT INTO invoices (id, organization_id, subscription_id, billing_reason, number, status, currency,"
    " period_start, period_end, subtotal_minor, tax_minor, total_minor, amount_due_minor, finalized_at, created_at)"
    " VALUES ('inv_1', :organization, :subscription, 'renewal', 'BERTH-1', 'open', 'USD', :now, :end, 100, 0, 100, 100,"
    " :now, :now)"
)


async def test_a_locked_payment_or_invoice_can_be_referred_to(database: DatabaseFixture) -> None:
    subscription_id = await _insert_rows(database.owner)
    async with session_factory(database.worker).begin() as session:
        await payments.lock_payment(session, "pay_1")
        assert_referable(database, "payments", "pay_1")
    async with session_factory(database.worker).begin() as session:
        await invoices.lock_invoice(session, "inv_1")
        assert_referable(database, "invoices", "inv_1")
    async with session_factory(database.worker).begin() as session:
        await invoices.lock_open_invoices(session, subscription_id)
        assert_referable(database, "invoices", "inv_1")


async def test_a_refund_is_locked_with_its_payment_and_the_subscription_that_billing_locks_first(
    database: DatabaseFixture,
) -> None:
    subscription_id = await _insert_rows(database.owner)
    async with session_factory(database.worker).begin() as session:
        assert await payments.lock_refund(session, "re_1") is not None
        for table, row_id in (("subscriptions", subscription_id), ("payments", "pay_1"), ("refunds", "re_1")):
            assert_referable(database, table, row_id)


def assert_referable(database: DatabaseFixture, table: str, row_id: str) -> None:
    """Assert that the row is locked, and that a foreign key's check of it does not wait."""
    query = sql.SQL("SELECT FROM {} WHERE id = %s FOR {} NOWAIT")
    with psycopg.connect(database.superuser_dsn()) as other:
        other.execute(query.format(sql.Identifier(table), sql.SQL("KEY SHARE")), (row_id,))
        with pytest.raises(psycopg.errors.LockNotAvailable):
            other.execute(query.format(sql.Identifier(table), sql.SQL("NO KEY UPDATE")), (row_id,))
        other.rollback()


async def _insert_rows(engine: AsyncEngine) -> str:
    """Insert an open invoice, and a payment with a pending refund; return their subscription."""
    organization = await insert_organization(engine)
    subscription = await insert_subscription(engine, organization)
    async with engine.begin() as connection:
        await connection.execute(text("SELECT set_config('berth.role', 'ADMINISTRATOR', true)"))
        for statement in (_INSERT_PAYMENT, _INSERT_REFUND, _INSERT_INVOICE):
            values = {
                "organization": organization,
                "subscription": subscription,
                "now": NOW,
                "end": NOW + timedelta(days=28),
            }
            await connection.execute(text(statement), values)
    return subscription
