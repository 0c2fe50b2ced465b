"""Giving money back: reserved of its payment under a lock, then sent, then recorded."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession
from temporalio import activity

from activities.gateways.base import Gateway, RefundSeen, RefundStatus, Rejected
from db.models.payments import Payment, Refund
from db.queries import ledger, outbox, payments
from db.queries.outbox import Notice
from db.queries.payments import RefundRecord
from db.session import Sessions
from workflows.ports.payments import GiveBack, Purpose, RefundOrder, RefundOutcome, Refunds, RefundTo, Reserve
from workflows.refusals import refusal_of, refuse
from workflows.rules import ledger as accounts
from workflows.rules.errors import Refusal, RuleBroken
from workflows.rules.ids import derived
from workflows.rules.ledger import Account, Kind, Posting, clearing, posting
from workflows.rules.money import Money, zero
from workflows.rules.notices import NoticeKind
from workflows.rules.payment import PaymentStatus

REFUNDABLE = (PaymentStatus.SUCCEEDED, PaymentStatus.PARTIALLY_REFUNDED, PaymentStatus.REFUNDED)


class RefundActivities(Refunds):
    def __init__(self, sessions: Sessions, gateways: Mapping[str, Gateway]) -> None:
        self._sessions = sessions
        self._gateways = gateways

    @activity.defn(name="refunds.reserve")
    async def reserve(self, command: Reserve) -> RefundOutcome:
        order, now = command.order, command.now
        try:
            async with self._sessions.begin() as session:
                # The payment's lock lets its refunds decide one after the other.
                payment = await payments.lock(session, order.payment_id)
                if payment is None or payment.organization_id != order.organization_id:
                    raise RuleBroken(Refusal.NOT_FOUND, "There is no such payment.")
                known = await session.get(Refund, order.refund_id)
                if known is not None:
                    return _outcome(known)
                amount = _refundable(payment, order)
                in_wallet = payment.purpose == Purpose.TOP_UP or await payments.went_to_wallet(session, payment)
                refund = _refund(order, amount, now)
                session.add(refund)
                payment.refunded_minor += amount.amount_minor
                await session.flush()
                if order.to is RefundTo.WALLET:
                    if in_wallet:
                        raise RuleBroken(Refusal.CONFLICT, "The money of this payment is in the wallet already.")
                    await _post(session, refund, accounts.refund_to_wallet(amount), "refund", now)
                    await _succeed(session, RefundRecord(refund=refund, payment=payment), now)
                elif in_wallet:
                    # Set aside now: what is on its way back cannot be spent meanwhile.
                    aside = accounts.hold(promotional=zero(amount.currency), wallet=amount)
                    await _post(session, refund, aside, "hold", now)
                return _outcome(refund)
        except RuleBroken as broken:
            raise refusal_of(broken) from broken

    @activity.defn(name="refunds.give_back")
    async def give_back(self, command: GiveBack) -> RefundOutcome:
        async with self._sessions.begin() as session:
            record = await payments.lock_refund(session, command.refund_id)
            if record is None:
                raise refuse(Refusal.NOT_FOUND, "There is no such refund.")
            refund, payment = record.refund, record.payment
        if refund.status != RefundStatus.PENDING:
            return _outcome(refund)
        gateway = self._gateways.get(payment.gateway)
        seen = await _ask(gateway, refund, payment)
        async with self._sessions.begin() as session:
            record = await payments.lock_refund(session, command.refund_id)
            assert record is not None  # refunds are never deleted
            await self._record(session, record, seen, command.now)
            return _outcome(record.refund)

    async def _record(self, session: AsyncSession, record: RefundRecord, seen: RefundSeen, now: datetime) -> None:
        refund, payment = record.refund, record.payment
        if refund.status != RefundStatus.PENDING:
            return
        refund.gateway_reference = seen.reference or None
        amount = _amount(refund)
        in_wallet = payment.purpose == Purpose.TOP_UP or await payments.went_to_wallet(session, payment)
        if seen.status is RefundStatus.SUCCEEDED:
            back = _from_held(payment.gateway, amount) if in_wallet else _of_charge(payment.gateway, amount)
            await _post(session, refund, back, "refund", now)
            await _succeed(session, record, now)
        elif seen.status is RefundStatus.FAILED:
            refund.status, refund.updated_at = RefundStatus.FAILED.value, now
            refund.failure_code = seen.failure_code
            payment.refunded_minor -= refund.amount_minor
            if in_wallet:
                returned = accounts.release(promotional=zero(amount.currency), wallet=amount)
                await _post(session, refund, returned, "release", now)
            await _ask_for_payout(session, record, now)


async def _ask(gateway: Gateway | None, refund: Refund, payment: Payment) -> RefundSeen:
    """Ask for the refund, or for what became of it; a refusal for good is a refund that failed."""
    failed = RefundSeen(reference="", status=RefundStatus.FAILED, failure_code="not_refundable")
    if gateway is None or not gateway.capabilities.refund or payment.gateway_reference is None:
        return failed
    try:
        if refund.gateway_reference is not None:
            return await gateway.retrieve_refund(refund.gateway_reference)
        return await gateway.refund(
            payment.gateway_reference, _amount(refund), refund_id=refund.id, key=refund.idempotency_key
        )
    except Rejected as rejected:
        return RefundSeen(reference="", status=RefundStatus.FAILED, failure_code=rejected.code)


def _refundable(payment: Payment, order: RefundOrder) -> Money:
    """Return how much is to be refunded.

    Raises:
        RuleBroken: ``CONFLICT``, ``CURRENCY_MISMATCH``, ``VALIDATION_ERROR``, ``REFUND_EXCEEDS_PAYMENT``.
    """
    if payment.status not in REFUNDABLE:
        raise RuleBroken(Refusal.CONFLICT, f"A payment that is {payment.status} has nothing to refund.")
    left = Money(amount_minor=payment.captured_minor - payment.refunded_minor, currency=payment.currency)
    wanted = left if order.amount is None else order.amount
    if wanted.currency != payment.currency:
        raise RuleBroken(Refusal.CURRENCY_MISMATCH, f"The payment is in {payment.currency}.")
    if order.amount is not None and wanted.amount_minor <= 0:
        raise RuleBroken(Refusal.VALIDATION_ERROR, "A refund is positive.")
    if not left or wanted > left:
        raise RuleBroken(
            Refusal.REFUND_EXCEEDS_PAYMENT,
            "No more can be refunded than was received and not refunded yet.",
            {"left_minor": str(left.amount_minor), "currency": left.currency},
        )
    return wanted


def _refund(order: RefundOrder, amount: Money, now: datetime) -> Refund:
    return Refund(
        id=order.refund_id,
        organization_id=order.organization_id,
        payment_id=order.payment_id,
        amount_minor=amount.amount_minor,
        currency=amount.currency,
        to=order.to.value,
        status=RefundStatus.PENDING.value,
        reason=order.reason,
        actor=order.actor,
        idempotency_key=f"refund:{order.refund_id}",
        created_at=now,
        updated_at=now,
    )


def _from_held(gateway: str, amount: Money) -> Posting:
    return posting(Kind.REFUND, (Account.HELD, -amount), (clearing(gateway), amount))


def _of_charge(gateway: str, amount: Money) -> Posting:
    return accounts.refund_of_charge(gateway, amount)


async def _post(session: AsyncSession, refund: Refund, what: Posting, step: str, now: datetime) -> None:
    key = f"refund/{refund.id}/{step}"
    await ledger.post(
        session,
        what,
        transaction_id=derived("tx", key),
        organization_id=refund.organization_id,
        at=now,
        ref=refund.payment_id,
        description="Refund" if step == "refund" else "Refund, set aside" if step == "hold" else "Refund, returned",
        idempotency_key=key,
    )


async def _succeed(session: AsyncSession, record: RefundRecord, now: datetime) -> None:
    refund, payment = record.refund, record.payment
    refund.status, refund.updated_at = RefundStatus.SUCCEEDED.value, now
    await session.flush()
    whole = await payments.refunded(session, payment.id) == payment.captured_minor
    if payment.status in REFUNDABLE:
        payment.status = (PaymentStatus.REFUNDED if whole else PaymentStatus.PARTIALLY_REFUNDED).value
    payment.updated_at = max(now, payment.updated_at)
    await payments.tell(
        session,
        payment,
        kind="refund.succeeded",
        message=f"A refund went to the {'wallet' if refund.to == RefundTo.WALLET else 'card'}.",
        at=now,
        ref=refund.id,
    )
    await outbox.enqueue(
        session,
        Notice(
            organization_id=refund.organization_id,
            user_id=None,
            kind=NoticeKind.REFUND_SUCCEEDED,
            fact=f"refund:{refund.id}:succeeded",
            context={
                "amount": {"amount_minor": refund.amount_minor, "currency": refund.currency},
                "to": refund.to,
                "payment_id": payment.id,
            },
            at=now,
        ),
    )


async def _ask_for_payout(session: AsyncSession, record: RefundRecord, now: datetime) -> None:
    """The gateway cannot give it back: a person has to pay it out or credit it."""
    refund, payment = record.refund, record.payment
    activity.logger.error("refund %s failed: %s", refund.id, refund.failure_code)
    alert = outbox.operator_alert(
        f"refund:{refund.id}:failed",
        now,
        f"Refund {refund.id} cannot go back to its source",
        f"{payment.gateway} says {refund.failure_code}. Pay it out otherwise, or credit the wallet.",
        severity="warning",
        payment_id=payment.id,
    )
    await outbox.enqueue(session, alert)


def _amount(refund: Refund) -> Money:
    return Money(amount_minor=refund.amount_minor, currency=refund.currency)


def _outcome(refund: Refund) -> RefundOutcome:
    return RefundOutcome(refund_id=refund.id, status=refund.status, amount=_amount(refund))
