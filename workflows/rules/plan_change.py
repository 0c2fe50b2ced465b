"""What a plan change invoices: one computation for the preview and for the change itself, so that they never differ."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction

from workflows.rules.money import Money, total, zero
from workflows.rules.periods import MONTHS, Interval, Period, nth_period
from workflows.rules.pricing import Discount, Line, plan_line, reduction
from workflows.rules.proration import Mode, default_mode, prorate


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two plans: its name as printed, its list price of one interval, and the interval."""

    name: str
    price: Money
    interval: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """What a change costs.

    Attributes:
        mode: As asked for, or the default.
        lines: What the change's invoice prints: unused time negative, remaining time positive; empty when nothing is
            invoiced now.
        due: What is charged now, zero or positive.
        credit: What becomes account credit, zero or positive, never more than was paid in the period.
        restarts: The interval changed, so ``period`` begins at the change and later ones are counted from there.
        period: The period that stands after the change.
        next_invoice: What the invoice after ``period`` costs.
    """

    mode: Mode
    lines: tuple[Line, ...]
    due: Money
    credit: Money
    restarts: bool
    period: Period
    next_invoice: Money


def mode_of(old: Side, new: Side) -> Mode:
    """Return the default mode: upgrades and longer intervals at once, the rest when the paid period ends."""
    if old.interval is not new.interval:
        return Mode.IMMEDIATE if MONTHS[new.interval] > MONTHS[old.interval] else Mode.PERIOD_END
    return default_mode(old.price, new.price)


def quote(
    *,
    old: Side,
    new: Side,
    period: Period,
    at: datetime,
    paid_in_period: Money,
    timezone: str = "UTC",
    mode: Mode | None = None,
    discount: Discount | None = None,
    next_discount: Discount | None = None,
    trialing: bool = False,
) -> Quote:
    """Price the change from ``old`` to ``new`` at ``at``.

    Args:
        period: The whole current period, also when it was changed before: shares are of it, to the second.
        paid_in_period: What was paid for ``period`` so far, less the credit that earlier changes in it gave.
        discount: The coupon as it reduced the current period; it reduces both sides alike.
        next_discount: The coupon as it will reduce the next invoice.
        trialing: Nothing is paid for the current period, whichever plan runs in it.

    Raises:
        RuleBroken: ``CURRENCY_MISMATCH``.
    """
    nothing = zero(old.price.currency)
    total((old.price, new.price, paid_in_period), old.price.currency)
    chosen = mode or mode_of(old, new)
    next_invoice = new.price - reduction(new.price, next_discount)
    if trialing or chosen is Mode.PERIOD_END:
        return Quote(
            mode=chosen,
            lines=(),
            due=nothing,
            credit=nothing,
            restarts=False,
            period=period,
            next_invoice=next_invoice,
        )
    if old.interval is not new.interval:
        return _restarted(
            old=old,
            new=new,
            period=period,
            at=at,
            paid_in_period=paid_in_period,
            timezone=timezone,
            discount=discount,
            next_discount=next_discount,
        )
    left = _rest(period, at)
    old_net = old.price - reduction(old.price, discount)
    new_net = new.price - reduction(new.price, discount)
    change = prorate(old=old_net, new=new_net, period=period, at=at, paid_in_period=paid_in_period)
    gross = new.price.times(Fraction(left.seconds, period.seconds))
    remaining = Line(
        description=f"Remaining time on {new.name}",
        unit_price=gross,
        quantity=1,
        discount=gross - change.remaining,
        tax=nothing,
        period=left,
    )
    return Quote(
        mode=chosen,
        lines=(_unused(old.name, change.unused, left), remaining),
        due=change.due,
        credit=change.credit,
        restarts=False,
        period=period,
        next_invoice=next_invoice,
    )


def _restarted(
    *,
    old: Side,
    new: Side,
    period: Period,
    at: datetime,
    paid_in_period: Money,
    timezone: str,
    discount: Discount | None,
    next_discount: Discount | None,
) -> Quote:
    """Another interval begins at ``at``: a whole new period, less what is unused of the old one."""
    nothing = zero(old.price.currency)
    old_net = old.price - reduction(old.price, discount)
    unused = prorate(old=old_net, new=nothing, period=period, at=at, paid_in_period=paid_in_period).unused
    fresh = nth_period(at, 0, new.interval, timezone)
    whole = plan_line(new.name, new.price, fresh, next_discount)
    net = unused + whole.amount
    return Quote(
        mode=Mode.IMMEDIATE,
        lines=(_unused(old.name, unused, _rest(period, at)), whole),
        due=max(net, nothing),
        credit=min(max(-net, nothing), max(paid_in_period, nothing)),
        restarts=True,
        period=fresh,
        next_invoice=new.price - reduction(new.price, _after(next_discount)),
    )


def _after(discount: Discount | None) -> Discount | None:
    """The coupon once one more period has used it."""
    if discount is None or discount.periods_left is None:
        return discount
    return Discount(
        code=discount.code,
        kind=discount.kind,
        percent=discount.percent,
        amount=discount.amount,
        periods_left=max(discount.periods_left - 1, 0),
    )


def _rest(period: Period, at: datetime) -> Period:
    start = min(max(at, period.start), period.end)
    return Period(start=start, end=period.end)


def _unused(name: str, amount: Money, rest: Period) -> Line:
    """What was paid for time that will not be used; the price that was paid, so a coupon is already off it."""
    return Line(
        description=f"Unused time on {name}",
        unit_price=amount,
        quantity=1,
        discount=zero(amount.currency),
        tax=zero(amount.currency),
        period=rest,
    )
