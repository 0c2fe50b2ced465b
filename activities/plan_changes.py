"""Plan changes: priced by the same rule as the preview and applied once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncSession

from activities.attempt_time import scheduled_at
from activities.credit_arrivals import list_debtors, list_debtors_if_credited
from activities.explanations import build_explanation
from activities.funding import InvoiceFunding, card_charge_for, split_funding_for
from activities.holds import agreed_card_charge, place_hold
from activities.invoicing import InvoiceDraft, add_invoice, add_invoice_paid_events, post_invoice_transaction
from activities.notification_context import paid_fields
from activities.outcomes import committed_state
from activities.plan_change_records import (
    add_plan_change_scheduled,
    apply_plan_change,
    plan_change_dedup_key,
    plan_changed_context,
)
from activities.plan_terms import build_plan_terms
from activities.scheduled_cancellation import CANCELLATION_WITHDRAWN_BY_SCHEDULED_CHANGE, drop_cancellation
from activities.subscription_transitions import new_change_set
from db.models.subscriptions import Subscription
from db.queries import catalogue, invoices, locked_subscriptions
from db.queries.change_set import ChangeSet, timeline_event_exists
from db.queries.invoice_allocations import list_invoice_balances
from db.queries.locked_subscriptions import LockedSubscription, PlanWithPrice, begin_with_locked_subscription
from db.queries.plan_changes import load_plan_change_facts
from workflows.errors import non_retryable_error
from workflows.ports.billing import ApplyPlanChange, PlanChangeOutcome, PlanChangeResult
from workflows.ports.subscription import PlanTerms
from workflows.rules import ids, ledger
from workflows.rules.allocations import AllocationSource, split_credit
from workflows.rules.errors import ErrorCode
from workflows.rules.funding import Funding, FundingPart, FundingPurpose, GatewayTerms
from workflows.rules.hold_keys import plan_change_hold
from workflows.rules.invoice import BillingReason, InvoiceStatus
from workflows.rules.money import Money, zero_money
from workflows.rules.notifications import NotificationKind
from workflows.rules.periods import BillingPeriod
from workflows.rules.plan_change import PlanChangeQuote, decide_plan_change
from workflows.rules.proration import PlanChangeMode


async def change_plan(
    session: AsyncSession, command: ApplyPlanChange, gateways: Mapping[str, GatewayTerms]
) -> PlanChangeOutcome:
    subscription = await begin_with_locked_subscription(session, command.subscription_id)
    # The price is that of the time when the change was ordered; the period is prorated at the time of the attempt.
    ordered_at = scheduled_at(command.now)
    plan = await locked_subscriptions.get_plan_with_price(session, command.plan_id, subscription.currency, ordered_at)
    if plan is None:
        raise non_retryable_error(ErrorCode.PLAN_UNAVAILABLE, "This plan is not offered.")
    terms = build_plan_terms(plan, subscription.timezone)
    before = await _replayed_outcome(session, subscription, terms, command)
    if before is not None:
        return before
    quote = await _price(session, command)
    changes = new_change_set(subscription, command.now, command.actor)
    if quote.withdraws_scheduled:
        return await _cancel_scheduled_change(session, changes, subscription, terms, command)
    if quote.mode is PlanChangeMode.PERIOD_END:
        return await _schedule_change(session, changes, subscription, plan, terms)
    changed = PlanChangeOutcome(
        state=await committed_state(session, subscription, None),
        result=PlanChangeResult.APPLIED,
        terms=terms,
        is_new_anchor=quote.is_new_anchor,
    )
    if not quote.amount_due:
        return await _credit_change(session, changes, subscription, plan, quote, command, changed)
    draft = _change_invoice(subscription, plan, quote, command)
    return await _invoice_change(
        session, changes, subscription, plan.name, quote, draft, changed, gateways, is_resized=command.is_resized
    )


async def _price(session: AsyncSession, command: ApplyPlanChange) -> PlanChangeQuote:
    """Return the quote, by the same rule as the preview."""
    subscription = await session.get_one(Subscription, command.subscription_id)
    plan = await catalogue.get_plan(session, command.plan_id)
    if plan is None:
        raise non_retryable_error(ErrorCode.PLAN_UNAVAILABLE, "This plan is not offered.")
    facts = await load_plan_change_facts(session, subscription, plan, at=scheduled_at(command.now))
    return decide_plan_change(facts, at=command.now, mode=command.mode)


async def _replayed_outcome(
    session: AsyncSession, subscription: LockedSubscription, terms: PlanTerms, command: ApplyPlanChange
) -> PlanChangeOutcome | None:
    """Return the result of an earlier run of the same command, from what it wrote; None if there was none.

    Raises:
        ApplicationError: ``PAYMENT_DECLINED`` if the earlier run raised it.
    """
    is_current = subscription.plan_id == command.plan_id
    if is_current and await timeline_event_exists(session, subscription.id, _withdrawal_dedup_key(command)):
        return await _withdrawn(session, subscription, terms, None)
    invoice = await invoices.find_plan_change_invoice(session, command.plan_change_id)
    if invoice is None:
        if not await timeline_event_exists(session, subscription.id, plan_change_dedup_key(command.plan_change_id)):
            return None
        # The change cost nothing and left the period as it was: one that starts a period has an invoice.
        is_new_anchor = False
    elif invoice.status is InvoiceStatus.VOID:
        raise non_retryable_error(
            ErrorCode.PAYMENT_DECLINED, "Payment declined: the plan was not changed.", {"decline_code": "declined"}
        )
    else:
        is_new_anchor = invoice.billing_reason is BillingReason.INTERVAL_CHANGE
    changed = PlanChangeOutcome(
        state=await committed_state(session, subscription, None),
        result=PlanChangeResult.APPLIED,
        terms=terms,
        is_new_anchor=is_new_anchor,
        invoice_id=invoice.id if invoice is not None else None,
    )
    if invoice is None or invoice.status is not InvoiceStatus.DRAFT:
        debtors = await list_debtors(session, subscription.organization_id)
        return replace(changed, past_due_subscription_ids=debtors)
    card = agreed_card_charge(await invoices.lock_open_hold(session, subscription.id))
    return replace(changed, result=PlanChangeResult.CARD_CHARGE_REQUIRED, card_charge=card)


async def _schedule_change(
    session: AsyncSession,
    changes: ChangeSet,
    subscription: LockedSubscription,
    plan: PlanWithPrice,
    terms: PlanTerms,
) -> PlanChangeOutcome:
    if subscription.pending_plan_id != plan.plan_id or subscription.cancel_at_period_end:
        changes.record_change(
            "pending_plan", subscription.pending_plan_id, plan.plan_id, "scheduled for the end of the period"
        )
        columns = drop_cancellation(
            changes, subscription, "plan change scheduled", CANCELLATION_WITHDRAWN_BY_SCHEDULED_CHANGE
        )
        add_plan_change_scheduled(changes, subscription, plan.name, subscription.period_end)
        changes.enqueue_notification(
            NotificationKind.PLAN_CHANGED,
            plan_changed_context(
                subscription,
                plan.name,
                effective_at=subscription.period_end,
                price=plan.price,
                next_charge_at=subscription.period_end,
                cancellation_withdrawn=subscription.cancel_at_period_end,
            ),
        )
        changes.update_subscription(pending_plan_id=plan.plan_id, **columns)
        await changes.write(session)
    return PlanChangeOutcome(
        state=await committed_state(session, subscription, changes),
        result=PlanChangeResult.SCHEDULED,
        terms=terms,
        is_new_anchor=False,
    )


async def _cancel_scheduled_change(
    session: AsyncSession,
    changes: ChangeSet,
    subscription: LockedSubscription,
    terms: PlanTerms,
    command: ApplyPlanChange,
) -> PlanChangeOutcome:
    """Withdraw the scheduled change: the subscription keeps its plan at the price that was agreed for it."""
    changes.record_change("pending_plan", subscription.pending_plan_id, None, "withdrawn")
    changes.add_timeline_event(
        "subscription.plan_change_withdrawn",
        f"Scheduled plan change withdrawn: the plan stays {subscription.plan_name}.",
        dedup_key=_withdrawal_dedup_key(command),
    )
    changes.enqueue_notification(
        NotificationKind.PLAN_CHANGED,
        plan_changed_context(
            subscription,
            subscription.plan_name,
            reason="withdrawn",
            price=subscription.price,
            next_charge_at=subscription.period_end,
        ),
        dedup_key=_withdrawal_dedup_key(command),
    )
    changes.update_subscription(pending_plan_id=None)
    await changes.write(session)
    return await _withdrawn(session, subscription, terms, changes)


async def _withdrawn(
    session: AsyncSession, subscription: LockedSubscription, terms: PlanTerms, changes: ChangeSet | None
) -> PlanChangeOutcome:
    return PlanChangeOutcome(
        state=await committed_state(session, subscription, changes),
        result=PlanChangeResult.WITHDRAWN,
        terms=terms,
        is_new_anchor=False,
    )


def _withdrawal_dedup_key(command: ApplyPlanChange) -> str:
    return f"withdrawn/{command.plan_change_id}"


def _change_invoice(
    subscription: LockedSubscription, plan: PlanWithPrice, quote: PlanChangeQuote, command: ApplyPlanChange
) -> InvoiceDraft:
    """Return the invoice of a change with an amount due now."""
    period = quote.period if quote.is_new_anchor else BillingPeriod(start=command.now, end=quote.period.end)
    return InvoiceDraft(
        id=ids.derive_id("inv", subscription.id, command.plan_change_id),
        billing_reason=BillingReason.INTERVAL_CHANGE if quote.is_new_anchor else BillingReason.PLAN_CHANGE,
        period=period,
        lines=quote.lines,
        price_id=plan.price_id,
        plan_change_id=command.plan_change_id,
    )


async def _applied(
    session: AsyncSession, subscription: LockedSubscription, changes: ChangeSet, changed: PlanChangeOutcome
) -> PlanChangeOutcome:
    """Return the outcome of an applied change, once ``changes`` are written."""
    return replace(
        changed,
        state=await committed_state(session, subscription, changes),
        past_due_subscription_ids=await list_debtors_if_credited(session, changes),
    )


async def _credit_change(
    session: AsyncSession,
    changes: ChangeSet,
    subscription: LockedSubscription,
    plan: PlanWithPrice,
    quote: PlanChangeQuote,
    command: ApplyPlanChange,
    changed: PlanChangeOutcome,
) -> PlanChangeOutcome:
    """Apply a change that costs nothing now: unused time becomes promotional credit.

    A new period is invoiced in full and paid from that credit, so that a document states what it cost and a later
    change credits what was paid for it.
    """
    period = quote.period if quote.is_new_anchor else None
    await apply_plan_change(
        session,
        changes,
        subscription,
        changed.terms,
        plan.name,
        command.plan_change_id,
        period,
        command.is_resized,
        promotional_credit=quote.credit or None,
    )
    await _grant_credit(session, changes, subscription, quote.granted, command.plan_change_id)
    if period is None:
        await changes.write(session)
        return await _applied(session, subscription, changes, changed)
    zero = zero_money(subscription.currency)
    draft = InvoiceDraft(
        id=ids.derive_id("inv", subscription.id, command.plan_change_id),
        billing_reason=BillingReason.INTERVAL_CHANGE,
        period=period,
        lines=quote.period_lines,
        price_id=plan.price_id,
        plan_change_id=command.plan_change_id,
    )
    funding = InvoiceFunding(
        promotional=draft.total,
        wallet=zero,
        card=zero,
        shortfall=zero,
        carried=zero,
        repaid=zero,
        payment_methods=(),
        decision=Funding(parts=(FundingPart(source=AllocationSource.PROMOTIONAL, amount=draft.total),), shortfall=zero),
    )
    await post_invoice_transaction(session, changes, draft, f"Change to {plan.name}", funding)
    add_invoice_paid_events(changes, draft.id, draft.total)
    invoice = add_invoice(
        changes,
        subscription,
        draft,
        status=InvoiceStatus.PAID,
        due=zero,
        explanation=build_explanation(subscription, quote.lines),
    )
    await changes.write(session)
    return await _applied(session, subscription, changes, replace(changed, invoice_id=invoice.id))


async def _invoice_change(
    session: AsyncSession,
    changes: ChangeSet,
    subscription: LockedSubscription,
    name: str,
    quote: PlanChangeQuote,
    draft: InvoiceDraft,
    changed: PlanChangeOutcome,
    gateways: Mapping[str, GatewayTerms],
    *,
    is_resized: bool,
) -> PlanChangeOutcome:
    funding = split_funding_for(subscription, draft.total, FundingPurpose.PLAN_CHANGE, gateways)
    card = card_charge_for(funding)
    if funding.shortfall:
        raise non_retryable_error(
            ErrorCode.INSUFFICIENT_FUNDS, "Insufficient funds for the plan change. Top up or add a card."
        )
    explanation = build_explanation(subscription, draft.lines)
    if card is not None:
        await place_hold(session, changes, subscription, funding, plan_change_hold(draft.id))
        invoice = add_invoice(
            changes, subscription, draft, status=InvoiceStatus.DRAFT, due=draft.total, explanation=explanation
        )
        await changes.write(session)
        return replace(changed, result=PlanChangeResult.CARD_CHARGE_REQUIRED, invoice_id=invoice.id, card_charge=card)
    await post_invoice_transaction(session, changes, draft, f"Change to {name}", funding)
    add_invoice_paid_events(changes, draft.id, draft.total, funding.carried)
    period = quote.period if quote.is_new_anchor else None
    plan_change_id = draft.plan_change_id or draft.id
    await apply_plan_change(
        session,
        changes,
        subscription,
        changed.terms,
        name,
        plan_change_id,
        period,
        is_resized,
        **paid_fields(draft.total, funding.carried),
        invoice_id=draft.id,
    )
    invoice = add_invoice(
        changes,
        subscription,
        draft,
        status=InvoiceStatus.PAID,
        due=zero_money(subscription.currency),
        explanation=explanation,
    )
    await changes.write(session)
    return await _applied(session, subscription, changes, replace(changed, invoice_id=invoice.id))


async def _grant_credit(
    session: AsyncSession, changes: ChangeSet, subscription: LockedSubscription, amount: Money, plan_change_id: str
) -> None:
    """Turn unused time of the current period into promotional credit, recorded on the invoices that paid for it."""
    if not amount or subscription.period_start is None or subscription.period_end is None:
        return
    transaction_id = changes.add_ledger_transaction(
        ledger.promotional_credit_transaction(amount),
        key=f"plan_change/{plan_change_id}/credit",
        description="Unused time",
        ref=subscription.id,
    )
    balances = await list_invoice_balances(session, subscription.id, subscription.period_start, subscription.period_end)
    parts = split_credit([*balances.values()], amount)
    for invoice_id, part in zip(balances, parts, strict=True):
        if part:
            changes.credit_invoice(invoice_id, plan_change_id, part, transaction_id=transaction_id)
