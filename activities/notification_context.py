"""The context of a notification about a subscription."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from db.queries.locked_subscriptions import LockedSubscription
from workflows.rules.money import Money


def money_to_json(amount: Money) -> dict[str, Any]:
    return {"amount_minor": amount.amount_minor, "currency": amount.currency}


def notification_context(subscription: LockedSubscription, **extra: Any) -> dict[str, Any]:
    """Return the context of every notification about a subscription, and ``extra``; money and instants become JSON."""
    context: dict[str, Any] = {
        "subscription_id": subscription.id,
        "subscription_name": subscription.name,
        "plan_name": subscription.plan_name,
        "service_name": subscription.service_name,
        "hostname": subscription.hostname,
        "url": subscription.url or (f"https://{subscription.hostname}" if subscription.hostname else None),
    }
    for name, value in extra.items():
        context[name] = _json(value)
    return context


def _json(value: Any) -> Any:
    if isinstance(value, Money):
        return money_to_json(value)
    return value.isoformat() if isinstance(value, datetime) else value
