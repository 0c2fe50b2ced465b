"""Concurrent billing activities: row locks order them, nothing is posted twice, and no deadlock occurs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
import pytest_asyncio
from sqlalchemy import text

from db.queries import invoices
from tests.support.billing_fixture import (
    ORDERED_AT,
    USER,
    BillingFixture,
    OpenedSubscription,
    create_billing_fixture,
    credit_wallet,
    insert_card_payment,
    insert_coupon,
    insert_payment_method,
)
from tests.support.databases import DatabaseFixture
from workflows.ports.billing import ApplyCardPayment, RecordPaymentFailure
from workflows.ports.subscription import AbortOrder, ChangeStatus
from workflows.rules.money import Money
from workflows.rules.subscription import SubscriptionStatus

DAY = timedelta(days=1)


@pytest_asyncio.fixture
async def billing(database: DatabaseFixture) -> AsyncIterator[BillingFixture]:
    fixture = await create_billing_fixture(database)
    yield fixture
    await fixture.assert_ledger_balanced()
    assert _deadlocks(database) == 0


def _deadlocks(database: DatabaseFixture) -> int:
    with psycopg.connect(database.superuser_dsn(), autocommit=True) as connection:
        connection.execute("SELECT pg_stat_force_next_flush()")
        row = connection.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchone()
    assert row is not None
    return int(row[0])


def usd(amount_minor: int) -> Money:
    return Money(amount_minor=amount_minor, currency="USD")


@pytest.mark.scenario("B25")
async def test_two_workers_renew_one_subscription_once(billing: BillingFixture) -> None:
    await credit_wallet(billing.sessions, usd(5000))
    ordered = await billing.create_active_subscription()
    renewal = billing.start_period_command(ordered)
    first, *others = await asyncio.gather(*(billing.billing_activities.start_period(renewal) for _ in range(5)))
    assert all(other == first for other in others)
    assert [row["status"] for row in await billing.invoices(ordered.id)] == ["paid", "paid"]
    assert await billing.balance() == 4000


@pytest.mark.scenario("B50")
async def test_a_hundred_invoices_at_once_are_numbered_without_a_gap(billing: BillingFixture) -> None:
    """Forty of them are declined: a draft that was withdrawn burns no number."""

    async def finalise(n: int) -> str | None:
        async with billing.sessions() as session:
            number = await invoices.assign_invoice_number(session, ORDERED_AT)
            if n % 5 in (1, 3):
                await session.rollback()
                return None
            await session.commit()
            return number

    drawn = await asyncio.gather(*(finalise(n) for n in range(100)))
    numbers = sorted(number for number in drawn if number is not None)
    assert numbers == [f"BERTH-2026-{n:06d}" for n in range(1, 61)]


@pytest.mark.scenario("B50")
async def test_renewals_at_once_draw_numbers_without_a_gap(billing: BillingFixture) -> None:
    await credit_wallet(billing.sessions, usd(500 * 40))
    ordered = [await billing.create_active_subscription() for _ in range(20)]
    await asyncio.gather(
        *(
            billing.billing_activities.start_period(billing.start_period_command(subscription))
            for subscription in ordered
        )
    )
    rows = await billing.query("SELECT number FROM invoices ORDER BY number")
    assert [row["number"] for row in rows] == [f"BERTH-2026-{n:06d}" for n in range(1, 41)]
    assert await billing.balance() == 0


async def test_a_number_belongs_to_the_year_of_the_subscriptions_own_clock(billing: BillingFixture) -> None:
    await credit_wallet(billing.sessions, usd(5000))
    ordered = await billing.create_active_subscription()
    eve = datetime(2029, 12, 31, 23, 59, 59, tzinfo=UTC)
    starts = (eve - timedelta(days=31), eve)
    numbers = ((eve, "BERTH-2029-000001"), (eve + timedelta(seconds=1), "BERTH-2030-000001"))
    for start, (now, number) in zip(starts, numbers, strict=True):
        renewal = replace(billing.start_period_command(ordered, start=start), now=now)
        await billing.billing_activities.start_period(renewal)
        assert (await billing.invoices(ordered.id))[-1]["number"] == number


@pytest.mark.scenario("B33")
async def test_concurrent_voids_give_back_once(billing: BillingFixture) -> None:
    """The wallet's part of a first invoice whose card failed goes back when the subscription is cancelled."""
    await credit_wallet(billing.sessions, usd(100))
    await insert_payment_method(billing.sessions)
    command = billing.create_command()
    opened = await billing.subscription_activities.record_order(command)
    assert opened.card_charge is not None
    subscription = command.order.subscription_id
    await billing.execute("UPDATE subscriptions SET status = 'provisioning'")
    outcome = await billing.billing_activities.start_first_period(billing.start_first_period_command(command, opened))
    await billing.billing_activities.record_payment_failure(
        RecordPaymentFailure(
            subscription_id=subscription,
            invoice_id=outcome.invoice_id or "",
            payment_id="pay_1",
            decline_code="expired_card",
            next_retry_at=None,
            now=ORDERED_AT,
        )
    )
    assert (await billing.balance(), await billing.balance("receivable")) == (0, -400)
    cancel = ChangeStatus(
        subscription_id=subscription,
        status=SubscriptionStatus.CANCELLED,
        reason="enough",
        actor=USER,
        now=ORDERED_AT + DAY,
        data_deletion_at=ORDERED_AT + 31 * DAY,
        void_invoice=True,
    )
    await asyncio.gather(*(billing.subscription_activities.change_status(cancel) for _ in range(5)))
    assert (await billing.balance(), await billing.balance("receivable")) == (100, 0)
    kinds = Counter(row["kind"] for row in await billing.query("SELECT kind FROM ledger_transactions"))
    assert (kinds["void"], kinds["refund"]) == (1, 1)


