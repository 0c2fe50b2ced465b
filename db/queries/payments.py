"""Payments, cards on file and refunds: what their workflows' activities read and write."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import and_, case, exists, func, not_, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased
from sqlalchemy.sql.selectable import ForUpdateArg

from db.errors import violated_constraint
from db.models.payments import CHARGE_ORDER, GatewayCustomer, Payment, PaymentMethod, Refund, WebhookEventRow
from db.models.subscriptions import Subscription, TimelineEvent
from db.queries.payment_reads import PaymentDetails
from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.money import Money
from workflows.rules.payment import (
    IDEMPOTENCY_KEY_RETENTION,
    PaymentRecord,
    PaymentStatus,
    RecordedRefund,
    RefundStatus,
)

_NO_KEY_UPDATE = ForUpdateArg(key_share=True)
"""A row that refers to the locked one can be inserted meanwhile: the transaction may wait for its inserter."""


async def lock_payment(session: AsyncSession, payment_id: str) -> Payment | None:
    """Return the payment, locked until the transaction ends."""
    return await session.get(Payment, payment_id, with_for_update=_NO_KEY_UPDATE)


async def create_or_lock_payment(session: AsyncSession, values: dict[str, Any]) -> Payment:
    """Insert the payment unless it is on record, and return it locked.

    Raises:
        RuleViolation: ``CONFLICT`` when another payment of its invoice is in flight; the transaction is lost with it.
    """
    try:
        await session.execute(insert(Payment).values(values).on_conflict_do_nothing(index_elements=[Payment.id]))
    except IntegrityError as error:
        if violated_constraint(error) == "uq_payments_one_in_flight_per_invoice":
            raise RuleViolation(ErrorCode.CONFLICT, "Another payment of this invoice is in progress.") from error
        raise
    return await session.get_one(Payment, values["id"], with_for_update=_NO_KEY_UPDATE)


async def is_idempotency_key_retained(session: AsyncSession, request: Payment | Refund) -> bool:
    """Return whether the gateway still remembers the key of a payment or a refund, by the database's clock."""
    if request.gateway_requested_at is None:
        return False
    return bool(await session.scalar(select(func.now() - request.gateway_requested_at < IDEMPOTENCY_KEY_RETENTION)))


def to_payment_record(payment: Payment | PaymentDetails) -> PaymentRecord:
    return PaymentRecord(
        payment_id=payment.id,
        organization_id=payment.organization_id,
        amount=payment_amount(payment),
        gateway=payment.gateway,
        purpose=payment.purpose,
        status=PaymentStatus(payment.status),
        payment_method_id=payment.payment_method_id,
        subscription_id=payment.subscription_id,
        invoice_id=payment.invoice_id,
        created_at=payment.created_at,
    )


def to_refund_record(refund: Refund) -> RecordedRefund:
    return RecordedRefund(
        refund_id=refund.id,
        payment_id=refund.payment_id,
        organization_id=refund.organization_id,
        amount=Money(amount_minor=refund.amount_minor, currency=refund.currency),
        destination=refund.destination,
        status=RefundStatus(refund.status),
        reason=refund.reason,
        actor=refund.actor,
        request_id=refund.request_id or "",
    )


def payment_amount(payment: Payment | PaymentDetails) -> Money:
    return Money(amount_minor=payment.amount_minor, currency=payment.currency)


async def get_payment_method(
    session: AsyncSession, payment_method_id: str, organization_id: str
) -> PaymentMethod | None:
    """Return a card that is on file for this organization."""
    row: PaymentMethod | None = await session.scalar(
        select(PaymentMethod).where(
            PaymentMethod.id == payment_method_id,
            PaymentMethod.organization_id == organization_id,
            PaymentMethod.detached_at.is_(None),
        )
    )
    return row


async def find_payment_method(session: AsyncSession, gateway: str, gateway_reference: str) -> PaymentMethod | None:
    """Return the card that a gateway knows under this reference, of any organization, also one that was removed."""
    row: PaymentMethod | None = await session.scalar(
        select(PaymentMethod).where(
            PaymentMethod.gateway == gateway, PaymentMethod.gateway_reference == gateway_reference
        )
    )
    return row


async def mark_detached_at_gateway(session: AsyncSession, payment_method_id: str, at: datetime) -> None:
    """Record that the gateway has forgotten a removed card; one that is on file again stays unchanged."""
    await session.execute(
        update(PaymentMethod)
        .where(PaymentMethod.id == payment_method_id, PaymentMethod.detached_at.is_not(None))
        .values(gateway_detached_at=at)
    )


async def list_payment_methods(session: AsyncSession, organization_id: str) -> list[PaymentMethod]:
    """Return the cards on file: the default first, then the backups in their order."""
    method = aliased(PaymentMethod, name="m")
    rows = await session.scalars(
        select(method)
        .where(method.organization_id == organization_id, method.detached_at.is_(None))
        .order_by(text(CHARGE_ORDER))
    )
    return list(rows)


