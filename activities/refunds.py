"""Refunds: reserved on the payment under a lock, sent to the gateway, then recorded."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession
from temporalio import activity

from activities.credit_arrivals import list_debtors
from activities.formatting import format_money
from activities.gateways.protocol import (
    CHARGE_DISPUTED,
    DISPUTE_FAILURES,
    GatewayRefund,
    GatewayRejected,
    PaymentGateway,
)
from activities.refund_ledger import (
    load_invoices,
    pay_out_from_wallet,
    rejected_amount,
    remaining_in_wallet,
    return_refund,
    take_refund,
)
from activities.refund_outcomes import (
    alert_failure,
    alert_rejected_while_disputed,
    audit_outcome,
    audit_refund,
    audited_state,
    mark_rejected,
    mark_succeeded,
)
from activities.rule_errors import converts_rule_violations
from db.models.payments import Payment, Refund
from db.queries import payments
from db.queries.payments import LockedRefund
from db.session import SessionFactory
from workflows.errors import non_retryable_error, to_application_error
from workflows.ports.refunds import (
    RecheckRefund,
    RefundActivities,
    RefundDestination,
    RefundInput,
    RefundOutcome,
    ReserveRefund,
    SendRefund,
)
from workflows.rules.allocations import plan_refund
from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.money import Money
from workflows.rules.payment import REFUNDABLE_STATUSES, RefundStatus


class GatewayRefundActivities(RefundActivities):
    def __init__(self, sessions: SessionFactory, gateways: Mapping[str, PaymentGateway]) -> None:
        self._sessions = sessions
        self._gateways = gateways

    @activity.defn(name="refunds.reserve")
    async def reserve(self, command: ReserveRefund) -> RefundOutcome:
        request, now = command.command, command.now
        try:
            await self._reject_disputed(request)
            async with self._sessions.begin() as session:
                # A plan change computes its credit from the same invoices, under the same lock.
                await payments.lock_subscription_of_payment(session, request.payment_id)
                # The lock of the payment serializes its refunds.
                payment = await payments.lock_payment(session, request.payment_id)
                if payment is None or payment.organization_id != request.organization_id:
                    raise RuleViolation(ErrorCode.NOT_FOUND, "Payment not found.")
                existing = await session.get(Refund, request.refund_id)
                if existing is not None:
                    return await _outcome(session, existing, payment)
                amount = _refund_amount(payment, request)
                invoices = await load_invoices(session, payment)
                is_to_source = request.destination is RefundDestination.SOURCE
                parts = plan_refund(
                    amount,
                    invoices,
                    payment.id,
                    remaining_in_wallet(payment, invoices),
                    await rejected_amount(session, payment) if is_to_source else None,
                )
                if request.destination is RefundDestination.WALLET and parts.from_wallet:
                    raise RuleViolation(
                        ErrorCode.CONFLICT,
                        "The payment was credited to the wallet already. Refund it to its source instead.",
                    )
                refund = _build_refund(request, amount, parts.from_wallet, now)
                session.add(refund)
                status_before, refunded_before = payment.status, payment.refunded_minor
                payment.refunded_minor += amount.amount_minor
                await session.flush()
                await take_refund(session, refund, payment, parts, now)
                if request.destination is RefundDestination.WALLET:
                    await mark_succeeded(session, LockedRefund(refund=refund, payment=payment), now)
                await audit_refund(
                    session,
                    refund,
                    "billing.refund_created",
                    now,
                    before={"payment_status": status_before, "refunded_minor": refunded_before},
                    after={
                        "payment_id": payment.id,
                        "payment_status": payment.status,
                        "refunded_minor": payment.refunded_minor,
                        "amount": {"amount_minor": amount.amount_minor, "currency": amount.currency},
                        "to": refund.destination,
                        "status": refund.status,
                    },
                    ip=request.address,
                )
                return await _outcome(session, refund, payment)
        except RuleViolation as broken:
            raise to_application_error(broken) from broken

    @activity.defn(name="refunds.send")
    @converts_rule_violations
    async def send(self, command: SendRefund) -> RefundOutcome:
        async with self._sessions.begin() as session:
            locked = await payments.lock_refund(session, command.refund_id)
            if locked is None:
                raise non_retryable_error(ErrorCode.NOT_FOUND, "Refund not found.")
            refund, payment = locked.refund, locked.payment
            existing = await _outcome(session, refund, payment)
            is_key_retained = await payments.is_idempotency_key_retained(session, refund)
        if refund.status != RefundStatus.PENDING:
            return existing
        gateway = self._gateways.get(payment.gateway)
        gateway_refund = await _request_refund(gateway, refund, payment, is_key_retained=is_key_retained)
        has_failed = gateway_refund.status is RefundStatus.FAILED
        # A pending refund may fail for another reason while the charge is disputed.
        is_disputed = has_failed and (
            gateway_refund.failure_code in DISPUTE_FAILURES or await _is_disputed(gateway, payment)
        )
        async with self._sessions.begin() as session:
            locked = await payments.lock_refund(session, command.refund_id)
            assert locked is not None  # refunds are never deleted
            await self._apply_gateway_refund(session, locked, gateway_refund, command.now, is_disputed=is_disputed)
            return await _outcome(session, locked.refund, locked.payment)

    @activity.defn(name="refunds.recheck")
    @converts_rule_violations
    async def recheck(self, command: RecheckRefund) -> RefundOutcome:
        async with self._sessions.begin() as session:
            locked = await payments.lock_refund(session, command.refund_id)
            if locked is None:
                raise non_retryable_error(ErrorCode.NOT_FOUND, "Refund not found.")
            existing = await _outcome(session, locked.refund, locked.payment)
            reference, gateway = locked.refund.gateway_reference, self._gateways.get(locked.payment.gateway)
        if not _can_be_rejected(locked.refund) or reference is None or gateway is None:
            return existing
        try:
            gateway_refund = await gateway.retrieve_refund(reference)
        except GatewayRejected as rejected:
            # Not the bank's answer: the gateway does not know the refund, or the API key is that of another account.
            activity.logger.error("refund %s could not be read at the gateway: %s", command.refund_id, rejected.code)
            return existing
        if gateway_refund.status is not RefundStatus.FAILED:
            return existing
        is_disputed = await _is_disputed(gateway, locked.payment)
        async with self._sessions.begin() as session:
            locked = await payments.lock_refund(session, command.refund_id)
            assert locked is not None  # refunds are never deleted
            if _can_be_rejected(locked.refund):
                conclude = alert_rejected_while_disputed if is_disputed else mark_rejected
                await conclude(session, locked, gateway_refund.failure_code, command.now)
            return await _outcome(session, locked.refund, locked.payment)

    async def _reject_disputed(self, request: RefundInput) -> None:
        """Raise if a payment is to be refunded to the wallet that the bank pays back by a dispute.

        To its source the gateway rejects it itself. The gateway is asked before anything is locked.

        Raises:
            RuleViolation: ``CONFLICT``.
            GatewayUnavailable: It is not known.
        """
        if request.destination is not RefundDestination.WALLET:
            return
        async with self._sessions.begin() as session:
            if await session.get(Refund, request.refund_id) is not None:
                return
            payment = await session.get(Payment, request.payment_id)
        if payment is None or payment.organization_id != request.organization_id:
            return
        if await _is_disputed(self._gateways.get(payment.gateway), payment):
            raise RuleViolation(
                ErrorCode.CONFLICT,
                "The customer disputes this payment at the bank. Accept or contest the dispute at the gateway: a refund"
                " would pay the amount twice.",
                {"gateway_code": CHARGE_DISPUTED},
            )

    async def _apply_gateway_refund(
        self,
        session: AsyncSession,
        locked: LockedRefund,
        gateway_refund: GatewayRefund,
        now: datetime,
        *,
        is_disputed: bool,
    ) -> None:
        refund, payment = locked.refund, locked.payment
        if refund.status != RefundStatus.PENDING:
            return
        refund.gateway_reference = gateway_refund.reference or None
        before = audited_state(locked)
        if gateway_refund.status is RefundStatus.SUCCEEDED:
            await pay_out_from_wallet(session, refund, payment.gateway, now)
            await mark_succeeded(session, locked, now)
        elif gateway_refund.status is RefundStatus.FAILED:
            refund.status, refund.updated_at = RefundStatus.FAILED.value, now
            refund.failure_code = gateway_refund.failure_code
            payment.refunded_minor -= refund.amount_minor
            await return_refund(session, refund, payment, now)
            await alert_failure(session, locked, now, is_disputed=is_disputed)
        if refund.status != RefundStatus.PENDING:
            await audit_outcome(session, locked, now, before=before)


async def _request_refund(
    gateway: PaymentGateway | None, refund: Refund, payment: Payment, *, is_key_retained: bool
) -> GatewayRefund:
    """Request the refund, or read one that was requested before. A request rejected for good is a failed refund.

    A request whose response was lost is repeated under its key while the gateway remembers it, and looked for
    afterwards: under a key that the gateway has forgotten it would give back a second time.

    A refund that was requested and cannot be read stays pending: the gateway does not know it, or the API key is that
    of another account. Its bank may still pay it.
    """
    failed = GatewayRefund(reference="", status=RefundStatus.FAILED, failure_code="not_refundable")
    if gateway is None or not gateway.capabilities.refund or payment.gateway_reference is None:
        return failed
    try:
        if refund.gateway_reference is not None:
            return await gateway.retrieve_refund(refund.gateway_reference)
        existing = None if is_key_retained else await gateway.find_refund(payment.gateway_reference, refund.id)
    except GatewayRejected as rejected:
        activity.logger.error("refund %s could not be read at the gateway: %s", refund.id, rejected.code)
        return GatewayRefund(reference=refund.gateway_reference or "", status=RefundStatus.PENDING)
    if existing is not None:
        return existing
    try:
        return await gateway.refund(
            payment.gateway_reference, _amount(refund), refund_id=refund.id, key=refund.idempotency_key
        )
    except GatewayRejected as rejected:
        return GatewayRefund(reference="", status=RefundStatus.FAILED, failure_code=rejected.code)


async def _is_disputed(gateway: PaymentGateway | None, payment: Payment) -> bool:
    """Return whether the bank pays the customer back by a dispute; no dispute is known of a charge that is unknown.

    Raises:
        GatewayUnavailable: It is not known.
    """
    if gateway is None or payment.gateway_reference is None:
        return False
    try:
        return await gateway.is_disputed(payment.gateway_reference)
    except GatewayRejected as rejected:
        activity.logger.error("disputes of payment %s could not be read: %s", payment.id, rejected.code)
        return False


def _refund_amount(payment: Payment, request: RefundInput) -> Money:
    """Return the amount to refund.

    Raises:
        RuleViolation: ``CONFLICT``, ``CURRENCY_MISMATCH``, ``VALIDATION_ERROR``, ``REFUND_EXCEEDS_PAYMENT``.
    """
    if payment.status not in REFUNDABLE_STATUSES:
        raise RuleViolation(
            ErrorCode.CONFLICT,
            f"Only a succeeded or partially refunded payment can be refunded (status is {payment.status}).",
        )
    remaining = Money(amount_minor=payment.captured_minor - payment.refunded_minor, currency=payment.currency)
    requested = remaining if request.amount is None else request.amount
    if requested.currency != payment.currency:
        raise RuleViolation(ErrorCode.CURRENCY_MISMATCH, f"Currency mismatch: the payment is in {payment.currency}.")
    if request.amount is not None and requested.amount_minor <= 0:
        raise RuleViolation(ErrorCode.VALIDATION_ERROR, "The amount of a refund must be positive.")
    if not remaining or requested > remaining:
        raise RuleViolation(
            ErrorCode.REFUND_EXCEEDS_PAYMENT,
            f"The refund exceeds the refundable amount of {format_money(remaining.amount_minor, remaining.currency)}.",
            {"left_minor": remaining.amount_minor, "currency": remaining.currency},
        )
    return requested


def _build_refund(request: RefundInput, amount: Money, from_wallet: Money, now: datetime) -> Refund:
    return Refund(
        id=request.refund_id,
        organization_id=request.organization_id,
        payment_id=request.payment_id,
        amount_minor=amount.amount_minor,
        from_wallet_minor=from_wallet.amount_minor,
        currency=amount.currency,
        destination=request.destination.value,
        status=RefundStatus.PENDING.value,
        reason=request.reason,
        actor=request.actor,
        request_id=request.request_id or None,
        idempotency_key=f"refund:{request.refund_id}",
        created_at=now,
        updated_at=now,
    )


def _can_be_rejected(refund: Refund) -> bool:
    """Return whether the refund was sent and did not fail: its bank may reject it, for some days."""
    return refund.destination == RefundDestination.SOURCE and refund.status == RefundStatus.SUCCEEDED


def _amount(refund: Refund) -> Money:
    return Money(amount_minor=refund.amount_minor, currency=refund.currency)


async def _outcome(session: AsyncSession, refund: Refund, payment: Payment) -> RefundOutcome:
    """Return the refund's state, and the past-due subscriptions if it credited the wallet."""
    credited = refund.destination == RefundDestination.WALLET and refund.status == RefundStatus.SUCCEEDED
    if refund.status == RefundStatus.FAILED:
        credited = True
    past_due_ids = await list_debtors(session, refund.organization_id) if credited else []
    return RefundOutcome(
        refund_id=refund.id,
        status=refund.status,
        amount=_amount(refund),
        failure_code=refund.failure_code,
        past_due_subscription_ids=past_due_ids,
    )
