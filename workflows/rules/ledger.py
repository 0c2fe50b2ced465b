"""Double entry: what each business fact posts. Credits are positive, debits negative, every posting sums to zero.

``wallet``, ``promotional`` and ``held`` are liabilities of Berth toward one organisation, so what a customer owns is
positive there; ``receivable`` is negative while the customer owes. Platform accounts belong to no organisation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from workflows.rules.money import Money


class Account(StrEnum):
    WALLET = "wallet"
    PROMOTIONAL = "promotional"
    HELD = "held"
    RECEIVABLE = "receivable"
    REVENUE = "revenue"
    TAX_PAYABLE = "tax_payable"
    REFUNDS = "refunds"
    WRITE_OFF = "write_off"
    ADJUSTMENTS = "adjustments"


OF_THE_CUSTOMER = (Account.WALLET, Account.PROMOTIONAL, Account.HELD)
"""Accounts whose sum is what the customer owns; none of them may fall below zero."""

OF_THE_ORGANIZATION = (*OF_THE_CUSTOMER, Account.RECEIVABLE)


def clearing(gateway: str) -> str:
    """Return the platform account of money that lies at ``gateway``."""
    return f"clearing:{gateway}"


class Kind(StrEnum):
    """What a transaction is called. The first five are those that customers see."""

    TOP_UP = "top_up"
    CHARGE = "charge"
    REFUND = "refund"
    CREDIT = "credit"
    ADJUSTMENT = "adjustment"
    HOLD = "hold"
    RELEASE = "release"
    INVOICE = "invoice"
    VOID = "void"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    account: str
    amount: Money


@dataclass(frozen=True, slots=True, kw_only=True)
class Posting:
    """One balanced transaction.

    Raises:
        ValueError: the entries of some currency do not sum to zero, or there are none.
    """

    kind: Kind
    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        if not self.entries or not balanced(self.entries):
            raise ValueError(f"an unbalanced {self.kind}: {self.entries}")


def balanced(entries: Iterable[Entry]) -> bool:
    sums: defaultdict[str, int] = defaultdict(int)
    for entry in entries:
        sums[entry.amount.currency] += entry.amount.amount_minor
    return not any(sums.values())


def posting(kind: Kind, *entries: tuple[str, Money]) -> Posting:
    """Build a posting and drop entries of zero."""
    return Posting(
        kind=kind, entries=tuple(Entry(account=account, amount=amount) for account, amount in entries if amount)
    )


def top_up(gateway: str, amount: Money) -> Posting:
    """Money arrived at the gateway for the wallet."""
    return posting(Kind.TOP_UP, (clearing(gateway), -amount), (Account.WALLET, amount))


def received_for_invoice(gateway: str, amount: Money) -> Posting:
    """Money arrived at the gateway for one invoice: it is kept apart until the invoice takes it."""
    return posting(Kind.TOP_UP, (clearing(gateway), -amount), (Account.HELD, amount))


def hold(*, promotional: Money, wallet: Money) -> Posting:
    return posting(
        Kind.HOLD,
        (Account.WALLET, -wallet),
        (Account.PROMOTIONAL, -promotional),
        (Account.HELD, wallet + promotional),
    )


def release(*, promotional: Money, wallet: Money) -> Posting:
    """Undo a hold: each part goes back where it came from."""
    return posting(
        Kind.RELEASE,
        (Account.WALLET, wallet),
        (Account.PROMOTIONAL, promotional),
        (Account.HELD, -(wallet + promotional)),
    )


def invoiced(*, total: Money, tax: Money) -> Posting:
    """A finalised invoice that is not paid yet."""
    return posting(
        Kind.INVOICE,
        (Account.RECEIVABLE, -total),
        (Account.REVENUE, total - tax),
        (Account.TAX_PAYABLE, tax),
    )


def voided(*, total: Money, tax: Money) -> Posting:
    """A finalised, unpaid invoice is withdrawn."""
    return posting(
        Kind.VOID,
        (Account.RECEIVABLE, total),
        (Account.REVENUE, tax - total),
        (Account.TAX_PAYABLE, -tax),
    )


def charge(*, promotional: Money, wallet: Money, held: Money, tax: Money) -> Posting:
    """An invoice is finalised and paid at once."""
    paid = promotional + wallet + held
    return posting(
        Kind.CHARGE,
        (Account.WALLET, -wallet),
        (Account.PROMOTIONAL, -promotional),
        (Account.HELD, -held),
        (Account.REVENUE, paid - tax),
        (Account.TAX_PAYABLE, tax),
    )


def collected(*, promotional: Money, wallet: Money, held: Money) -> Posting:
    """An open invoice is paid."""
    paid = promotional + wallet + held
    return posting(
        Kind.CHARGE,
        (Account.WALLET, -wallet),
        (Account.PROMOTIONAL, -promotional),
        (Account.HELD, -held),
        (Account.RECEIVABLE, paid),
    )


def credit(amount: Money) -> Posting:
    """Unused time becomes credit that can be spent but not paid out."""
    return posting(Kind.CREDIT, (Account.REVENUE, -amount), (Account.PROMOTIONAL, amount))


def refund_to_wallet(amount: Money) -> Posting:
    """An invoice's money goes back to the wallet."""
    return posting(Kind.REFUND, (Account.REFUNDS, -amount), (Account.WALLET, amount))


def refund_of_charge(gateway: str, amount: Money) -> Posting:
    """Money that paid an invoice goes back through the gateway; the wallet does not move."""
    return posting(Kind.REFUND, (Account.REFUNDS, -amount), (clearing(gateway), amount))


def refund_of_top_up(gateway: str, amount: Money) -> Posting:
    """Money of the wallet goes back through the gateway."""
    return posting(Kind.REFUND, (Account.WALLET, -amount), (clearing(gateway), amount))


def adjustment(amount: Money) -> Posting:
    """An administrator adds to the wallet, or takes from it when negative."""
    return posting(Kind.ADJUSTMENT, (Account.WALLET, amount), (Account.ADJUSTMENTS, -amount))


@dataclass(frozen=True, slots=True, kw_only=True)
class Funding:
    """How an amount is covered: promotional credit first, then the wallet, the rest by card."""

    promotional: Money
    wallet: Money
    rest: Money

    @property
    def covered(self) -> bool:
        return not self.rest


def fund(due: Money, *, promotional: Money, wallet: Money) -> Funding:
    """Split ``due`` over what the account has, in payment order."""
    from_promotional = min(due, promotional)
    from_wallet = min(due - from_promotional, wallet)
    return Funding(promotional=from_promotional, wallet=from_wallet, rest=due - from_promotional - from_wallet)
