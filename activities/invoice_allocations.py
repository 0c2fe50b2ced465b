"""What pays an invoice and what is returned from it, recorded in the transaction that moves the money."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from activities.funding import InvoiceFunding
from db.queries.change_set import ChangeSet
from db.queries.invoice_allocations import list_allocations, list_carried_debt
from db.queries.invoices import Hold
from workflows.rules import ledger
from workflows.rules.allocations import (
    AllocationSource,
    SourcePart,
    plan_debt_repayment,
    plan_full_reversal,
    split_parts,
)
from workflows.rules.money import Money, zero_money


def credit_parts(funding: InvoiceFunding) -> tuple[SourcePart, ...]:
    """Return the parts of a funding that needs no card, in payment order."""
    return (
        SourcePart(source=AllocationSource.PROMOTIONAL, amount=funding.promotional),
        SourcePart(source=AllocationSource.WALLET, amount=funding.wallet),
        SourcePart(source=AllocationSource.DEBT, amount=funding.carried),
    )


def hold_parts(hold: Hold | None) -> tuple[SourcePart, ...]:
    """Return what a captured hold contributes, in payment order."""
    if hold is None:
        return ()
    return (
        SourcePart(source=AllocationSource.PROMOTIONAL, amount=hold.promotional),
        SourcePart(source=AllocationSource.WALLET, amount=hold.wallet),
    )


async def allocate(
    session: AsyncSession,
    changes: ChangeSet,
    invoice_id: str,
    parts: Sequence[SourcePart],
    amount: Money,
    *,
    transaction_id: str,
    repaid: Money | None = None,
) -> None:
    """Allocate ``parts`` to an invoice, and what is left of them to carried debt of the organization.

    Args:
        parts: In payment order. What exceeds ``amount + repaid`` is not allocated: it went to the wallet.
        amount: What the invoice receives.
        repaid: Carried debt that is paid as well.
        transaction_id: The ledger transaction that moves the money.
    """
    first, for_debt = split_parts(parts, amount)
    changes.allocate(invoice_id, first, transaction_id=transaction_id)
    if not repaid:
        return
    debts = await list_carried_debt(session, changes.organization_id, amount.currency)
    for repayment in plan_debt_repayment(for_debt, debts, repaid):
        changes.reverse(repayment.invoice_id, [repayment.reversal], transaction_id=transaction_id)
        changes.allocate(repayment.invoice_id, repayment.parts, transaction_id=transaction_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnedAmounts:
    """What a full reversal returned. Money of a card is in ``wallet``; ``debt`` is carried debt that was dropped."""

    wallet: Money
    promotional: Money
    debt: Money

    @property
    def total(self) -> Money:
        return self.wallet + self.promotional + self.debt


async def reverse_all(
    session: AsyncSession, changes: ChangeSet, invoice_id: str, currency: str, *, key: str, description: str
) -> ReturnedAmounts:
    """Return everything that an invoice received, each part to its source; money of a card goes to the wallet.

    Args:
        key: Idempotency key of the ledger transaction.

    Returns:
        What was returned; zeros when the invoice had received nothing.
    """
    reversals = plan_full_reversal(await list_allocations(session, invoice_id))
    amounts = {
        source: sum(
            (reversal.amount for reversal in reversals if reversal.source is source), start=zero_money(currency)
        )
        for source in AllocationSource
    }
    returned = ReturnedAmounts(
        wallet=amounts[AllocationSource.WALLET] + amounts[AllocationSource.PAYMENT],
        promotional=amounts[AllocationSource.PROMOTIONAL],
        debt=amounts[AllocationSource.DEBT],
    )
    if not reversals:
        return returned
    transaction_id = changes.add_ledger_transaction(
        ledger.allocation_reversal_transaction(
            wallet=returned.wallet, promotional=returned.promotional, debt=returned.debt
        ),
        key=key,
        description=description,
        ref=invoice_id,
    )
    changes.reverse(invoice_id, reversals, transaction_id=transaction_id)
    return returned
