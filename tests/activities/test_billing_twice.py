"""Every activity of billing, run twice with one command: Temporal does that whenever an answer was lost on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest_asyncio

from tests.support.billing_commands import (
    DAY,
    LATER,
    collection,
    decline,
    settlement,
    state,
    top_up,
    usd,
)
from tests.support.books import ORDERED, ORGANIZATION, USER, Books, add_card, add_coupon, books_of
from tests.support.databases import Database
from workflows.ports.billing import (
    AccountAdjustment,
)
from workflows.ports.subscription import CloseOrder, RecordIntent, Remind, Secured
from workflows.rules.subscription import State


@pytest_asyncio.fixture
async def books(database: Database) -> AsyncIterator[Books]:
    made = await books_of(database)
    yield made
    await made.ledger_is_sound()


# Orders


async def test_an_order_paid_by_the_wallet(books: Books) -> None:
    await top_up(books, 600)
    command = books.order()
    opened = await books.twice(books.subscriptions.open, command)
    assert await books.balance("held") == 500
    bill = await books.twice(books.billing.activate, books.activation(command, opened))
    assert (bill.paid, bill.state) == (True, State.ACTIVE)
    assert (await books.balance(), await books.balance("held")) == (100, 0)


async def test_an_order_paid_by_wallet_and_card(books: Books) -> None:
    await top_up(books, 100)
    await add_card(books.sessions)
    command = books.order()
    opened = await books.twice(books.subscriptions.open, command)
    assert opened.card is not None
    assert opened.card.amount == usd(400)
    secured = Secured(subscription_id=command.order.subscription_id, payment_id="pay_1", now=ORDERED)
    await books.twice(books.subscriptions.secured, secured)
    bill = await books.twice(books.billing.activate, books.activation(command, opened))
    assert bill.card is not None
    assert bill.card.amount == usd(400)


async def test_an_order_with_a_trial(books: Books) -> None:
    command = books.order("trial")
    opened = await books.twice(books.subscriptions.open, command)
    bill = await books.twice(books.billing.activate, books.activation(command, opened))
    assert (bill.paid, bill.invoice_id, bill.state) == (True, None, State.TRIALING)


async def test_an_order_that_ends_gives_coupon_credit_and_host_name_back(books: Books) -> None:
    await add_coupon(books.sessions, "WELCOME", 20, "once")
    await add_card(books.sessions)
    for ending in (State.EXPIRED, State.FAILED, State.CANCELLED):
        await top_up(books, 100)
        command = books.order(coupon="WELCOME")
        await books.twice(books.subscriptions.open, command)
        close = CloseOrder(
            subscription_id=command.order.subscription_id, state=ending, reason="no", actor=USER, now=ORDERED
        )
        if ending is State.FAILED:
            secured = Secured(subscription_id=command.order.subscription_id, payment_id="pay_1", now=ORDERED)
            await books.subscriptions.secured(secured)
        await books.twice(books.subscriptions.close_order, close)
        assert await books.balance("held") == 0
    assert await books.balance() == 300
    assert (await books.rows("SELECT redeemed FROM coupons"))[0]["redeemed"] == 0
    # Nothing was ever begun for them, so no one else would say that they are gone.
    assert {row["status"] for row in await books.rows("SELECT status FROM instances")} == {"deleted"}


# Renewals


async def test_a_renewal_that_the_wallet_pays(books: Books) -> None:
    await top_up(books, 2000)
    ordered = await books.active()
    bill = await books.twice(books.billing.renew, books.renewal(ordered))
    assert bill.paid
    assert await books.balance() == 1000


async def test_a_renewal_that_nothing_pays(books: Books) -> None:
    await top_up(books, 500)
    ordered = await books.active()
    bill = await books.twice(books.billing.renew, books.renewal(ordered))
    assert (bill.paid, bill.card, bill.state) == (False, None, State.PAST_DUE)
    bill = await books.twice(books.billing.collect, collection(ordered, bill))
    assert not bill.paid
    await top_up(books, 500)
    bill = await books.twice(books.billing.collect, collection(ordered, bill))
    assert (bill.paid, bill.state, bill.first_failure) == (True, State.ACTIVE, None)


async def test_a_renewal_that_a_card_pays(books: Books) -> None:
    await top_up(books, 600)
    await add_card(books.sessions)
    ordered = await books.active()
    bill = await books.twice(books.billing.renew, books.renewal(ordered))
    assert bill.card is not None
    assert bill.card.amount == usd(400)
    bill = await books.twice(books.billing.settle, await settlement(books, ordered, bill))
    assert (bill.paid, bill.state) == (True, State.ACTIVE)
    assert (await books.balance(), await books.balance("held"), await books.balance("receivable")) == (0, 0, 0)


async def test_a_renewal_that_a_card_declines_and_a_retry_that_it_pays(books: Books) -> None:
    await top_up(books, 600)
    await add_card(books.sessions)
    ordered = await books.active()
    bill = await books.twice(books.billing.renew, books.renewal(ordered))
    bill = await books.twice(books.billing.unpaid, decline(ordered, bill))
    assert (bill.paid, bill.state) == (False, State.PAST_DUE)
    assert (await books.balance(), await books.balance("held")) == (100, 0)
    bill = await books.twice(books.billing.collect, collection(ordered, bill))
    assert bill.card is not None
    assert bill.card.amount == usd(400)
    bill = await books.twice(books.billing.settle, await settlement(books, ordered, bill))
    assert (bill.paid, bill.state) == (True, State.ACTIVE)


async def test_the_end_of_a_trial(books: Books) -> None:
    ordered = await books.active("trial")
    bill = await books.twice(books.billing.renew, books.renewal(ordered, restart=True))
    assert (bill.paid, bill.state) == (False, State.PAUSED)
    assert await books.invoices(ordered.id) == []


async def test_the_end_of_a_trial_that_a_card_pays_or_not(books: Books) -> None:
    await add_card(books.sessions)
    ordered = await books.active("trial")
    bill = await books.twice(books.billing.renew, books.renewal(ordered, restart=True))
    bill = await books.twice(books.billing.unpaid, decline(ordered, bill))
    assert (bill.paid, bill.state) == (False, State.PAUSED)
    resumed = books.renewal(ordered, restart=True, start=ordered.period.end + DAY)
    bill = await books.twice(books.billing.renew, resumed)
    bill = await books.twice(books.billing.settle, await settlement(books, ordered, bill))
    assert (bill.paid, bill.state) == (True, State.ACTIVE)
    assert [row["status"] for row in await books.invoices(ordered.id)] == ["void", "paid"]


async def test_a_card_that_pays_after_the_cancellation(books: Books) -> None:
    await top_up(books, 600)
    await add_card(books.sessions)
    ordered = await books.active()
    bill = await books.twice(books.billing.renew, books.renewal(ordered))
    await books.twice(books.subscriptions.record_state, state(ordered, State.CANCELLED))
    bill = await books.twice(books.billing.settle, await settlement(books, ordered, bill))
    assert (bill.paid, bill.state) == (False, State.CANCELLED)
    assert (await books.balance(), await books.balance("held")) == (500, 0)


async def test_a_card_that_declines_after_the_cancellation(books: Books) -> None:
    await top_up(books, 600)
    await add_card(books.sessions)
    ordered = await books.active()
    bill = await books.twice(books.billing.renew, books.renewal(ordered))
    await books.twice(books.subscriptions.record_state, state(ordered, State.CANCELLED))
    await books.twice(books.billing.unpaid, decline(ordered, bill))
    assert (await books.balance(), await books.balance("held"), await books.balance("receivable")) == (100, 0, 0)


async def test_a_draft_that_a_card_still_pays_after_the_cancellation_is_withdrawn(books: Books) -> None:
    await add_card(books.sessions)
    ordered = await books.active("trial")
    bill = await books.twice(books.billing.renew, books.renewal(ordered, restart=True))
    await books.twice(books.subscriptions.record_state, state(ordered, State.CANCELLED))
    await books.twice(books.billing.settle, await settlement(books, ordered, bill))
    assert [(row["status"], row["number"]) for row in await books.invoices(ordered.id)] == [("void", None)]
    assert (await books.balance(), await books.balance("held")) == (500, 0)


# Moves without money


async def test_moves_intents_and_reminders(books: Books) -> None:
    await top_up(books, 5000)
    ordered = await books.active()
    remind = Remind(subscription_id=ordered.id, days=7, due_at=ordered.period.end, now=LATER)
    await books.twice(books.subscriptions.remind, remind)
    intent = RecordIntent(
        subscription_id=ordered.id,
        cancel_at_period_end=True,
        pending_plan_id=None,
        reason="leaving",
        actor=USER,
        now=LATER,
    )
    await books.twice(books.subscriptions.record_intent, intent)
    await books.twice(books.subscriptions.record_intent, replace(intent, cancel_at_period_end=False))
    for to in (State.PAUSED, State.CANCELLED, State.TERMINATED):
        await books.twice(books.subscriptions.record_state, state(ordered, to))


async def test_a_suspension(books: Books) -> None:
    debtor, _ = await books.past_due()
    await books.twice(books.subscriptions.record_state, state(debtor, State.SUSPENDED))
    await books.twice(books.subscriptions.record_state, state(debtor, State.CANCELLED))
    assert [row["status"] for row in await books.invoices(debtor.id)] == ["paid", "void"]


async def test_an_adjustment(books: Books) -> None:
    command = AccountAdjustment(
        adjustment_id="adj_1",
        organization_id=ORGANIZATION,
        amount=usd(250),
        reason="sorry",
        actor=USER,
        request_id="",
        now=LATER,
    )
    await books.twice(books.billing.adjust, command)
    assert await books.balance() == 250


async def test_a_coupon_of_a_trial_is_used_by_its_first_invoice_or_given_back(books: Books) -> None:
    await add_coupon(books.sessions, "TWICE", 50, "periods", 2)
    await top_up(books, 500)
    ordered = await books.active("trial", coupon="TWICE")
    await books.twice(books.billing.renew, books.renewal(ordered, restart=True))
    assert [row["status"] for row in await books.rows("SELECT status FROM coupon_redemptions")] == ["used"]
    assert [row["total_minor"] for row in await books.invoices(ordered.id)] == [250]
    await books.rows_written("UPDATE subscriptions SET trial = false")
    other = await books.active("trial", coupon="TWICE")
    await books.twice(books.subscriptions.record_state, state(other, State.CANCELLED))
    assert (await books.rows("SELECT redeemed FROM coupons"))[0]["redeemed"] == 1


# Plan changes
