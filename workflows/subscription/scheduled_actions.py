"""Execution of the scheduled actions: period start, payment retry, suspension, cancellation, data deletion."""

from __future__ import annotations

from temporalio import workflow

from workflows.ports.subscription import PLATFORM_ACTOR, CancelAt
from workflows.rules import dunning
from workflows.rules.schedule import DUNNING_ACTIONS, ActionKind, ScheduledAction
from workflows.rules.subscription import SubscriptionStatus
from workflows.subscription import billing_cycle, lifecycle
from workflows.subscription.context import SubscriptionContext
from workflows.subscription.instance_reconciler import InstanceReconciler


async def execute(context: SubscriptionContext, reconciler: InstanceReconciler, action: ScheduledAction) -> None:
    """Execute an action that is due.

    A dunning action that is late by more than ``dunning.DOWNTIME_THRESHOLD`` extends the grace period instead: no
    reminder and no payment was possible while the platform was down.
    """
    state = context.require_state()
    delay = workflow.now() - action.at
    if action.kind in DUNNING_ACTIONS and delay > dunning.DOWNTIME_THRESHOLD:
        state.grace_extension_seconds += delay.total_seconds()
        return
    match action.kind:
        case ActionKind.START_PERIOD:
            context.pending_funds.clear()
            if context.status is SubscriptionStatus.TRIALING:
                await billing_cycle.end_trial(context, action)
            else:
                await billing_cycle.renew(context, action)
        case ActionKind.RETRY_PAYMENT:
            await billing_cycle.collect(context, scheduled=True, actor=PLATFORM_ACTOR, action=action)
        case ActionKind.CANCEL_AT_PERIOD_END:
            # After a charge in progress: a resumption or a plan change that it pays withdraws the cancellation.
            async with context.collection_lock:
                await _cancel_if_still_due(context, action, "the billing period ended")
        case ActionKind.CANCEL_UNPAID:
            await billing_cycle.collect(context, scheduled=False, actor=PLATFORM_ACTOR, action=action)
            await _cancel_if_still_due(context, action, "the invoice is unpaid")
        case ActionKind.SUSPEND:
            async with context.state_lock:
                if context.is_still_due(action):
                    await lifecycle.change_status(
                        context, SubscriptionStatus.SUSPENDED, "the invoice is unpaid", PLATFORM_ACTOR
                    )
        case ActionKind.DELETE_DATA:
            await reconciler.delete_instance()
            async with context.state_lock:
                await lifecycle.change_status(
                    context, SubscriptionStatus.TERMINATED, "the data retention period ended", PLATFORM_ACTOR
                )


async def _cancel_if_still_due(context: SubscriptionContext, action: ScheduledAction, reason: str) -> None:
    async with context.state_lock:
        if context.is_still_due(action):
            await lifecycle.cancel(context, CancelAt.NOW, PLATFORM_ACTOR, reason)
