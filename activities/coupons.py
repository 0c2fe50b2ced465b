"""Coupons: reserved by the order, redeemed by invoices, released if the subscription ends before its first invoice."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from db.queries.catalogue import build_discount
from db.queries.change_set import ChangeSet
from db.queries.locked_subscriptions import LockedSubscription
from db.queries.plan_changes import is_change_recorded, plan_change_reason
from workflows.errors import non_retryable_error
from workflows.ports.subscription import CreateSubscription
from workflows.rules.errors import ErrorCode
from workflows.rules.pricing import CouponDuration, Discount, redemption_periods

REMAINING_PERIODS = "coupon_remaining_periods"
"""Name of the column, and of the recorded change of it."""


async def reserve_coupon(
    session: AsyncSession, order: CreateSubscription, currency: str, now: datetime
) -> Discount | None:
    """Reserve the order's coupon, if it names one, and return its discount.

    Raises:
        ApplicationError: ``COUPON_INVALID`` if it is unknown, used up, expired, inactive or an amount in another
            currency than that of the price.
    """
    if order.coupon is None:
        return None
    statement = text(
        """
        UPDATE coupons SET redemption_count = redemption_count + 1
        WHERE code = :code AND is_active AND (max_redemptions IS NULL OR redemption_count < max_redemptions)
            AND (expires_at IS NULL OR expires_at > :now) AND (currency IS NULL OR currency = :currency)
        RETURNING discount_type AS coupon_kind, percent AS coupon_percent, amount_minor AS coupon_amount_minor,
            currency AS coupon_currency, duration, duration_periods
        """
    )
    parameters = {"code": order.coupon.upper(), "currency": currency, "now": now}
    row = (await session.execute(statement, parameters)).mappings().one_or_none()
    if row is None:
        raise non_retryable_error(
            ErrorCode.COUPON_INVALID, "The coupon is invalid, expired, fully redeemed or in another currency."
        )
    await session.execute(
        text(
            "INSERT INTO coupon_redemptions (subscription_id, coupon_code, organization_id, status)"
            " VALUES (:id, :code, :organization, 'reserved')"
        ),
        {"id": order.subscription_id, "code": order.coupon.upper(), "organization": order.organization_id},
    )
    remaining_periods = redemption_periods(CouponDuration(row["duration"]), row["duration_periods"])
    return build_discount(row, code=order.coupon.upper(), periods_left=remaining_periods)


async def release_coupon(session: AsyncSession, subscription_id: str) -> None:
    """Release a reserved redemption. Repeating it has no further effect."""
    await session.execute(
        text(
            """
            WITH released AS (
                UPDATE coupon_redemptions SET status = 'released'
                WHERE subscription_id = :id AND status = 'reserved' RETURNING coupon_code
            )
            UPDATE coupons SET redemption_count = redemption_count - 1 WHERE code IN (SELECT coupon_code FROM released)
            """
        ),
        {"id": subscription_id},
    )


async def redeem_coupon(session: AsyncSession, subscription: LockedSubscription) -> dict[str, Any]:
    """Redeem one period of the subscription's coupon.

    Returns:
        The columns to update; none if the subscription has no coupon, or the coupon has no remaining period.
    """
    discount = subscription.discount
    if discount is None or discount.remaining_periods == 0:
        return {}
    await session.execute(
        text("UPDATE coupon_redemptions SET status = 'redeemed' WHERE subscription_id = :id AND status = 'reserved'"),
        {"id": subscription.id},
    )
    remaining = discount.remaining_periods
    return {"coupon_redeemed": True, "coupon_remaining_periods": None if remaining is None else remaining - 1}


async def redeem_coupon_for_plan_change(
    session: AsyncSession, changes: ChangeSet, subscription: LockedSubscription, plan_change_id: str
) -> dict[str, Any]:
    """Redeem one period as ``redeem_coupon``, and record that this plan change used it, also if it reduced nothing."""
    columns = await redeem_coupon(session, subscription)
    remaining = columns.get("coupon_remaining_periods")
    if remaining is not None:
        changes.record_change(
            REMAINING_PERIODS, str(remaining + 1), str(remaining), reason=plan_change_reason(plan_change_id)
        )
    return columns


async def restore_period(
    session: AsyncSession, changes: ChangeSet, subscription: LockedSubscription, plan_change_id: str
) -> dict[str, Any]:
    """Return the columns that restore the coupon's period that the plan change used; none if it used none."""
    discount = subscription.discount
    if discount is None or discount.remaining_periods is None:
        return {}
    reason = plan_change_reason(plan_change_id)
    if not await is_change_recorded(session, subscription.id, field=REMAINING_PERIODS, reason=reason):
        return {}
    restored = discount.remaining_periods + 1
    changes.record_change(
        REMAINING_PERIODS, str(discount.remaining_periods), str(restored), reason="plan change undone"
    )
    return {"coupon_remaining_periods": restored}
