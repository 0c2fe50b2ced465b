"""Renewal, trial end, resumption and collection of the open invoice.

A renewal that credit covers is one local activity in one workflow task; only a card needs a ``Payment`` child workflow.
"""

from __future__ import annotations

from datetime import datetime

from temporalio import workflow

from workflows import local_first, policies
from workflows.errors import in_progress_error, non_retryable_error
from workflows.ports.billing import BillingActivities, BillingOutcome, CollectInvoice, StartPeriod
from workflows.ports.subscription import PLATFORM_ACTOR, PlanTerms
from workflows.rules import dunning
from workflows.rules.errors import ErrorCode
from workflows.rules.notifications import reminder_times
from workflows.rules.renewal import PeriodKind
from workflows.rules.schedule import ScheduledAction
from workflows.rules.subscription import PAST_DUE_STATUSES, RENEWING_STATUSES, SubscriptionStatus
from workflows.subscription import card_payments
from workflows.subscription.context import SubscriptionContext


async def wait_for_renewal(context: SubscriptionContext) -> None:
    """Let a due renewal run first: a command must not skip the period's invoice.

    Raises:
        ApplicationError: ``CONFLICT`` when the renewal takes longer than ``PREVIOUS_UPDATE_WAIT``.
    """
    await context.wait_briefly(lambda: not _is_renewal_due(context))
    require_no_due_renewal(context)


def require_no_due_renewal(context: SubscriptionContext) -> None:
    """Raise ``CONFLICT`` while a renewal is due; under the locks, for which a command waits across a period's end."""
    if _is_renewal_due(context):
        raise in_progress_error("The renewal is in progress. Retry when it has ended.")


def reminders_at(context: SubscriptionContext) -> list[datetime]:
    """Return the instants of the current period's reminders, in order."""
    state = context.state
    if state is None or state.committed.period_start is None or state.committed.period_end is None:
        return []
    if state.committed.status not in RENEWING_STATUSES:
        return []
    return [at for _, at in reminder_times(state.committed.period_end, after=state.committed.period_start)]


async def renew(context: SubscriptionContext, action: ScheduledAction) -> None:
    """Start the period that follows the one that has ended, unless ``action`` is no longer due."""
    async with context.collection_lock:
        async with context.state_lock:
            if not context.is_still_due(action):
                return
            state = context.require_state()
            terms = state.pending_terms or state.terms
            anchor = state.committed.billing_anchor
            if anchor is None or terms.interval is not state.terms.interval:
                anchor = action.at
            outcome = await _request_period(context, PeriodKind.RENEWAL, terms, action.at, anchor, PLATFORM_ACTOR)
        # No terms: a renewal that a card pays is OPEN, so its period has started. Without a card charge the committed
        # status is ACTIVE (paid) or PAST_DUE.
        await card_payments.charge_invoice(context, outcome)


async def end_trial(context: SubscriptionContext, action: ScheduledAction) -> None:
    """Start the first billed period, unless ``action`` is no longer due. Unpaid, the subscription is paused (B16)."""
    async with context.collection_lock:
        async with context.state_lock:
            if not context.is_still_due(action):
                return
            state = context.require_state()
            terms = state.pending_terms or state.terms
            outcome = await _request_period(context, PeriodKind.TRIAL_END, terms, action.at, action.at, PLATFORM_ACTOR)
        # With the terms: a trial end that a card pays is DRAFT, and the payment starts its period. Without a card
        # charge the committed status is ACTIVE (paid) or PAUSED.
        with context.charging_for_new_period():
            await card_payments.charge_invoice(context, outcome, terms)


