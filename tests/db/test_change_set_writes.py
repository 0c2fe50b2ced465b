"""What a change set writes: in which order it locks, and into tables that a newer release has extended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from db.models.ledger import CustomerBalance
from db.queries import change_set_sql, orders
from db.queries.change_set import ChangeSet
from db.queries.invoices import ISSUER
from db.session import session_factory
from tests.support.databases import DatabaseFixture
from tests.support.inserts import insert_organization, insert_subscription
from tests.support.wait import wait_until
from workflows.rules import ledger
from workflows.rules.allocations import AllocationSource, SourcePart
from workflows.rules.money import Money, zero_money
from workflows.rules.notifications import NotificationKind

AT = datetime(2027, 1, 31, tzinfo=UTC)

_LOCK_BALANCE = "SELECT FROM customer_balances WHERE organization_id = %s FOR NO KEY UPDATE"
_LOCK_ACCOUNT = "SELECT FROM ledger_accounts WHERE organization_id = %s FOR UPDATE NOWAIT"
_AWAIT_ADVISORY_LOCK = """
CREATE FUNCTION await_advisory_lock() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END $$
"""
_LOCK_WAITERS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


async def test_a_change_set_locks_the_customers_balance_before_the_accounts(database: DatabaseFixture) -> None:
    organization = await insert_organization(database.owner)
    await _adjust(database.worker, organization, "first")
    with psycopg.connect(database.superuser_dsn()) as holder, psycopg.connect(database.superuser_dsn()) as observer:
        observer.autocommit = True
        holder.execute(_LOCK_BALANCE, (organization,))
        write = asyncio.create_task(_adjust(database.worker, organization, "second"))
        await wait_until(lambda: _count(observer, _LOCK_WAITERS) == 1, description="the write waits for the balance")
        holder.execute(_LOCK_ACCOUNT, (organization,))  # raises when the waiting write has locked the account
        holder.commit()
        await write
        assert _count(observer, "SELECT balance_minor FROM ledger_accounts WHERE account = 'wallet'") == 2000


@pytest.mark.parametrize("table", ["timeline_events", "notifications", "ledger_transactions"])
async def test_a_change_set_draws_its_invoice_number_after_it_has_waited_for_other_rows(
    table: str, database: DatabaseFixture
) -> None:
    organization = await insert_organization(database.owner)
    subscription = await insert_subscription(database.owner, organization)
    await _adjust(database.worker, organization, "wallet")
    with psycopg.connect(database.superuser_dsn()) as holder, psycopg.connect(database.superuser_dsn()) as observer:
        observer.autocommit = True
        observer.execute(
            "INSERT INTO invoice_number_sequences (issuer, year, last_number) VALUES (%s, 2027, 41)", (ISSUER,)
        )
        observer.execute(_AWAIT_ADVISORY_LOCK)
        observer.execute(
            sql.SQL("CREATE TRIGGER waits AFTER INSERT ON {} EXECUTE FUNCTION await_advisory_lock()").format(
                sql.Identifier(table)
            )
        )
        holder.execute("SELECT pg_advisory_xact_lock(1)")
        write = asyncio.create_task(_write(database.worker, organization, subscription, _fill_every_table))
        await wait_until(lambda: _count(observer, _LOCK_WAITERS) == 1, description="the write waits for the lock")
        # Raises when the waiting write has drawn its number.
        observer.execute("SELECT FROM invoice_number_sequences FOR UPDATE NOWAIT")
        holder.commit()
        await write
        assert _count(observer, "SELECT last_number FROM invoice_number_sequences") == 42


async def test_every_posting_of_an_account_waits_for_the_others_without_a_deadlock(database: DatabaseFixture) -> None:
    organization = await insert_organization(database.owner)
    await _adjust(database.worker, organization, "first")

    async def begin_order() -> None:
        async with session_factory(database.worker)() as session:
            await orders.begin_order(
                session, organization_id=organization, subscription_id="sub_1", plan_id="pln_1", now=AT
            )

    await asyncio.gather(
        *(_adjust(database.worker, organization, f"adjustment/{number}") for number in range(12)),
        *(begin_order() for _ in range(12)),
    )
    async with AsyncSession(database.worker) as session:
        balance = await session.get_one(CustomerBalance, (organization, "USD"))
    assert balance.balance_minor == 13_000


async def test_a_release_writes_into_tables_that_the_next_release_has_extended(database: DatabaseFixture) -> None:
    organization = await insert_organization(database.owner)
    subscription = await insert_subscription(database.owner, organization)
    await _adjust(database.worker, organization, "wallet")
    tables = ["subscriptions", *change_set_sql.INSERT_BY_TABLE]
    with psycopg.connect(database.superuser_dsn(), autocommit=True) as superuser:
        for table in tables:
            superuser.execute(
                sql.SQL("ALTER TABLE {} ADD COLUMN of_next_release bigint NOT NULL DEFAULT 7").format(
                    sql.Identifier(table)
                )
            )
        await _write(database.worker, organization, subscription, _fill_every_table)
        for table in tables:
            rows = superuser.execute(
                sql.SQL("SELECT DISTINCT of_next_release FROM {}").format(sql.Identifier(table))
            ).fetchall()
            assert rows == [(7,)], table


def _fill_every_table(changes: ChangeSet) -> None:
    """Add a paid invoice with its line, its ledger transaction and its credit, and a row of every other table."""
    amount = Money(amount_minor=500, currency="USD")
    at, end = AT.isoformat(), (AT + timedelta(days=28)).isoformat()
    zero = zero_money("USD")
    organization, subscription = changes.organization_id, changes.subscription_id
    changes.update_subscription(status="active")
    changes.record_change("status", "pending", "active")
    changes.add_timeline_event("subscription.resumed", "Resumed.")
    changes.enqueue_notification(NotificationKind.SUBSCRIPTION_RESUMED, {})
    transaction_id = changes.add_ledger_transaction(
        ledger.paid_invoice_transaction(promotional=zero, wallet=amount, held=zero, tax=zero),
        key="paid",
        description="paid",
    )
    changes.add_invoice(
        {
            "id": "inv",
            "organization_id": organization,
            "subscription_id": subscription,
            "billing_reason": "plan_change",
            "status": "paid",
            "currency": "USD",
            "period_start": at,
            "period_end": end,
            "subtotal_minor": 500,
            "tax_minor": 0,
            "total_minor": 500,
            "amount_due_minor": 0,
            "finalized_at": at,
            "paid_at": at,
            "created_at": at,
            "plan_change_id": None,
            "explanation": {},
        },
        [
            {
                "invoice_id": "inv",
                "position": 0,
                "organization_id": organization,
                "description": "line",
                "quantity": 1,
                "unit_price_minor": 500,
                "discount_minor": 0,
                "tax_minor": 0,
                "amount_minor": 500,
                "price_id": None,
                "period_start": at,
                "period_end": end,
            }
        ],
        assign_number=True,
    )
    changes.allocate("inv", [SourcePart(source=AllocationSource.WALLET, amount=amount)], transaction_id=transaction_id)
    changes.credit_invoice("inv", "chg", amount, transaction_id=transaction_id)


async def _adjust(engine: AsyncEngine, organization_id: str, key: str) -> None:
    def adjust(changes: ChangeSet) -> None:
        posting = ledger.adjustment_transaction(Money(amount_minor=1000, currency="USD"))
        changes.add_ledger_transaction(posting, key=key, description="test")

    await _write(engine, organization_id, "", adjust)


async def _write(
    engine: AsyncEngine, organization_id: str, subscription_id: str, fill: Callable[[ChangeSet], None]
) -> None:
    changes = ChangeSet(
        organization_id=organization_id,
        subscription_id=subscription_id,
        occurred_at=AT,
        keyed_at=AT,
        actor="platform",
        run_id="",
    )
    fill(changes)
    async with session_factory(engine).begin() as session:
        await changes.write(session)


def _count(connection: psycopg.Connection[Any], query: str) -> int:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])
