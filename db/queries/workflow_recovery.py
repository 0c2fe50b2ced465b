"""Payments, refunds, card removals and subscriptions whose workflow has to run, and what lost subscriptions left."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, func, or_, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.invoices import Invoice, InvoiceAllocation
from db.models.payments import Payment, PaymentMethod, Refund
from db.models.subscriptions import Subscription
from db.queries.payments import to_payment_record, to_refund_record
from workflows.rules.instance import InstanceStatus
from workflows.rules.invoice import BillingReason, InvoiceStatus
from workflows.rules.order_payments import PaymentPurposeFacts
from workflows.rules.payment import IN_FLIGHT_STATUSES, PaymentRecord, PaymentStatus, RecordedRefund, RefundStatus
from workflows.rules.subscription import TERMINAL_STATUSES, SubscriptionStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderedSubscription:
    """What an order said, as its rows keep it."""

    subscription_id: str
    instance_id: str
    organization_id: str
    user_id: str
    plan_id: str
    name: str | None
    parameters: dict[str, Any]
    coupon: str | None
    collection_method: str


_NOT_ENDED = "s.status <> ALL(:terminal) AND (s.status <> 'cancelled' OR s.billing_anchor IS NOT NULL)"
"""As ``workflows.rules.subscription.has_ended`` says."""

_UNFINISHED_PAGE = text(
    f"""
SELECT s.id AS subscription_id, i.id AS instance_id, s.organization_id, s.user_id, s.plan_id, s.name, i.parameters,
    s.coupon_code AS coupon, s.collection_method
FROM subscriptions s JOIN instances i ON i.subscription_id = s.id
WHERE s.id > :after AND {_NOT_ENDED}
ORDER BY s.id LIMIT :limit
"""
)

_UNFINISHED_AMONG = text(f"SELECT s.id FROM subscriptions s WHERE s.id = ANY(:ids) AND {_NOT_ENDED}")

_INSTANCE = text(
    """
SELECT i.status, (i.cpu_millicores, i.memory_mib, i.storage_gib, i.replicas)
    = (p.cpu_millicores, p.memory_mib, p.storage_gib, p.replicas) AS has_plan_resources
FROM subscriptions s JOIN instances i ON i.subscription_id = s.id JOIN plans p ON p.id = s.plan_id
WHERE s.id = :id
"""
)

_FAILED_ATTEMPTS = text(
    "SELECT count(*) AS attempts, max(occurred_at) AS last_at FROM timeline_events"
    " WHERE subscription_id = :id AND kind = 'payment.failed' AND occurred_at >= :since"
)

_INVOICE_PAYMENTS = text(
    "SELECT status, decline_code, payment_method_id FROM payments WHERE invoice_id = :invoice_id"
    " OR purpose = 'order' AND subscription_id ="
    " (SELECT subscription_id FROM invoices WHERE id = :invoice_id AND billing_reason = 'order')"
    " ORDER BY created_at, id"
)

_TERMINAL = [status.value for status in TERMINAL_STATUSES]

_FIRST_INVOICE_STATUS = (
    select(Invoice.status)
    .where(Invoice.subscription_id == Payment.subscription_id, Invoice.billing_reason == BillingReason.ORDER)
    .limit(1)
    .scalar_subquery()
)

_PURPOSE_FACTS = (Payment.purpose == "order", Subscription.status, _FIRST_INVOICE_STATUS)


async def list_unfinished(session: AsyncSession, *, after: str, limit: int) -> Sequence[OrderedSubscription]:
    """Return subscriptions that have not ended, by id, from the first id above ``after``."""
    parameters = {"after": after, "limit": limit, "terminal": _TERMINAL}
    return [OrderedSubscription(**row) for row in (await session.execute(_UNFINISHED_PAGE, parameters)).mappings()]


async def unfinished_among(session: AsyncSession, ids: Collection[str]) -> set[str]:
    """Return those of ``ids`` that have not ended."""
    parameters = {"ids": list(ids), "terminal": _TERMINAL}
    return set((await session.scalars(_UNFINISHED_AMONG, parameters)).all())


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceFacts:
    status: InstanceStatus
    has_plan_resources: bool


async def get_instance_facts(session: AsyncSession, subscription_id: str) -> InstanceFacts:
    """Return the status of the subscription's instance, and whether it has the resources of the present plan."""
    row = (await session.execute(_INSTANCE, {"id": subscription_id})).one()
    return InstanceFacts(status=InstanceStatus(row.status), has_plan_resources=row.has_plan_resources)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedAttempts:
    count: int
    last_at: datetime | None


