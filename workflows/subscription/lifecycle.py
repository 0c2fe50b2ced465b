"""Status changes that collect no money: cancel, pause, suspend, terminate. The caller holds ``state_lock``."""

from __future__ import annotations

from temporalio import workflow

from workflows import policies
from workflows.errors import to_application_error
from workflows.ports.billing import SubscriptionActivities
from workflows.ports.subscription import CancelAt, ChangeStatus, SetCancelAtPeriodEnd
from workflows.rules import dunning
from workflows.rules.errors import RuleViolation
from workflows.rules.subscription import (
    LIVE_STATUSES,
    PAST_DUE_STATUSES,
    PRE_READY_STATUSES,
    SubscriptionStatus,
    is_in_paid_period,
    transition,
    unpaid_period_violation,
)
from workflows.subscription.context import SubscriptionContext


def require_cancellable(context: SubscriptionContext, at: CancelAt) -> None:
    """Raise the error of a cancellation that cannot be at the end of the period.

    Raises:
        ApplicationError: ``ILLEGAL_MOVE``: the period is not paid, so it would be one now. ``CONFLICT``: a charge for
            another period has had no outcome for long.
    """
    if at is not CancelAt.PERIOD_END:
        return
    if context.state is not None and context.status in PAST_DUE_STATUSES:
        raise to_application_error(unpaid_period_violation(context.status))
    if context.is_charging_for_new_period:
        context.require_no_slow_payment()


async def cancel(context: SubscriptionContext, at: CancelAt, actor: str, reason: str) -> None:
    """Cancel now, or at the end of the period; does nothing in a status that is not live.

    An order whose instance is not ready yet is not cancelled here: its compensation ends it. A pause that lasts beyond
    the paid period is cancelled now.

    Raises:
        ApplicationError: ``CONFLICT``: a cancellation at the end of the period during a charge for another one.
    """
    if at is CancelAt.PERIOD_END:
        context.require_no_charge_for_new_period()
    is_at_period_end = at is CancelAt.PERIOD_END and context.state is not None
    if is_at_period_end and is_in_paid_period(
        context.status, context.require_state().committed.period_end, workflow.now()
    ):
        await set_cancel_at_period_end(context, True, actor, reason)
        return
    if context.status not in LIVE_STATUSES or context.status in PRE_READY_STATUSES:
        return
    await change_status(context, SubscriptionStatus.CANCELLED, reason, actor)


async def pause(context: SubscriptionContext, actor: str) -> None:
    """Pause; a cancellation at the end of the period is dropped."""
    await change_status(context, SubscriptionStatus.PAUSED, "requested by the customer", actor)


async def set_cancel_at_period_end(
    context: SubscriptionContext, cancel_at_period_end: bool, actor: str, reason: str
) -> None:
    """Set or clear the cancellation at the end of the period; setting it drops a scheduled plan change."""
    pending_plan_id = context.require_state().committed.pending_plan_id if not cancel_at_period_end else None
    committed = await workflow.execute_activity_method(
        SubscriptionActivities.set_cancel_at_period_end,
        SetCancelAtPeriodEnd(
            subscription_id=context.command.subscription_id,
            cancel_at_period_end=cancel_at_period_end,
            pending_plan_id=pending_plan_id,
            reason=reason,
            actor=actor,
            now=workflow.now(),
        ),
        **policies.DATABASE,
    )
    context.store_committed(committed)


async def change_status(context: SubscriptionContext, status: SubscriptionStatus, reason: str, actor: str) -> None:
    """Record a status change.

    Raises:
        ApplicationError: ``ILLEGAL_MOVE``.
    """
    state = context.require_state()
    try:
        transition(context.status, status)
    except RuleViolation as violation:
        raise to_application_error(violation) from violation
    now, policy = workflow.now(), state.terms.dunning_policy
    is_past_due = status is SubscriptionStatus.SUSPENDED and state.grace_started_at is not None
    outcome = await workflow.execute_activity_method(
        SubscriptionActivities.change_status,
        ChangeStatus(
            subscription_id=context.command.subscription_id,
            status=status,
            reason=reason,
            actor=actor,
            now=now,
            data_deletion_at=dunning.deletes_at(policy, now) if status is SubscriptionStatus.CANCELLED else None,
            cancellation_at=dunning.cancels_at(policy, state.grace_started_at or now) if is_past_due else None,
            void_invoice=status is SubscriptionStatus.CANCELLED,
        ),
        **policies.DATABASE,
    )
    context.store_committed(outcome.state)
    await context.signal_past_due(outcome.past_due_subscription_ids)
