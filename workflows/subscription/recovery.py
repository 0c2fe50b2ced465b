"""A run that was started again for a recorded subscription: it takes over what the lost run left.

The row says where the subscription is. ``adopt`` reads what only the lost run knew, and ``settle`` ends its payments
before anything else is collected, so that no payment is forgotten and none is made twice.
"""

from __future__ import annotations

from temporalio import workflow

from workflows import policies
from workflows.ports.instances import OperationKind
from workflows.ports.recovery import LoadRecovery, RecoveryActivities, ResumeCollection, UnsettledPayment
from workflows.rules import dunning
from workflows.rules.dunning import FundsKind
from workflows.rules.payment import PAID_STATUSES
from workflows.rules.subscription import has_ended
from workflows.subscription import card_payments
from workflows.subscription.context import SubscriptionContext


async def adopt(context: SubscriptionContext) -> bool:
    """Continue a subscription whose run was lost after its order; return whether it has not ended."""
    state = context.require_state()
    if has_ended(state.committed.status, was_activated=state.committed.billing_anchor is not None):
        return False
    recovery = await workflow.execute_activity_method(
        RecoveryActivities.load, LoadRecovery(subscription_id=context.command.subscription_id), **policies.DATABASE
    )
    # Payments and operations of the lost run have the ids that counting from 1 gives.
    state.recovery_id = workflow.uuid4().hex
    state.instance_desired_running = recovery.is_instance_running
    state.is_stopped_by_customer = recovery.is_stopped_by_customer
    # As after a resumption that failed: resumed again, or suspended.
    state.failed_operation = OperationKind.RESUME if recovery.is_instance_degraded else None
    state.instance_plan_id = state.terms.plan_id if recovery.has_plan_resources else ""
    state.plan_change_rollback = recovery.plan_change_rollback
    state.hard_declined = recovery.hard_declined
    state.hard_declined_payment_method_ids = recovery.hard_declined_payment_method_ids
    if state.committed.past_due_since is not None:
        state.retries_made = dunning.count_recorded_retries(
            state.terms.dunning_policy,
            state.committed.past_due_since,
            failed_attempts=recovery.failed_attempts,
            last_attempt_at=recovery.last_attempt_at,
        )
    context.recovery = recovery
    return True


async def settle(context: SubscriptionContext) -> None:
    """End the payments of the lost run, then collect the invoice that it was collecting."""
    async with context.collection_lock:
        for unsettled in context.recovery.payments if context.recovery is not None else ():
            # Its invoice may be a draft, which starts a period when it is paid.
            with context.charging_for_new_period():
                await _settle_payment(context, unsettled)
        async with context.state_lock:
            outcome = await workflow.execute_activity_method(
                RecoveryActivities.resume_collection,
                ResumeCollection(subscription_id=context.command.subscription_id, now=workflow.now()),
                **policies.DATABASE,
            )
            context.store_committed(outcome.state)
            await context.signal_past_due(outcome.past_due_subscription_ids, FundsKind.RELEASED_CREDIT)
        await card_payments.charge_invoice(context, outcome)
    if context.recovery is not None and context.recovery.has_untried_payment_method:
        # What arrived was signaled to no workflow. The loop collects from it, unless the invoice is paid.
        context.pending_funds.add(FundsKind.PAYMENT_METHOD)
    if context.recovery is not None and context.recovery.has_promoted_payment_method:
        context.pending_funds.add(FundsKind.PROMOTED_PAYMENT_METHOD)
    if context.recovery is not None and context.recovery.has_untried_credit:
        context.pending_funds.add(FundsKind.CREDIT)
    context.recovery = None


async def _settle_payment(context: SubscriptionContext, unsettled: UnsettledPayment) -> None:
    """Follow a payment to its end and record it. Its activities find it at the gateway by its idempotency key."""
    payment, state = unsettled.payment, context.require_state()
    handle = await card_payments.start_payment(payment)
    if payment.manual_capture:
        decision = "capture" if unsettled.invoice_id is not None else "cancel_authorization"
        await card_payments.signal_payment(handle, decision)
    outcome = await card_payments.await_payment(context, handle, payment)
    terms = state.pending_terms or state.terms
    async with context.state_lock:
        if outcome.status in PAID_STATUSES:
            await card_payments.apply_payment(context, unsettled.invoice_id, payment.payment_id, terms)
        elif unsettled.invoice_id is not None:
            method_ids = context.recovery.payment_method_ids if context.recovery is not None else []
            charged = card_payments.judge_payment(context, outcome, payment.payment_method_id, method_ids)
            await card_payments.record_failure(context, unsettled.invoice_id, charged, terms)
