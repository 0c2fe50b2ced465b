"""Double entry: what each business fact posts. Credits are positive, debits negative, every posting sums to zero.

``wallet``, ``promotional`` and ``held`` are liabilities of Berth toward one organization, so what a customer owns is
positive there; ``receivable`` (open invoices) and ``debt`` (amounts below a gateway's minimum, carried to the next
charge) are negative while the customer owes. Platform accounts belong to no organization.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from workflows.rules.money import Money, zero_money


class LedgerAccount(StrEnum):
    WALLET = "wallet"
    PROMOTIONAL = "promotional"
    HELD = "held"
    RECEIVABLE = "receivable"
    DEBT = "debt"
    REVENUE = "revenue"
    TAX_PAYABLE = "tax_payable"
    REFUNDS = "refunds"
    ADJUSTMENTS = "adjustments"


SPENDABLE = (LedgerAccount.WALLET, LedgerAccount.PROMOTIONAL)

CUSTOMER_ASSET_ACCOUNTS = (LedgerAccount.WALLET, LedgerAccount.PROMOTIONAL, LedgerAccount.HELD)
"""Accounts whose sum is what the customer owns; none of them may fall below zero."""

ORGANIZATION_ACCOUNTS = (
    LedgerAccount.WALLET,
    LedgerAccount.PROMOTIONAL,
    LedgerAccount.DEBT,
    LedgerAccount.HELD,
    LedgerAccount.RECEIVABLE,
)
"""In the order in which their balances are locked."""


def clearing_account(gateway: str) -> str:
    """Return the platform account of money that lies at ``gateway``."""
    return f"clearing:{gateway}"


class TransactionKind(StrEnum):
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
class LedgerEntry:
    account: str
    amount: Money


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerTransaction:
    """One balanced transaction.

    Raises:
        ValueError: the entries of some currency do not sum to zero, or there are none.
    """

    kind: TransactionKind
    entries: tuple[LedgerEntry, ...]

    def __post_init__(self) -> None:
        if not self.entries or not is_balanced(self.entries):
            raise ValueError(f"an unbalanced {self.kind}: {self.entries}")


def is_balanced(entries: Iterable[LedgerEntry]) -> bool:
    sums: defaultdict[str, int] = defaultdict(int)
    for entry in entries:
        sums[entry.amount.currency] += entry.amount.amount_minor
    return not any(sums.values())


def build_transaction(kind: TransactionKind, *entries: tuple[str, Money]) -> LedgerTransaction:
    """Build a posting and drop entries of zero."""
    return LedgerTransaction(
        kind=kind, entries=tuple(LedgerEntry(account=account, amount=amount) for account, amount in entries if amount)
    )


def top_up_transaction(gateway: str, amount: Money) -> LedgerTransaction:
    """Money arrived at the gateway for the wallet."""
    return build_transaction(
        TransactionKind.TOP_UP, (clearing_account(gateway), -amount), (LedgerAccount.WALLET, amount)
    )


def card_payment_transaction(gateway: str, amount: Money) -> LedgerTransaction:
    """Money arrived at the gateway for one invoice: it is kept apart until the invoice takes it."""
    return build_transaction(TransactionKind.TOP_UP, (clearing_account(gateway), -amount), (LedgerAccount.HELD, amount))


def hold_transaction(*, promotional: Money, wallet: Money) -> LedgerTransaction:
    return build_transaction(
        TransactionKind.HOLD,
        (LedgerAccount.WALLET, -wallet),
        (LedgerAccount.PROMOTIONAL, -promotional),
        (LedgerAccount.HELD, wallet + promotional),
    )


def release_transaction(*, promotional: Money, wallet: Money) -> LedgerTransaction:
    """Undo a hold: each part goes back where it came from."""
    return build_transaction(
        TransactionKind.RELEASE,
        (LedgerAccount.WALLET, wallet),
        (LedgerAccount.PROMOTIONAL, promotional),
        (LedgerAccount.HELD, -(wallet + promotional)),
    )


def invoice_transaction(*, total: Money, tax: Money) -> LedgerTransaction:
    """A finalized invoice that is not paid yet."""
    return build_transaction(
        TransactionKind.INVOICE,
        (LedgerAccount.RECEIVABLE, -total),
        (LedgerAccount.REVENUE, total - tax),
        (LedgerAccount.TAX_PAYABLE, tax),
    )


def void_transaction(*, total: Money, tax: Money) -> LedgerTransaction:
    """A finalized, unpaid invoice is withdrawn."""
    return build_transaction(
        TransactionKind.VOID,
        (LedgerAccount.RECEIVABLE, total),
        (LedgerAccount.REVENUE, tax - total),
        (LedgerAccount.TAX_PAYABLE, -tax),
    )


def paid_invoice_transaction(
    *,
    promotional: Money,
    wallet: Money,
    held: Money,
    tax: Money,
    carried: Money | None = None,
    repaid: Money | None = None,
) -> LedgerTransaction:
    """An invoice is finalized and paid at once, ``carried`` of it as new debt; ``repaid`` pays earlier debt as well."""
    owed = (carried or zero_money(tax.currency)) - (repaid or zero_money(tax.currency))
    paid = promotional + wallet + held
    return build_transaction(
        TransactionKind.CHARGE,
        (LedgerAccount.WALLET, -wallet),
        (LedgerAccount.PROMOTIONAL, -promotional),
        (LedgerAccount.DEBT, -owed),
        (LedgerAccount.HELD, -held),
        (LedgerAccount.REVENUE, paid + owed - tax),
        (LedgerAccount.TAX_PAYABLE, tax),
    )


def collection_transaction(
    *, promotional: Money, wallet: Money, held: Money, carried: Money | None = None, repaid: Money | None = None
) -> LedgerTransaction:
    """An open invoice is paid, ``carried`` of it as new debt; ``repaid`` pays earlier debt as well."""
    owed = (carried or zero_money(held.currency)) - (repaid or zero_money(held.currency))
    paid = promotional + wallet + held
    return build_transaction(
        TransactionKind.CHARGE,
        (LedgerAccount.WALLET, -wallet),
        (LedgerAccount.PROMOTIONAL, -promotional),
        (LedgerAccount.DEBT, -owed),
        (LedgerAccount.HELD, -held),
        (LedgerAccount.RECEIVABLE, paid + owed),
    )


def promotional_credit_transaction(amount: Money) -> LedgerTransaction:
    """Unused time becomes credit that can be spent but not paid out."""
    return build_transaction(
        TransactionKind.CREDIT, (LedgerAccount.REVENUE, -amount), (LedgerAccount.PROMOTIONAL, amount)
    )


def wallet_refund_transaction(amount: Money, *, repaid: Money | None = None) -> LedgerTransaction:
    """An invoice's money goes back to the wallet; ``repaid`` of it pays debt of the account first."""
    cleared = repaid or zero_money(amount.currency)
    return build_transaction(
        TransactionKind.REFUND,
        (LedgerAccount.REFUNDS, -amount),
        (LedgerAccount.WALLET, amount - cleared),
        (LedgerAccount.DEBT, cleared),
    )


