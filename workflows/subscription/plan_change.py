"""Plan changes: apply, schedule or charge; roll back when the instance cannot be resized."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ActivityError

from workflows import policies
from workflows.errors import from_activity_error, in_progress_error, non_retryable_error
from workflows.ports.billing import (
    ApplyPlanChange,
    BillingActivities,
    CompletePlanChange,
    PlanChangeOutcome,
    PlanChangeResult,
    RollbackPlanChange,
)
from workflows.ports.subscription import CardCharge, ChangePlan, CommittedState, PlanChangeRollback, PlanTerms
from workflows.rules.errors import ErrorCode
from workflows.rules.payment import PAID_STATUSES
from workflows.rules.subscription import RENEWING_STATUSES
from workflows.subscription import billing_cycle, card_payments
from workflows.subscription.context import SubscriptionContext


def require_changeable(context: SubscriptionContext) -> None:
    """Raise ``ILLEGAL_MOVE`` or ``CONFLICT`` in a state in which the plan cannot change."""
    context.require_status(context.status in RENEWING_STATUSES, "change its plan")
    context.require_no_slow_payment()


async def change_plan(context: SubscriptionContext, command: ChangePlan) -> None:
    """Apply, schedule or charge for a plan change; choosing the current plan withdraws the scheduled one.

    Raises:
        ApplicationError: the change is refused, or its payment failed; the plan is unchanged.
    """
    async with context.customer_collection_lock():
        async with context.customer_state_lock():
            billing_cycle.require_no_due_renewal(context)
            require_changeable(context)
            state = context.require_state()
            if state.plan_change_rollback is not None:
                raise in_progress_error("The previous plan change is in progress. Retry when the instance is resized.")
            outcome = await _apply_or_price(context, command)
            if outcome.result is PlanChangeResult.APPLIED:
                _commit_plan_change(context, outcome.state, outcome.terms, command.update_id)
                await context.signal_past_due(outcome.past_due_subscription_ids)
                return
            if outcome.result is PlanChangeResult.WITHDRAWN:
                # Without the terms of the catalogue: the subscription keeps those that were agreed.
                context.store_committed(outcome.state)
                return
            if outcome.result is PlanChangeResult.SCHEDULED:
                is_repeated = state.committed.pending_plan_id == outcome.state.pending_plan_id
                # A change that is scheduled already keeps the terms that were agreed and mailed.
                context.store_committed(outcome.state, None if is_repeated else outcome.terms)
                return
            context.store_committed(outcome.state, outcome.terms)
        if outcome.card_charge is None or outcome.invoice_id is None:
            raise non_retryable_error(ErrorCode.INSUFFICIENT_FUNDS, "Neither credit nor a card covers the change.")
        with context.charging_for_new_period():
            await _charge_and_complete(context, command, outcome, outcome.card_charge, outcome.invoice_id)


async def _charge_and_complete(
    context: SubscriptionContext,
    command: ChangePlan,
    outcome: PlanChangeOutcome,
    card_charge: CardCharge,
    invoice_id: str,
) -> None:
    """Charge what credit does not cover of a change, and complete it. The caller holds ``collection_lock``."""
    charged = await card_payments.charge(context, card_charge, invoice_id)
    payment = charged.payment
    async with context.state_lock:
        if payment.status not in PAID_STATUSES:
            await card_payments.record_failure(context, invoice_id, charged)
            raise card_payments.unpaid_error(context, card_payments.decline_code_or_status(payment))
        completed = await workflow.execute_activity_method(
            BillingActivities.complete_plan_change,
            CompletePlanChange(
                subscription_id=context.command.subscription_id,
                invoice_id=invoice_id,
                payment_id=payment.payment_id,
                plan_change_id=command.update_id,
                actor=command.actor,
                terms=outcome.terms,
                restarts=outcome.is_new_anchor,
                now=workflow.now(),
                is_resized=_is_resized(context, outcome.terms.plan_id),
            ),
            **policies.DATABASE,
        )
        if completed.paid:
            _commit_plan_change(context, completed.state, outcome.terms, command.update_id)
        else:
            context.store_committed(completed.state)
        await context.signal_past_due(completed.past_due_subscription_ids)
        if not completed.paid:
            raise card_payments.unpaid_error(context, None)


async def rollback_plan_change(context: SubscriptionContext, reason: str) -> None:
    """Return to the previous terms and return what the change was paid with; the instance could not be resized."""
    async with context.collection_lock, context.state_lock:
        state = context.require_state()
        rollback = state.plan_change_rollback
        if rollback is None:
            return
        outcome = await workflow.execute_activity_method(
            BillingActivities.rollback_plan_change,
            RollbackPlanChange(
                subscription_id=context.command.subscription_id,
                fallback=rollback,
                plan_change_id=rollback.plan_change_id,
                reason=reason,
                now=workflow.now(),
            ),
            **policies.DATABASE,
        )
        # In every status: a subscription that was paused meanwhile resumes with these terms.
        state.pending_terms = rollback.pending_terms
        context.store_committed(outcome.state, rollback.terms)
        state.plan_change_rollback = None
        await context.signal_past_due(outcome.past_due_subscription_ids)


async def _apply_or_price(context: SubscriptionContext, command: ChangePlan) -> PlanChangeOutcome:
    try:
        return await workflow.execute_activity_method(
            BillingActivities.change_plan,
            ApplyPlanChange(
                subscription_id=context.command.subscription_id,
                plan_id=command.plan_id,
                mode=command.mode,
                plan_change_id=command.update_id,
                actor=command.actor,
                now=workflow.now(),
                is_resized=_is_resized(context, command.plan_id),
            ),
            **policies.DATABASE,
        )
    except ActivityError as error:
        raise from_activity_error(error) from error


def _is_resized(context: SubscriptionContext, plan_id: str) -> bool:
    """Return whether a resize follows a change to the plan now; without one there is nothing to roll back.

    None follows if the instance has these resources already (an earlier change was not carried out), or if it is
    stopped: it is resized when the customer starts it, possibly periods later.
    """
    state = context.require_state()
    return state.instance_plan_id != plan_id and not state.is_stopped_by_customer


def _commit_plan_change(
    context: SubscriptionContext, committed: CommittedState, terms: PlanTerms, plan_change_id: str
) -> None:
    """Store the row after an applied change, and what the change replaced until the instance is resized."""
    state = context.require_state()
    before, replaced_terms, replaced_pending = state.committed, state.terms, state.pending_terms
    context.store_committed(committed, terms)
    is_resized = _is_resized(context, terms.plan_id)
    if before.billing_anchor is None or before.period_start is None or before.period_end is None or not is_resized:
        state.plan_change_rollback = None
        return
    state.plan_change_rollback = PlanChangeRollback(
        plan_change_id=plan_change_id,
        terms=replaced_terms,
        anchor=before.billing_anchor,
        period_start=before.period_start,
        period_end=before.period_end,
        pending_terms=replaced_pending,
    )
