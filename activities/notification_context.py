"""The context of a notification about a subscription."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypedDict, Unpack

from db.queries.locked_subscriptions import LockedSubscription
from workflows.rules.money import Money


class ContextFields(TypedDict, total=False):
    """What a notification about a subscription may say beside the subscription itself: the names that templates use."""

    amount: Money
    cancel_at_period_end: bool
    cancellation_withdrawn: bool
    cancels_at: datetime | None
    carried: Money | None
    carried_debt: Money | None
    credited: Money | None
    coupon_code: str | None
    credit: Money | None
    credit_reversed: Money | None
    data_deletion_at: datetime | None
    debt_paid: Money | None
    decline_code: str | None
    effective_at: datetime | None
    instance_id: str | None
    invoice_id: str
    next_charge_at: datetime | None
    next_retry_at: datetime | None
    old_plan_name: str
    pending_plan_name: str | None
    period_end: datetime | None
    period_start: datetime | None
    price: Money
    promotional_credit: Money | None
    promotional_credit_reversed: Money | None
    reason: str
    status: str
    suspends_at: datetime | None
    suspends_now: bool
    trial_days: int
    trial_end: datetime | None
    withdrawn_plan_name: str | None


class PaidFields(TypedDict, total=False):
    """What a receipt says of an invoice."""

    amount: Money
    carried: Money | None


def paid_fields(total: Money, carried: Money | None) -> PaidFields:
    """Return what a receipt says of an invoice: the amount that was paid, and what is added to the next payment."""
    if not carried:
        return PaidFields(amount=total)
    if carried == total:
        return PaidFields(carried=carried)
    return PaidFields(amount=total - carried, carried=carried)


def money_to_json(amount: Money) -> dict[str, Any]:
    return {"amount_minor": amount.amount_minor, "currency": amount.currency}


def notification_context(subscription: LockedSubscription, **extra: Unpack[ContextFields]) -> dict[str, Any]:
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
