"""What a payment does: at its gateway, outside of any transaction, and in the books, inside of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from temporalio import activity

from activities import settlement
from activities.gateways.base import ChargeRequest, Gateway, Rejected
from activities.settlement import Source
from db.models.payments import Payment
from db.queries import payments
from db.session import Sessions
from workflows import names
from workflows.ports.payments import (
    Capture,
    Charge,
    Hear,
    Inquire,
    Pay,
    Payments,
    Progress,
    Purpose,
    Withdraw,
)
from workflows.refusals import refusal_of, refuse
from workflows.rules.errors import Refusal, RuleBroken
from workflows.rules.payment import CLOSED, RECEIVED, PaymentStatus, Seen

ENDED = RECEIVED | CLOSED


class PaymentActivities(Payments):
    def __init__(self, sessions: Sessions, gateways: Mapping[str, Gateway]) -> None:
        self._sessions = sessions
        self._gateways = gateways

    @activity.defn(name="payments.charge")
    async def charge(self, command: Charge) -> Progress:
        pay = command.pay
        payment, known = await self._open(command)
        undecided = payment.status in (PaymentStatus.CREATED, PaymentStatus.PENDING, PaymentStatus.UNKNOWN)
        if not undecided or payment.gateway_reference is not None:
            return known
        if pay.gateway not in self._gateways:
            return await self._close(pay.payment_id, PaymentStatus.FAILED, "gateway_unavailable", command.now)
        return await self._charge(pay, payment, command.now, abandoned=False)

    @activity.defn(name="payments.inquire")
    async def inquire(self, command: Inquire) -> Progress:
        pay, now = command.pay, command.now
        async with self._sessions.begin() as session:
            payment = await payments.lock(session, pay.payment_id)
            if payment is None:
                raise refuse(Refusal.NOT_FOUND, "There is no such payment.")
            known = await settlement.progress(session, payment)
            key_is_kept = await payments.key_is_kept(session, payment)
            customer = await payments.customer(session, payment.organization_id, payment.gateway)
        if payment.status in ENDED:
            return known
        gateway = self._gateways[payment.gateway]
        if payment.gateway_reference is not None:
            seen: Seen | None = await gateway.retrieve(payment.gateway_reference)
        else:
            seen = await gateway.find(payment.id, customer) if customer is not None else None
        if seen is not None:
            return await self._record(payment, seen, abandoned=command.abandoned, now=now)
        # The gateway has never seen it. While it keeps the key, asking again can only charge once.
        if command.abandoned:
            return await self._close(payment.id, PaymentStatus.CANCELLED, None, now)
        if not key_is_kept:
            return await self._close(payment.id, PaymentStatus.FAILED, "never_reached_gateway", now)
        if pay.token is None and pay.payment_method_id is None:
            return known
        return await self._charge(pay, payment, now, abandoned=False)

    @activity.defn(name="payments.hear")
    async def hear(self, command: Hear) -> Progress:
        event = command.event
        async with self._sessions.begin() as session:
            payment = await payments.lock(session, command.payment_id)
            if payment is None:
                raise refuse(Refusal.NOT_FOUND, "There is no such payment.")
            seen = Seen(
                reference=event.reference,
                status=event.status,
                amount=event.amount,
                decline_code=event.decline_code,
                redirect_url=payment.redirect_url,
            )
            source = Source(gateway=event.gateway, event_id=event.event_id)
            return await settlement.apply(
                session, payment, seen, source=source, abandoned=command.abandoned, now=command.now
            )

    @activity.defn(name="payments.capture")
    async def capture(self, command: Capture) -> Progress:
        payment, known = await self._load(command.payment_id)
        if payment.status in ENDED or payment.gateway_reference is None:
            return known
        key = f"{payment.idempotency_key}:capture"
        seen = await self._gateways[payment.gateway].capture(payment.gateway_reference, key=key)
        if seen.status is PaymentStatus.CANCELLED:
            # The authorisation lapsed before it was used: for whoever waits, the card did not pay.
            seen = replace(seen, status=PaymentStatus.FAILED, decline_code="authorization_expired")
        return await self._record(payment, seen, abandoned=False, now=command.now)

    @activity.defn(name="payments.withdraw")
    async def withdraw(self, command: Withdraw) -> Progress:
        payment, known = await self._load(command.payment_id)
        if payment.status in RECEIVED:
            return known
        reference = payment.gateway_reference
        if reference is None:
            return known
        gateway = self._gateways[payment.gateway]
        seen = await gateway.cancel(reference, key=f"{payment.idempotency_key}:cancel")
        if seen.status is PaymentStatus.CANCELLED:
            seen = replace(seen, status=command.ends_as)
        return await self._record(payment, seen, abandoned=True, now=command.now)

    @activity.defn(name="payments.lose_sight")
    async def lose_sight(self, command: Charge) -> Progress:
        payment, known = await self._open(command)
        if payment.status in ENDED:
            return known
        return await self._close(payment.id, PaymentStatus.UNKNOWN, None, command.now)

    async def _open(self, command: Charge) -> tuple[Payment, Progress]:
        """Put the payment on record before its gateway hears of it."""
        pay, now = command.pay, command.now
        try:
            async with self._sessions.begin() as session:
                if pay.payment_method_id is not None and await payments.lock(session, pay.payment_id) is None:
                    method = await payments.method(session, pay.payment_method_id, pay.organization_id)
                    if method is None or method.gateway != pay.gateway:
                        raise RuleBroken(Refusal.NOT_FOUND, "There is no such payment method.")
                payment = await payments.open_or_lock(session, _row(pay, now))
                return payment, await settlement.progress(session, payment)
        except RuleBroken as broken:
            raise refusal_of(broken) from broken

    async def _charge(self, pay: Pay, payment: Payment, now: datetime, *, abandoned: bool) -> Progress:
        gateway = self._gateways[payment.gateway]
        customer = await self._customer(gateway, payment.organization_id)
        method = await self._method(pay)
        if method is None:
            return await self._close(payment.id, PaymentStatus.FAILED, "payment_method_unavailable", now)
        request = ChargeRequest(
            key=payment.idempotency_key,
            payment_id=payment.id,
            organization_id=payment.organization_id,
            amount=payments.amount_of(payment),
            customer=customer,
            method=method,
            # A customer who tops up is there to authenticate; a renewal or an order happens without them.
            off_session=pay.payment_method_id is not None and pay.purpose is not Purpose.TOP_UP,
            manual_capture=pay.manual_capture,
        )
        try:
            seen = await gateway.charge(request)
        except Rejected as rejected:
            activity.logger.warning("%s rejects payment %s: %s", payment.gateway, payment.id, rejected.code)
            return await self._close(payment.id, PaymentStatus.FAILED, rejected.code, now)
        return await self._record(payment, seen, abandoned=abandoned, now=now)

    async def _customer(self, gateway: Gateway, organization_id: str) -> str:
        return await customer_of(self._sessions, gateway, organization_id)

    async def _method(self, pay: Pay) -> str | None:
        if pay.payment_method_id is None:
            return pay.token
        async with self._sessions.begin() as session:
            method = await payments.method(session, pay.payment_method_id, pay.organization_id)
            return method.reference if method is not None else None

    async def _load(self, payment_id: str) -> tuple[Payment, Progress]:
        async with self._sessions.begin() as session:
            payment = await payments.lock(session, payment_id)
            if payment is None:
                raise refuse(Refusal.NOT_FOUND, "There is no such payment.")
            return payment, await settlement.progress(session, payment)

    async def _record(self, payment: Payment, seen: Seen, *, abandoned: bool, now: datetime) -> Progress:
        async with self._sessions.begin() as session:
            locked = await payments.lock(session, payment.id)
            assert locked is not None  # payments are never deleted
            source = Source(gateway=payment.gateway)
            return await settlement.apply(session, locked, seen, source=source, abandoned=abandoned, now=now)

    async def _close(self, payment_id: str, status: PaymentStatus, decline_code: str | None, now: datetime) -> Progress:
        async with self._sessions.begin() as session:
            locked = await payments.lock(session, payment_id)
            assert locked is not None  # payments are never deleted
            return await settlement.close(session, locked, status=status, decline_code=decline_code, now=now)


async def customer_of(sessions: Sessions, gateway: Gateway, organization_id: str) -> str:
    """Return the gateway's name of the organisation, made at the first need; no transaction is open meanwhile."""
    async with sessions.begin() as session:
        known = await payments.customer(session, organization_id, gateway.name)
    if known is not None:
        return known
    made = await gateway.create_customer(organization_id, key=f"customer:{organization_id}")
    async with sessions.begin() as session:
        return await payments.remember_customer(session, organization_id, gateway.name, made)


def _row(pay: Pay, now: datetime) -> dict[str, object]:
    return {
        "id": pay.payment_id,
        "organization_id": pay.organization_id,
        "subscription_id": pay.subscription_id,
        "invoice_id": pay.invoice_id,
        "purpose": pay.purpose.value,
        "gateway": pay.gateway,
        "payment_method_id": pay.payment_method_id,
        "amount_minor": pay.amount.amount_minor,
        "currency": pay.amount.currency,
        "status": PaymentStatus.PENDING.value,
        # One attempt per payment: a new attempt is a new payment.
        "idempotency_key": f"{pay.payment_id}:1",
        "workflow_id": names.payment_workflow(pay.payment_id),
        "created_at": now,
        "updated_at": now,
    }
