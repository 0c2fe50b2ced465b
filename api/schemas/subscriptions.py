"""Subscriptions: what an order says, and what is shown."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from api.envelope import Amount, Body, Instant, Schema
from db.models.billing import TimelineEvent
from db.queries.subscriptions import SubscriptionRow
from workflows.ports.subscription import CancelAt, Collection
from workflows.rules.money import Money
from workflows.rules.plan_change import Quote
from workflows.rules.proration import Mode


class OrderIn(Body):
    """``collection``: the wallet alone, a card alone, or (absent) the wallet and a card for the rest."""

    plan_id: str = Field(min_length=1, max_length=100, description="A plan's id or code")
    name: str | None = Field(default=None, min_length=1, max_length=100)
    parameters: dict[str, Any] = Field(default_factory=dict, description="As the service's `parameters` schema says")
    coupon: str | None = Field(default=None, min_length=1, max_length=100)
    collection: Collection | None = None


class CancelIn(Body):
    at: CancelAt
    reason: str = Field(default="", max_length=500)


class ChangePlanIn(Body):
    """Without ``mode``: upgrades at once, downgrades when the paid period ends."""

    plan_id: str = Field(min_length=1, max_length=100, description="A plan's id or code")
    mode: Mode | None = None


class PeriodOut(Schema):
    start: Instant
    end: Instant


class PlanRef(Schema):
    id: str
    code: str


class InstanceRef(Schema):
    id: str
    status: str
    url: str | None
    hostname: str | None


class SubscriptionOut(Schema):
    """``current_period`` is null until the instance was ready; ``workflow_id`` names the process that drives it."""

    id: str
    status: str
    name: str | None
    service: str
    plan: PlanRef
    pending_plan_id: str | None
    price: Amount | None
    instance: InstanceRef
    current_period: PeriodOut | None
    trial_end: Instant | None
    cancel_at_period_end: bool
    cancelled_at: Instant | None
    delete_at: Instant | None
    coupon: str | None
    created_at: Instant | None
    workflow_id: str


class QuoteLineOut(Schema):
    description: str
    amount: Amount
    period: PeriodOut


class NextInvoiceOut(Amount):
    """What the invoice after the current period costs, and when it is due."""

    at: Instant


class QuoteOut(Schema):
    """What a plan change would invoice now. ``mode`` is the one asked for, or the default."""

    mode: Mode
    lines: list[QuoteLineOut]
    due_now: Amount
    credit: Amount
    next_invoice: NextInvoiceOut


class TimelineOut(Schema):
    at: Instant
    kind: str
    message: str
    ref: str | None


def amount(money: Money) -> Amount:
    return Amount(amount_minor=money.amount_minor, currency=money.currency)


def subscription_out(row: SubscriptionRow) -> SubscriptionOut:
    known, instance = row.subscription, row.instance
    start, end = known.current_period_start, known.current_period_end
    return SubscriptionOut(
        id=known.id,
        status=known.status,
        name=known.name,
        service=row.service.slug,
        plan=PlanRef(id=row.plan.id, code=row.plan.code),
        pending_plan_id=known.pending_plan_id,
        price=Amount(amount_minor=known.price_minor, currency=known.currency),
        instance=InstanceRef.model_validate(instance),
        current_period=PeriodOut(start=start, end=end) if start is not None and end is not None else None,
        trial_end=known.trial_end,
        cancel_at_period_end=known.cancel_at_period_end,
        cancelled_at=known.cancelled_at,
        delete_at=known.delete_at,
        coupon=known.coupon_code,
        created_at=known.created_at,
        workflow_id=known.workflow_id,
    )


def quote_out(quote: Quote) -> QuoteOut:
    following = quote.next_invoice
    return QuoteOut(
        mode=quote.mode,
        lines=[
            QuoteLineOut(
                description=line.description,
                amount=amount(line.amount),
                period=PeriodOut(start=line.period.start, end=line.period.end),
            )
            for line in quote.lines
        ],
        due_now=amount(quote.due),
        credit=amount(quote.credit),
        next_invoice=NextInvoiceOut(
            amount_minor=following.amount_minor, currency=following.currency, at=quote.period.end
        ),
    )


def timeline_out(event: TimelineEvent) -> TimelineOut:
    return TimelineOut.model_validate(event)
