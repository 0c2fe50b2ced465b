"""Completion of a plan change that a card paid for, and rollback of a change whose resize failed."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from activities import coupons
from activities.credit_arrivals import list_debtors, list_debtors_if_credited
from activities.formatting import format_amount
from activities.funding import split_received
from activities.holds import capture_hold, held_credit
from activities.invoice_allocations import ReturnedAmounts, reverse_all
from activities.invoicing import add_invoice_paid_events
from activities.outcomes import billing_outcome, committed_state, repeated_status_outcome, status_outcome
from activities.payment_application import (
    allocate_card_payment,
    captured_amount,
    credit_unneeded_payment,
    is_payment_applied,
    payment_application_key,
)
from activities.plan_change_records import add_plan_change_scheduled, apply_plan_change, plan_changed_context
from activities.scheduled_cancellation import restore_cancellation
from activities.subscription_transitions import new_change_set
from db.queries import invoices, locked_subscriptions
from db.queries.change_set import ChangeSet
from db.queries.invoice_allocations import list_plan_change_credits
from db.queries.locked_subscriptions import LockedSubscription, begin_with_locked_subscription
from workflows.ports.billing import BillingOutcome, CompletePlanChange, RollbackPlanChange
from workflows.ports.subscription import PLATFORM_ACTOR, PlanTerms, StatusOutcome
from workflows.rules import ledger
from workflows.rules.invoice import InvoiceStatus
from workflows.rules.money import zero_money
from workflows.rules.notifications import NotificationKind
from workflows.rules.periods import BillingPeriod
from workflows.rules.renewal import PeriodOutcome
from workflows.rules.subscription import LIVE_STATUSES, RENEWING_STATUSES


async def complete_plan_change(session: AsyncSession, command: CompletePlanChange) -> BillingOutcome:
    subscription = await begin_with_locked_subscription(session, command.subscription_id)
    invoice = await invoices.lock_invoice(session, command.invoice_id)
    if await is_payment_applied(session, command.payment_id):
        outcome = await billing_outcome(session, subscription, invoice, None)
        debtors = await list_debtors(session, subscription.organization_id)
        return replace(outcome, past_due_subscription_ids=debtors)
    changes = new_change_set(subscription, command.now, command.actor)
    received = await captured_amount(session, command.payment_id)
    if invoice is None or invoice.status is not InvoiceStatus.DRAFT or subscription.status not in LIVE_STATUSES:
        return await credit_unneeded_payment(session, changes, subscription, invoice, received, command.payment_id)
    # The plan may have left the catalogue, or its price may have changed, while the card was charged.
    name = await _plan_name(session, command.terms, command.now)
    held = await capture_hold(session, subscription)
    parts = split_received(subscription, invoice.due, received + held_credit(held, subscription.currency))
    posting = ledger.paid_invoice_transaction(
        promotional=zero_money(subscription.currency),
        wallet=-parts.surplus,
        held=parts.held,
        tax=invoice.tax,
        repaid=parts.repaid,
    )
    transaction_id = changes.add_ledger_transaction(
        posting,
        key=payment_application_key(command.payment_id),
        description=f"Plan change to {name}",
        ref=invoice.id,
    )
    await allocate_card_payment(
        session,
        changes,
        invoice,
        held,
        received,
        command.payment_id,
        transaction_id=transaction_id,
        repaid=parts.repaid,
    )
    period = BillingPeriod(start=invoice.period_start, end=invoice.period_end) if command.restarts else None
    await apply_plan_change(
        session,
        changes,
        subscription,
        command.terms,
        name,
        command.plan_change_id,
        period,
        command.is_resized,
        amount=invoice.total,
        invoice_id=invoice.id,
    )
    add_invoice_paid_events(changes, invoice.id, invoice.total)
    number = await invoices.assign_invoice_number(session, command.now)
    await invoices.mark_paid(session, invoice.id, command.now, number)
    await changes.write(session)
    return BillingOutcome(
        state=await committed_state(session, subscription, changes),
        result=PeriodOutcome.PAID,
        invoice_id=invoice.id,
        past_due_subscription_ids=await list_debtors_if_credited(session, changes),
    )


async def rollback_plan_change(session: AsyncSession, command: RollbackPlanChange) -> StatusOutcome:
    subscription = await begin_with_locked_subscription(session, command.subscription_id)
    old = command.fallback.terms
    if subscription.plan_id == old.plan_id:
        return await repeated_status_outcome(session, subscription)
    changes = new_change_set(subscription, command.now, PLATFORM_ACTOR)
    invoice = await invoices.find_plan_change_invoice(session, command.plan_change_id)
    zero = zero_money(subscription.currency)
    returned = ReturnedAmounts(wallet=zero, promotional=zero, debt=zero)
    if invoice is not None and invoice.status is InvoiceStatus.PAID:
        returned = await reverse_all(
            session,
            changes,
            invoice.id,
            subscription.currency,
            key=f"plan_change/{command.plan_change_id}/rollback",
            description="Plan change rolled back",
        )
        await invoices.mark_void(session, invoice.id, command.now)
        changes.add_timeline_event("invoice.voided", "Invoice of the plan change voided.", ref=invoice.id)
        if returned.total:
            changes.add_timeline_event("refund.succeeded", _returned_message(returned), ref=invoice.id)
    reversed_credit = await _reverse_credit(session, changes, subscription, command.plan_change_id, returned)
    to_wallet = returned.wallet - reversed_credit.wallet
    to_promotional = returned.promotional - reversed_credit.promotional
    changes.record_change("plan", subscription.plan_id, old.plan_id, command.reason)
    message = "Plan change rolled back: the instance could not be resized."
    if reversed_credit.total:
        message += f" Its credit for unused time was taken back: {format_amount(reversed_credit.total)}."
    changes.add_timeline_event("subscription.plan_changed", message)
    name = await _plan_name(session, old, command.now)
    restored = await restore_cancellation(
        session, changes, subscription, command.plan_change_id, command.fallback.period_end
    )
    is_cancelling = subscription.cancel_at_period_end or bool(restored)
    pending = _restored_change(subscription, command.fallback.pending_terms)
    pending_plan_name = None
    if pending is not None:
        pending_plan_name = await _plan_name(session, pending, command.now)
        add_plan_change_scheduled(changes, subscription, pending_plan_name, command.fallback.period_end)
    renews = subscription.status in RENEWING_STATUSES and not is_cancelling
    changes.enqueue_notification(
        NotificationKind.PLAN_CHANGED,
        plan_changed_context(
            subscription,
            name,
            reason="undone",
            credit=max(to_wallet, zero) or None,
            credit_reversed=max(-to_wallet, zero) or None,
            promotional_credit=max(to_promotional, zero) or None,
            promotional_credit_reversed=max(-to_promotional, zero) or None,
            pending_plan_name=pending_plan_name,
            price=pending.price if pending is not None else old.price,
            next_charge_at=command.fallback.period_end if renews else None,
            cancel_at_period_end=is_cancelling,
            period_end=command.fallback.period_end,
        ),
    )
    changes.update_subscription(
        plan_id=old.plan_id,
        price_id=old.price_id,
        price_minor=old.price.amount_minor,
        billing_anchor=command.fallback.anchor,
        current_period_start=command.fallback.period_start,
        current_period_end=command.fallback.period_end,
        pending_plan_id=pending.plan_id if pending is not None else subscription.pending_plan_id,
        **restored,
        **await coupons.restore_period(session, changes, subscription, command.plan_change_id),
    )
    if command.fallback.period_end != subscription.period_end:
        changes.void_reminders()
        changes.schedule_reminders(command.fallback.period_end)
    await changes.write(session)
    return await status_outcome(session, subscription, changes)


def _restored_change(subscription: LockedSubscription, pending: PlanTerms | None) -> PlanTerms | None:
    """Return the terms of the scheduled change that is restored; None if the customer has cancelled meanwhile."""
    is_continuing = subscription.status in LIVE_STATUSES and not subscription.cancel_at_period_end
    return pending if is_continuing else None


async def _plan_name(session: AsyncSession, terms: PlanTerms, at: datetime) -> str:
    """Return the plan's name; its code if the plan has no price at ``at``."""
    plan = await locked_subscriptions.get_plan_with_price(session, terms.plan_id, terms.price.currency, at)
    return plan.name if plan is not None else terms.plan_code


