"""An invoice's states, and what it says paid it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from workflows.rules.allocations import PAID_SOURCES, AllocationSource
from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.money import Money, zero_money


class InvoiceStatus(StrEnum):
    DRAFT = "draft"
    OPEN = "open"
    PAID = "paid"
    VOID = "void"
    UNCOLLECTIBLE = "uncollectible"


class BillingReason(StrEnum):
    """Why an invoice was written; stored with it.

    ``PLAN_CHANGE`` is prorated within a period. Every other reason starts a period: ``ORDER`` the first one,
    ``INTERVAL_CHANGE`` the one of a plan with another interval.
    """

    ORDER = "order"
    RENEWAL = "renewal"
    TRIAL_END = "trial_end"
    RESUMPTION = "resumption"
    INTERVAL_CHANGE = "interval_change"
    PLAN_CHANGE = "plan_change"

    @property
    def starts_period(self) -> bool:
        return self is not BillingReason.PLAN_CHANGE


TRANSITIONS: dict[InvoiceStatus, frozenset[InvoiceStatus]] = {
    InvoiceStatus.DRAFT: frozenset({InvoiceStatus.OPEN, InvoiceStatus.PAID, InvoiceStatus.VOID}),
    InvoiceStatus.OPEN: frozenset({InvoiceStatus.PAID, InvoiceStatus.VOID, InvoiceStatus.UNCOLLECTIBLE}),
    InvoiceStatus.PAID: frozenset({InvoiceStatus.OPEN}),
    InvoiceStatus.VOID: frozenset(),
    InvoiceStatus.UNCOLLECTIBLE: frozenset({InvoiceStatus.PAID}),
}

_CREDIT_SOURCES = PAID_SOURCES - {AllocationSource.PAYMENT}

_COVERED_NAMES = {
    AllocationSource.PROMOTIONAL: "promotional",
    AllocationSource.WALLET: "wallet",
    AllocationSource.PAYMENT: "card",
    AllocationSource.CREDIT_NOTE: "credit_note",
    AllocationSource.DEBT: "debt",
}


def transition(current: InvoiceStatus, target: InvoiceStatus) -> InvoiceStatus:
    """Return ``target`` if it is a legal move. A paid invoice reopens when its payment is charged back.

    Raises:
        RuleViolation: ``ILLEGAL_MOVE``.
    """
    if target not in TRANSITIONS[current]:
        raise RuleViolation(ErrorCode.ILLEGAL_MOVE, f"An invoice that is {current} cannot become {target}.")
    return target


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceSource:
    """A source that paid an invoice.

    Attributes:
        amount: What the invoice received and still has. Zero when all of it was refunded, or carried debt was paid.
        payment_id: Set exactly when ``source`` is ``payment``.
        card: Brand and last four digits; None for other sources and for a payment without a saved card.
    """

    source: AllocationSource
    amount: Money
    payment_id: str | None = None
    card: str | None = None


def payment_summary(sources: Sequence[InvoiceSource]) -> str | None:
    """Return what a paid invoice says paid it, for example "Wallet, Visa ending in 4242".

    A refunded source is still named, because it paid. Carried debt is named only until it is paid.

    Returns:
        None when nothing was paid: the invoice is free.
    """
    named = [source for source in sources if source.source in PAID_SOURCES or source.amount]
    cards = sorted({source.card or "card" for source in named if source.source is AllocationSource.PAYMENT})
    is_credit = any(source.source in _CREDIT_SOURCES for source in named)
    is_carried = any(source.source is AllocationSource.DEBT for source in named)
    names = [*["wallet"] * is_credit, *cards, *["carried to the next payment"] * is_carried]
    summary = ", ".join(names)
    return summary[:1].upper() + summary[1:] or None


def covered_amounts(sources: Sequence[InvoiceSource], currency: str) -> Mapping[str, Money]:
    """Return what each kind of source paid and was not returned, under the names that the API shows."""
    return {
        name: sum((source.amount for source in sources if source.source is kind), start=zero_money(currency))
        for kind, name in _COVERED_NAMES.items()
    }
