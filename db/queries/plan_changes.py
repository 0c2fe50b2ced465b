"""The facts that ``workflows.rules.plan_change`` decides a plan change by."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import exists, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.catalogue import Plan, Price
from db.models.invoices import Invoice, InvoiceLine
from db.models.subscriptions import Subscription, SubscriptionChange
from db.queries import catalogue
from db.queries.invoice_allocations import list_invoice_balances
from workflows.rules.invoice import InvoiceStatus
from workflows.rules.money import Money
from workflows.rules.periods import BillingPeriod, Interval
from workflows.rules.plan_change import PlanChangeFacts, PlanPrice, ReplacedTerms, plan_change_period
from workflows.rules.pricing import Discount
from workflows.rules.subscription import SubscriptionStatus

_REASON_PREFIX = "plan change "


async def load_plan_change_facts(
    session: AsyncSession, subscription: Subscription, plan: Plan, *, at: datetime
) -> PlanChangeFacts:
    """Return what the change of ``subscription`` to ``plan`` (its service and prices loaded) at ``at`` depends on."""
    current = await catalogue.get_plan(session, subscription.plan_id)
    assert current is not None  # foreign key
    period = plan_change_period(
        period_start=subscription.current_period_start,
        period_end=subscription.current_period_end,
        billing_anchor=subscription.billing_anchor,
        trial_end=subscription.trial_end,
    )
    price = catalogue.current_price(plan, subscription.currency, at)
    invoices = (
        await list_invoice_balances(session, subscription.id, period.start, period.end) if period is not None else {}
    )
    discount, next_discount = await _current_and_next_discount(session, subscription)
    return PlanChangeFacts(
        status=SubscriptionStatus(subscription.status),
        plan_id=subscription.plan_id,
        pending_plan_id=subscription.pending_plan_id,
        cancel_at_period_end=subscription.cancel_at_period_end,
        service_id=subscription.service_id,
        timezone=subscription.timezone,
        period=period,
        current_plan=PlanPrice(
            name=current.name,
            price=Money(amount_minor=subscription.price_minor, currency=subscription.currency),
            interval=Interval(current.interval),
        ),
        target_plan_id=plan.id,
        target_service_id=plan.service_id,
        target_is_orderable=catalogue.is_orderable(plan),
        target_plan=PlanPrice(
            name=plan.name,
            price=Money(amount_minor=price.amount_minor, currency=price.currency),
            interval=Interval(plan.interval),
        )
        if price is not None
        else None,
        invoices=tuple(invoices.values()),
        discount=discount,
        next_discount=next_discount,
    )


async def _current_and_next_discount(
    session: AsyncSession, subscription: Subscription
) -> tuple[Discount | None, Discount | None]:
    """Return the coupon as it reduced the current period, and as it will reduce the next invoice."""
    if subscription.coupon_code is None:
        return None, None
    coupon = await catalogue.get_coupon(session, subscription.coupon_code)
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
    applied = catalogue.coupon_discount(coupon, None) if reduced else None
    return applied, catalogue.coupon_discount(coupon, subscription.coupon_remaining_periods)


async def find_scheduled_at(session: AsyncSession, subscription_id: str) -> datetime | None:
    """Return when the subscription's plan change at the period's end was scheduled last."""
    scheduled_at: datetime | None = await session.scalar(
        select(func.max(SubscriptionChange.occurred_at)).where(
            SubscriptionChange.subscription_id == subscription_id,
            SubscriptionChange.field == "pending_plan",
            SubscriptionChange.after.is_not(None),
        )
    )
    return scheduled_at


def plan_change_reason(plan_change_id: str) -> str:
    """Return the reason of what a plan change changes beside the plan, by which its rollback finds it."""
    return f"{_REASON_PREFIX}{plan_change_id}"


async def find_replaced_terms(session: AsyncSession, subscription_id: str) -> ReplacedTerms | None:
    """Return what the last change of the plan replaced; None unless that was a plan change that a resize followed."""
    plan = await session.scalar(
        select(SubscriptionChange)
        .where(SubscriptionChange.subscription_id == subscription_id, SubscriptionChange.field == "plan")
        .order_by(SubscriptionChange.id.desc())
        .limit(1)
    )
    if plan is None or plan.before is None or plan.after is None:
        return None
    recorded = await session.scalars(
        select(SubscriptionChange).where(
            SubscriptionChange.subscription_id == subscription_id,
            SubscriptionChange.reason == plan.reason,
            SubscriptionChange.reason.startswith(_REASON_PREFIX),
        )
    )
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    for change in recorded:
        before[change.field], after[change.field] = change.before or "", change.after or ""
    if "price" not in before:
        return None
    return ReplacedTerms(
        plan_change_id=plan.reason.removeprefix(_REASON_PREFIX),
        plan_id=plan.before,
        price_id=before["price"],
        billing_anchor=datetime.fromisoformat(before["billing_anchor"]),
        period=BillingPeriod(
            start=datetime.fromisoformat(before["current_period_start"]),
            end=datetime.fromisoformat(before["current_period_end"]),
        ),
        pending_plan_id=before.get("pending_plan"),
        new_plan_id=plan.after,
        new_period_start=datetime.fromisoformat(after["current_period_start"]),
    )


async def get_price_start(session: AsyncSession, price_id: str) -> datetime:
    """Return the instant from which a price is in force."""
    effective_from: datetime = (await session.scalars(select(Price.effective_from).where(Price.id == price_id))).one()
    return effective_from


async def is_last_change(session: AsyncSession, subscription_id: str, *, fields: Sequence[str], reason: str) -> bool:
    """Return whether the newest recorded change of any of ``fields`` has exactly this reason."""
    last: str | None = await session.scalar(
        select(SubscriptionChange.reason)
        .where(SubscriptionChange.subscription_id == subscription_id, SubscriptionChange.field.in_(fields))
        .order_by(SubscriptionChange.id.desc())
        .limit(1)
    )
    return last == reason


async def is_change_recorded(session: AsyncSession, subscription_id: str, *, field: str, reason: str) -> bool:
    """Return whether the subscription has a recorded change of ``field`` for exactly this reason."""
    recorded = select(
        exists().where(
            SubscriptionChange.subscription_id == subscription_id,
            SubscriptionChange.field == field,
            SubscriptionChange.reason == reason,
        )
    )
    return bool(await session.scalar(recorded))
