"""Invoice allocations: what paid an invoice, from which source, and how each part returns to that source.

An allocation adds an amount from one source to one invoice. A reversal is an allocation with a negative amount that
names the allocation it reverses; it keeps the source. Nothing is ever updated or deleted, so the sum of an invoice's
allocations is what the invoice received and still has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.money import Money, zero_money


class AllocationSource(StrEnum):
    """Where the money of an allocation comes from.

    ``debt`` is not money: the amount was moved from the invoice to the organization's carried debt, because it is
    below the minimum of every usable payment method (scenario B13).
    """

    PROMOTIONAL = "promotional"
    WALLET = "wallet"
    PAYMENT = "payment"
    CREDIT_NOTE = "credit_note"
    DEBT = "debt"


REVERSAL_ORDER = (
    AllocationSource.DEBT,
    AllocationSource.PAYMENT,
    AllocationSource.WALLET,
    AllocationSource.CREDIT_NOTE,
    AllocationSource.PROMOTIONAL,
)
"""Order in which a partial reversal takes its amount: carried debt first, then the opposite of the payment order."""

PAID_SOURCES = frozenset(AllocationSource) - {AllocationSource.DEBT}
"""Sources that are value the customer gave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """One row of ``invoice_allocations``.

    Attributes:
        amount: Positive for an allocation, negative for a reversal, never zero.
        payment_id: Set exactly when ``source`` is ``payment``.
        credit_note_id: Set exactly when ``source`` is ``credit_note``.
        reverses: Id of the allocation that this row reverses; set exactly when ``amount`` is negative.

    Raises:
        ValueError: A field contradicts another one.
    """

    id: str
    source: AllocationSource
    amount: Money
    payment_id: str | None = None
    credit_note_id: str | None = None
    reverses: str | None = None

    def __post_init__(self) -> None:
        if not self.amount:
            raise ValueError("an allocation of zero")
        if (self.amount.amount_minor < 0) != (self.reverses is not None):
            raise ValueError("a reversal is negative and names the allocation that it reverses")
        if (self.source is AllocationSource.PAYMENT) != (self.payment_id is not None):
            raise ValueError("payment_id is set exactly for the source payment")
        if (self.source is AllocationSource.CREDIT_NOTE) != (self.credit_note_id is not None):
            raise ValueError("credit_note_id is set exactly for the source credit_note")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePart:
    """An amount that one source pays. ``payment_id`` is set exactly when ``source`` is ``payment``."""

    source: AllocationSource
    amount: Money
    payment_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedDebt:
    """What remains of one invoice's allocation of source ``debt``."""

    invoice_id: str
    allocation_id: str
    amount: Money


