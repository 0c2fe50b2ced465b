"""How a refund ended: its row and its payment's status, the audit log, the timeline, and who is informed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from temporalio import activity

from activities.formatting import format_money
from activities.refund_ledger import credit_rejected_refund
from db.models.payments import Payment, Refund
from db.queries import audit, outbox, payments
from db.queries.outbox import OutboxNotification
from db.queries.payments import LockedRefund
from workflows.ports.refunds import RefundDestination
from workflows.rules.notifications import NotificationKind
from workflows.rules.payment import PaymentStatus, RefundStatus, status_after_refunds


async def audit_refund(
    session: AsyncSession,
    refund: Refund,
    action: str,
    now: datetime,
    *,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    ip: str | None = None,
) -> None:
    """Append to the audit log in the transaction that moves the money. The actor is who requested the refund."""
    await session.flush()
    await audit.append_audit_entry(
        session,
        organization_id=refund.organization_id,
        actor=refund.actor,
        action=action,
        at=now,
        object=refund.id,
        before=before,
        after=after,
        reason=refund.reason,
        ip=ip,
        request_id=refund.request_id,
    )


async def audit_outcome(
    session: AsyncSession, locked: LockedRefund, now: datetime, *, before: Mapping[str, Any]
) -> None:
    """Append to the audit log how the refund ended; ``before`` is its ``audited_state`` until then."""
    after = audited_state(locked)
    if locked.refund.failure_code is not None:
        after["failure_code"] = locked.refund.failure_code
    await audit_refund(
        session, locked.refund, f"billing.refund_{locked.refund.status}", now, before=before, after=after
    )


def audited_state(locked: LockedRefund) -> dict[str, Any]:
    """Return what the audit log says of a refund before and after it ended."""
    refund, payment = locked.refund, locked.payment
    return {"status": refund.status, "payment_status": payment.status, "refunded_minor": payment.refunded_minor}


async def mark_rejected(session: AsyncSession, locked: LockedRefund, failure_code: str | None, now: datetime) -> None:
    """Record that the bank rejected a refund that was sent: the customer has the money in the wallet."""
    refund, payment = locked.refund, locked.payment
    before = audited_state(locked)
    refund.status, refund.updated_at, refund.failure_code = RefundStatus.FAILED.value, now, failure_code
    payment.refunded_minor -= refund.amount_minor
    await session.flush()
    await _update_payment_status(session, payment, now)
    await credit_rejected_refund(session, refund, payment, now)
    await audit_outcome(session, locked, now, before=before)
    activity.logger.warning("refund %s was rejected by the bank: %s", refund.id, failure_code)
    amount = format_money(refund.amount_minor, refund.currency)
    await payments.add_timeline_event(
        session,
        payment,
        kind="refund.failed",
        message=f"The bank rejected the refund of {amount}. The amount was credited to the wallet.",
        at=now,
        ref=refund.id,
    )
    await outbox.enqueue(session, _build_customer_mail(locked, NotificationKind.REFUND_FAILED, now))
    alert = outbox.build_operator_alert(
        f"refund:{refund.id}:failed",
        now,
        f"Refund {refund.id} was rejected by the bank",
        f"{payment.gateway} reports {failure_code or 'no reason'} for a refund that it had sent. The customer was"
        f" informed and has {amount} in the wallet. Nothing is to be done; the payment can be refunded again.",
        severity="warning",
        payment_id=payment.id,
    )
    await outbox.enqueue(session, alert)


async def _update_payment_status(session: AsyncSession, payment: Payment, now: datetime) -> None:
    """Set a payment's status by what of it was refunded for certain."""
    payment.status = status_after_refunds(
        PaymentStatus(payment.status),
        captured_minor=payment.captured_minor,
        refunded_minor=await payments.refunded_amount(session, payment.id),
    ).value
    payment.updated_at = max(now, payment.updated_at)


def _build_customer_mail(locked: LockedRefund, kind: NotificationKind, now: datetime) -> OutboxNotification:
    refund, payment = locked.refund, locked.payment
    return OutboxNotification(
        organization_id=refund.organization_id,
        user_id=None,
        kind=kind,
        dedup_key=f"refund:{refund.id}:{refund.status}",
        context={
            "amount": {"amount_minor": refund.amount_minor, "currency": refund.currency},
            "to": refund.destination,
            "payment_id": payment.id,
            "reason": refund.reason,
        },
        occurred_at=now,
    )


async def mark_succeeded(session: AsyncSession, locked: LockedRefund, now: datetime) -> None:
    """Record that the refund was paid, and inform the customer."""
    refund, payment = locked.refund, locked.payment
    refund.status, refund.updated_at = RefundStatus.SUCCEEDED.value, now
    await session.flush()
    await _update_payment_status(session, payment, now)
    amount = format_money(refund.amount_minor, refund.currency)
    destination = "wallet" if refund.destination == RefundDestination.WALLET else "original payment method"
    await payments.add_timeline_event(
        session,
        payment,
        kind="refund.succeeded",
        message=f"{amount} refunded to the {destination}.",
        at=now,
        ref=refund.id,
    )
    await outbox.enqueue(session, _build_customer_mail(locked, NotificationKind.REFUND_SUCCEEDED, now))


async def alert_rejected_while_disputed(
    session: AsyncSession, locked: LockedRefund, failure_code: str | None, now: datetime
) -> None:
    """Alert the operators that a refund came back whose charge is disputed: the bank pays the customer by the dispute.

    The refund stays as it is. Its amount in the wallet as well would be paid twice.
    """
    refund, payment = locked.refund, locked.payment
    amount = format_money(refund.amount_minor, refund.currency)
    activity.logger.warning("refund %s was rejected by the bank, and its charge is disputed", refund.id)
    alert = outbox.build_operator_alert(
        f"refund:{refund.id}:disputed",
        now,
        f"Refund {refund.id} was rejected by the bank and its charge is disputed",
        f"{payment.gateway} reports {failure_code or 'no reason'} for a refund of {amount} that it had sent. The"
        " customer disputes the charge and has the money by the dispute, so nothing was credited. Decide the dispute at"
        " the gateway. If it is won within 30 days after the refund, the amount is credited to the wallet on the next"
        " day; if it is won later, credit the amount to the wallet by an adjustment.",
        severity="warning",
        payment_id=payment.id,
    )
    await outbox.enqueue(session, alert)


def _next_step(*, is_disputed: bool) -> str:
    if is_disputed:
        return (
            "The customer disputes the charge at the bank: accept or contest the dispute at the gateway. Do not pay the"
            " amount out otherwise, the customer would have it twice."
        )
    return "Pay the amount out manually, or refund it to the wallet."


async def alert_failure(session: AsyncSession, locked: LockedRefund, now: datetime, *, is_disputed: bool) -> None:
    """Alert the operators that the gateway cannot return the money, and say what is left to do."""
    refund, payment = locked.refund, locked.payment
    activity.logger.error("refund %s failed: %s", refund.id, refund.failure_code)
    alert = outbox.build_operator_alert(
        f"refund:{refund.id}:failed",
        now,
        f"Refund {refund.id} failed at {payment.gateway}",
        f"Gateway error {refund.failure_code}. {_next_step(is_disputed=is_disputed)}",
        severity="warning",
        payment_id=payment.id,
    )
    await outbox.enqueue(session, alert)
