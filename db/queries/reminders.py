"""Scheduled reminders: their content, loaded when they are sent, and their release by a sandbox clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.payments import CHARGE_ORDER
from db.queries.catalogue import build_discount
from workflows.rules.funding import CollectionMethod
from workflows.rules.money import Money
from workflows.rules.pricing import Discount
from workflows.rules.subscription import SubscriptionStatus

_STATE = text(
    f"""
SELECT s.id, s.name, s.status, s.collection_method, s.price_minor, s.currency, s.coupon_code,
    s.coupon_remaining_periods, s.current_period_end AS period_end, s.trial_end, s.cancel_at_period_end,
    p.name AS plan_name, v.name AS service_name, i.hostname, i.url,
    n.name AS pending_plan_name, n.amount_minor AS pending_price_minor,
    c.discount_type AS coupon_kind, c.percent AS coupon_percent, c.amount_minor AS coupon_amount_minor,
    c.currency AS coupon_currency, m.brand, m.last4, m.exp_month, m.exp_year, m.id AS payment_method_id,
    (SELECT COALESCE(sum(a.balance_minor), 0) FROM ledger_accounts a
        WHERE a.organization_id = s.organization_id AND a.currency = s.currency
        AND a.account IN ('wallet', 'promotional')) AS credit_minor,
    (SELECT COALESCE(-sum(a.balance_minor), 0) FROM ledger_accounts a
        WHERE a.organization_id = s.organization_id AND a.currency = s.currency AND a.account = 'debt') AS debt_minor
FROM subscriptions s
JOIN plans p ON p.id = s.plan_id
JOIN services v ON v.id = s.service_id
LEFT JOIN instances i ON i.subscription_id = s.id
LEFT JOIN coupons c ON c.code = s.coupon_code
LEFT JOIN LATERAL (
    SELECT n.name, r.amount_minor FROM plans n JOIN prices r ON r.plan_id = n.id AND r.currency = s.currency
    WHERE n.id = s.pending_plan_id AND r.effective_from <= (
        SELECT max(h.occurred_at) FROM subscription_changes h
        WHERE h.subscription_id = s.id AND h.field = 'pending_plan' AND h.after IS NOT NULL)
    ORDER BY r.effective_from DESC LIMIT 1
) n ON true
LEFT JOIN LATERAL (
    SELECT m.id, m.brand, m.last4, m.exp_month, m.exp_year FROM payment_methods m
    WHERE m.organization_id = s.organization_id AND m.detached_at IS NULL
    ORDER BY {CHARGE_ORDER} LIMIT 1
) m ON true
WHERE s.id = :subscription_id
"""
)
"""The price of a scheduled plan is the one in force when the change was scheduled: the renewal charges that."""

_LOCK_DUE = text(
    "SELECT id, template_context FROM notifications WHERE subscription_id = :subscription_id AND status = 'pending'"
    " AND requires_render AND scheduled_for <= :now ORDER BY scheduled_for FOR UPDATE"
)
_RELEASE = text(
    "UPDATE notifications SET status = :status, template_context = CAST(:context AS jsonb), requires_render = false,"
    " available_at = now(), next_attempt_at = now() WHERE id = :id"
)
_RESCHEDULE = text(
    "UPDATE notifications SET available_at = now() + (scheduled_for - :now), next_attempt_at = now()"
    " + (scheduled_for - :now) WHERE subscription_id = :subscription_id AND status = 'pending' AND scheduled_for > :now"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReminderState:
    """What a reminder reports of its subscription.

    Attributes:
        pending_plan_name, pending_price: The scheduled plan change, if any.
        card_expires: Year and month until whose end the card is valid; None where the gateway did not state them.
    """

    subscription_id: str
    name: str | None
    status: SubscriptionStatus
    collection_method: CollectionMethod
    service_name: str
    plan_name: str
    price: Money
    pending_plan_name: str | None
    pending_price: Money | None
    discount: Discount | None
    credit: Money
    carried_debt: Money
    payment_method_id: str | None
    brand: str | None
    last4: str | None
    card_expires: tuple[int, int] | None
    period_end: datetime | None
    trial_end: datetime | None
    cancel_at_period_end: bool
    hostname: str | None
    url: str | None


async def load_state(session: AsyncSession, subscription_id: str) -> ReminderState | None:
    """Return the subscription's present state, without a lock; None when it does not exist."""
    row = (await session.execute(_STATE, {"subscription_id": subscription_id})).mappings().one_or_none()
    if row is None:
        return None
    currency, pending = row["currency"], row["pending_price_minor"]
    has_coupon = row["coupon_code"] is not None and row["coupon_kind"] is not None
    return ReminderState(
        subscription_id=row["id"],
        name=row["name"],
        status=SubscriptionStatus(row["status"]),
        collection_method=CollectionMethod(row["collection_method"]),
        service_name=row["service_name"],
        plan_name=row["plan_name"],
        price=Money(amount_minor=row["price_minor"], currency=currency),
        pending_plan_name=row["pending_plan_name"],
        pending_price=Money(amount_minor=pending, currency=currency) if pending is not None else None,
        discount=build_discount(row, code=row["coupon_code"], periods_left=row["coupon_remaining_periods"])
        if has_coupon
        else None,
        credit=Money(amount_minor=int(row["credit_minor"]), currency=currency),
        carried_debt=Money(amount_minor=int(row["debt_minor"]), currency=currency),
        payment_method_id=row["payment_method_id"],
        brand=row["brand"],
        last4=row["last4"],
        card_expires=(row["exp_year"], row["exp_month"]) if row["exp_year"] and row["exp_month"] else None,
        period_end=row["period_end"],
        trial_end=row["trial_end"],
        cancel_at_period_end=row["cancel_at_period_end"],
        hostname=row["hostname"],
        url=row["url"],
    )


async def lock_due(session: AsyncSession, subscription_id: str, now: datetime) -> Sequence[tuple[str, dict[str, Any]]]:
    """Lock the reminders that are due at ``now`` of the subscription's clock; return their ids and contexts."""
    rows = await session.execute(_LOCK_DUE, {"subscription_id": subscription_id, "now": now})
    return [(row.id, row.template_context) for row in rows]


async def release(session: AsyncSession, reminder_id: str, context: dict[str, Any] | None) -> None:
    """Make a reminder due at once with this context; void it when the context is None."""
    await session.execute(
        _RELEASE,
        {
            "id": reminder_id,
            "status": "voided" if context is None else "pending",
            "context": orjson.dumps(context or {}).decode(),
        },
    )


async def reschedule(session: AsyncSession, subscription_id: str, now: datetime) -> None:
    """Recompute when later reminders are due, after the subscription's clock was moved to ``now``."""
    await session.execute(_RESCHEDULE, {"subscription_id": subscription_id, "now": now})