async def test_a_card_that_pays_and_a_cancellation_at_once(billing: BillingFixture) -> None:
    await credit_wallet(billing.sessions, usd(600))
    await insert_payment_method(billing.sessions)
    ordered = await billing.create_active_subscription()
    outcome = await billing.billing_activities.start_period(billing.start_period_command(ordered))
    await insert_card_payment(billing.sessions, "pay_1", ordered.id, usd(400))
    settle = ApplyCardPayment(
        subscription_id=ordered.id, invoice_id=outcome.invoice_id or "", payment_id="pay_1", now=ordered.period.end
    )
    cancel = ChangeStatus(
        subscription_id=ordered.id,
        status=SubscriptionStatus.CANCELLED,
        reason="enough",
        actor=USER,
        now=ordered.period.end,
        data_deletion_at=ordered.period.end + 30 * DAY,
        void_invoice=True,
    )
    await asyncio.gather(
        billing.billing_activities.apply_card_payment(settle),
        billing.subscription_activities.change_status(cancel),
        billing.billing_activities.apply_card_payment(settle),
    )
    # Either the invoice was paid first, or the money stays the customer's: never both, never neither.
    paid = [row["status"] for row in await billing.invoices(ordered.id)] == ["paid", "paid"]
    assert await billing.balance() == (0 if paid else 500)
    assert (await billing.balance("held"), await billing.balance("receivable")) == (0, 0)


async def test_one_accounts_renewals_top_ups_and_orders_at_once_never_deadlock(billing: BillingFixture) -> None:
    await insert_coupon(billing.sessions, "MANY", 10, "forever")
    await credit_wallet(billing.sessions, usd(500 * 10))
    await insert_payment_method(billing.sessions)
    ordered = [await billing.create_active_subscription(coupon="MANY") for _ in range(10)]
    waiting = [billing.create_command(coupon="MANY") for _ in range(5)]
    for command in waiting:
        await billing.subscription_activities.record_order(command)

    async def renew(subscription: OpenedSubscription, n: int) -> None:
        outcome = await billing.billing_activities.start_period(billing.start_period_command(subscription))
        if outcome.card_charge is not None:
            await insert_card_payment(billing.sessions, f"pay_{n}", subscription.id, outcome.card_charge.amount)
            await billing.billing_activities.apply_card_payment(
                ApplyCardPayment(
                    subscription_id=subscription.id,
                    invoice_id=outcome.invoice_id or "",
                    payment_id=f"pay_{n}",
                    now=subscription.period.end,
                )
            )

    async def close(n: int) -> None:
        await billing.subscription_activities.abort_order(
            AbortOrder(
                subscription_id=waiting[n].order.subscription_id,
                status=SubscriptionStatus.CANCELLED,
                reason="",
                actor=USER,
                now=ORDERED_AT,
            )
        )

    async def late_money(subscription: OpenedSubscription, n: int) -> None:
        """Credit the wallet and add a timeline event, as a payment that arrives late does."""
        await credit_wallet(billing.sessions, usd(100))
        async with billing.sessions.begin() as session:
            await session.execute(text("SELECT FROM customer_balances FOR NO KEY UPDATE"))
            await session.execute(
                text(
                    "INSERT INTO timeline_events (organization_id, subscription_id, occurred_at, kind, message,"
                    " dedup_key)"
                    " VALUES (:organization, :id, :at, 'payment.succeeded', '', :fact)"
                ),
                {
                    "organization": subscription.command.organization_id,
                    "id": subscription.id,
                    "at": ORDERED_AT,
                    "fact": f"late/{n}",
                },
            )

    await asyncio.gather(
        *(renew(subscription, n) for n, subscription in enumerate(ordered)),
        *(late_money(subscription, n) for n, subscription in enumerate(ordered)),
        *(close(n) for n in range(5)),
        *(billing.subscription_activities.record_order(billing.create_command(coupon="MANY")) for _ in range(5)),
    )
    statuses = Counter(
        row["status"]
        for row in await billing.query("SELECT status FROM invoices WHERE period_start > :at", at=ORDERED_AT)
    )
    assert statuses == {"paid": 10}
