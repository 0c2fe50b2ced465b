"""From a price and a coupon to the lines of an invoice."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from fractions import Fraction

from workflows.rules.money import Money, zero_money
from workflows.rules.periods import BillingPeriod


class CouponKind(StrEnum):
    PERCENT = "percent"
    FIXED = "fixed"


class CouponDuration(StrEnum):
    ONCE = "once"
    PERIODS = "periods"
    FOREVER = "forever"


@dataclass(frozen=True, slots=True, kw_only=True)
class Discount:
    """A coupon as it stands for one subscription.

    Attributes:
        percent: 1 to 100 for ``percent`` coupons, else 0.
        amount: The reduction of ``fixed`` coupons, in their own currency.
        remaining_periods: How many more periods it reduces; None is for ever.
    """

    code: str
    kind: CouponKind
    percent: int = 0
    amount: Money | None = None
    remaining_periods: int | None = None


def redemption_periods(duration: CouponDuration, periods: int | None) -> int | None:
    """Return how many periods a newly redeemed coupon reduces; None is for ever.

    Args:
        duration: The coupon's.
        periods: How many, for ``CouponDuration.PERIODS``.
    """
    match duration:
        case CouponDuration.ONCE:
            return 1
        case CouponDuration.PERIODS:
            return periods
        case CouponDuration.FOREVER:
            return None


def discount_amount(price: Money, discount: Discount | None) -> Money:
    """Return what ``discount`` takes off ``price``: never more than the price, nothing in another currency."""
    if discount is None or discount.remaining_periods == 0:
        return zero_money(price.currency)
    if discount.kind is CouponKind.PERCENT:
        return price.multiply(Fraction(discount.percent, 100))
    if discount.amount is None or discount.amount.currency != price.currency:
        return zero_money(price.currency)
    return min(price, discount.amount)


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceLine:
    """One line of an invoice. ``amount`` is ``unit_price * quantity - discount``, before tax."""

    description: str
    unit_price: Money
    quantity: int
    discount: Money
    tax: Money
    period: BillingPeriod

    @property
    def amount(self) -> Money:
        return self.unit_price.multiply(self.quantity) - self.discount


def plan_line(description: str, price: Money, period: BillingPeriod, discount: Discount | None = None) -> InvoiceLine:
    return InvoiceLine(
        description=description,
        unit_price=price,
        quantity=1,
        discount=discount_amount(price, discount),
        tax=zero_money(price.currency),
        period=period,
    )


def is_effective(effective_from: datetime, now: datetime) -> bool:
    return effective_from <= now
