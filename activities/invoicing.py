"""Invoices: the draft, its row, its ledger transaction and its timeline events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from activities.formatting import format_amount
from activities.funding import InvoiceFunding
from activities.invoice_allocations import allocate, credit_parts
from db.queries.change_set import ChangeSet
from db.queries.invoices import InvoiceSummary
from db.queries.locked_subscriptions import LockedSubscription
from workflows.rules import ids, ledger
from workflows.rules.invoice import BillingReason, InvoiceStatus
from workflows.rules.money import Money, sum_money, zero_money
from workflows.rules.periods import BillingPeriod
from workflows.rules.pricing import InvoiceLine


@dataclass(frozen=True, kw_only=True)
class InvoiceDraft:
    """An invoice to be written."""

    id: str
    billing_reason: BillingReason
    period: BillingPeriod
    lines: Sequence[InvoiceLine]
    price_id: str
    plan_change_id: str | None = None

    @cached_property
    def total(self) -> Money:
        return sum_money((line.amount + line.tax for line in self.lines), self.lines[0].unit_price.currency)

    @cached_property
    def tax(self) -> Money:
        return sum_money((line.tax for line in self.lines), self.lines[0].unit_price.currency)


def period_invoice_id(subscription: LockedSubscription, start: datetime) -> str:
    return ids.derive_id("inv", subscription.id, start.isoformat())


def add_invoice(
    changes: ChangeSet,
    subscription: LockedSubscription,
    draft: InvoiceDraft,
    *,
    status: InvoiceStatus,
    due: Money,
    explanation: dict[str, Any],
) -> InvoiceSummary:
    """Add an invoice to ``changes``, which assigns a number to every invoice except drafts."""
    now = changes.occurred_at
    finalized = None if status is InvoiceStatus.DRAFT else now.isoformat()
    changes.add_invoice(
        {
            "id": draft.id,
            "organization_id": subscription.organization_id,
            "subscription_id": subscription.id,
            "billing_reason": draft.billing_reason.value,
            "status": status.value,
            "currency": draft.total.currency,
            "period_start": draft.period.start.isoformat(),
            "period_end": draft.period.end.isoformat(),
            "subtotal_minor": (draft.total - draft.tax).amount_minor,
            "tax_minor": draft.tax.amount_minor,
            "total_minor": draft.total.amount_minor,
            "amount_due_minor": due.amount_minor,
            "finalized_at": finalized,
            "paid_at": finalized if status is InvoiceStatus.PAID else None,
            "created_at": now.isoformat(),
            "plan_change_id": draft.plan_change_id,
            "explanation": explanation,
        },
        [_line_row(subscription, draft, position, line) for position, line in enumerate(draft.lines)],
        assign_number=finalized is not None,
    )
    return InvoiceSummary(
        id=draft.id,
        billing_reason=draft.billing_reason,
        status=status,
        total=draft.total,
        tax=draft.tax,
        due=due,
        period_start=draft.period.start,
        period_end=draft.period.end,
    )


def _line_row(
    subscription: LockedSubscription, draft: InvoiceDraft, position: int, line: InvoiceLine
) -> dict[str, Any]:
    return {
        "invoice_id": draft.id,
        "position": position,
        "organization_id": subscription.organization_id,
        "description": line.description,
        "quantity": line.quantity,
        "unit_price_minor": line.unit_price.amount_minor,
        "discount_minor": line.discount.amount_minor,
        "tax_minor": line.tax.amount_minor,
        "amount_minor": line.amount.amount_minor,
        "price_id": draft.price_id,
        "period_start": line.period.start.isoformat(),
        "period_end": line.period.end.isoformat(),
    }


async def post_invoice_transaction(
    session: AsyncSession, changes: ChangeSet, draft: InvoiceDraft, description: str, funding: InvoiceFunding | None
) -> None:
    """Post a finalized invoice: paid at once by ``funding``, or receivable if that is None."""
    zero = zero_money(draft.total.currency)
    if not draft.total:
        return
    if funding is None:
        changes.add_ledger_transaction(
            ledger.invoice_transaction(total=draft.total, tax=draft.tax),
            key=f"invoice/{draft.id}",
            description=description,
            ref=draft.id,
        )
        return
    transaction_id = changes.add_ledger_transaction(
        ledger.paid_invoice_transaction(
            promotional=funding.promotional,
            wallet=funding.wallet,
            held=zero,
            tax=draft.tax,
            carried=funding.carried,
            repaid=funding.repaid,
        ),
        key=f"paid/{draft.id}",
        description=description,
        ref=draft.id,
    )
    await allocate(
        session,
        changes,
        draft.id,
        credit_parts(funding),
        draft.total,
        transaction_id=transaction_id,
        repaid=funding.repaid,
    )


def add_invoice_paid_events(changes: ChangeSet, invoice_id: str, total: Money, carried: Money | None = None) -> None:
    """Add the timeline events of a paid invoice. ``carried`` is the part that became debt of the organization."""
    amount = format_amount(total)
    if carried != total or not total:
        paid = format_amount(total - carried) if carried else amount
        changes.add_timeline_event(
            "payment.succeeded",
            f"Payment of {paid} succeeded.",
            ref=invoice_id,
            dedup_key=f"payment.succeeded/{invoice_id}",
        )
    message = f"Invoice paid: {amount}."
    if carried:
        message += f" {format_amount(carried)} is below the minimum card charge and is added to the next payment."
    changes.add_timeline_event("invoice.paid", message, ref=invoice_id, dedup_key=f"paid/{invoice_id}")


def line_description(subscription: LockedSubscription) -> str:
    return f"{subscription.service_name}, {subscription.plan_name}"
