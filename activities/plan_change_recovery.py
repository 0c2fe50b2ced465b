"""What a plan change replaced, from what was recorded with it: a lost run would have restored it."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncSession

from activities.plan_terms import load_plan_terms
from db.queries.locked_subscriptions import LockedSubscription
from db.queries.plan_changes import find_replaced_terms, find_scheduled_at, get_price_start
from db.queries.workflow_recovery import InstanceFacts
from workflows.ports.subscription import PlanChangeRollback
from workflows.rules.plan_change import can_roll_back


async def load_rollback(
    session: AsyncSession, subscription: LockedSubscription, instance: InstanceFacts
) -> PlanChangeRollback | None:
    """Return what a resize that fails restores; None if the last plan change is not rolled back any more."""
    replaced = await find_replaced_terms(session, subscription.id)
    if replaced is None or not can_roll_back(
        replaced,
        plan_id=subscription.plan_id,
        period_start=subscription.period_start,
        has_plan_resources=instance.has_plan_resources,
    ):
        return None
    price_start = await get_price_start(session, replaced.price_id)
    rollback = PlanChangeRollback(
        plan_change_id=replaced.plan_change_id,
        terms=await load_plan_terms(session, subscription, replaced.plan_id, price_start),
        anchor=replaced.billing_anchor,
        period_start=replaced.period.start,
        period_end=replaced.period.end,
    )
    scheduled_at = await find_scheduled_at(session, subscription.id)
    if replaced.pending_plan_id is None or scheduled_at is None:
        return rollback
    # The price that was in force when the change was scheduled is agreed.
    pending = await load_plan_terms(session, subscription, replaced.pending_plan_id, scheduled_at)
    return replace(rollback, pending_terms=pending)
