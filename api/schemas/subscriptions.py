"""Subscriptions: what an order says, and what is shown."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from typing_extensions import TypedDict

from api.response_envelope import Amount, Instant, RequestModel, ResponseModel
from db.queries.subscriptions import SubscriptionDetails
from db.queries.timeline_reads import TimelineEventDetails
from workflows.ports.subscription import CancelAt
from workflows.rules.funding import CollectionMethod
from workflows.rules.money import Money
from workflows.rules.plan_change import PlanChangeQuote
from workflows.rules.proration import PlanChangeMode


class CreateSubscriptionIn(RequestModel):
    """``collection``: the wallet alone, a card first, or (the default) the wallet and a card for the rest."""

    plan_id: str = Field(min_length=1, max_length=100, description="A plan's id or code")
    name: str | None = Field(default=None, min_length=1, max_length=100)
    parameters: dict[str, Any] = Field(default_factory=dict, description="Must match the service's `parameters_schema`")
    coupon: str | None = Field(default=None, min_length=1, max_length=100)
    collection: CollectionMethod | None = None


class CancelIn(RequestModel):
    at: CancelAt
    reason: str = Field(default="", max_length=500)


class ChangePlanIn(RequestModel):
    """Without ``mode``: upgrades at once, downgrades when the paid period ends."""

    plan_id: str = Field(min_length=1, max_length=100, description="A plan's id or code")
    mode: PlanChangeMode | None = None


class PeriodOut(TypedDict):
    start: Instant
    end: Instant


class PlanRef(TypedDict):
    id: str
    code: str


class SubscriptionInstanceOut(TypedDict):
    id: str
    status: str
    url: str | None
    hostname: str | None


class SubscriptionOut(TypedDict):
    """``current_period`` is null until the instance was ready; ``workflow_id`` names the process that drives it."""

    id: str
    status: str
    name: str | None
    service: str
    plan: PlanRef
    pending_plan_id: str | None
    price: Amount | None
    instance: SubscriptionInstanceOut
    current_period: PeriodOut | None
    trial_end: Instant | None
    cancel_at_period_end: bool
    cancelled_at: Instant | None
    delete_at: Instant | None
    coupon: str | None
    created_at: Instant | None
    workflow_id: str


class PreviewLineOut(ResponseModel):
    description: str
    amount: Amount
    period: PeriodOut


class NextInvoiceOut(Amount):
    """What the invoice after the current period costs, and when it is due."""

    at: Instant


class PlanChangePreviewOut(ResponseModel):
    """What a plan change would invoice now. ``mode`` is the one asked for, or the default.

    ``carried_debt`` is what earlier invoices left because it was too small to charge. A card that pays ``due_now`` pays
    it as well; a wallet does if it covers both. ``withdraws_cancellation``: a cancellation at the end of the period is
    scheduled, and the change withdraws it, so that ``next_invoice`` follows.
    """

    mode: PlanChangeMode
    lines: list[PreviewLineOut]
    due_now: Amount
    carried_debt: Amount
    credit: Amount
    next_invoice: NextInvoiceOut
    withdraws_cancellation: bool


class TimelineOut(TypedDict):
    at: Instant
    kind: str
    message: str
    ref: str | None


def to_amount(money: Money) -> Amount:
    return Amount(amount_minor=money.amount_minor, currency=money.currency)


def subscription_out(row: SubscriptionDetails) -> SubscriptionOut:
    start, end = row.current_period_start, row.current_period_end
    return SubscriptionOut(
        id=row.id,
        status=row.status,
        name=row.name,
        service=row.service,
        plan=PlanRef(id=row.plan_id, code=row.plan_code),
        pending_plan_id=row.pending_plan_id,
        price=Amount(amount_minor=row.price_minor, currency=row.currency),
        instance=SubscriptionInstanceOut(
            id=row.instance_id, status=row.instance_status, url=row.instance_url, hostname=row.instance_hostname
        ),
        current_period=PeriodOut(start=start, end=end) if start is not None and end is not None else None,
        trial_end=row.trial_end,
        cancel_at_period_end=row.cancel_at_period_end,
        cancelled_at=row.cancelled_at,
        delete_at=row.data_deletion_at,
        coupon=row.coupon_code,
        created_at=row.created_at,
        workflow_id=row.workflow_id,
    )


def quote_out(quote: PlanChangeQuote, carried_debt: Money) -> PlanChangePreviewOut:
    following = quote.next_invoice
    return PlanChangePreviewOut(
        mode=quote.mode,
        lines=[
            PreviewLineOut(
                description=line.description,
                amount=to_amount(line.amount),
                period=PeriodOut(start=line.period.start, end=line.period.end),
            )
            for line in quote.lines
        ],
        due_now=to_amount(quote.amount_due),
        carried_debt=to_amount(carried_debt),
        credit=to_amount(quote.credit),
        next_invoice=NextInvoiceOut(
            amount_minor=following.amount_minor, currency=following.currency, at=quote.period.end
        ),
        withdraws_cancellation=quote.withdraws_cancellation,
    )


def timeline_out(event: TimelineEventDetails) -> TimelineOut:
    return TimelineOut(at=event.occurred_at, kind=event.kind, message=event.message, ref=event.reference_id)
