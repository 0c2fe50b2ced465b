"""Payments, cards on file and refunds: what their workflows' activities read and write."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.billing import LedgerEntry, LedgerTransaction, Subscription, TimelineEvent
from db.models.payments import GatewayCustomer, Payment, PaymentMethod, Refund, WebhookEvent
from workflows.rules.errors import Refusal, RuleBroken
from workflows.rules.ledger import Account
from workflows.rules.money import Money
from workflows.rules.payment import Facts, PaymentStatus

KEY_KEPT = timedelta(hours=23)
"""Gateways keep idempotency keys for 24 hours; a call is repeated only while there is an hour to spare."""


async def lock(session: AsyncSession, payment_id: str) -> Payment | None:
    """Return the payment, locked until the transaction ends."""
    return await session.get(Payment, payment_id, with_for_update=True)


async def open_or_lock(session: AsyncSession, values: dict[str, Any]) -> Payment:
    """Insert the payment unless it is on record, and return it locked.

    Raises:
        RuleBroken: ``CONFLICT`` when another payment of its invoice is in flight; the transaction is lost with it.
    """
    try:
        await session.execute(insert(Payment).values(values).on_conflict_do_nothing(index_elements=[Payment.id]))
    except IntegrityError as error:
        if constraint_of(error) == "uq_payments_one_in_flight_per_invoice":
            raise RuleBroken(Refusal.CONFLICT, "Another payment of this invoice is in flight.") from error
        raise
    return await session.get_one(Payment, values["id"], with_for_update=True)


def constraint_of(error: IntegrityError) -> str | None:
    """Return the name of the violated constraint."""
    name: str | None = getattr(getattr(error.orig, "diag", None), "constraint_name", None)
    return name


async def key_is_kept(session: AsyncSession, payment: Payment) -> bool:
    """Tell whether the gateway still remembers the payment's key, by the database's own clock."""
    return bool(await session.scalar(select(func.now() - payment.requested_at < KEY_KEPT)))


def facts_of(payment: Payment) -> Facts:
    return Facts(
        payment_id=payment.id,
        organization_id=payment.organization_id,
        amount=amount_of(payment),
        gateway=payment.gateway,
        purpose=payment.purpose,
        status=PaymentStatus(payment.status),
        payment_method_id=payment.payment_method_id,
        subscription_id=payment.subscription_id,
        invoice_id=payment.invoice_id,
        created_at=payment.created_at,
    )


def amount_of(payment: Payment) -> Money:
    return Money(amount_minor=payment.amount_minor, currency=payment.currency)


async def method(session: AsyncSession, payment_method_id: str, organization_id: str) -> PaymentMethod | None:
    """Return a card that is on file for this organisation."""
    found: PaymentMethod | None = await session.scalar(
        select(PaymentMethod).where(
            PaymentMethod.id == payment_method_id,
            PaymentMethod.organization_id == organization_id,
            PaymentMethod.detached_at.is_(None),
        )
    )
    return found


async def methods(session: AsyncSession, organization_id: str) -> list[PaymentMethod]:
    """Return the cards on file: the default first, then the backups in their order."""
    rows = await session.scalars(
        select(PaymentMethod)
        .where(PaymentMethod.organization_id == organization_id, PaymentMethod.detached_at.is_(None))
        .order_by(PaymentMethod.is_default.desc(), PaymentMethod.position, PaymentMethod.id)
    )
    return list(rows)


async def serialise_methods(session: AsyncSession, organization_id: str) -> None:
    """Let one transaction at a time decide which of an organisation's cards is the default."""
    await session.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended('payment_methods/' || :organization, 0))"),
        {"organization": organization_id},
    )


async def customer(session: AsyncSession, organization_id: str, gateway: str) -> str | None:
    """Return what the gateway calls the organisation."""
    found: str | None = await session.scalar(
        select(GatewayCustomer.reference).where(
            GatewayCustomer.organization_id == organization_id, GatewayCustomer.gateway == gateway
        )
    )
    return found


async def remember_customer(session: AsyncSession, organization_id: str, gateway: str, reference: str) -> str:
    """Keep the gateway's name of the organisation and return the one that was kept first."""
    await session.execute(
        insert(GatewayCustomer)
        .values(organization_id=organization_id, gateway=gateway, reference=reference)
        .on_conflict_do_nothing(index_elements=[GatewayCustomer.organization_id, GatewayCustomer.gateway])
    )
    return await customer(session, organization_id, gateway) or reference


async def indebted(session: AsyncSession, organization_id: str) -> list[str]:
    """Return the organisation's subscriptions with an open debt, the oldest debt first."""
    rows = await session.scalars(
        select(Subscription.id)
        .where(Subscription.organization_id == organization_id, Subscription.status.in_(("past_due", "suspended")))
        .order_by(Subscription.first_failure_at, Subscription.id)
    )
    return list(rows)


async def tell(
    session: AsyncSession, payment: Payment, *, kind: str, message: str, at: datetime, ref: str | None = None
) -> None:
    """Add a line to the story of the payment's subscription, once per kind and ``ref`` (default: the payment)."""
    if payment.subscription_id is None:
        return
    await session.execute(
        insert(TimelineEvent)
        .values(
            organization_id=payment.organization_id,
            subscription_id=payment.subscription_id,
            at=at,
            kind=kind,
            message=message,
            ref=ref or payment.id,
            fact=f"{kind}/{ref or payment.id}",
        )
        .on_conflict_do_nothing()
    )


async def mark_mismatch(session: AsyncSession, gateway: str, event_id: str, reason: str) -> None:
    event = await session.get(WebhookEvent, (gateway, event_id))
    if event is not None:
        event.status, event.note = "mismatch", reason


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundRecord:
    """A refund with its payment, both locked."""

    refund: Refund
    payment: Payment


async def lock_refund(session: AsyncSession, refund_id: str) -> RefundRecord | None:
    """Return a refund and its payment; the payment is locked first, as everywhere."""
    refund = await session.get(Refund, refund_id)
    if refund is None:
        return None
    payment = await session.get_one(Payment, refund.payment_id, with_for_update=True)
    await session.refresh(refund, with_for_update=True)
    return RefundRecord(refund=refund, payment=payment)


async def refunded(session: AsyncSession, payment_id: str) -> int:
    """Return the minor units that were given back for certain."""
    total = await session.scalar(
        select(func.coalesce(func.sum(Refund.amount_minor), 0)).where(
            Refund.payment_id == payment_id, Refund.status == "succeeded"
        )
    )
    return int(total or 0)


async def went_to_wallet(session: AsyncSession, payment: Payment) -> bool:
    """Tell whether the money of a payment ended in the wallet although an order or invoice was to be paid."""
    if payment.to_wallet:
        return True
    # Whoever applies held money posts under this key; when nothing was left to pay, it is an entry of the wallet.
    kept = (
        select(LedgerEntry.id)
        .join(LedgerTransaction, LedgerTransaction.id == LedgerEntry.transaction_id)
        .where(
            LedgerTransaction.idempotency_key == f"applied/{payment.id}",
            LedgerEntry.account == str(Account.WALLET),
            LedgerEntry.amount_minor > 0,
        )
        .exists()
    )
    return bool(await session.scalar(select(kept)))
