"""Billing's activities at the same time: row locks decide, nothing is doubled, and nobody waits in a circle."""

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
from tests.support.books import ORDERED, USER, Books, Ordered, add_card, add_coupon, books_of, card_paid, top_up
from tests.support.databases import Database
from workflows.ports.billing import Settle, Unpaid
from workflows.ports.subscription import CloseOrder, RecordState
from workflows.rules.money import Money
from workflows.rules.subscription import State

DAY = timedelta(days=1)


@pytest_asyncio.fixture
async def books(database: Database) -> AsyncIterator[Books]:
    made = await books_of(database)
    yield made
    await made.ledger_is_sound()
    assert _deadlocks(database) == 0


def _deadlocks(database: Database) -> int:
    with psycopg.connect(database.superuser_dsn(), autocommit=True) as connection:
        connection.execute("SELECT pg_stat_force_next_flush()")
        row = connection.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchone()
    assert row is not None
    return int(row[0])


def usd(amount_minor: int) -> Money:
    return Money(amount_minor=amount_minor, currency="USD")


@pytest.mark.scenario("B25")
async def test_two_workers_renew_one_subscription_once(books: Books) -> None:
    await top_up(books.sessions, usd(5000))
    ordered = await books.active()
    renewal = books.renewal(ordered)
    first, *others = await asyncio.gather(*(books.billing.renew(renewal) for _ in range(5)))
    assert all(other == first for other in others)
    assert [row["status"] for row in await books.invoices(ordered.id)] == ["paid", "paid"]
    assert await books.balance() == 4000


@pytest.mark.scenario("B50")
async def test_a_hundred_invoices_at_once_are_numbered_without_a_gap(books: Books) -> None:
    """Forty of them are declined: a draft that was withdrawn burns no number."""

    async def finalise(n: int) -> str | None:
        async with books.sessions() as session:
            number = await invoices.draw_number(session, ORDERED)
            if n % 5 in (1, 3):
                await session.rollback()
                return None
            await session.commit()
            return number

    drawn = await asyncio.gather(*(finalise(n) for n in range(100)))
    numbers = sorted(number for number in drawn if number is not None)
    assert numbers == [f"BERTH-2026-{n:06d}" for n in range(1, 61)]


@pytest.mark.scenario("B50")
async def test_renewals_at_once_draw_numbers_without_a_gap(books: Books) -> None:
    await top_up(books.sessions, usd(500 * 40))
    ordered = [await books.active() for _ in range(20)]
    await asyncio.gather(*(books.billing.renew(books.renewal(one)) for one in ordered))
    rows = await books.rows("SELECT number FROM invoices ORDER BY number")
    assert [row["number"] for row in rows] == [f"BERTH-2026-{n:06d}" for n in range(1, 41)]
    assert await books.balance() == 0


async def test_a_number_belongs_to_the_year_of_the_subscriptions_own_clock(books: Books) -> None:
    await top_up(books.sessions, usd(5000))
    ordered = await books.active()
    eve = datetime(2029, 12, 31, 23, 59, 59, tzinfo=UTC)
    for now, number in ((eve, "BERTH-2029-000001"), (eve + timedelta(seconds=1), "BERTH-2030-000001")):
        renewal = replace(books.renewal(ordered, start=now), now=now)
        await books.billing.renew(renewal)
        assert (await books.invoices(ordered.id))[-1]["number"] == number


@pytest.mark.scenario("B33")
async def test_concurrent_voids_give_back_once(books: Books) -> None:
    """The wallet's part of a first invoice whose card failed goes back when the subscription is cancelled."""
    await top_up(books.sessions, usd(100))
    await add_card(books.sessions)
    command = books.order()
    opened = await books.subscriptions.open(command)
    assert opened.card is not None
    subscription = command.order.subscription_id
    await books.rows_written("UPDATE subscriptions SET status = 'provisioning'")
    bill = await books.billing.activate(books.activation(command, opened))
    await books.billing.unpaid(
        Unpaid(
            subscription_id=subscription,
            invoice_id=bill.invoice_id or "",
            payment_id="pay_1",
            decline_code="expired_card",
            next_attempt=None,
            now=ORDERED,
        )
    )
    assert (await books.balance(), await books.balance("receivable")) == (0, -400)
    cancel = RecordState(
        subscription_id=subscription,
        to=State.CANCELLED,
        reason="enough",
        actor=USER,
        now=ORDERED + DAY,
        delete_at=ORDERED + 31 * DAY,
        void_invoice=True,
    )
    await asyncio.gather(*(books.subscriptions.record_state(cancel) for _ in range(5)))
    assert (await books.balance(), await books.balance("receivable")) == (100, 0)
    kinds = Counter(row["kind"] for row in await books.rows("SELECT kind FROM ledger_transactions"))
    assert (kinds["void"], kinds["refund"]) == (1, 1)


