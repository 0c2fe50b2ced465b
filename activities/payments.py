"""Payments: calls to the gateway outside of any transaction, and records in the database inside of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession
from temporalio import activity

from activities import gateway_results
from activities.gateway_results import EventSource
from activities.gateways.protocol import ChargeRequest, GatewayRejected, PaymentGateway
from activities.rule_errors import converts_rule_violations
from db.models.payments import Payment
from db.queries import payments, workflow_recovery
from db.session import SessionFactory
from workflows import names
from workflows.errors import non_retryable_error
from workflows.ports.payments import (
    ApplyGatewayEvent,
    CancelPayment,
    CapturePayment,
    ChargePayment,
    PaymentActivities,
    PaymentInput,
    PaymentProgress,
    PollPayment,
    Purpose,
    Requester,
)
from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.order_payments import is_capture_expected, may_void
from workflows.rules.payment import PAID_STATUSES, UNPAID_FINAL_STATUSES, GatewayPayment, PaymentStatus

FINAL_STATUSES = PAID_STATUSES | UNPAID_FINAL_STATUSES


class GatewayPaymentActivities(PaymentActivities):
    def __init__(self, sessions: SessionFactory, gateways: Mapping[str, PaymentGateway]) -> None:
        self._sessions = sessions
        self._gateways = gateways

    @activity.defn(name="payments.charge")
    @converts_rule_violations
    async def charge(self, command: ChargePayment) -> PaymentProgress:
        payment_input = command.input
        payment, progress, is_key_retained = await self._create_or_load(command)
        is_pending = payment.status in (PaymentStatus.CREATED, PaymentStatus.PENDING, PaymentStatus.UNKNOWN)
        if not is_pending or payment.gateway_reference is not None:
            return progress
        if not is_key_retained:
            # A workflow that was started again long after the request: the gateway would charge a second time.
            return await self.poll(PollPayment(input=payment_input, requester=Requester.WAITING, now=command.now))
        if payment_input.gateway not in self._gateways:
            return await self._close_payment(
                payment_input.payment_id, PaymentStatus.FAILED, "gateway_unavailable", command.now
            )
        return await self._charge(payment_input, payment, command.now)

    @activity.defn(name="payments.poll")
    @converts_rule_violations
    async def poll(self, command: PollPayment) -> PaymentProgress:
        payment_input, now = command.input, command.now
        async with self._sessions.begin() as session:
            payment = await payments.lock_payment(session, payment_input.payment_id)
            if payment is None:
                raise non_retryable_error(ErrorCode.NOT_FOUND, "Payment not found.")
            progress = await gateway_results.payment_progress(session, payment)
            is_key_retained = await payments.is_idempotency_key_retained(session, payment)
            customer = await payments.get_gateway_customer(session, payment.organization_id, payment.gateway)
            is_abandoned = await _is_abandoned(session, payment, command.requester)
        if payment.status in FINAL_STATUSES:
            return progress
        gateway = self._gateways[payment.gateway]
        if payment.gateway_reference is not None:
            gateway_payment: GatewayPayment | None = await gateway.retrieve_charge(payment.gateway_reference)
        else:
            gateway_payment = await gateway.find_charge(payment.id, customer) if customer is not None else None
        if gateway_payment is not None:
            return await self._apply(payment, gateway_payment, is_abandoned=is_abandoned, now=now)
        # The gateway has no such charge. While it retains the idempotency key, a repeated request charges only once.
        if is_abandoned:
            return await self._close_payment(payment.id, PaymentStatus.CANCELLED, None, now)
        if not is_key_retained:
            return await self._close_payment(payment.id, PaymentStatus.FAILED, "never_reached_gateway", now)
        if payment_input.gateway_token is None and payment_input.payment_method_id is None:
            return progress
        return await self._charge(payment_input, payment, now)

    @activity.defn(name="payments.apply_gateway_event")
    @converts_rule_violations
    async def apply_gateway_event(self, command: ApplyGatewayEvent) -> PaymentProgress:
        event = command.event
        async with self._sessions.begin() as session:
            payment = await payments.lock_payment(session, command.payment_id)
            if payment is None:
                raise non_retryable_error(ErrorCode.NOT_FOUND, "Payment not found.")
            gateway_payment = GatewayPayment(
                reference=event.gateway_reference,
                status=event.status,
                amount=event.amount,
                decline_code=event.decline_code,
                redirect_url=payment.redirect_url,
            )
            source = EventSource(gateway=event.gateway, event_id=event.event_id)
            is_abandoned = await _is_abandoned(session, payment, command.requester)
            return await gateway_results.apply_gateway_payment(
                session, payment, gateway_payment, source=source, is_abandoned=is_abandoned, now=command.now
            )

    @activity.defn(name="payments.capture")
    @converts_rule_violations
    async def capture(self, command: CapturePayment) -> PaymentProgress:
        payment, progress = await self._lock_payment(command.payment_id)
        if payment.status in FINAL_STATUSES or payment.gateway_reference is None:
            return progress
        key = f"{payment.idempotency_key}:capture"
        gateway_payment = await self._gateways[payment.gateway].capture(payment.gateway_reference, key=key)
        if gateway_payment.status is PaymentStatus.CANCELLED:
            # The authorization expired before the capture: for the waiting workflow, the card did not pay.
            gateway_payment = replace(
                gateway_payment, status=PaymentStatus.FAILED, decline_code="authorization_expired"
            )
        return await self._apply(payment, gateway_payment, is_abandoned=False, now=command.now)

    @activity.defn(name="payments.cancel")
    @converts_rule_violations
    async def cancel(self, command: CancelPayment) -> PaymentProgress:
        payment, progress = await self._lock_payment(command.payment_id)
        async with self._sessions() as session:
            facts = await workflow_recovery.get_purpose_facts(session, payment.id)
        status = PaymentStatus(payment.status)
        if status in PAID_STATUSES or not may_void(status, facts, is_awaited=command.requester is not Requester.ABSENT):
            return progress
        reference = payment.gateway_reference
        if reference is None:
            return progress
        gateway = self._gateways[payment.gateway]
        gateway_payment = await gateway.cancel_charge(reference, key=f"{payment.idempotency_key}:cancel")
        if gateway_payment.status is PaymentStatus.CANCELLED:
            gateway_payment = replace(gateway_payment, status=command.final_status)
        return await self._apply(payment, gateway_payment, is_abandoned=True, now=command.now)

    @activity.defn(name="payments.mark_unknown")
    @converts_rule_violations
    async def mark_unknown(self, command: ChargePayment) -> PaymentProgress:
        payment, progress, _ = await self._create_or_load(command)
        if payment.status in FINAL_STATUSES:
            return progress
        return await self._close_payment(payment.id, PaymentStatus.UNKNOWN, None, command.now)

    async def _create_or_load(self, command: ChargePayment) -> tuple[Payment, PaymentProgress, bool]:
        """Insert the payment, or lock the existing one, before any call to its gateway.

        Returns:
            The payment, its progress, and whether the gateway still remembers its idempotency key.
        """
        payment_input, now = command.input, command.now
        async with self._sessions.begin() as session:
            if (
                payment_input.payment_method_id is not None
                and await payments.lock_payment(session, payment_input.payment_id) is None
            ):
                method = await payments.get_payment_method(
                    session, payment_input.payment_method_id, payment_input.organization_id
                )
                if method is None or method.gateway != payment_input.gateway:
                    raise RuleViolation(ErrorCode.NOT_FOUND, "Payment method not found.")
            payment = await payments.create_or_lock_payment(session, _payment_row(payment_input, now))
            progress = await gateway_results.payment_progress(session, payment)
            return payment, progress, await payments.is_idempotency_key_retained(session, payment)

    async def _charge(self, payment_input: PaymentInput, payment: Payment, now: datetime) -> PaymentProgress:
        gateway = self._gateways[payment.gateway]
        customer = await get_or_create_gateway_customer(self._sessions, gateway, payment.organization_id)
        method = await self._resolve_payment_method(payment_input)
        if method is None:
            # Removed since the payment was recorded: an attempt whose response was lost may have charged it.
            charged = await gateway.find_charge(payment.id, customer)
            if charged is not None:
                return await self._apply(payment, charged, is_abandoned=False, now=now)
            return await self._close_payment(payment.id, PaymentStatus.FAILED, "payment_method_unavailable", now)
        request = ChargeRequest(
            idempotency_key=payment.idempotency_key,
            payment_id=payment.id,
            organization_id=payment.organization_id,
            amount=payments.payment_amount(payment),
            customer=customer,
            payment_method=method,
            # A customer is present to authenticate a top-up, but not a renewal or an order.
            off_session=payment_input.payment_method_id is not None and payment_input.purpose is not Purpose.TOP_UP,
            manual_capture=payment_input.manual_capture,
        )
        try:
            gateway_payment = await gateway.charge(request)
        except GatewayRejected as rejected:
            activity.logger.warning("%s rejects payment %s: %s", payment.gateway, payment.id, rejected.code)
            return await self._close_payment(payment.id, PaymentStatus.FAILED, rejected.code, now)
        return await self._apply(payment, gateway_payment, is_abandoned=False, now=now)

    async def _resolve_payment_method(self, payment_input: PaymentInput) -> str | None:
        if payment_input.payment_method_id is None:
            return payment_input.gateway_token
        async with self._sessions.begin() as session:
            method = await payments.get_payment_method(
                session, payment_input.payment_method_id, payment_input.organization_id
            )
            return method.gateway_reference if method is not None else None

    async def _lock_payment(self, payment_id: str) -> tuple[Payment, PaymentProgress]:
        async with self._sessions.begin() as session:
            payment = await payments.lock_payment(session, payment_id)
            if payment is None:
                raise non_retryable_error(ErrorCode.NOT_FOUND, "Payment not found.")
            return payment, await gateway_results.payment_progress(session, payment)

    async def _apply(
        self, payment: Payment, gateway_payment: GatewayPayment, *, is_abandoned: bool, now: datetime
    ) -> PaymentProgress:
        async with self._sessions.begin() as session:
            locked = await payments.lock_payment(session, payment.id)
            assert locked is not None  # payments are never deleted
            source = EventSource(gateway=payment.gateway)
            return await gateway_results.apply_gateway_payment(
                session, locked, gateway_payment, source=source, is_abandoned=is_abandoned, now=now
            )

    async def _close_payment(
        self, payment_id: str, status: PaymentStatus, decline_code: str | None, now: datetime
    ) -> PaymentProgress:
        async with self._sessions.begin() as session:
            locked = await payments.lock_payment(session, payment_id)
            assert locked is not None  # payments are never deleted
            return await gateway_results.close_payment(
                session, locked, status=status, decline_code=decline_code, now=now
            )


async def _is_abandoned(session: AsyncSession, payment: Payment, requester: Requester) -> bool:
    """Return whether nothing needs the payment any more: neither who ordered it nor the first invoice of an order."""
    return requester.abandons_payment and not is_capture_expected(
        await workflow_recovery.get_purpose_facts(session, payment.id)
    )


async def get_or_create_gateway_customer(
    sessions: SessionFactory, gateway: PaymentGateway, organization_id: str
) -> str:
    """Return the gateway's customer of the organization; create it if there is none.

    No transaction is open during the call to the gateway.
    """
    async with sessions.begin() as session:
        existing = await payments.get_gateway_customer(session, organization_id, gateway.name)
    if existing is not None:
        return existing
    created = await gateway.create_customer(organization_id, key=f"customer:{organization_id}")
    async with sessions.begin() as session:
        return await payments.save_gateway_customer(session, organization_id, gateway.name, created)


def _payment_row(payment_input: PaymentInput, now: datetime) -> dict[str, object]:
    return {
        "id": payment_input.payment_id,
        "organization_id": payment_input.organization_id,
        "subscription_id": payment_input.subscription_id,
        "invoice_id": payment_input.invoice_id,
        "purpose": payment_input.purpose.value,
        "gateway": payment_input.gateway,
        "payment_method_id": payment_input.payment_method_id,
        "amount_minor": payment_input.amount.amount_minor,
        "currency": payment_input.amount.currency,
        "status": PaymentStatus.PENDING.value,
        # One attempt per payment: a new attempt is a new payment.
        "idempotency_key": f"{payment_input.payment_id}:1",
        "workflow_id": names.payment_workflow_id(payment_input.payment_id),
        "created_at": now,
        "updated_at": now,
    }
