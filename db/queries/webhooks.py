"""Webhook events: each is recorded once, with the state of its delivery to the workflow of its payment or refund.

A route calls ``record_webhook``, signals the workflow, then calls ``mark_delivered``. A redelivery does the same unless
the event was delivered and applied, or contradicts its payment.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.payments import Payment, Refund, WebhookEventRow
from db.queries.payments import payment_amount, to_payment_record, to_refund_record
from db.session import set_rls_context
from workflows.rules.payment import (
    PAID_STATUSES,
    REFUND_TRANSITIONS,
    UNPAID_FINAL_STATUSES,
    GatewayPayment,
    PaymentRecord,
    PaymentStatus,
    RecordedRefund,
    RefundStatus,
    apply_gateway_status,
    mismatch_reason,
)
from workflows.rules.webhook_events import PaymentEvent, RefundEvent, WebhookEvent

FINAL_STATUSES = UNPAID_FINAL_STATUSES | PAID_STATUSES
RECEIVED, DELIVERED, IGNORED, MISMATCH = "received", "delivered", "ignored", "mismatch"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedWebhook:
    """The payment or the refund that an event is about, if any. ``needs_no_delivery``: its workflow has the event."""

    payment: PaymentRecord | None = None
    refund: RecordedRefund | None = None
    needs_no_delivery: bool


async def record_webhook(
    session: AsyncSession, message: WebhookEvent, payload: bytes, *, at: datetime
) -> ReceivedWebhook:
    """Record a verified event under its unique id and find the payment or the refund that it is about.

    The RLS context is set to the organization in the gateway's metadata. Without it the row is looked up by its id as
    an administrator. An event that a closed payment or a refund has already applied is marked delivered at once: most
    webhooks repeat the response to the gateway call.
    """
    payment = await _find_payment(session, message) if isinstance(message, PaymentEvent) else None
    refund = await _find_refund(session, message) if isinstance(message, RefundEvent) else None
    payment_id = refund.payment_id if refund is not None else payment.id if payment is not None else None
    fact = message if isinstance(message, PaymentEvent) else None
    await session.execute(
        insert(WebhookEventRow)
        .values(
            gateway=message.gateway,
            event_id=message.event_id,
            event_type=message.event_type,
            payment_id=payment_id,
            refund_id=refund.id if refund is not None else None,
            gateway_reference=message.gateway_reference if isinstance(message, PaymentEvent | RefundEvent) else None,
            payment_status=fact.status.value if fact else None,
            amount_minor=fact.amount.amount_minor if fact else None,
            currency=fact.amount.currency if fact else None,
            decline_code=fact.decline_code if fact else None,
            payload_sha256=hashlib.sha256(payload).hexdigest(),
            status=RECEIVED if payment_id is not None else IGNORED,
            received_at=at,
        )
        .on_conflict_do_nothing()
    )
    status = await session.scalar(
        select(WebhookEventRow.status).where(
            WebhookEventRow.gateway == message.gateway, WebhookEventRow.event_id == message.event_id
        )
    )
    if payment_id is None:
        return ReceivedWebhook(needs_no_delivery=False)
    is_known = (refund is not None and isinstance(message, RefundEvent) and not is_refund_news(refund, message)) or (
        payment is not None and fact is not None and is_already_applied(payment, fact)
    )
    if status == RECEIVED and is_known:
        await mark_delivered(session, message.gateway, message.event_id, at=at)
        status = DELIVERED
    # Nothing polls a closed payment or a sent refund: operators resend an event that was lost with its workflow.
    is_polled = payment is not None and PaymentStatus(payment.status) not in FINAL_STATUSES
    may_be_lost = not is_known and not is_polled
    return ReceivedWebhook(
        payment=to_payment_record(payment) if payment is not None else None,
        refund=to_refund_record(refund) if refund is not None else None,
        needs_no_delivery=status == MISMATCH or (status == DELIVERED and not may_be_lost),
    )


def is_refund_news(refund: Refund, fact: RefundEvent) -> bool:
    """Return whether the event may change this refund, once the gateway itself says the same."""
    return fact.status in REFUND_TRANSITIONS[RefundStatus(refund.status)]


def is_already_applied(payment: Payment, fact: PaymentEvent) -> bool:
    """Return whether the event cannot change this payment, because it is closed with that status or a later one."""
    status = PaymentStatus(payment.status)
    if status not in FINAL_STATUSES or (status in UNPAID_FINAL_STATUSES and fact.status is PaymentStatus.AUTHORIZED):
        return False
    observed = GatewayPayment(reference=fact.gateway_reference, status=fact.status, amount=fact.amount)
    contradiction = mismatch_reason(observed, amount=payment_amount(payment), reference=payment.gateway_reference)
    return contradiction is None and apply_gateway_status(status, fact.status) is status


async def mark_delivered(session: AsyncSession, gateway: str, event_id: str, *, at: datetime) -> None:
    """Record that the workflow of the payment or the refund accepted the event; a ``mismatch`` stays one."""
    await session.execute(
        update(WebhookEventRow)
        .where(
            WebhookEventRow.gateway == gateway, WebhookEventRow.event_id == event_id, WebhookEventRow.status == RECEIVED
        )
        .values(status=DELIVERED, delivered_at=at)
    )


async def list_undelivered(session: AsyncSession, *, before: datetime, limit: int = 100) -> list[WebhookEventRow]:
    """Return events that were recorded but not delivered, oldest first; the reconciliation delivers them."""
    rows = await session.scalars(
        select(WebhookEventRow)
        .where(WebhookEventRow.status == RECEIVED, WebhookEventRow.received_at < before)
        .order_by(WebhookEventRow.received_at)
        .limit(limit)
    )
    return list(rows)


async def _find_payment(session: AsyncSession, fact: PaymentEvent) -> Payment | None:
    await set_rls_context(
        session,
        organization_id=fact.organization_id,
        user_id=None,
        role="ADMINISTRATOR" if fact.organization_id is None else "GATEWAY",
    )
    query = select(Payment).where(Payment.gateway == fact.gateway)
    if fact.payment_id is not None:
        query = query.where(Payment.id == fact.payment_id)
    else:
        query = query.where(Payment.gateway_reference == fact.gateway_reference)
    payment: Payment | None = await session.scalar(query)
    return payment


async def _find_refund(session: AsyncSession, fact: RefundEvent) -> Refund | None:
    """Return the refund with the gateway's reference, or the one whose reference is not known yet by our id."""
    await set_rls_context(session, organization_id=None, user_id=None, role="ADMINISTRATOR")
    by_reference = Refund.gateway_reference == fact.gateway_reference
    query = (
        select(Refund)
        .join(Payment, Payment.id == Refund.payment_id)
        .where(
            Payment.gateway == fact.gateway,
            or_(by_reference, and_(Refund.id == fact.refund_id, Refund.gateway_reference.is_(None))),
        )
        .order_by(Refund.gateway_reference.is_(None))
    )
    refund: Refund | None = await session.scalar(query.limit(1))
    return refund
