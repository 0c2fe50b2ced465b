"""Applies a gateway's result to a payment: status, ledger, timeline and notifications in one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession
from temporalio import activity

from activities import formatting
from activities.credit_arrivals import list_debtors
from db.models.payments import Payment
from db.queries import ledger, outbox, payments
from db.queries.outbox import OutboxNotification
from workflows.ports.payments import PaymentOutcome, PaymentProgress, Purpose
from workflows.rules import ledger as accounts
from workflows.rules.ids import derive_id
from workflows.rules.notifications import NotificationKind
from workflows.rules.payment import (
    PAID_STATUSES,
    UNPAID_FINAL_STATUSES,
    GatewayPayment,
    PaymentStatus,
    apply_gateway_status,
    mismatch_reason,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSource:
    """Origin of a gateway's result: a webhook with its ``event_id``, or a response, for which it is None."""

    gateway: str
    event_id: str | None = None


async def apply_gateway_payment(
    session: AsyncSession,
    payment: Payment,
    gateway_payment: GatewayPayment,
    *,
    source: EventSource,
    is_abandoned: bool,
    now: datetime,
) -> PaymentProgress:
    """Apply the gateway's view to the locked payment. Late, repeated and contradicting results change no status.

    Money of an abandoned payment, and money that arrives after the payment was closed, goes to the wallet.
    """
    reason = mismatch_reason(
        gateway_payment, amount=payments.payment_amount(payment), reference=payment.gateway_reference
    )
    if reason is not None:
        await _alert_mismatch(session, payment, source, reason, now)
        return await payment_progress(session, payment)
    before = PaymentStatus(payment.status)
    after = apply_gateway_status(before, gateway_payment.status)
    payment.gateway_reference = gateway_payment.reference
    if after is not before:
        at = max(now, payment.updated_at)
        payment.status, payment.updated_at = after.value, at
        payment.decline_code = gateway_payment.decline_code if after is PaymentStatus.FAILED else None
        payment.redirect_url = gateway_payment.redirect_url if after is PaymentStatus.PENDING else None
        if after is PaymentStatus.SUCCEEDED and payment.captured_minor == 0:
            late = payment.purpose != Purpose.TOP_UP and (is_abandoned or before in UNPAID_FINAL_STATUSES)
            await _record_receipt(session, payment, to_wallet=late, at=at)
        await _add_timeline_event(session, payment, at)
    elif after is PaymentStatus.PENDING and gateway_payment.redirect_url is not None:
        payment.redirect_url = gateway_payment.redirect_url
    stray = gateway_payment.status is PaymentStatus.AUTHORIZED and after in UNPAID_FINAL_STATUSES
    return await payment_progress(session, payment, stray=stray)


async def close_payment(
    session: AsyncSession, payment: Payment, *, status: PaymentStatus, decline_code: str | None, now: datetime
) -> PaymentProgress:
    """Close a payment that certainly does not exist at the gateway."""
    before = PaymentStatus(payment.status)
    after = apply_gateway_status(before, status)
    if after is not before:
        payment.status, payment.updated_at = after.value, max(now, payment.updated_at)
        payment.decline_code = decline_code
        await _add_timeline_event(session, payment, payment.updated_at)
    return await payment_progress(session, payment)


async def payment_progress(session: AsyncSession, payment: Payment, *, stray: bool = False) -> PaymentProgress:
    """Return the payment's progress. A repeated activity of the run that closed it returns the same debtors."""
    status = PaymentStatus(payment.status)
    in_wallet = payment.purpose == Purpose.TOP_UP or payment.credited_to_wallet
    should_signal = status in PAID_STATUSES and in_wallet and payment.closing_run_id == current_run_id()
    return PaymentProgress(
        outcome=PaymentOutcome(
            payment_id=payment.id,
            status=status,
            decline_code=payment.decline_code,
            redirect_url=payment.redirect_url,
        ),
        past_due_subscription_ids=await list_debtors(session, payment.organization_id) if should_signal else [],
        received_after_close=payment.credited_to_wallet,
        has_unwanted_authorization=stray,
    )


def current_run_id() -> str:
    return activity.info().workflow_run_id or ""


async def _record_receipt(session: AsyncSession, payment: Payment, *, to_wallet: bool, at: datetime) -> None:
    amount = payments.payment_amount(payment)
    payment.captured_minor, payment.succeeded_at = payment.amount_minor, at
    payment.closing_run_id, payment.credited_to_wallet = current_run_id(), to_wallet
    in_wallet = to_wallet or payment.purpose == Purpose.TOP_UP
    post = accounts.top_up_transaction if in_wallet else accounts.card_payment_transaction
    key = f"payment/{payment.id}/received"
    # One database transaction: the status of the payment and its ledger transaction are visible together.
    await session.flush()
    await ledger.post_transaction(
        session,
        post(payment.gateway, amount),
        transaction_id=derive_id("tx", key),
        organization_id=payment.organization_id,
        at=at,
        ref=payment.id,
        description="Top-up" if payment.purpose == Purpose.TOP_UP else "Card payment",
        idempotency_key=key,
    )
    if not in_wallet:
        return
    balances = await ledger.get_balances(session, payment.organization_id, payment.currency)
    await outbox.enqueue(
        session,
        OutboxNotification(
            organization_id=payment.organization_id,
            user_id=None,
            kind=NotificationKind.TOP_UP_RECEIPT,
            dedup_key=f"payment:{payment.id}:succeeded",
            context={
                "amount": {"amount_minor": amount.amount_minor, "currency": amount.currency},
                "balance": {"amount_minor": balances.wallet.amount_minor, "currency": amount.currency},
                "gateway": payment.gateway,
                "payment_id": payment.id,
            },
            occurred_at=at,
        ),
    )


async def _add_timeline_event(session: AsyncSession, payment: Payment, at: datetime) -> None:
    """Add the events that no other step adds: the caller that awaits the payment records authorization and success."""
    amount = formatting.format_money(payment.amount_minor, payment.currency)
    if payment.status == PaymentStatus.FAILED:
        message = f"Card payment of {amount} failed: {formatting.describe_decline(payment.decline_code)}."
        await payments.add_timeline_event(session, payment, kind="payment.failed", message=message, at=at)
    elif payment.status == PaymentStatus.SUCCEEDED and payment.credited_to_wallet:
        message = f"Late payment of {amount} credited to the wallet."
        await payments.add_timeline_event(session, payment, kind="payment.succeeded", message=message, at=at)


async def _alert_mismatch(
    session: AsyncSession, payment: Payment, source: EventSource, reason: str, now: datetime
) -> None:
    """Alert the operators that a gateway contradicts the payment, which stays unchanged."""
    name = source.event_id or f"answer/{payment.id}"
    activity.logger.error("gateway mismatch: %s, payment %s: %s", name, payment.id, reason)
    activity.metric_meter().create_counter("berth_gateway_event_mismatches", "Gateway payment mismatches").add(
        1, {"gateway": source.gateway}
    )
    if source.event_id is not None:
        await payments.mark_mismatch(session, source.gateway, source.event_id, reason)
    alert = outbox.build_operator_alert(
        f"mismatch/{source.gateway}/{name}",
        now,
        f"Gateway mismatch on payment {payment.id}",
        f"{name}: {reason}. The payment was not updated; check it at the gateway.",
        severity="critical",
        payment_id=payment.id,
        workflow_id=payment.workflow_id,
    )
    await outbox.enqueue(session, alert)
