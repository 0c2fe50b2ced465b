"""Every activity of a plan change, run twice with one command: Temporal does that whenever an answer was lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest
import pytest_asyncio
from temporalio.exceptions import ApplicationError

from tests.support.billing_commands import (
    LATER,
    change,
    reversal,
    state,
    top_up,
)
from tests.support.books import USER, Books, Ordered, add_card, books_of
from tests.support.books import card_paid as paid_by_card
from tests.support.databases import Database
from workflows.ports.billing import (
    Changed,
    ChangeOutcome,
    CompleteChange,
    Unpaid,
)
from workflows.rules.proration import Mode
from workflows.rules.subscription import State


@pytest_asyncio.fixture
async def books(database: Database) -> AsyncIterator[Books]:
    made = await books_of(database)
    yield made
    await made.ledger_is_sound()


async def test_a_scheduled_change(books: Books) -> None:
    await top_up(books, 5000)
    ordered = await books.active("pro")
    changed = await books.twice(books.billing.change_plan, change(ordered, "starter"))
    assert changed.outcome is ChangeOutcome.SCHEDULED


async def test_a_change_that_the_wallet_pays_and_that_is_undone(books: Books) -> None:
    await top_up(books, 5000)
    ordered = await books.active()
    changed = await books.twice(books.billing.change_plan, change(ordered, "pro"))
    assert (changed.outcome, changed.restarts) == (ChangeOutcome.APPLIED, False)
    assert await books.balance() < 4500
    await books.twice(books.billing.revert_change, reversal(ordered))
    assert await books.balance() == 4500


async def test_a_change_that_gives_credit_and_that_is_undone(books: Books) -> None:
    await top_up(books, 5000)
    ordered = await books.active("pro")
    changed = await books.twice(books.billing.change_plan, change(ordered, "starter", Mode.IMMEDIATE))
    assert (changed.outcome, changed.invoice_id) == (ChangeOutcome.APPLIED, None)
    assert await books.balance("promotional") > 900
    await books.twice(books.billing.revert_change, reversal(ordered))
    assert await books.balance("promotional") == 0
    # What was undone counts for nothing: the next downgrade is worth the same again.
    again = replace(change(ordered, "starter", Mode.IMMEDIATE), order_id="order_2")
    await books.twice(books.billing.change_plan, again)
    assert await books.balance("promotional") > 900


async def test_a_change_in_a_trial_costs_nothing(books: Books) -> None:
    ordered = await books.active("trial")
    changed = await books.twice(books.billing.change_plan, change(ordered, "pro", Mode.IMMEDIATE))
    assert (changed.outcome, changed.restarts) == (ChangeOutcome.APPLIED, False)


async def test_a_change_to_a_shorter_interval_at_once(books: Books) -> None:
    await top_up(books, 20_000)
    ordered = await books.active("pro-yearly")
    changed = await books.twice(books.billing.change_plan, change(ordered, "starter", Mode.IMMEDIATE))
    assert (changed.outcome, changed.restarts, changed.period_start) == (ChangeOutcome.APPLIED, True, LATER)


async def _changed_by_card(books: Books, plan: str) -> tuple[Ordered, Changed, CompleteChange]:
    await top_up(books, 600)
    await add_card(books.sessions)
    ordered = await books.active()
    changed = await books.twice(books.billing.change_plan, change(ordered, plan))
    assert changed.card is not None
    assert changed.invoice_id is not None
    await paid_by_card(books.sessions, "pay_1", ordered.id, changed.card.amount)
    complete = CompleteChange(
        subscription_id=ordered.id,
        invoice_id=changed.invoice_id,
        payment_id="pay_1",
        order_id="order_1",
        actor=USER,
        terms=changed.terms,
        restarts=changed.restarts,
        now=LATER + timedelta(seconds=5),
    )
    return ordered, changed, complete


async def test_a_change_that_a_card_pays(books: Books) -> None:
    _, changed, complete = await _changed_by_card(books, "pro")
    assert not changed.restarts
    bill = await books.twice(books.billing.complete_change, complete)
    assert bill.paid
    assert (await books.balance(), await books.balance("held")) == (0, 0)


async def test_a_change_that_the_card_declined_is_never_given_by_asking_again(books: Books) -> None:
    ordered, changed, _ = await _changed_by_card(books, "pro")
    declined = Unpaid(
        subscription_id=ordered.id,
        invoice_id=changed.invoice_id or "",
        payment_id="pay_2",
        decline_code="generic_decline",
        next_attempt=None,
        now=LATER,
    )
    bill = await books.twice(books.billing.unpaid, declined)
    assert not bill.paid
    with pytest.raises(ApplicationError) as refused:
        await books.billing.change_plan(change(ordered, "pro"))
    assert refused.value.type == "PAYMENT_DECLINED"


async def test_a_change_to_a_longer_interval_that_a_card_pays(books: Books) -> None:
    ordered, changed, complete = await _changed_by_card(books, "pro-yearly")
    assert changed.restarts
    bill = await books.twice(books.billing.complete_change, complete)
    assert bill.paid
    row = (await books.rows("SELECT * FROM subscriptions WHERE id = :id", id=ordered.id))[0]
    assert (row["current_period_start"], row["current_period_end"]) == (changed.period_start, changed.period_end)


async def test_a_change_that_a_card_pays_after_the_cancellation(books: Books) -> None:
    ordered, _, complete = await _changed_by_card(books, "pro")
    await books.twice(books.subscriptions.record_state, state(ordered, State.CANCELLED))
    bill = await books.twice(books.billing.complete_change, complete)
    assert (bill.paid, bill.state) == (False, State.CANCELLED)
    assert [row["status"] for row in await books.invoices(ordered.id)] == ["paid", "void"]
    assert await books.balance("held") == 0
