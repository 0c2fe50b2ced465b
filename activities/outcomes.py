"""Results of billing activities, built from the rows that their transaction writes."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from activities.credit_arrivals import list_debtors, list_debtors_if_credited
from activities.holds import agreed_card_charge
from db.queries import invoices
from db.queries.change_set import ChangeSet
from db.queries.invoices import InvoiceSummary
from db.queries.locked_subscriptions import LockedSubscription
from workflows.ports.billing import BillingOutcome
from workflows.ports.subscription import CardCharge, CommittedState, StatusOutcome
from workflows.rules.hold_keys import HoldKey
from workflows.rules.invoice import InvoiceStatus
from workflows.rules.renewal import PeriodOutcome
from workflows.rules.subscription import LIVE_STATUSES, PAST_DUE_STATUSES, SubscriptionStatus

_PERIOD_OUTCOMES = {
    InvoiceStatus.DRAFT: PeriodOutcome.DRAFT,
    InvoiceStatus.OPEN: PeriodOutcome.OPEN,
    InvoiceStatus.PAID: PeriodOutcome.PAID,
    InvoiceStatus.VOID: PeriodOutcome.REFUSED,
    InvoiceStatus.UNCOLLECTIBLE: PeriodOutcome.REFUSED,
}


async def committed_state(
    session: AsyncSession,
    subscription: LockedSubscription,
    changes: ChangeSet | None,
    invoice: InvoiceSummary | None = None,
) -> CommittedState:
    """Return the subscription's row as this transaction leaves it.

    Args:
        subscription: The row as it was locked.
        changes: What the transaction updates; None if it updates nothing.
        invoice: The invoice of the transaction; saves the query for the open invoice.
    """
    row = {
        "status": subscription.status.value,
        "plan_id": subscription.plan_id,
        "pending_plan_id": subscription.pending_plan_id,
        "billing_anchor": subscription.billing_anchor,
        "current_period_start": subscription.period_start,
        "current_period_end": subscription.period_end,
        "cancel_at_period_end": subscription.cancel_at_period_end,
        "past_due_since": subscription.past_due_since,
        "cancelled_at": subscription.cancelled_at,
    } | (changes.subscription_columns if changes is not None else {})
    status = SubscriptionStatus(row["status"])
    open_invoice_id = None
    if status in PAST_DUE_STATUSES:
        is_open = invoice is not None and invoice.status is InvoiceStatus.OPEN
        open_invoice_id = (
            invoice.id
            if invoice is not None and is_open
            else await invoices.find_open_invoice_id(session, subscription.id)
        )
    return CommittedState(
        status=status,
        plan_id=row["plan_id"],
        pending_plan_id=row["pending_plan_id"],
        billing_anchor=row["billing_anchor"],
        period_start=row["current_period_start"],
        period_end=row["current_period_end"],
        cancel_at_period_end=row["cancel_at_period_end"],
        past_due_since=row["past_due_since"] if status in PAST_DUE_STATUSES else None,
        open_invoice_id=open_invoice_id,
        cancelled_at=row["cancelled_at"],
    )


async def billing_outcome(
    session: AsyncSession,
    subscription: LockedSubscription,
    invoice: InvoiceSummary | None,
    changes: ChangeSet | None,
    *,
    card: CardCharge | None = None,
) -> BillingOutcome:
    """Return the outcome of an invoice by its status, or of a step that invoiced nothing because nothing is due."""
    return BillingOutcome(
        state=await committed_state(session, subscription, changes, invoice),
        result=_PERIOD_OUTCOMES[invoice.status] if invoice is not None else PeriodOutcome.PAID,
        invoice_id=invoice.id if invoice is not None else None,
        card_charge=card,
    )


async def unpaid_outcome(
    session: AsyncSession, subscription: LockedSubscription, changes: ChangeSet | None
) -> BillingOutcome:
    """Return the outcome of a step that leaves no invoice: nothing could pay."""
    return BillingOutcome(state=await committed_state(session, subscription, changes), result=PeriodOutcome.REFUSED)


async def status_outcome(session: AsyncSession, subscription: LockedSubscription, changes: ChangeSet) -> StatusOutcome:
    """Return the outcome of a change that collects no money."""
    return StatusOutcome(
        state=await committed_state(session, subscription, changes),
        past_due_subscription_ids=await list_debtors_if_credited(session, changes),
    )


async def repeated_status_outcome(session: AsyncSession, subscription: LockedSubscription) -> StatusOutcome:
    """Return the outcome of a repeated change that may have brought credit when it ran first."""
    return StatusOutcome(
        state=await committed_state(session, subscription, None),
        past_due_subscription_ids=await list_debtors(session, subscription.organization_id),
    )


async def replay_result(
    session: AsyncSession,
    subscription: LockedSubscription,
    invoice: InvoiceSummary | None,
    *,
    captured_hold: HoldKey | None = None,
) -> BillingOutcome:
    """Return the result of an earlier run of the same step.

    Args:
        captured_hold: Key of the hold that the step captures. None for a step that leaves its hold open.
    """
    unpaid = invoice is not None and invoice.status in (InvoiceStatus.DRAFT, InvoiceStatus.OPEN)
    if (
        invoice is None
        or not unpaid
        or subscription.status in PAST_DUE_STATUSES
        or subscription.status not in LIVE_STATUSES
    ):
        return await billing_outcome(session, subscription, invoice, None)
    hold = (
        await invoices.lock_open_hold(session, subscription.id)
        if captured_hold is None
        else await invoices.find_hold(session, subscription.id, captured_hold)
    )
    return await billing_outcome(session, subscription, invoice, None, card=agreed_card_charge(hold))
