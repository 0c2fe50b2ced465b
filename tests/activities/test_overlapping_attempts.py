"""An attempt that timed out may still commit while the next one waits for its locks: both have one result."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import psycopg
import pytest

from tests.activities.test_credit_arrivals import adjustment_command
from tests.support.billing_commands import top_up
from tests.support.billing_fixture import BillingFixture, insert_coupon
from tests.support.databases import DatabaseFixture
from tests.support.wait import wait_until

Command = TypeVar("Command")
Result = TypeVar("Result")

WAITERS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


async def run_overlapping(
    database: DatabaseFixture, perform: Callable[[Command], Awaitable[Result]], command: Command
) -> list[Result]:
    """Run an activity twice; both attempts have begun, and wait for the balance, before either writes."""
    with psycopg.connect(database.superuser_dsn()) as holder, psycopg.connect(database.superuser_dsn()) as observer:
        observer.autocommit = True
        holder.execute("SELECT FROM customer_balances FOR NO KEY UPDATE")
        attempts = [asyncio.ensure_future(perform(command)) for _ in range(2)]

        def both_wait() -> bool:
            return observer.execute(WAITERS).fetchone() == (2,)

        await wait_until(both_wait, description="both attempts wait for the balance")
        holder.commit()
        return await asyncio.gather(*attempts)


@pytest.mark.parametrize("coupon", [None, "ONE"])
async def test_an_order_is_not_refused_for_what_its_earlier_attempt_took(
    billing: BillingFixture, database: DatabaseFixture, coupon: str | None
) -> None:
    """The wallet covers the order once, and the coupon is left once."""
    await insert_coupon(billing.sessions, "ONE", 50, "once")
    await billing.execute("UPDATE coupons SET max_redemptions = 1")
    await top_up(billing, 500)
    command = billing.create_command(coupon=coupon)
    first, second = await run_overlapping(database, billing.subscription_activities.record_order, command)
    assert first == second
    assert [row["status"] for row in await billing.query("SELECT status FROM subscriptions")] == ["provisioning"]
    assert await billing.balance() + await billing.balance("held") == 500


async def test_an_adjustment_is_not_refused_for_what_its_earlier_attempt_took(
    billing: BillingFixture, database: DatabaseFixture
) -> None:
    await top_up(billing, 500)
    first, second = await run_overlapping(database, billing.billing_activities.adjust_wallet, adjustment_command(-500))
    assert first == second
    assert await billing.balance() == 0