async def _reverse_credit(
    session: AsyncSession,
    changes: ChangeSet,
    subscription: LockedSubscription,
    plan_change_id: str,
    returned: ReturnedAmounts,
) -> ReturnedAmounts:
    """Reverse the credit that the plan change granted, up to the unspent balance.

    Args:
        returned: What the same transaction returns to the wallet and to promotional credit.

    Returns:
        What was taken from promotional credit and, where that is spent, from the wallet.
    """
    zero = zero_money(subscription.currency)
    granted = await list_plan_change_credits(session, plan_change_id)
    granted_total = sum((amount for _, amount in granted), start=zero)
    promotional = min(granted_total, subscription.funds.promotional + returned.promotional)
    wallet = min(granted_total - promotional, subscription.funds.wallet + returned.wallet)
    reversed_credit = ReturnedAmounts(wallet=wallet, promotional=promotional, debt=zero)
    remaining = reversed_credit.total
    if not remaining:
        return reversed_credit
    transaction_id = changes.add_ledger_transaction(
        ledger.paid_invoice_transaction(promotional=promotional, wallet=wallet, held=zero, tax=zero),
        key=f"plan_change/{plan_change_id}/credit_reversal",
        description="Plan change rolled back",
        ref=subscription.id,
    )
    for invoice_id, amount in granted:
        part = min(amount, remaining)
        if part:
            changes.credit_invoice(invoice_id, plan_change_id, -part, transaction_id=transaction_id)
        remaining -= part
    return reversed_credit


def _returned_message(returned: ReturnedAmounts) -> str:
    destinations = (("the wallet", returned.wallet), ("promotional credit", returned.promotional))
    parts = [f"{format_amount(amount)} to {name}" for name, amount in destinations if amount]
    return f"Returned: {', '.join(parts)}." if parts else "The debt of the plan change was dropped."
