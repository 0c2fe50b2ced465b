"""Applying to a payment what its gateway said: status, money, story and mails in one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession
from temporalio import activity

from activities import formatting
from db.models.payments import Payment
from db.queries import ledger, outbox, payments
from db.queries.outbox import Notice
from workflows.ports.payments import PaymentOutcome, Progress, Purpose
from workflows.rules import ledger as accounts
from workflows.rules.ids import derived
from workflows.rules.notices import NoticeKind
from workflows.rules.payment import CLOSED, RECEIVED, PaymentStatus, Seen, contradiction, observe


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a fact came from: a webhook's ``event_id``, or None for the gateway's own answer."""

    gateway: str
    event_id: str | None = None


async def apply(
    session: AsyncSession,
    payment: Payment,
    seen: Seen,
    *,
    source: Source,
    abandoned: bool,
    now: datetime,
) -> Progress:
    """Record a fact about the locked payment; late, repeated and contradicting facts move nothing.

    ``abandoned`` money, and money that comes after the payment had ended otherwise, goes to the wallet.
    """
    reason = contradiction(seen, amount=payments.amount_of(payment), reference=payment.gateway_reference)
    if reason is not None:
        await _alert(session, payment, source, reason, now)
        return await progress(session, payment)
    before = PaymentStatus(payment.status)
    after = observe(before, seen.status)
    payment.gateway_reference = seen.reference
    if after is not before:
        at = max(now, payment.updated_at)
        payment.status, payment.updated_at = after.value, at
        payment.decline_code = seen.decline_code if after is PaymentStatus.FAILED else None
        payment.redirect_url = seen.redirect_url if after is PaymentStatus.PENDING else None
        if after is PaymentStatus.SUCCEEDED and payment.captured_minor == 0:
            late = payment.purpose != Purpose.TOP_UP and (abandoned or before in CLOSED)
            await _receive(session, payment, to_wallet=late, at=at)
        await _tell(session, payment, at)
    elif after is PaymentStatus.PENDING and seen.redirect_url is not None:
        payment.redirect_url = seen.redirect_url
    stray = seen.status is PaymentStatus.AUTHORIZED and after in CLOSED
    return await progress(session, payment, stray=stray)


async def close(
    session: AsyncSession, payment: Payment, *, status: PaymentStatus, decline_code: str | None, now: datetime
) -> Progress:
    """End a payment that the gateway knows nothing of, for certain."""
    before = PaymentStatus(payment.status)
    after = observe(before, status)
    if after is not before:
        payment.status, payment.updated_at = after.value, max(now, payment.updated_at)
        payment.decline_code = decline_code
        await _tell(session, payment, payment.updated_at)
    return await progress(session, payment)


async def progress(session: AsyncSession, payment: Payment, *, stray: bool = False) -> Progress:
    """Return where the payment stands. A repeated activity of the run that settled it names the same debtors."""
    status = PaymentStatus(payment.status)
    in_wallet = payment.purpose == Purpose.TOP_UP or payment.to_wallet
    tell = status in RECEIVED and in_wallet and payment.settled_run == run_id()
    return Progress(
        outcome=PaymentOutcome(
            payment_id=payment.id,
            status=status,
            decline_code=payment.decline_code,
            redirect_url=payment.redirect_url,
        ),
        indebted=await payments.indebted(session, payment.organization_id) if tell else [],
        late=payment.to_wallet,
        stray=stray,
    )


def run_id() -> str:
    return activity.info().workflow_run_id or ""


async def _receive(session: AsyncSession, payment: Payment, *, to_wallet: bool, at: datetime) -> None:
    amount = payments.amount_of(payment)
    payment.captured_minor, payment.succeeded_at = payment.amount_minor, at
    payment.settled_run, payment.to_wallet = run_id(), to_wallet
    in_wallet = to_wallet or payment.purpose == Purpose.TOP_UP
    post = accounts.top_up if in_wallet else accounts.received_for_invoice
    key = f"payment/{payment.id}/received"
    # The payment's row and its money are one transaction: neither is ever seen without the other.
    await session.flush()
    await ledger.post(
        session,
        post(payment.gateway, amount),
        transaction_id=derived("tx", key),
        organization_id=payment.organization_id,
        at=at,
        ref=payment.id,
        description="Top-up" if payment.purpose == Purpose.TOP_UP else "Received by card",
        idempotency_key=key,
    )
    if not in_wallet:
        return
    kept = await ledger.balances(session, payment.organization_id, payment.currency)
    await outbox.enqueue(
        session,
        Notice(
            organization_id=payment.organization_id,
            user_id=None,
            kind=NoticeKind.TOP_UP_RECEIPT,
            fact=f"payment:{payment.id}:succeeded",
            context={
                "amount": {"amount_minor": amount.amount_minor, "currency": amount.currency},
                "balance": {"amount_minor": kept.wallet.amount_minor, "currency": amount.currency},
                "gateway": payment.gateway,
                "payment_id": payment.id,
            },
            at=at,
        ),
    )


async def _tell(session: AsyncSession, payment: Payment, at: datetime) -> None:
    """Tell what no other process tells: an authorisation and a success are told by whoever waited for them."""
    amount = formatting.money(payment.amount_minor, payment.currency)
    if payment.status == PaymentStatus.FAILED:
        message = f"The card was not charged {amount}: {payment.decline_code or 'declined'}."
        await payments.tell(session, payment, kind="payment.failed", message=message, at=at)
    elif payment.status == PaymentStatus.SUCCEEDED and payment.to_wallet:
        message = f"{amount} arrived late; the money is kept in the wallet."
        await payments.tell(session, payment, kind="payment.succeeded", message=message, at=at)


async def _alert(session: AsyncSession, payment: Payment, source: Source, reason: str, now: datetime) -> None:
    """A gateway contradicts the payment: nothing moves, and people look at it."""
    name = source.event_id or f"answer/{payment.id}"
    activity.logger.error("%s contradicts payment %s: %s", name, payment.id, reason)
    activity.metric_meter().create_counter(
        "berth_payment_mismatches", "Facts from gateways that contradict their payment"
    ).add(1, {"gateway": source.gateway})
    if source.event_id is not None:
        await payments.mark_mismatch(session, source.gateway, source.event_id, reason)
    alert = outbox.operator_alert(
        f"mismatch/{source.gateway}/{name}",
        now,
        f"{source.gateway} contradicts payment {payment.id}",
        f"{name}: {reason}. Nothing was changed.",
        severity="critical",
        payment_id=payment.id,
        workflow_id=payment.workflow_id,
    )
    await outbox.enqueue(session, alert)