def allocation_reversal_transaction(*, wallet: Money, promotional: Money, debt: Money) -> LedgerTransaction:
    """What an invoice received goes back to its sources; ``debt`` is carried debt that no longer exists."""
    return build_transaction(
        TransactionKind.REFUND,
        (LedgerAccount.REFUNDS, -(wallet + promotional + debt)),
        (LedgerAccount.WALLET, wallet),
        (LedgerAccount.PROMOTIONAL, promotional),
        (LedgerAccount.DEBT, debt),
    )


def charge_refund_transaction(gateway: str, amount: Money) -> LedgerTransaction:
    """Money that paid an invoice goes back through the gateway; the wallet does not move."""
    return build_transaction(
        TransactionKind.REFUND, (LedgerAccount.REFUNDS, -amount), (clearing_account(gateway), amount)
    )


def returned_refund_transaction(gateway: str, amount: Money) -> LedgerTransaction:
    """The bank rejected a refund: its money is at the gateway again, and the customer has it in the wallet."""
    return build_transaction(
        TransactionKind.REFUND, (clearing_account(gateway), -amount), (LedgerAccount.WALLET, amount)
    )


def adjustment_transaction(amount: Money) -> LedgerTransaction:
    """An administrator adds to the wallet, or takes from it when negative."""
    return build_transaction(
        TransactionKind.ADJUSTMENT, (LedgerAccount.WALLET, amount), (LedgerAccount.ADJUSTMENTS, -amount)
    )
