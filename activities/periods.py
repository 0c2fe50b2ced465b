"""The next period: renewal, the end of a trial and the end of a pause."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities import coupons
from activities.attempt_time import attempt_delay
from activities.explanations import build_explanation
from activities.funding import InvoiceFunding, card_charge_for, split_funding_for
from activities.holds import place_hold
from activities.invoice_collection import pay_with_credited_payment
from activities.invoicing import (
    InvoiceDraft,
    add_invoice,
    add_invoice_paid_events,
    line_description,
    period_invoice_id,
    post_invoice_transaction,
)
from activities.notification_context import notification_context, paid_fields
from activities.outcomes import billing_outcome, replay_result, unpaid_outcome
from activities.plan_change_records import add_scheduled_change, with_period_terms
from activities.subscription_transitions import (
    mark_past_due,
    new_change_set,
    pause_unpaid_trial,
    period_message,
    transition_subscription,
)
from db.queries import invoices
from db.queries.change_set import ChangeSet
from db.queries.invoices import InvoiceSummary
from db.queries.locked_subscriptions import LockedSubscription, begin_with_locked_subscription
from workflows.errors import ORDINARY_ACTIVITY_REQUIRED
from workflows.ports.billing import BillingOutcome, StartPeriod
from workflows.rules import dunning
from workflows.rules.funding import GatewayTerms
from workflows.rules.hold_keys import period_hold
from workflows.rules.invoice import BillingReason, InvoiceStatus
from workflows.rules.money import zero_money
from workflows.rules.notifications import NotificationKind
from workflows.rules.periods import BillingPeriod, next_period
from workflows.rules.pricing import plan_line
from workflows.rules.renewal import (
    BILLING_REASONS,
    FUNDING_PURPOSES,
    PeriodKind,
    PeriodOutcome,
    decide_period,
)
from workflows.rules.subscription import LIVE_STATUSES, SubscriptionStatus

_INVOICE_STATUSES = {
    PeriodOutcome.PAID: InvoiceStatus.PAID,
    PeriodOutcome.OPEN: InvoiceStatus.OPEN,
    PeriodOutcome.DRAFT: InvoiceStatus.DRAFT,
}


async def start_period(
    session: AsyncSession, command: StartPeriod, gateways: Mapping[str, GatewayTerms]
) -> BillingOutcome:
    """Start a period as ``decide_period`` says: paid, open, drafted for a card, or refused. Commit it."""
    subscription = await begin_with_locked_subscription(session, command.subscription_id)
    earlier = await _find_earlier_outcome(session, subscription, command)
    if earlier is not None:
        return earlier
    keyed_at = command.period_start
    if command.kind is PeriodKind.RESUMPTION:
        # The instance does not run until now. Other periods follow one in which it runs.
        start = command.period_start + attempt_delay()
        command = replace(command, period_start=start, anchor=start)
    changes = new_change_set(subscription, command.now, command.actor)
    as_billed = await with_period_terms(session, subscription, command.terms, command.now)
    terms = command.terms
    period = next_period(command.anchor, command.period_start, terms.interval, terms.timezone)
    invoice_draft = build_period_invoice(as_billed, period, BILLING_REASONS[command.kind], keyed_at=keyed_at)
    funding = split_funding_for(subscription, invoice_draft.total, FUNDING_PURPOSES[command.kind], gateways)
    decision = decide_period(command.kind, funding.decision)
    if decision.outcome is PeriodOutcome.REFUSED:
        return await _refuse_period(session, changes, subscription, command)
    card = card_charge_for(funding)
    if card is not None:
        _require_ordinary_activity()
        await place_hold(session, changes, subscription, funding, period_hold(invoice_draft.id))
    before = subscription.status
    if decision.starts_period:
        columns = add_scheduled_change(changes, subscription, as_billed)
        columns |= await coupons.redeem_coupon(session, as_billed)
        subscription = _enter_period(changes, as_billed, command, period, columns, is_unpaid=decision.is_unpaid_now)
        await post_invoice_transaction(
            session,
            changes,
            invoice_draft,
            line_description(subscription),
            funding if decision.outcome is PeriodOutcome.PAID else None,
        )
    is_paid = decision.outcome is PeriodOutcome.PAID
    if is_paid:
        _add_renewal_events(changes, before, subscription, invoice_draft, funding)
    elif decision.is_unpaid_now:
        _add_payment_failed_events(changes, subscription, invoice_draft, command)
    invoice = add_invoice(
        changes,
        as_billed,
        invoice_draft,
        status=_INVOICE_STATUSES[decision.outcome],
        due=zero_money(subscription.currency) if is_paid else invoice_draft.total,
        explanation=build_explanation(as_billed, invoice_draft.lines),
    )
    outcome = await billing_outcome(session, subscription, invoice, changes, card=card)
    await changes.write_and_commit(session)
    return outcome


def _require_ordinary_activity() -> None:
    """Refuse to place a hold in a local activity, whose result is lost with its workflow task: no payment would follow.

    Raises:
        ApplicationError: ``ORDINARY_ACTIVITY_REQUIRED``.
    """
    if activity.in_activity() and activity.info().is_local:
        raise ApplicationError("A card has to be charged.", type=ORDINARY_ACTIVITY_REQUIRED, non_retryable=True)


async def _find_earlier_outcome(
    session: AsyncSession, subscription: LockedSubscription, command: StartPeriod
) -> BillingOutcome | None:
    """Return what a lost run of the same command answered; None when there was none."""
    is_renewal = command.kind is PeriodKind.RENEWAL
    # An invoice, unless it is a draft that a card still pays, moves the locked row into its period.
    may_be_invoiced = (
        not is_renewal or subscription.period_start is None or subscription.period_start >= command.period_start
    )
    invoice = None
    if command.kind is PeriodKind.RESUMPTION:
        invoice = await find_keyed_invoice(session, subscription, command.period_start)
    elif may_be_invoiced:
        invoice = await invoices.find_period_invoice(session, subscription.id, command.period_start)
    if invoice is not None and invoice.status is InvoiceStatus.DRAFT:
        # The draft of a run that was lost with its payment, which a webhook completed since.
        changes = new_change_set(subscription, command.now, command.actor)
        as_billed = await with_period_terms(session, subscription, command.terms, command.now)
        paid = await pay_with_credited_payment(session, changes, subscription, invoice, as_billed=as_billed)
        if paid is not None:
            return paid
    if invoice is not None:
        return await replay_result(session, subscription, invoice)
    is_refused_trial = command.kind is PeriodKind.TRIAL_END and subscription.status is not SubscriptionStatus.TRIALING
    if is_refused_trial or subscription.status not in LIVE_STATUSES:
        return await unpaid_outcome(session, subscription, None)
    return None


def _enter_period(
    changes: ChangeSet,
    as_billed: LockedSubscription,
    command: StartPeriod,
    period: BillingPeriod,
    columns: dict[str, Any],
    *,
    is_unpaid: bool,
) -> LockedSubscription:
    """Move the subscription into the period; with ``is_unpaid`` it is past due at once."""
    columns = {**columns, "current_period_start": period.start, "current_period_end": period.end}
    if command.anchor != as_billed.billing_anchor:
        columns["billing_anchor"] = command.anchor
    if is_unpaid:
        return mark_past_due(changes, as_billed, command.period_start, "renewal payment failed", **columns)
    changes.schedule_reminders(period.end)
    return transition_subscription(changes, as_billed, SubscriptionStatus.ACTIVE, "new billing period", **columns)


async def _refuse_period(
    session: AsyncSession, changes: ChangeSet, subscription: LockedSubscription, command: StartPeriod
) -> BillingOutcome:
    """Start no period because nothing can pay: a trial ends paused (scenario B16), a paused subscription stays so."""
    if command.kind is PeriodKind.TRIAL_END:
        context = notification_context(subscription, amount=command.terms.price, status=SubscriptionStatus.PAUSED)
        changes.enqueue_notification(NotificationKind.PAYMENT_FAILED, context)
        subscription = pause_unpaid_trial(changes, subscription)
        await changes.write(session)
    return await unpaid_outcome(session, subscription, changes)


async def find_keyed_invoice(
    session: AsyncSession, subscription: LockedSubscription, keyed_at: datetime
) -> InvoiceSummary | None:
    """Return the invoice that an earlier attempt wrote for a period that was to start at ``keyed_at``, unless void."""
    invoice = await invoices.lock_invoice(session, period_invoice_id(subscription, keyed_at))
    return None if invoice is None or invoice.status is InvoiceStatus.VOID else invoice


def build_period_invoice(
    subscription: LockedSubscription, period: BillingPeriod, reason: BillingReason, *, keyed_at: datetime
) -> InvoiceDraft:
    """Return the invoice of a period.

    Args:
        keyed_at: When the period was to start, the same in each attempt: the invoice's id depends on it.
    """
    return InvoiceDraft(
        id=period_invoice_id(subscription, keyed_at),
        billing_reason=reason,
        period=period,
        lines=(plan_line(line_description(subscription), subscription.price, period, subscription.discount),),
        price_id=subscription.price_id,
    )


def _add_renewal_events(
    changes: ChangeSet,
    before: SubscriptionStatus,
    subscription: LockedSubscription,
    draft: InvoiceDraft,
    funding: InvoiceFunding,
) -> None:
    kind = "resumed" if before is SubscriptionStatus.PAUSED else "renewed"
    context = notification_context(
        subscription,
        **paid_fields(draft.total, funding.carried),
        invoice_id=draft.id,
        period_start=draft.period.start,
        period_end=draft.period.end,
        cancellation_withdrawn=kind == "resumed" and subscription.cancel_at_period_end,
    )
    message = period_message(kind, subscription, draft.period.end)
    changes.add_timeline_event(f"subscription.{kind}", message, ref=draft.id, dedup_key=f"{kind}/{draft.id}")
    add_invoice_paid_events(changes, draft.id, draft.total, funding.carried)
    changes.enqueue_notification(NotificationKind(f"subscription_{kind}"), context, dedup_key=f"{kind}/{draft.id}")


def _add_payment_failed_events(
    changes: ChangeSet, subscription: LockedSubscription, draft: InvoiceDraft, command: StartPeriod
) -> None:
    changes.add_timeline_event(
        "payment.failed", "Payment for the renewal failed: insufficient funds and no card to charge.", ref=draft.id
    )
    first = subscription.past_due_since or command.now
    context = notification_context(
        subscription,
        amount=draft.total,
        invoice_id=draft.id,
        period_start=draft.period.start,
        period_end=draft.period.end,
        next_retry_at=dunning.next_retry_at(command.terms.dunning_policy, first, 0),
        suspends_at=dunning.suspends_at(command.terms.dunning_policy, first),
    )
    changes.enqueue_notification(NotificationKind.PAYMENT_FAILED, context)
