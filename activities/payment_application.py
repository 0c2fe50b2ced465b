"""Applying card payments to invoices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from activities.attempt_time import scheduled_at
from activities.credit_arrivals import list_debtors, list_debtors_after_failure, list_debtors_if_credited
from activities.formatting import describe_decline, format_amount
from activities.funding import reserve_older_debts, split_funding_for, split_received
from activities.holds import capture_hold, held_credit, release_hold, with_released
from activities.invoice_allocations import allocate, hold_parts
from activities.invoice_collection import pay_from_credit
from activities.invoicing import line_description
from activities.notification_context import notification_context
from activities.outcomes import billing_outcome, unpaid_outcome
from activities.plan_change_records import with_period_terms
from activities.subscription_transitions import (
    mark_past_due,
    new_change_set,
    pause_unpaid_trial,
    record_period_paid,
)
from db.models.payments import Payment
from db.queries import invoices, payments, workflow_recovery
from db.queries.change_set import ChangeSet
from db.queries.invoice_allocations import has_allocations
from db.queries.invoices import Hold, InvoiceSummary
from db.queries.locked_subscriptions import LockedSubscription, begin_with_locked_subscription
from workflows.ports.billing import ApplyCardPayment, BillingOutcome, RecordPaymentFailure
from workflows.ports.subscription import PLATFORM_ACTOR
from workflows.rules import dunning, ledger
from workflows.rules.allocations import AllocationSource, SourcePart
from workflows.rules.funding import FundingPurpose, GatewayTerms
from workflows.rules.invoice import BillingReason, InvoiceStatus
from workflows.rules.money import Money, zero_money
from workflows.rules.notifications import NotificationKind
from workflows.rules.payment import PaymentStatus
from workflows.rules.subscription import LIVE_STATUSES, PAST_DUE_STATUSES, SubscriptionStatus


async def apply_card_payment(session: AsyncSession, command: ApplyCardPayment) -> BillingOutcome:
    subscription = await begin_with_locked_subscription(session, command.subscription_id)
    invoice = await invoices.lock_invoice(session, command.invoice_id) if command.invoice_id is not None else None
    if await is_payment_applied(session, command.payment_id):
        outcome = await billing_outcome(session, subscription, invoice, None)
        return replace(outcome, past_due_subscription_ids=await list_debtors(session, subscription.organization_id))
    changes = new_change_set(subscription, command.now, PLATFORM_ACTOR)
    received = await captured_amount(session, command.payment_id)
    if invoice is not None and invoice.status is InvoiceStatus.DRAFT and invoice.plan_change_id is not None:
        # Its command was lost: ``complete_plan_change`` alone pays the draft of a plan change.
        await invoices.mark_void(session, invoice.id, command.now)
        invoice = replace(invoice, status=InvoiceStatus.VOID)
    awaited = invoice is not None and invoice.status in (InvoiceStatus.DRAFT, InvoiceStatus.OPEN)
    if invoice is None or not awaited or subscription.status not in LIVE_STATUSES:
        return await credit_unneeded_payment(session, changes, subscription, invoice, received, command.payment_id)
    as_billed = await with_period_terms(session, subscription, command.terms, command.now)
    held = await capture_hold(session, subscription)
    zero = zero_money(subscription.currency)
    parts = split_received(subscription, invoice.due, received + held_credit(held, subscription.currency))
    draft = invoice.status is InvoiceStatus.DRAFT
    post = (
        ledger.paid_invoice_transaction(
            promotional=zero, wallet=-parts.surplus, held=parts.held, tax=invoice.tax, repaid=parts.repaid
        )
        if draft
        else ledger.collection_transaction(
            promotional=zero, wallet=-parts.surplus, held=parts.held, repaid=parts.repaid
        )
    )
    transaction_id = changes.add_ledger_transaction(
        post,
        key=payment_application_key(command.payment_id),
        description=line_description(as_billed),
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
    outcome = await record_period_paid(session, changes, subscription, invoice, as_billed=as_billed)
    return replace(outcome, past_due_subscription_ids=await list_debtors_if_credited(session, changes))


async def record_payment_failure(
    session: AsyncSession, command: RecordPaymentFailure, gateways: Mapping[str, GatewayTerms]
) -> BillingOutcome:
    subscription = await begin_with_locked_subscription(session, command.subscription_id)
    invoice = await invoices.lock_invoice(session, command.invoice_id)
    changes = new_change_set(subscription, command.now, PLATFORM_ACTOR)
    released = await release_hold(session, changes, subscription)
    outcome = await _record_failure(session, changes, command, subscription, invoice, released, gateways)
    debtors = await list_debtors_after_failure(session, changes, command.invoice_id)
    return replace(outcome, past_due_subscription_ids=debtors)


async def _record_failure(
    session: AsyncSession,
    changes: ChangeSet,
    command: RecordPaymentFailure,
    subscription: LockedSubscription,
    invoice: InvoiceSummary | None,
    released: Hold | None,
    gateways: Mapping[str, GatewayTerms],
) -> BillingOutcome:
    """Pay the invoice from credit that has arrived meanwhile, or record that it stays unpaid."""
    if invoice is None or invoice.status not in (InvoiceStatus.DRAFT, InvoiceStatus.OPEN):
        await changes.write(session)
        if invoice is not None and invoice.status is InvoiceStatus.PAID:
            return await billing_outcome(session, subscription, invoice, changes)
        return await unpaid_outcome(session, subscription, changes)
    message = f"Card payment of {format_amount(invoice.total)} failed: {describe_decline(command.decline_code)}."
    fact = f"payment.failed/{command.payment_id}"
    changes.add_timeline_event("payment.failed", message, ref=command.payment_id, dedup_key=fact)
    # Credit that arrived while the card was charged has signaled nothing: the debt was not recorded yet.
    debts = await invoices.list_older_debts(session, subscription.id)
    available = reserve_older_debts(with_released(subscription, released), debts, gateways)
    funding = split_funding_for(available, invoice.due, FundingPurpose.DUNNING, gateways)
    if (
        invoice.plan_change_id is None
        and subscription.status in LIVE_STATUSES
        and funding.is_settled_by_credit
        and not funding.carried
    ):
        as_billed = await with_period_terms(session, subscription, command.terms, command.now)
        return await pay_from_credit(session, changes, subscription, invoice, funding, as_billed=as_billed)
    is_trial_end = (
        invoice.billing_reason is BillingReason.TRIAL_END and subscription.status is SubscriptionStatus.TRIALING
    )
    next_retry_at, suspends_at = _dunning_dates(command, subscription, invoice)
    suspends_now = not is_trial_end and suspends_at is not None and suspends_at <= command.now
    context = notification_context(
        subscription,
        amount=invoice.due,
        invoice_id=invoice.id,
        decline_code=command.decline_code,
        next_retry_at=next_retry_at,
        suspends_at=None if is_trial_end or suspends_now else suspends_at,
        suspends_now=suspends_now,
        status=SubscriptionStatus.PAUSED if is_trial_end else subscription.status,
    )
    if invoice.status is InvoiceStatus.DRAFT:
        await invoices.mark_void(session, invoice.id, command.now)
        if is_trial_end:
            changes.enqueue_notification(NotificationKind.PAYMENT_FAILED, context, dedup_key=fact)
            subscription = pause_unpaid_trial(changes, subscription)
        await changes.write(session)
        return await unpaid_outcome(session, subscription, changes)
    if subscription.status is SubscriptionStatus.ACTIVE:
        subscription = mark_past_due(changes, subscription, invoice.period_start, "invoice payment failed")
    if subscription.status in PAST_DUE_STATUSES:
        changes.enqueue_notification(NotificationKind.PAYMENT_FAILED, context, dedup_key=fact)
    await changes.write(session)
    return await billing_outcome(session, subscription, invoice, changes)


def _dunning_dates(
    command: RecordPaymentFailure, subscription: LockedSubscription, invoice: InvoiceSummary
) -> tuple[datetime | None, datetime | None]:
    """Return the next retry and the suspension for the mail, moved on as far as the grace period is."""
    if subscription.status in PAST_DUE_STATUSES:
        return dunning.postpone_dates(command.next_retry_at, command.suspends_at, command.now)
    expected = dunning.past_due_since(invoice.period_start, scheduled_at(command.now))
    late = dunning.past_due_since(invoice.period_start, command.now) - expected
    return command.next_retry_at and command.next_retry_at + late, command.suspends_at and command.suspends_at + late


def payment_application_key(payment_id: str) -> str:
    """Return the idempotency key of the ledger transaction that moves a payment out of ``held``."""
    return f"applied/{payment_id}"


async def is_payment_applied(session: AsyncSession, payment_id: str) -> bool:
    """Return whether a payment has left ``held`` for an invoice or the wallet."""
    if await has_allocations(session, payment_id):
        return True
    payment = await session.get(Payment, payment_id)
    return payment is not None and payment.credited_to_wallet


async def allocate_card_payment(
    session: AsyncSession,
    changes: ChangeSet,
    invoice: InvoiceSummary,
    hold: Hold | None,
    captured: Money,
    payment_id: str,
    *,
    transaction_id: str,
    repaid: Money,
) -> None:
    """Allocate the hold and the card payment that together pay the amount due of ``invoice``."""
    parts = (
        *hold_parts(hold),
        SourcePart(source=AllocationSource.PAYMENT, amount=captured, payment_id=payment_id),
    )
    await allocate(session, changes, invoice.id, parts, invoice.due, transaction_id=transaction_id, repaid=repaid)
    if hold is not None and hold.credit >= invoice.due + repaid:
        await payments.mark_credited_to_wallet(session, payment_id)


async def captured_amount(session: AsyncSession, payment_id: str) -> Money:
    """Return what a succeeded payment brought."""
    row = (
        await session.execute(text("SELECT captured_minor, currency FROM payments WHERE id = :id"), {"id": payment_id})
    ).one()
    return Money(amount_minor=row.captured_minor, currency=row.currency)


async def credit_unneeded_payment(
    session: AsyncSession,
    changes: ChangeSet,
    subscription: LockedSubscription,
    invoice: InvoiceSummary | None,
    received: Money,
    payment_id: str,
) -> BillingOutcome:
    """Release the hold and credit the payment to the wallet, because its invoice no longer needs money."""
    await release_hold(session, changes, subscription)
    await credit_payment(session, changes, received, payment_id)
    await changes.write(session)
    outcome = await billing_outcome(session, subscription, invoice, changes)
    return replace(outcome, past_due_subscription_ids=await list_debtors_if_credited(session, changes))


async def credit_captured_payments(session: AsyncSession, changes: ChangeSet, currency: str) -> Money:
    """Credit to the wallet what was captured of an order that ends: at the gateway by hand, not by its workflow.

    Returns:
        What was credited.
    """
    credited = zero_money(currency)
    for payment in await workflow_recovery.list_unsettled_payments(session, changes.subscription_id):
        if payment.status is PaymentStatus.SUCCEEDED:
            await credit_payment(session, changes, payment.amount, payment.payment_id)
            credited += payment.amount
    return credited


async def credit_payment(session: AsyncSession, changes: ChangeSet, received: Money, payment_id: str) -> None:
    """Credit to the wallet what a payment brought, because nothing needs it any more."""
    await payments.mark_credited_to_wallet(session, payment_id)
    posting = ledger.release_transaction(promotional=zero_money(received.currency), wallet=received)
    changes.add_ledger_transaction(
        posting, key=payment_application_key(payment_id), description="Credited to the wallet", ref=payment_id
    )
    message = f"Card payment of {format_amount(received)} credited to the wallet."
    changes.add_timeline_event(
        "payment.succeeded", message, ref=payment_id, dedup_key=f"payment.succeeded/{payment_id}"
    )
