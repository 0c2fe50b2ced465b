"""Saved cards: attach, set default and detach, at the gateway and in the database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from temporalio import activity

from activities.credit_arrivals import list_debtors
from activities.gateways.protocol import CardDeclined, GatewayRejected, PaymentGateway
from activities.payments import get_or_create_gateway_customer
from activities.rule_errors import converts_rule_violations
from db.models.payments import PaymentMethod
from db.queries import payments
from db.session import SessionFactory
from workflows.errors import non_retryable_error
from workflows.ports.payments import (
    AddPaymentMethod,
    AttachOutcome,
    AttachPaymentMethod,
    DetachPaymentMethod,
    PaymentMethodActivities,
    PaymentMethodAdded,
    RemovePaymentMethod,
    SetDefault,
)
from workflows.rules.errors import ErrorCode


class GatewayPaymentMethodActivities(PaymentMethodActivities):
    def __init__(self, sessions: SessionFactory, gateways: Mapping[str, PaymentGateway]) -> None:
        self._sessions = sessions
        self._gateways = gateways

    @activity.defn(name="payment_methods.attach")
    @converts_rule_violations
    async def attach(self, command: AttachPaymentMethod) -> AttachOutcome:
        order = command.command
        async with self._sessions.begin() as session:
            existing = await session.get(PaymentMethod, order.payment_method_id)
            if existing is not None:
                past_due_ids = await list_debtors(session, order.organization_id)
                return AttachOutcome(added=_to_outcome(existing), past_due_subscription_ids=past_due_ids)
            on_file = await payments.find_payment_method(session, order.gateway, order.token)
            if on_file is not None and on_file.organization_id == order.organization_id and not on_file.detached_at:
                return await _keep_on_file(session, on_file, order)
        gateway = self._gateways.get(order.gateway)
        if gateway is None or not gateway.capabilities.saved_payment_methods:
            raise non_retryable_error(
                ErrorCode.VALIDATION_ERROR, "This gateway does not support saved payment methods."
            )
        customer = await get_or_create_gateway_customer(self._sessions, gateway, order.organization_id)
        try:
            card = await gateway.attach_payment_method(order.token, customer, key=f"{order.payment_method_id}:attach")
        except CardDeclined as declined:
            details = {"decline_code": declined.decline_code}
            raise non_retryable_error(ErrorCode.PAYMENT_DECLINED, "The card was declined.", details) from declined
        except GatewayRejected as rejected:
            details = {"gateway_code": rejected.code}
            raise non_retryable_error(
                ErrorCode.VALIDATION_ERROR, "The gateway does not know this payment method.", details
            ) from rejected
        async with self._sessions.begin() as session:
            await payments.lock_payment_methods(session, order.organization_id)
            on_file = await payments.find_payment_method(session, order.gateway, card.reference)
            if on_file is not None:
                return await _keep_on_file(session, on_file, order)
            others = await payments.list_payment_methods(session, order.organization_id)
            default = order.default or not others
            if default:
                await _clear_default(session, others)
            await session.execute(
                insert(PaymentMethod)
                .values(
                    id=order.payment_method_id,
                    organization_id=order.organization_id,
                    gateway=order.gateway,
                    gateway_reference=card.reference,
                    gateway_customer_reference=customer,
                    brand=card.brand,
                    last4=card.last4,
                    exp_month=card.exp_month,
                    exp_year=card.exp_year,
                    fingerprint=card.fingerprint,
                    is_default=default,
                    charge_order=max((other.charge_order for other in others), default=0) + 1,
                    created_at=command.now,
                )
                .on_conflict_do_nothing(index_elements=[PaymentMethod.id])
            )
            method = await session.get_one(PaymentMethod, order.payment_method_id)
            past_due_ids = await list_debtors(session, order.organization_id)
            return AttachOutcome(added=_to_outcome(method), past_due_subscription_ids=past_due_ids)

    @activity.defn(name="payment_methods.set_default")
    @converts_rule_violations
    async def set_default(self, command: SetDefault) -> list[str]:
        order = command.command
        async with self._sessions.begin() as session:
            await payments.lock_payment_methods(session, order.organization_id)
            method = await payments.get_payment_method(session, order.payment_method_id, order.organization_id)
            if method is None:
                raise non_retryable_error(ErrorCode.NOT_FOUND, "Payment method not found.")
            await _clear_default(session, await payments.list_payment_methods(session, order.organization_id))
            method.is_default, method.offered_at = True, func.now()
            await session.flush()
            return await list_debtors(session, order.organization_id)

    @activity.defn(name="payment_methods.remove")
    @converts_rule_violations
    async def remove(self, command: DetachPaymentMethod) -> list[str]:
        order = command.command
        async with self._sessions.begin() as session:
            method = await _lock_own_method(session, order)
            if method.detached_at is None:
                others = [
                    other
                    for other in await payments.list_payment_methods(session, order.organization_id)
                    if other.id != method.id
                ]
                if not others and await list_debtors(session, order.organization_id):
                    raise non_retryable_error(
                        ErrorCode.PAYMENT_METHOD_IN_USE,
                        "The last payment method cannot be removed while an invoice is unpaid. Add another card first.",
                    )
                method.detached_at = command.now
                # The old default must be detached before the new one stands: the database allows one.
                await session.flush()
                if method.is_default and others:
                    others[0].is_default, others[0].promoted_at = True, func.now()
            # A detached default stays marked, so that a repetition returns the same subscriptions.
            return await list_debtors(session, order.organization_id) if method.is_default else []

    @activity.defn(name="payment_methods.detach")
    @converts_rule_violations
    async def detach(self, command: DetachPaymentMethod) -> None:
        async with self._sessions.begin() as session:
            method = await _lock_own_method(session, command.command)
            if method.detached_at is None or method.gateway_detached_at is not None:
                return
            gateway, reference = self._gateways[method.gateway], method.gateway_reference
        await gateway.detach_payment_method(reference)
        async with self._sessions.begin() as session:
            await payments.mark_detached_at_gateway(session, command.command.payment_method_id, command.now)


async def _lock_own_method(session: AsyncSession, order: RemovePaymentMethod) -> PaymentMethod:
    """Lock the organization's payment methods and return the one that is removed.

    Raises:
        ApplicationError: ``NOT_FOUND``.
    """
    await payments.lock_payment_methods(session, order.organization_id)
    method = await session.get(PaymentMethod, order.payment_method_id)
    if method is None or method.organization_id != order.organization_id:
        raise non_retryable_error(ErrorCode.NOT_FOUND, "Payment method not found.")
    return method


async def _keep_on_file(session: AsyncSession, method: PaymentMethod, order: AddPaymentMethod) -> AttachOutcome:
    """Return a card that the organization has saved before, as the default if the order says so.

    Raises:
        ApplicationError: ``VALIDATION_ERROR`` for a card of another organization.
    """
    if method.organization_id != order.organization_id:
        raise non_retryable_error(ErrorCode.VALIDATION_ERROR, "The gateway does not know this payment method.")
    await payments.lock_payment_methods(session, order.organization_id)
    if method.detached_at is not None:
        method.detached_at, method.gateway_detached_at, method.is_default = None, None, False
        await session.flush()
    others = [
        other for other in await payments.list_payment_methods(session, order.organization_id) if other.id != method.id
    ]
    if (order.default or not others) and not method.is_default:
        await _clear_default(session, others)
        method.is_default = True
    method.offered_at = func.now()
    await session.flush()
    past_due_ids = await list_debtors(session, order.organization_id)
    return AttachOutcome(added=_to_outcome(method), past_due_subscription_ids=past_due_ids)


async def _clear_default(session: AsyncSession, methods: Sequence[PaymentMethod]) -> None:
    for method in methods:
        method.is_default = False
    # The old default must be gone before the new one stands: the database allows one.
    await session.flush()


def _to_outcome(method: PaymentMethod) -> PaymentMethodAdded:
    return PaymentMethodAdded(
        payment_method_id=method.id,
        brand=method.brand,
        last4=method.last4,
        expires=method.expires,
        default=method.is_default,
    )