@dataclass(frozen=True, slots=True, kw_only=True)
class DebtRepayment:
    """A part of carried debt that is paid: ``reversal`` and ``parts`` are of the same invoice and amount."""

    invoice_id: str
    reversal: Reversal
    parts: tuple[SourcePart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reversal:
    """A part of a planned reversal. ``amount`` is positive; it becomes an allocation of ``-amount``."""

    allocation_id: str
    source: AllocationSource
    amount: Money
    payment_id: str | None = None
    credit_note_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceBalance:
    """An invoice with everything that was allocated to it.

    Attributes:
        refunded: Reversals that returned money without reopening the invoice.
        credited: Credit that plan changes gave for unused time of this invoice.
        allocations: Oldest first.
    """

    total: Money
    refunded: Money
    credited: Money
    allocations: tuple[Allocation, ...] = ()


def unreversed_amount(allocation: Allocation, allocations: Sequence[Allocation]) -> Money:
    """Return what remains of ``allocation`` after the reversals in ``allocations`` that name it."""
    reversals = [other for other in allocations if other.reverses == allocation.id]
    return allocation.amount + _sum(reversals, allocation.amount.currency)


def split_parts(parts: Sequence[SourcePart], amount: Money) -> tuple[tuple[SourcePart, ...], tuple[SourcePart, ...]]:
    """Return the parts that make up the first ``amount``, and the parts that are left. Parts of zero are dropped."""
    remaining, first, others = amount, list[SourcePart](), list[SourcePart]()
    for part in parts:
        taken = min(part.amount, remaining)
        remaining -= taken
        if taken:
            first.append(replace(part, amount=taken))
        if taken != part.amount:
            others.append(replace(part, amount=part.amount - taken))
    return tuple(first), tuple(others)


def plan_debt_repayment(
    parts: Sequence[SourcePart], debts: Sequence[CarriedDebt], amount: Money
) -> tuple[DebtRepayment, ...]:
    """Split ``amount`` of ``parts`` over carried debt in the order of ``debts``.

    Each repayment replaces the source ``debt`` of an invoice by the source that pays it: what the invoice received
    stays the same.
    """
    available, _ = split_parts(parts, amount)
    repayments = list[DebtRepayment]()
    for debt in debts:
        taken, available = split_parts(available, debt.amount)
        if taken:
            reversal = Reversal(
                allocation_id=debt.allocation_id,
                source=AllocationSource.DEBT,
                amount=_sum_parts(taken),
            )
            repayments.append(DebtRepayment(invoice_id=debt.invoice_id, reversal=reversal, parts=taken))
    return tuple(repayments)


def plan_reversal(
    allocations: Sequence[Allocation],
    amount: Money,
    *,
    sources: frozenset[AllocationSource] = frozenset(AllocationSource),
    payment_id: str | None = None,
) -> tuple[Reversal, ...]:
    """Split ``amount`` into reversals of existing allocations, in ``REVERSAL_ORDER``, the newest of a source first.

    Args:
        allocations: All allocations of one invoice, reversals included, oldest first.
        amount: Positive.
        sources: Sources that may be reversed.
        payment_id: Reverse only allocations of this payment.

    Raises:
        RuleViolation: ``CURRENCY_MISMATCH``.
        ValueError: ``amount`` is not positive, or more than what can be reversed.
    """
    if amount.amount_minor <= 0:
        raise ValueError("the amount of a reversal is positive")
    # Raises for another currency: `min` below would compare the codes.
    _sum(allocations, amount.currency)
    remaining, reversals = amount, list[Reversal]()
    for allocation in _reversible(allocations, sources, payment_id):
        part = min(remaining, unreversed_amount(allocation, allocations))
        if part.amount_minor > 0:
            reversals.append(_reversal(allocation, part))
            remaining -= part
    if remaining:
        raise ValueError(f"{remaining.amount_minor} {remaining.currency} more than was allocated")
    return tuple(reversals)


def plan_full_reversal(allocations: Sequence[Allocation]) -> tuple[Reversal, ...]:
    """Return the reversals that undo everything that is left: a void, a plan change rollback, a failed capture."""
    return tuple(
        _reversal(allocation, remaining)
        for allocation in _reversible(allocations, frozenset(AllocationSource), None)
        if (remaining := unreversed_amount(allocation, allocations))
    )


def carried_debt(invoice: InvoiceBalance) -> Money:
    """Return what of an invoice is carried debt that was not paid later."""
    carried = [allocation for allocation in invoice.allocations if allocation.source is AllocationSource.DEBT]
    return _sum(carried, invoice.total.currency)


def refundable_amount(invoice: InvoiceBalance, payment_id: str) -> Money:
    """Return how much of a payment can be refunded from this invoice.

    Never more than the payment's allocation still holds, and never more than was paid and not yet credited for
    unused time: refunds and credits together stay at or below what was paid.
    """
    allocations = [allocation for allocation in invoice.allocations if allocation.payment_id == payment_id]
    unreversed = _sum(allocations, invoice.total.currency)
    return _at_least_zero(min(unreversed, _paid(invoice) - invoice.credited))


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundParts:
    """What a refund takes: ``reversals`` per invoice, which sum to ``from_invoices``, and an amount of the wallet."""

    reversals: Mapping[str, tuple[Reversal, ...]]
    from_invoices: Money
    from_wallet: Money


def plan_refund(
    amount: Money,
    invoices: Mapping[str, InvoiceBalance],
    payment_id: str,
    in_wallet: Money,
    rejected: Money | None = None,
) -> RefundParts:
    """Split a refund of a payment over the invoices that the payment paid, in their order, and then the wallet.

    Args:
        in_wallet: What of the payment went to the wallet and was not refunded.
        rejected: What of it went there because a bank rejected a refund. It is taken first: the same refund, made
            again, must not give back the same amount twice.

    Raises:
        RuleViolation: ``REFUND_EXCEEDS_PAYMENT``. Credit for unused time of an invoice was returned already.
    """
    made_again = min(amount, in_wallet, rejected or zero_money(amount.currency))
    remaining, reversals = amount - made_again, dict[str, tuple[Reversal, ...]]()
    for invoice_id, invoice in invoices.items():
        part = min(remaining, refundable_amount(invoice, payment_id))
        if part:
            reversals[invoice_id] = plan_reversal(invoice.allocations, part, payment_id=payment_id)
            remaining -= part
    remaining += made_again
    if remaining > in_wallet:
        refundable = amount - remaining + in_wallet
        raise RuleViolation(
            ErrorCode.REFUND_EXCEEDS_PAYMENT,
            "The refund is more than the payment still holds: the remainder was refunded, or credited for unused time.",
            {"left_minor": refundable.amount_minor, "currency": refundable.currency},
        )
    return RefundParts(reversals=reversals, from_invoices=amount - remaining, from_wallet=remaining)


def plan_change_credit_limit(invoices: Sequence[InvoiceBalance], currency: str) -> Money:
    """Return the most that a plan change may credit for unused time of a period.

    Args:
        invoices: The invoices that were issued for the period, plan changes in it included.

    Carried debt was not paid, refunded money was returned, and earlier credits were given already: none of them can
    be credited (scenario B14: upgrade, consume, downgrade never cashes out).
    """
    limit = Money(amount_minor=0, currency=currency)
    for invoice in invoices:
        limit += _paid(invoice) - invoice.credited
    return _at_least_zero(limit)


def split_credit(invoices: Sequence[InvoiceBalance], credit: Money) -> tuple[Money, ...]:
    """Return how much of ``credit`` each invoice's ``credited`` takes, the last invoice first.

    Raises:
        ValueError: ``credit`` is more than the invoices can take.
    """
    remaining, parts = credit, list[Money]()
    for invoice in reversed(invoices):
        part = min(remaining, _at_least_zero(_paid(invoice) - invoice.credited))
        parts.append(part)
        remaining -= part
    if remaining:
        raise ValueError(f"{remaining.amount_minor} {remaining.currency} more than the invoices can be credited")
    return tuple(reversed(parts))


def _paid(invoice: InvoiceBalance) -> Money:
    """Return what was paid and not returned, without carried debt."""
    paid = [allocation for allocation in invoice.allocations if allocation.source in PAID_SOURCES]
    return _sum(paid, invoice.total.currency)


def _reversible(
    allocations: Sequence[Allocation], sources: frozenset[AllocationSource], payment_id: str | None
) -> list[Allocation]:
    return [
        allocation
        for source in REVERSAL_ORDER
        if source in sources
        for allocation in reversed(allocations)
        if allocation.source is source
        and allocation.reverses is None
        and (payment_id is None or allocation.payment_id == payment_id)
    ]


def _reversal(allocation: Allocation, amount: Money) -> Reversal:
    return Reversal(
        allocation_id=allocation.id,
        source=allocation.source,
        amount=amount,
        payment_id=allocation.payment_id,
        credit_note_id=allocation.credit_note_id,
    )


def _sum(allocations: Sequence[Allocation], currency: str) -> Money:
    amount = Money(amount_minor=0, currency=currency)
    for allocation in allocations:
        amount += allocation.amount
    return amount


def _sum_parts(parts: Sequence[SourcePart]) -> Money:
    amount = Money(amount_minor=0, currency=parts[0].amount.currency)
    for part in parts:
        amount += part.amount
    return amount


def _at_least_zero(amount: Money) -> Money:
    return max(amount, Money(amount_minor=0, currency=amount.currency))
