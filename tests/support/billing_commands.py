"""Commands of billing about one order, as its workflow would give them."""

from __future__ import annotations

from datetime import timedelta

from tests.support.books import ORDERED, USER, Books, Ordered
from tests.support.books import card_paid as paid_by_card
from tests.support.books import top_up as topped_up
from workflows.ports.billing import (
    Bill,
    ChangePlan,
    Collect,
    RevertChange,
    Settle,
    Unpaid,
)
from workflows.ports.subscription import Fallback, RecordState
from workflows.rules.money import Money
from workflows.rules.proration import Mode
from workflows.rules.subscription import State

DAY = timedelta(days=1)
LATER = ORDERED + 10 * DAY


def usd(amount_minor: int) -> Money:
    return Money(amount_minor=amount_minor, currency="USD")


async def top_up(books: Books, amount_minor: int) -> None:
    await topped_up(books.sessions, usd(amount_minor))


def collection(ordered: Ordered, bill: Bill) -> Collect:
    return Collect(
        subscription_id=ordered.id,
        invoice_id=bill.invoice_id or "",
        scheduled=True,
        actor="platform",
        now=ordered.period.end + DAY,
        next_attempt=ordered.period.end + 3 * DAY,
    )


async def settlement(books: Books, ordered: Ordered, bill: Bill) -> Settle:
    """A card has paid what a bill left to it."""
    assert bill.card is not None
    await paid_by_card(books.sessions, "pay_1", ordered.id, bill.card.amount)
    return Settle(
        subscription_id=ordered.id, invoice_id=bill.invoice_id or "", payment_id="pay_1", now=ordered.period.end
    )


def decline(ordered: Ordered, bill: Bill) -> Unpaid:
    return Unpaid(
        subscription_id=ordered.id,
        invoice_id=bill.invoice_id or "",
        payment_id="pay_1",
        decline_code="generic_decline",
        next_attempt=None,
        now=ordered.period.end,
    )


def state(ordered: Ordered, to: State) -> RecordState:
    cancelled = to is State.CANCELLED
    return RecordState(
        subscription_id=ordered.id,
        to=to,
        reason="because",
        actor=USER,
        now=LATER,
        delete_at=LATER + 30 * DAY if cancelled else None,
        void_invoice=cancelled,
    )


def change(ordered: Ordered, plan: str, mode: Mode | None = None) -> ChangePlan:
    return ChangePlan(
        subscription_id=ordered.id, plan_id=f"pln_{plan}", mode=mode, order_id="order_1", actor=USER, now=LATER
    )


def reversal(ordered: Ordered) -> RevertChange:
    fallback = Fallback(
        order_id="order_1",
        terms=ordered.terms,
        anchor=ordered.period.start,
        periods_billed=1,
        period_start=ordered.period.start,
        period_end=ordered.period.end,
    )
    return RevertChange(
        subscription_id=ordered.id, fallback=fallback, order_id="order_1", reason="no room", now=LATER + DAY
    )
