"""Credit that is committed while billing waits for the balance counts, also where it is the first of its account.

The row of that account does not exist when the statement that locks and reads the balances begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import psycopg
import pytest

from db.queries import ledger as ledger_rows
from tests.support.billing_commands import grant_promotional_credit, usd
from tests.support.billing_fixture import ORDERED_AT, ORGANIZATION, BillingFixture
from tests.support.databases import DatabaseFixture
from tests.support.wait import wait_until
from workflows.rules import ledger

Result = TypeVar("Result")

WAITERS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


async def run_during_first_top_up(
    billing: BillingFixture, database: DatabaseFixture, amount_minor: int, activity: Awaitable[Result]
) -> Result:
    """Run an activity that waits for the balance until the organization's first top-up has committed."""
    async with billing.sessions() as session:
        await ledger_rows.post_transaction(
            session,
            ledger.top_up_transaction("stripe", usd(amount_minor)),
            transaction_id="tx_first",
            organization_id=ORGANIZATION,
            at=ORDERED_AT,
            ref=None,
            description="top up",
            idempotency_key="first",
        )
        running = asyncio.ensure_future(activity)
        with psycopg.connect(database.superuser_dsn(), autocommit=True) as observer:
            await wait_until(
                lambda: observer.execute(WAITERS).fetchone() == (1,), description="the activity waits for the balance"
            )
        await session.commit()
        return await running


async def test_an_order_is_paid_by_the_first_top_up(billing: BillingFixture, database: DatabaseFixture) -> None:
    await grant_promotional_credit(billing, 100)
    command = billing.create_command()
    await run_during_first_top_up(billing, database, 400, billing.subscription_activities.record_order(command))
    assert [row["status"] for row in await billing.query("SELECT status FROM subscriptions")] == ["provisioning"]
    assert await billing.balance("held") == 500
    await billing.assert_ledger_balanced()


@pytest.mark.scenario("B30")
async def test_a_renewal_is_paid_by_the_first_top_up(billing: BillingFixture, database: DatabaseFixture) -> None:
    await grant_promotional_credit(billing, 500)
    ordered = await billing.create_active_subscription()
    renewal = billing.billing_activities.start_period(billing.start_period_command(ordered))
    outcome = await run_during_first_top_up(billing, database, 500, renewal)
    assert outcome.paid
    assert [row["status"] for row in await billing.invoices(ordered.id)] == ["paid", "paid"]
    assert await billing.balance() == 0
    await billing.assert_ledger_balanced()
