"""What a plan change would invoice for one subscription: the preview and the change itself both ask here.

The arithmetic is ``workflows.rules.plan_change``; this collects its facts.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import exists, select
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.billing import Invoice, InvoiceLine, Subscription
from db.models.catalogue import Plan
from db.queries import catalogue
from db.queries.invoices import paid_in_period
from workflows.rules.errors import Refusal, RuleBroken
from workflows.rules.invoice import InvoiceStatus
from workflows.rules.money import Money
from workflows.rules.periods import Interval, Period
from workflows.rules.plan_change import Quote, Side, quote
from workflows.rules.pricing import Discount
from workflows.rules.proration import Mode
from workflows.rules.subscription import State

CHANGEABLE = frozenset({State.ACTIVE, State.TRIALING})


async def quote_change(
    session: AsyncSession, subscription: Subscription, plan: Plan, *, at: datetime, mode: Mode | None
) -> Quote:
    """Price the change of ``subscription`` to ``plan`` (its service and prices loaded) at ``at``.

    Raises:
        RuleBroken: ``ILLEGAL_MOVE`` in a state without a period, ``CONFLICT`` for the plan it has or a plan of another
            service, ``PLAN_UNAVAILABLE`` when it is not on sale or not in the subscription's currency.
    """
    old = await catalogue.plan(session, subscription.plan_id)
    period = _period(subscription)
    if old is None or period is None or State(subscription.status) not in CHANGEABLE:
        raise RuleBroken(
            Refusal.ILLEGAL_MOVE,
            f"A subscription that is {subscription.status} cannot change its plan.",
            {"from": subscription.status},
        )
    price = _sellable(subscription, plan, at)
    applied, upcoming = await _discounts(session, subscription)
    return quote(
        old=Side(
            name=old.name,
            price=Money(amount_minor=subscription.price_minor, currency=subscription.currency),
            interval=Interval(old.interval),
        ),
        new=Side(name=plan.name, price=price, interval=Interval(plan.interval)),
        period=period,
        at=at,
        paid_in_period=Money(
            amount_minor=await paid_in_period(session, subscription.id, period.start, period.end),
            currency=subscription.currency,
        ),
        timezone=subscription.timezone,
        mode=mode,
        discount=applied,
        next_discount=upcoming,
        trialing=subscription.status == State.TRIALING,
    )


def _period(subscription: Subscription) -> Period | None:
    start, end = subscription.current_period_start, subscription.current_period_end
    if subscription.status == State.TRIALING and end is None:
        start, end = subscription.anchor, subscription.trial_end
    return None if start is None or end is None else Period(start=start, end=end)


def _sellable(subscription: Subscription, plan: Plan, at: datetime) -> Money:
    if plan.id == subscription.plan_id:
        raise RuleBroken(Refusal.CONFLICT, "The subscription has this plan already.", {"plan_id": plan.id})
    if plan.service_id != subscription.service_id:
        raise RuleBroken(Refusal.CONFLICT, "The plan belongs to another service.", {"plan_id": plan.id})
    price = catalogue.price_in(plan, subscription.currency, at)
    if price is None or not catalogue.on_sale(plan):
        raise RuleBroken(Refusal.PLAN_UNAVAILABLE, "The plan is not on sale.", {"plan_id": plan.id})
    return Money(amount_minor=price.amount_minor, currency=price.currency)


async def _discounts(session: AsyncSession, subscription: Subscription) -> tuple[Discount | None, Discount | None]:
    """The coupon as it reduced the current period, and as it will reduce the next invoice."""
    if subscription.coupon_code is None:
        return None, None
    coupon = await catalogue.coupon(session, subscription.coupon_code)
    if coupon is None:
        return None, None
    reduced = await session.scalar(
        select(
            exists().where(
                Invoice.id == InvoiceLine.invoice_id,
                Invoice.subscription_id == subscription.id,
                Invoice.status != InvoiceStatus.VOID,
                Invoice.period_end == subscription.current_period_end,
                InvoiceLine.discount_minor > 0,
            )
        )
    )
    applied = catalogue.discount(coupon, None) if reduced else None
    return applied, catalogue.discount(coupon, subscription.coupon_periods_left)
