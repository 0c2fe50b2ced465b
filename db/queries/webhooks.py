"""The inbox of webhooks: each event once, whoever it concerns, and whether its payment was told.

A route does three transactions: ``receive``, then (after the signal was accepted) ``delivered``. A redelivery goes the
same way; only an event that was delivered or set aside needs nothing more.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.payments import Payment, WebhookEvent
from db.queries.payments import amount_of, facts_of
from db.session import act_as
from workflows.rules.gateway_events import GatewayMessage, PaymentFact
from workflows.rules.payment import CLOSED, Facts, PaymentStatus, Seen, contradiction, observe
from workflows.rules.payment import RECEIVED as MONEY_CAME

ENDED = CLOSED | MONEY_CAME
RECEIVED, DELIVERED, IGNORED, MISMATCH = "received", "delivered", "ignored", "mismatch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """``payment`` is None when no payment of ours is meant. ``settled``: nobody has to be told (any more)."""

    payment: Facts | None
    settled: bool


async def receive(session: AsyncSession, message: GatewayMessage, payload: bytes, *, at: datetime) -> Received:
    """Record a verified event under its unique id and find the payment that it is about.

    Speaks for the account that the gateway's metadata names, so row-level security holds here as well; a gateway
    without metadata is looked up by our own payment id with an administrator's view. What a payment that has ended
    knows already is settled at once: most webhooks repeat what the gateway's answer has said.
    """
    payment = await _payment(session, message) if isinstance(message, PaymentFact) else None
    fact = message if isinstance(message, PaymentFact) else None
    await session.execute(
        insert(WebhookEvent)
        .values(
            gateway=message.gateway,
            event_id=message.event_id,
            kind=message.kind,
            payment_id=payment.id if payment is not None else None,
            reference=fact.reference if fact else None,
            fact=fact.status.value if fact else None,
            amount_minor=fact.amount.amount_minor if fact else None,
            currency=fact.amount.currency if fact else None,
            decline_code=fact.decline_code if fact else None,
            payload_sha256=hashlib.sha256(payload).hexdigest(),
            status=RECEIVED if payment is not None else IGNORED,
            received_at=at,
        )
        .on_conflict_do_nothing()
    )
    status = await session.scalar(
        select(WebhookEvent.status).where(
            WebhookEvent.gateway == message.gateway, WebhookEvent.event_id == message.event_id
        )
    )
    if payment is None or fact is None:
        return Received(payment=None, settled=False)
    if status == RECEIVED and _known_already(payment, fact):
        await delivered(session, message.gateway, message.event_id, at=at)
        status = DELIVERED
    return Received(payment=facts_of(payment), settled=status in (DELIVERED, MISMATCH))


def _known_already(payment: Payment, fact: PaymentFact) -> bool:
    """Tell whether the fact can never move this payment: it has ended, and later facts only get later still."""
    status = PaymentStatus(payment.status)
    if status not in ENDED or (status in CLOSED and fact.status is PaymentStatus.AUTHORIZED):
        return False
    seen = Seen(reference=fact.reference, status=fact.status, amount=fact.amount)
    contradicts = contradiction(seen, amount=amount_of(payment), reference=payment.gateway_reference)
    return contradicts is None and observe(status, fact.status) is status


async def delivered(session: AsyncSession, gateway: str, event_id: str, *, at: datetime) -> None:
    """Note that the payment's workflow has taken the event; one that it refused meanwhile stays refused."""
    await session.execute(
        update(WebhookEvent)
        .where(WebhookEvent.gateway == gateway, WebhookEvent.event_id == event_id, WebhookEvent.status == RECEIVED)
        .values(status=DELIVERED, delivered_at=at)
    )


async def undelivered(session: AsyncSession, *, before: datetime, limit: int = 100) -> list[WebhookEvent]:
    """Return events that were recorded but never handed on, oldest first: for the reconciliation."""
    rows = await session.scalars(
        select(WebhookEvent)
        .where(WebhookEvent.status == RECEIVED, WebhookEvent.received_at < before)
        .order_by(WebhookEvent.received_at)
        .limit(limit)
    )
    return list(rows)


async def _payment(session: AsyncSession, fact: PaymentFact) -> Payment | None:
    await act_as(
        session,
        organization_id=fact.organization_id,
        user_id=None,
        role="ADMINISTRATOR" if fact.organization_id is None else "GATEWAY",
    )
    query = select(Payment).where(Payment.gateway == fact.gateway)
    if fact.payment_id is not None:
        query = query.where(Payment.id == fact.payment_id)
    else:
        query = query.where(Payment.gateway_reference == fact.reference)
    found: Payment | None = await session.scalar(query)
    return found
