"""A coupon's way: reserved with the order, used by invoices, released when the subscription ends before the first."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from db.queries import records
from db.queries.records import Record
from workflows.ports.subscription import Subscribe
from workflows.refusals import refuse
from workflows.rules.errors import Refusal
from workflows.rules.pricing import CouponDuration, Discount


async def reserve(session: AsyncSession, order: Subscribe, now: datetime) -> Discount | None:
    """Reserve the order's coupon, if it names one, and return its discount.

    Raises:
        ApplicationError: ``COUPON_INVALID`` when it is unknown, used up, expired or withdrawn.
    """
    if order.coupon is None:
        return None
    statement = text(
        """
        UPDATE coupons SET redeemed = redeemed + 1
        WHERE code = :code AND active AND (max_redemptions IS NULL OR redeemed < max_redemptions)
            AND (expires_at IS NULL OR expires_at > :now)
        RETURNING kind AS coupon_kind, percent AS coupon_percent, amount_minor AS coupon_amount_minor,
            currency AS coupon_currency, duration, periods
        """
    )
    row = (await session.execute(statement, {"code": order.coupon.upper(), "now": now})).mappings().one_or_none()
    if row is None:
        raise refuse(Refusal.COUPON_INVALID, "This coupon is not valid.")
    await session.execute(
        text(
            "INSERT INTO coupon_redemptions (subscription_id, coupon_code, organization_id, status)"
            " VALUES (:id, :code, :organization, 'reserved')"
        ),
        {"id": order.subscription_id, "code": order.coupon.upper(), "organization": order.organization_id},
    )
    left = records.periods_of(CouponDuration(row["duration"]), row["periods"])
    return records.discount_of(row, code=order.coupon.upper(), periods_left=left)


async def release(session: AsyncSession, subscription_id: str) -> None:
    """Give a reserved redemption back, once."""
    await session.execute(
        text(
            """
            WITH released AS (
                UPDATE coupon_redemptions SET status = 'released'
                WHERE subscription_id = :id AND status = 'reserved' RETURNING coupon_code
            )
            UPDATE coupons SET redeemed = redeemed - 1 WHERE code IN (SELECT coupon_code FROM released)
            """
        ),
        {"id": subscription_id},
    )


async def use(session: AsyncSession, record: Record) -> dict[str, Any]:
    """An invoice of a period is written with the subscription's coupon: return the columns that say so.

    A coupon that has no period left changes nothing any more.
    """
    discount = record.discount
    if discount is None or discount.periods_left == 0:
        return {}
    await session.execute(
        text("UPDATE coupon_redemptions SET status = 'used' WHERE subscription_id = :id AND status = 'reserved'"),
        {"id": record.id},
    )
    left = discount.periods_left
    return {"coupon_used": True, "coupon_periods_left": None if left is None else left - 1}