async def resume_from_pause(context: SubscriptionContext, actor: str) -> None:
    """End a pause: a new period starts and is charged now, or nothing changes.

    Raises:
        ApplicationError: ``INSUFFICIENT_FUNDS`` or ``PAYMENT_DECLINED``, and the subscription stays paused;
            ``CONFLICT`` while another payment or command is in progress.
    """
    async with context.customer_collection_lock():
        async with context.customer_state_lock():
            state = context.require_state()
            if context.status is not SubscriptionStatus.PAUSED:
                raise non_retryable_error(
                    ErrorCode.ILLEGAL_MOVE, f"A subscription that is {context.status} cannot be resumed."
                )
            terms, now = state.pending_terms or state.terms, workflow.now()
            # Not locally: a task that is repeated after a crash has another time, which would start another period.
            start = _period_command(context, PeriodKind.RESUMPTION, terms, now, now, actor)
            outcome: BillingOutcome = await workflow.execute_activity_method(
                BillingActivities.start_period, start, **policies.DATABASE
            )
            context.store_committed(outcome.state, terms)
        with context.charging_for_new_period():
            outcome, decline_code = await card_payments.charge_invoice(context, outcome, terms)
        if not outcome.paid:
            raise card_payments.unpaid_error(context, decline_code)


async def collect(
    context: SubscriptionContext,
    *,
    scheduled: bool,
    actor: str,
    action: ScheduledAction | None = None,
    fail_if_unpaid: bool = False,
) -> None:
    """Try to collect the open invoice. Hard-declined cards are charged again only by the customer's own attempt.

    Args:
        context: The subscription.
        scheduled: Whether the attempt counts in the dunning schedule.
        actor: Who requested the attempt.
        action: The due action; nothing is collected once it is no longer due.
        fail_if_unpaid: The customer's own attempt: raise when the invoice stays unpaid.

    Raises:
        ApplicationError: with ``fail_if_unpaid``: ``INSUFFICIENT_FUNDS``, ``PAYMENT_DECLINED`` or ``CONFLICT``.
    """
    async with context.customer_collection_lock() if fail_if_unpaid else context.collection_lock:
        async with context.customer_state_lock() if fail_if_unpaid else context.state_lock:
            state = context.require_state()
            invoice_id = state.committed.open_invoice_id
            if action is not None and not context.is_still_due(action):
                return
            arrived = context.take_pending_funds()
            if context.status not in PAST_DUE_STATUSES or invoice_id is None:
                return
            may_charge = dunning.may_charge_card(
                arrived,
                by_customer=fail_if_unpaid,
                is_scheduled=action is not None,
                hard_declined=state.hard_declined,
            )
            state.retries_made += scheduled
            outcome = await workflow.execute_activity_method(
                BillingActivities.collect_invoice,
                CollectInvoice(
                    subscription_id=context.command.subscription_id,
                    invoice_id=invoice_id,
                    scheduled=scheduled,
                    actor=actor,
                    now=workflow.now(),
                    next_retry_at=context.next_retry_at(),
                    suspends_at=context.suspends_at(),
                    credit_only=not may_charge,
                    excluded_payment_method_ids=[] if fail_if_unpaid else state.hard_declined_payment_method_ids,
                ),
                **policies.DATABASE,
            )
            context.store_committed(outcome.state)
        outcome, decline_code = await card_payments.charge_invoice(context, outcome)
        if fail_if_unpaid and not outcome.paid:
            raise card_payments.unpaid_error(context, decline_code)


def _is_renewal_due(context: SubscriptionContext) -> bool:
    end = context.require_state().committed.period_end
    return context.status in RENEWING_STATUSES and end is not None and workflow.now() >= end


async def _request_period(
    context: SubscriptionContext, kind: PeriodKind, terms: PlanTerms, start: datetime, anchor: datetime, actor: str
) -> BillingOutcome:
    """Start a period whose start is scheduled, so that a repeated workflow task names the same period."""
    command = _period_command(context, kind, terms, start, anchor, actor)
    outcome: BillingOutcome = await local_first.execute(BillingActivities.start_period, command)
    context.store_committed(outcome.state, terms)
    return outcome


def _period_command(
    context: SubscriptionContext, kind: PeriodKind, terms: PlanTerms, start: datetime, anchor: datetime, actor: str
) -> StartPeriod:
    return StartPeriod(
        subscription_id=context.command.subscription_id,
        kind=kind,
        period_start=start,
        anchor=anchor,
        terms=terms,
        actor=actor,
        now=workflow.now(),
    )
