"""What an order that is already recorded returns, from its rows."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from activities.holds import agreed_card_charge
from activities.outcomes import committed_state
from activities.plan_terms import load_plan_terms
from db.queries import invoices, orders
from db.queries.locked_subscriptions import LockedSubscription
from db.queries.plan_changes import find_scheduled_at
from workflows.ports.subscription import CardCharge, CreateSubscriptionOutcome, RecordedOrder
from workflows.rules.subscription import PRE_READY_STATUSES


async def replay_creation(
    session: AsyncSession, subscription: LockedSubscription, now: datetime
) -> CreateSubscriptionOutcome:
    """Return the outcome of an order that is already recorded, from its rows.

    It was recorded by a lost run of this activity, or before its workflow was terminated; in that case the plan may
    have changed since.
    """
    pending_terms = None
    if subscription.pending_plan_id is not None:
        # The price that was in force when the change was scheduled is agreed.
        scheduled_at = await find_scheduled_at(session, subscription.id)
        pending_terms = await load_plan_terms(session, subscription, subscription.pending_plan_id, scheduled_at or now)
    return CreateSubscriptionOutcome(
        state=await committed_state(session, subscription, None),
        terms=replace(
            await load_plan_terms(session, subscription, subscription.plan_id, now),
            price_id=subscription.price_id,
            price=subscription.price,
        ),
        pending_terms=pending_terms,
        card_charge=await _agreed_card_charge(session, subscription),
        order=to_recorded_order(subscription),
        cancellation_requested=await orders.is_cancellation_requested(session, subscription.id),
    )


def to_recorded_order(subscription: LockedSubscription) -> RecordedOrder:
    return RecordedOrder(
        hostname=subscription.hostname or "", price=subscription.price, created_at=subscription.created_at
    )


async def _agreed_card_charge(session: AsyncSession, subscription: LockedSubscription) -> CardCharge | None:
    """Return what a card pays of the first period; None if credit (or a trial) secures it, or once it has begun."""
    if subscription.status not in PRE_READY_STATUSES:
        return None
    return agreed_card_charge(await invoices.lock_open_hold(session, subscription.id))