async def list_declined(session: AsyncSession, organization_id: str, *, since: datetime) -> list[str]:
    """Return what the organization tried since then and was declined, 100 at most.

    That is the id of each top-up, and the id of each saved card that was declined for an order or an invoice and that
    never paid anything: renewals with a card that expired are no tries.
    """
    paid = aliased(Payment)
    has_paid = exists().where(
        paid.organization_id == Payment.organization_id,
        paid.payment_method_id == Payment.payment_method_id,
        paid.captured_minor > 0,
    )
    is_top_up = Payment.purpose == "top_up"
    rows = await session.scalars(
        select(case((is_top_up, Payment.id), else_=Payment.payment_method_id))
        .distinct()
        .where(
            Payment.organization_id == organization_id,
            Payment.status == PaymentStatus.FAILED,
            or_(
                and_(is_top_up, Payment.updated_at >= since),
                # Of other payments, `updated_at` is an instant of the subscription's clock.
                and_(
                    not_(is_top_up),
                    Payment.gateway_requested_at >= since,
                    Payment.payment_method_id.is_not(None),
                    not_(has_paid),
                ),
            ),
        )
        .limit(100)
    )
    return [row for row in rows if row is not None]


async def lock_payment_methods(session: AsyncSession, organization_id: str) -> None:
    """Let one transaction at a time decide which of an organization's cards is the default."""
    await session.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended('payment_methods/' || :organization, 0))"),
        {"organization": organization_id},
    )


async def get_gateway_customer(session: AsyncSession, organization_id: str, gateway: str) -> str | None:
    """Return what the gateway calls the organization."""
    row: str | None = await session.scalar(
        select(GatewayCustomer.gateway_reference).where(
            GatewayCustomer.organization_id == organization_id, GatewayCustomer.gateway == gateway
        )
    )
    return row


async def save_gateway_customer(session: AsyncSession, organization_id: str, gateway: str, reference: str) -> str:
    """Keep the gateway's name of the organization and return the one that was kept first."""
    await session.execute(
        insert(GatewayCustomer)
        .values(organization_id=organization_id, gateway=gateway, gateway_reference=reference)
        .on_conflict_do_nothing(index_elements=[GatewayCustomer.organization_id, GatewayCustomer.gateway])
    )
    return await get_gateway_customer(session, organization_id, gateway) or reference


async def list_past_due_subscriptions(session: AsyncSession, organization_id: str) -> list[str]:
    """Return the organization's subscriptions with an open debt, the oldest debt first."""
    rows = await session.scalars(
        select(Subscription.id)
        .where(Subscription.organization_id == organization_id, Subscription.status.in_(("past_due", "suspended")))
        .order_by(Subscription.past_due_since, Subscription.id)
    )
    return list(rows)


async def add_timeline_event(
    session: AsyncSession, payment: Payment, *, kind: str, message: str, at: datetime, ref: str | None = None
) -> None:
    """Add a line to the timeline of the payment's subscription, once per kind and ``ref`` (default: the payment)."""
    if payment.subscription_id is None:
        return
    await session.execute(
        insert(TimelineEvent)
        .values(
            organization_id=payment.organization_id,
            subscription_id=payment.subscription_id,
            occurred_at=at,
            kind=kind,
            message=message,
            reference_id=ref or payment.id,
            dedup_key=f"{kind}/{ref or payment.id}",
        )
        .on_conflict_do_nothing()
    )


async def mark_mismatch(session: AsyncSession, gateway: str, event_id: str, reason: str) -> None:
    event = await session.get(WebhookEventRow, (gateway, event_id))
    if event is not None:
        event.status, event.mismatch_reason = "mismatch", reason


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedRefund:
    """A refund with its payment, both locked."""

    refund: Refund
    payment: Payment


async def lock_refund(session: AsyncSession, refund_id: str) -> LockedRefund | None:
    """Return a refund and its payment, locked after the subscription of the payment, as everywhere.

    A refund that fails returns money to invoices and then to the wallet. Billing locks the wallet first, but both
    under the lock of the subscription.
    """
    refund = await session.get(Refund, refund_id)
    if refund is None:
        return None
    await lock_subscription_of_payment(session, refund.payment_id)
    payment = await session.get_one(Payment, refund.payment_id, with_for_update=_NO_KEY_UPDATE)
    await session.refresh(refund, with_for_update=_NO_KEY_UPDATE)
    return LockedRefund(refund=refund, payment=payment)


async def refunded_amount(session: AsyncSession, payment_id: str) -> int:
    """Return the minor units that were given back for certain."""
    total = await session.scalar(
        select(func.coalesce(func.sum(Refund.amount_minor), 0)).where(
            Refund.payment_id == payment_id, Refund.status == "succeeded"
        )
    )
    return int(total or 0)


async def lock_subscription_of_payment(session: AsyncSession, payment_id: str) -> None:
    """Lock the subscription of a payment, if it has one, before the payment itself.

    Plan changes decide under this lock what an invoice may still be credited: a refund must not decide at the same
    time.
    """
    subscription = select(Payment.subscription_id).where(Payment.id == payment_id).scalar_subquery()
    await session.execute(
        select(Subscription.id).where(Subscription.id == subscription).with_for_update(key_share=True)
    )


async def mark_credited_to_wallet(session: AsyncSession, payment_id: str) -> None:
    """Record that the money of a payment went to the wallet, because no invoice took any of it."""
    await session.execute(update(Payment).where(Payment.id == payment_id).values(credited_to_wallet=True))
