"""Content of renewal reminders, from the subscription's state at the moment of sending."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from activities.notification_context import money_to_json
from db.queries import reminders
from workflows.rules.funding import CollectionMethod
from workflows.rules.pricing import discount_amount
from workflows.rules.subscription import RENEWING_STATUSES, SubscriptionStatus


async def load_context(session: AsyncSession, context: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the mail's context: what is due at the end of the period, for which plan, and how it is paid.

    Args:
        context: The reminder as scheduled: ``subscription_id``, ``days``, ``due_at`` (ISO 8601).

    Returns:
        None when the reminder no longer applies: the period ends at another instant, or the subscription is neither
        active nor trialing.
    """
    state = await reminders.load_state(session, context["subscription_id"])
    due_at = datetime.fromisoformat(context["due_at"])
    if state is None or state.period_end != due_at or state.status not in RENEWING_STATUSES:
        return None
    price = state.pending_price if state.pending_price is not None else state.price
    amount = price - discount_amount(price, state.discount)
    uses_card = state.payment_method_id is not None and state.collection_method is not CollectionMethod.WALLET
    return {
        **context,
        "subscription_name": state.name,
        "service_name": state.service_name,
        "plan_name": state.pending_plan_name or state.plan_name,
        "old_plan_name": state.plan_name if state.pending_plan_name else None,
        "price": money_to_json(price),
        "amount": money_to_json(amount),
        "carried_debt": money_to_json(state.carried_debt) if state.carried_debt else None,
        "balance": money_to_json(state.credit),
        "balance_too_low": state.credit.amount_minor < amount.amount_minor and not uses_card,
        "brand": state.brand if uses_card else None,
        "last4": state.last4 if uses_card else None,
        "card_expires_before": uses_card
        and state.card_expires is not None
        and state.card_expires < (due_at.year, due_at.month),
        "charges_card_first": uses_card and state.collection_method is CollectionMethod.CARD,
        "cancel_at_period_end": state.cancel_at_period_end,
        "trial_end": state.trial_end.isoformat()
        if state.trial_end is not None and state.status is SubscriptionStatus.TRIALING
        else None,
        "hostname": state.hostname,
        "url": state.url or (f"https://{state.hostname}" if state.hostname else None),
    }