async def test_a_card_that_pays_and_a_cancellation_at_once(books: Books) -> None:
    await top_up(books.sessions, usd(600))
    await add_card(books.sessions)
    ordered = await books.active()
    bill = await books.billing.renew(books.renewal(ordered))
    await card_paid(books.sessions, "pay_1", ordered.id, usd(400))
    settle = Settle(
        subscription_id=ordered.id, invoice_id=bill.invoice_id or "", payment_id="pay_1", now=ordered.period.end
    )
    cancel = RecordState(
        subscription_id=ordered.id,
        to=State.CANCELLED,
        reason="enough",
        actor=USER,
        now=ordered.period.end,
        delete_at=ordered.period.end + 30 * DAY,
        void_invoice=True,
    )
    await asyncio.gather(
        books.billing.settle(settle), books.subscriptions.record_state(cancel), books.billing.settle(settle)
    )
    # Either the invoice was paid first, or the money stays the customer's: never both, never neither.
    paid = [row["status"] for row in await books.invoices(ordered.id)] == ["paid", "paid"]
    assert await books.balance() == (0 if paid else 500)
    assert (await books.balance("held"), await books.balance("receivable")) == (0, 0)


async def test_one_accounts_renewals_top_ups_and_orders_at_once_never_deadlock(books: Books) -> None:
    await add_coupon(books.sessions, "MANY", 10, "forever")
    await top_up(books.sessions, usd(500 * 10))
    await add_card(books.sessions)
    ordered = [await books.active(coupon="MANY") for _ in range(10)]
    waiting = [books.order(coupon="MANY") for _ in range(5)]
    for command in waiting:
        await books.subscriptions.open(command)

    async def renew(one: Ordered, n: int) -> None:
        bill = await books.billing.renew(books.renewal(one))
        if bill.card is not None:
            await card_paid(books.sessions, f"pay_{n}", one.id, bill.card.amount)
            await books.billing.settle(
                Settle(
                    subscription_id=one.id,
                    invoice_id=bill.invoice_id or "",
                    payment_id=f"pay_{n}",
                    now=one.period.end,
                )
            )

    async def close(n: int) -> None:
        await books.subscriptions.close_order(
            CloseOrder(
                subscription_id=waiting[n].order.subscription_id,
                state=State.CANCELLED,
                reason="",
                actor=USER,
                now=ORDERED,
            )
        )

    async def late_money(one: Ordered, n: int) -> None:
        """As a payment that arrives late: its money first, then its part of the story."""
        await top_up(books.sessions, usd(100))
        async with books.sessions.begin() as session:
            await session.execute(
                text("UPDATE ledger_accounts SET balance_minor = balance_minor WHERE account = 'wallet';")
            )
            await session.execute(
                text(
                    "INSERT INTO timeline_events (organization_id, subscription_id, at, kind, message, fact)"
                    " VALUES (:organization, :id, :at, 'payment.succeeded', '', :fact)"
                ),
                {"organization": one.order.organization_id, "id": one.id, "at": ORDERED, "fact": f"late/{n}"},
            )

    await asyncio.gather(
        *(renew(one, n) for n, one in enumerate(ordered)),
        *(late_money(one, n) for n, one in enumerate(ordered)),
        *(close(n) for n in range(5)),
        *(books.subscriptions.open(books.order(coupon="MANY")) for _ in range(5)),
    )
    statuses = Counter(
        row["status"] for row in await books.rows("SELECT status FROM invoices WHERE period_start > :at", at=ORDERED)
    )
    assert statuses == {"paid": 10}
