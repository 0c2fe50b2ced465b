"""Plan changes: which are permitted and what each invoices. The preview and the change make the same decision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from fractions import Fraction

from workflows.rules.allocations import InvoiceBalance, carried_debt, plan_change_credit_limit
from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.money import Money, sum_money, zero_money
from workflows.rules.periods import MONTHS_PER_INTERVAL, BillingPeriod, Interval, billing_period
from workflows.rules.pricing import Discount, InvoiceLine, discount_amount, plan_line
from workflows.rules.proration import PlanChangeMode, default_mode, prorate
from workflows.rules.subscription import RENEWING_STATUSES, SubscriptionStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPrice:
    """One of the two plans: its name as printed, its list price of one interval, and the interval."""

    name: str
    price: Money
    interval: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanChangeQuote:
    """What a change costs.

    Attributes:
        mode: As asked for, or the default.
        lines: What the change's invoice prints: unused time negative, remaining time positive; empty when nothing is
            invoiced now.
        amount_due: What is charged now, zero or positive.
        credit: What becomes account credit, zero or positive, never more than was paid in the period.
        granted: What an applied change without an amount due turns into promotional credit: ``credit``, or for a new
            period all unused time that was paid, which then pays the invoice of that period.
        period_lines: What the invoice of a new period prints that ``granted`` pays; empty where the period continues.
        is_new_anchor: The interval changed, so ``period`` begins at the change and later ones are counted from there.
        period: The period that stands after the change.
        next_invoice: What the invoice after ``period`` costs.
        withdraws_scheduled: The current plan was chosen: the scheduled change is withdrawn and nothing else happens.
        withdraws_cancellation: A cancellation at the end of the period is scheduled; the change withdraws it.
    """

    mode: PlanChangeMode
    lines: tuple[InvoiceLine, ...]
    amount_due: Money
    credit: Money
    granted: Money
    is_new_anchor: bool
    period: BillingPeriod
    next_invoice: Money
    period_lines: tuple[InvoiceLine, ...] = ()
    withdraws_scheduled: bool = False
    withdraws_cancellation: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanChangeFacts:
    """What the decision about a plan change depends on.

    Attributes:
        pending_plan_id: The plan of the scheduled change, if there is one.
        cancel_at_period_end: A cancellation at the end of the period is scheduled.
        period: The current period, during a trial the trial; None without one.
        current_plan: The plan with the price that the subscription has.
        target_is_orderable: The plan is public and not retired, and its service is published.
        target_plan: The plan with its price; None when it has none in the subscription's currency.
        invoices: The paid invoices of ``period``, the oldest first.
        discount: The coupon as it reduced the current period; it reduces both sides alike.
        next_discount: The coupon as it will reduce the next invoice.
    """

    status: SubscriptionStatus
    plan_id: str
    pending_plan_id: str | None = None
    cancel_at_period_end: bool = False
    service_id: str
    timezone: str
    period: BillingPeriod | None
    current_plan: PlanPrice
    target_plan_id: str
    target_service_id: str
    target_is_orderable: bool
    target_plan: PlanPrice | None
    invoices: tuple[InvoiceBalance, ...] = ()
    discount: Discount | None = None
    next_discount: Discount | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacedTerms:
    """What an applied plan change replaced, as recorded with it, and what it made of the plan and the period.

    Attributes:
        pending_plan_id: The plan of the scheduled change that it withdrew; None without one.
    """

    plan_change_id: str
    plan_id: str
    price_id: str
    billing_anchor: datetime
    period: BillingPeriod
    pending_plan_id: str | None
    new_plan_id: str
    new_period_start: datetime


def can_roll_back(
    replaced: ReplacedTerms, *, plan_id: str, period_start: datetime | None, has_plan_resources: bool
) -> bool:
    """Return whether the last plan change of a subscription is rolled back when its resize fails.

    Not once the instance has the resources, and not in a later period: its terms are final.
    """
    is_current = (plan_id, period_start) == (replaced.new_plan_id, replaced.new_period_start)
    return is_current and not has_plan_resources


def plan_change_period(
    *,
    period_start: datetime | None,
    period_end: datetime | None,
    billing_anchor: datetime | None,
    trial_end: datetime | None,
) -> BillingPeriod | None:
    """Return the period that a change is prorated over: the current one, during a trial the trial; None without."""
    if period_start is not None and period_end is not None:
        return BillingPeriod(start=period_start, end=period_end)
    if billing_anchor is not None and trial_end is not None:
        return BillingPeriod(start=billing_anchor, end=trial_end)
    return None


def decide_plan_change(facts: PlanChangeFacts, *, at: datetime, mode: PlanChangeMode | None) -> PlanChangeQuote:
    """Return what the change invoices at ``at``.

    Args:
        mode: As requested; None is the default of the two plans.

    Raises:
        RuleViolation: ``ILLEGAL_MOVE`` for the status, ``CONFLICT`` for a plan of another service, or for the current
            plan while no change is scheduled, ``PLAN_UNAVAILABLE`` for a plan that is not orderable or has no price in
            the subscription's currency.
    """
    if facts.status not in RENEWING_STATUSES or facts.period is None:
        raise plan_change_violation(facts.status)
    target = {"plan_id": facts.target_plan_id}
    if facts.target_plan_id == facts.plan_id:
        if facts.pending_plan_id is None:
            raise RuleViolation(ErrorCode.CONFLICT, "The subscription already has this plan.", target)
        return _quote_withdrawal(facts.current_plan.price, facts.period, facts.next_discount)
    if facts.target_service_id != facts.service_id:
        raise RuleViolation(
            ErrorCode.CONFLICT, "The plan belongs to another service. Choose a plan of the same service.", target
        )
    if not facts.target_is_orderable:
        raise RuleViolation(ErrorCode.PLAN_UNAVAILABLE, "The plan is not available for new orders.", target)
    if facts.target_plan is None:
        raise RuleViolation(ErrorCode.PLAN_UNAVAILABLE, "The plan has no price in the subscription's currency.", target)
    quote = quote_plan_change(
        old=facts.current_plan,
        new=facts.target_plan,
        period=facts.period,
        at=at,
        net_paid_in_period=plan_change_credit_limit(facts.invoices, facts.current_plan.price.currency),
        carried_in_period=sum_money(map(carried_debt, facts.invoices), facts.current_plan.price.currency),
        timezone=facts.timezone,
        mode=mode,
        discount=facts.discount,
        next_discount=facts.next_discount,
        trialing=facts.status is SubscriptionStatus.TRIALING,
    )
    return replace(quote, withdraws_cancellation=facts.cancel_at_period_end)


def plan_change_violation(status: SubscriptionStatus) -> RuleViolation:
    """Return the refusal of a plan change in this status."""
    return RuleViolation(
        ErrorCode.ILLEGAL_MOVE, f"A subscription that is {status} cannot change its plan.", {"from": status}
    )


def _quote_withdrawal(price: Money, period: BillingPeriod, next_discount: Discount | None) -> PlanChangeQuote:
    zero = zero_money(price.currency)
    return PlanChangeQuote(
        mode=PlanChangeMode.PERIOD_END,
        lines=(),
        amount_due=zero,
        credit=zero,
        granted=zero,
        is_new_anchor=False,
        period=period,
        next_invoice=price - discount_amount(price, next_discount),
        withdraws_scheduled=True,
    )


def default_mode_for(old: PlanPrice, new: PlanPrice) -> PlanChangeMode:
    """Return the default mode: upgrades and longer intervals at once, the rest when the paid period ends."""
    if old.interval is not new.interval:
        return (
            PlanChangeMode.IMMEDIATE
            if MONTHS_PER_INTERVAL[new.interval] > MONTHS_PER_INTERVAL[old.interval]
            else PlanChangeMode.PERIOD_END
        )
    return default_mode(old.price, new.price)


def quote_plan_change(
    *,
    old: PlanPrice,
    new: PlanPrice,
    period: BillingPeriod,
    at: datetime,
    net_paid_in_period: Money,
    carried_in_period: Money | None = None,
    timezone: str = "UTC",
    mode: PlanChangeMode | None = None,
    discount: Discount | None = None,
    next_discount: Discount | None = None,
    trialing: bool = False,
) -> PlanChangeQuote:
    """Price the change from ``old`` to ``new`` at ``at``.

    Args:
        period: The whole current period, also when it was changed before: shares are of it, to the second.
        net_paid_in_period: What was paid for ``period`` so far, less the credit that earlier changes in it gave.
        carried_in_period: What of ``period`` is carried debt, which is neither paid nor forgiven. None is zero.
        discount: The coupon as it reduced the current period; it reduces both sides alike.
        next_discount: The coupon as it will reduce the next invoice.
        trialing: Nothing is paid for the current period, whichever plan runs in it.

    Raises:
        RuleViolation: ``CURRENCY_MISMATCH``.
    """
    zero = zero_money(old.price.currency)
    sum_money((old.price, new.price, net_paid_in_period), old.price.currency)
    chosen = mode or default_mode_for(old, new)
    next_invoice = new.price - discount_amount(new.price, next_discount)
    if trialing or chosen is PlanChangeMode.PERIOD_END:
        return PlanChangeQuote(
            mode=chosen,
            lines=(),
            amount_due=zero,
            credit=zero,
            granted=zero,
            is_new_anchor=False,
            period=period,
            next_invoice=next_invoice,
        )
    if old.interval is not new.interval:
        return _quote_interval_change(
            old=old,
            new=new,
            period=period,
            at=at,
            net_paid_in_period=net_paid_in_period,
            carried_in_period=carried_in_period or zero,
            timezone=timezone,
            discount=discount,
            next_discount=next_discount,
        )
    remaining = _remaining_period(period, at)
    old_net = old.price - discount_amount(old.price, discount)
    new_net = new.price - discount_amount(new.price, discount)
    change = prorate(
        old=old_net,
        new=new_net,
        period=period,
        at=at,
        net_paid_in_period=net_paid_in_period,
        carried_in_period=carried_in_period,
    )
    gross = new.price.multiply(Fraction(remaining.seconds, period.seconds))
    remaining_line = InvoiceLine(
        description=f"Remaining time on {new.name}",
        unit_price=gross,
        quantity=1,
        discount=gross - change.remaining_charge,
        tax=zero,
        period=remaining,
    )
    return PlanChangeQuote(
        mode=chosen,
        lines=(_unused_time_line(old.name, change.unused_credit, remaining), remaining_line),
        amount_due=change.amount_due,
        credit=change.credit,
        granted=change.credit,
        is_new_anchor=False,
        period=period,
        next_invoice=next_invoice,
    )


def _quote_interval_change(
    *,
    old: PlanPrice,
    new: PlanPrice,
    period: BillingPeriod,
    at: datetime,
    net_paid_in_period: Money,
    carried_in_period: Money,
    timezone: str,
    discount: Discount | None,
    next_discount: Discount | None,
) -> PlanChangeQuote:
    """Another interval begins at ``at``: a whole new period, less what is unused of the old one.

    Time that was refunded or never paid is not credited. Carried debt for unused time counts toward the new period,
    because the organization still owes it, but it never becomes credit.
    """
    zero = zero_money(old.price.currency)
    old_net = old.price - discount_amount(old.price, discount)
    fresh, remaining = billing_period(at, 0, new.interval, timezone), _remaining_period(period, at)
    full_line = plan_line(new.name, new.price, fresh, next_discount)
    received = prorate(
        old=old_net,
        new=zero,
        period=period,
        at=at,
        net_paid_in_period=net_paid_in_period,
        carried_in_period=carried_in_period,
    )
    paid = max(net_paid_in_period, zero)
    unused = min(-received.unused_credit, max(paid, full_line.amount))
    granted = min(unused, paid)
    net, owed = full_line.amount - unused, max(min(unused, full_line.amount) - granted, zero)
    return PlanChangeQuote(
        mode=PlanChangeMode.IMMEDIATE,
        # A period that has ended, and is not renewed yet, has no unused time; a line of no time is refused.
        lines=(_unused_time_line(old.name, -unused, remaining), full_line)
        if remaining.start < remaining.end
        else (full_line,),
        amount_due=max(net, zero),
        credit=max(-net, zero),
        granted=granted,
        period_lines=(_unused_time_line(old.name, -owed, remaining), full_line) if owed else (full_line,),
        is_new_anchor=True,
        period=fresh,
        next_invoice=new.price - discount_amount(new.price, _after_next_period(next_discount)),
    )


def _after_next_period(discount: Discount | None) -> Discount | None:
    """The coupon once one more period has used it."""
    if discount is None or discount.remaining_periods is None:
        return discount
    return Discount(
        code=discount.code,
        kind=discount.kind,
        percent=discount.percent,
        amount=discount.amount,
        remaining_periods=max(discount.remaining_periods - 1, 0),
    )


def _remaining_period(period: BillingPeriod, at: datetime) -> BillingPeriod:
    start = min(max(at, period.start), period.end)
    return BillingPeriod(start=start, end=period.end)


def _unused_time_line(name: str, amount: Money, remaining: BillingPeriod) -> InvoiceLine:
    """What was paid for time that will not be used; the price that was paid, so a coupon is already off it."""
    return InvoiceLine(
        description=f"Unused time on {name}",
        unit_price=amount,
        quantity=1,
        discount=zero_money(amount.currency),
        tax=zero_money(amount.currency),
        period=remaining,
    )