async def count_failed_attempts(session: AsyncSession, subscription_id: str, since: datetime) -> FailedAttempts:
    """Return how often the subscription could not collect since ``since``, the first failure included."""
    row = (await session.execute(_FAILED_ATTEMPTS, {"id": subscription_id, "since": since})).one()
    return FailedAttempts(count=row.attempts, last_at=row.last_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class UntriedPaymentMethods:
    """Whether a payment method is on file that no card payment of a subscription could try yet.

    Attributes:
        offered: The customer saved it or made it the default.
        promoted: It became the default because the default was removed.
    """

    offered: bool
    promoted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoicePayment:
    status: PaymentStatus
    decline_code: str | None
    payment_method_id: str | None


async def list_invoice_payments(session: AsyncSession, invoice_id: str) -> list[InvoicePayment]:
    """Return the card payments of an invoice, the oldest first; the payment of an order names no invoice."""
    return [
        InvoicePayment(
            status=PaymentStatus(row["status"]),
            decline_code=row["decline_code"],
            payment_method_id=row["payment_method_id"],
        )
        for row in (await session.execute(_INVOICE_PAYMENTS, {"invoice_id": invoice_id})).mappings()
    ]


async def find_untried_payment_methods(
    session: AsyncSession, subscription_id: str, organization_id: str
) -> UntriedPaymentMethods:
    """Return which kinds of payment methods are on file since the subscription's last card payment."""
    last_requested_at = (
        select(func.max(Payment.gateway_requested_at))
        .where(Payment.subscription_id == subscription_id, Payment.purpose != "top_up")
        .scalar_subquery()
    )
    since = func.coalesce(last_requested_at, text("'-infinity'::timestamptz"))
    query = select(
        func.coalesce(func.bool_or(PaymentMethod.offered_at > since), False),
        func.coalesce(func.bool_or(PaymentMethod.promoted_at > since), False),
    ).where(PaymentMethod.organization_id == organization_id, PaymentMethod.detached_at.is_(None))
    offered, promoted = (await session.execute(query)).one()
    return UntriedPaymentMethods(offered=offered, promoted=promoted)


async def was_payment_credited(session: AsyncSession, invoice_id: str) -> bool:
    """Return whether a payment of an invoice became wallet credit, because no workflow awaited it when it succeeded."""
    query = select(Payment.id).where(Payment.invoice_id == invoice_id, Payment.credited_to_wallet)
    return (await session.scalars(query.limit(1))).first() is not None


async def list_unsettled_payments(session: AsyncSession, subscription_id: str) -> list[PaymentRecord]:
    """Return the subscription's payments that are in flight, or succeeded and neither applied nor credited."""
    is_applied = select(InvoiceAllocation.id).where(InvoiceAllocation.payment_id == Payment.id).exists()
    rows = await session.scalars(
        select(Payment)
        .where(
            Payment.subscription_id == subscription_id,
            Payment.purpose != "top_up",
            or_(
                Payment.status.in_(IN_FLIGHT_STATUSES),
                and_(Payment.status == PaymentStatus.SUCCEEDED, ~Payment.credited_to_wallet, ~is_applied),
            ),
        )
        .order_by(Payment.created_at, Payment.id)
    )
    return [to_payment_record(payment) for payment in rows]


async def list_in_flight_payments(
    session: AsyncSession, *, after: str, limit: int, minimum_age: timedelta
) -> list[tuple[PaymentRecord, PaymentPurposeFacts]]:
    """Return payments without an outcome and what they are for, by id, from the first id above ``after``.

    Args:
        minimum_age: How long ago, by the database's clock, the gateway was asked for them at least.
    """
    rows = await session.execute(
        select(Payment, *_PURPOSE_FACTS)
        .outerjoin(Subscription, Subscription.id == Payment.subscription_id)
        .where(
            Payment.id > after,
            Payment.status.in_(IN_FLIGHT_STATUSES),
            Payment.gateway_requested_at < func.now() - minimum_age,
        )
        .order_by(Payment.id)
        .limit(limit)
    )
    return [(to_payment_record(payment), _to_purpose_facts(*facts)) for payment, *facts in rows]


async def in_flight_among(session: AsyncSession, ids: Collection[str]) -> set[str]:
    """Return those of the payments ``ids`` that have no outcome."""
    query = select(Payment.id).where(Payment.id.in_(ids), Payment.status.in_(IN_FLIGHT_STATUSES))
    return set((await session.scalars(query)).all())


async def list_pending_refunds(session: AsyncSession, *, after: str, limit: int) -> list[RecordedRefund]:
    """Return refunds that the gateway has to answer, by id, from the first id above ``after``."""
    query = select(Refund).where(Refund.id > after, Refund.status == RefundStatus.PENDING).order_by(Refund.id)
    return [to_refund_record(refund) for refund in await session.scalars(query.limit(limit))]


@dataclass(frozen=True, slots=True, kw_only=True)
class SentRefund:
    """A refund to its source that the gateway has sent."""

    refund: RecordedRefund
    gateway: str
    gateway_reference: str


async def list_sent_refunds(session: AsyncSession, *, sent_after: datetime, after: str, limit: int) -> list[SentRefund]:
    """Return refunds that a gateway has sent since ``sent_after``, by id, from the first id above ``after``."""
    query = (
        select(Refund, Payment.gateway, Refund.gateway_reference)
        .join(Payment, Payment.id == Refund.payment_id)
        .where(
            Refund.id > after,
            Refund.status == RefundStatus.SUCCEEDED,
            Refund.gateway_reference.is_not(None),
            Refund.updated_at > sent_after,
        )
        .order_by(Refund.id)
        .limit(limit)
    )
    return [
        SentRefund(refund=to_refund_record(refund), gateway=gateway, gateway_reference=reference or "")
        for refund, gateway, reference in await session.execute(query)
    ]


async def pending_refunds_among(session: AsyncSession, ids: Collection[str]) -> set[str]:
    """Return those of the refunds ``ids`` that the gateway has to answer."""
    query = select(Refund.id).where(Refund.id.in_(ids), Refund.status == RefundStatus.PENDING)
    return set((await session.scalars(query)).all())


_IS_UNFINISHED_REMOVAL = and_(PaymentMethod.detached_at.is_not(None), PaymentMethod.gateway_detached_at.is_(None))


async def list_unfinished_removals(session: AsyncSession, *, after: str, limit: int) -> Sequence[PaymentMethod]:
    """Return removed cards that their gateways have to forget, by id, from the first id above ``after``."""
    query = select(PaymentMethod).where(PaymentMethod.id > after, _IS_UNFINISHED_REMOVAL).order_by(PaymentMethod.id)
    return (await session.scalars(query.limit(limit))).all()


async def unfinished_removals_among(session: AsyncSession, ids: Collection[str]) -> set[str]:
    """Return those of the payment methods ``ids`` that are removed and that their gateways have to forget."""
    query = select(PaymentMethod.id).where(PaymentMethod.id.in_(ids), _IS_UNFINISHED_REMOVAL)
    return set((await session.scalars(query)).all())


async def get_purpose_facts(session: AsyncSession, payment_id: str) -> PaymentPurposeFacts:
    """Return what a payment is for, and where that stands."""
    query = (
        select(*_PURPOSE_FACTS)
        .select_from(Payment)
        .outerjoin(Subscription, Subscription.id == Payment.subscription_id)
        .where(Payment.id == payment_id)
    )
    return _to_purpose_facts(*(await session.execute(query)).one())


def _to_purpose_facts(
    is_for_order: bool, subscription_status: str | None, first_invoice_status: str | None
) -> PaymentPurposeFacts:
    return PaymentPurposeFacts(
        is_for_order=is_for_order,
        subscription_status=SubscriptionStatus(subscription_status) if subscription_status is not None else None,
        first_invoice_status=InvoiceStatus(first_invoice_status) if first_invoice_status is not None else None,
    )
