"""What a verified webhook says about a payment: each gateway's JSON reduced to the same few facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from workflows.rules.gateway_amounts import from_gateway
from workflows.rules.money import Money
from workflows.rules.payment import PaymentStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentFact:
    """An event about a payment.

    Attributes:
        reference: The gateway's name of the payment.
        payment_id, organization_id: Ours, as the gateway carried them along; None when it did not.
    """

    gateway: str
    event_id: str
    kind: str
    reference: str
    status: PaymentStatus
    amount: Money
    payment_id: str | None = None
    organization_id: str | None = None
    decline_code: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Irrelevant:
    """An event that says nothing new about a payment. It is recorded and answered, nothing else."""

    gateway: str
    event_id: str
    kind: str


GatewayMessage = PaymentFact | Irrelevant


class Malformed(ValueError):
    """The signature was good, but the body is not what the gateway documents."""


_STRIPE: Mapping[str, PaymentStatus] = {
    "payment_intent.succeeded": PaymentStatus.SUCCEEDED,
    "payment_intent.payment_failed": PaymentStatus.FAILED,
    "payment_intent.canceled": PaymentStatus.CANCELLED,
    "payment_intent.amount_capturable_updated": PaymentStatus.AUTHORIZED,
    "payment_intent.requires_action": PaymentStatus.PENDING,
    "payment_intent.processing": PaymentStatus.PENDING,
}


def stripe(event: Mapping[str, Any]) -> GatewayMessage:
    """Read a Stripe event (API object ``event``).

    Raises:
        Malformed: a documented field is missing or of another type.
    """
    event_id, kind = _text(event, "id"), _text(event, "type")
    status = _STRIPE.get(kind)
    if status is None:
        return Irrelevant(gateway="stripe", event_id=event_id, kind=kind)
    intent = _mapping(_mapping(event, "data"), "object")
    metadata = intent.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise Malformed("metadata")
    received = "amount_received" if status is PaymentStatus.SUCCEEDED else "amount"
    error = intent.get("last_payment_error") if status is PaymentStatus.FAILED else None
    return PaymentFact(
        gateway="stripe",
        event_id=event_id,
        kind=kind,
        reference=_text(intent, "id"),
        status=status,
        amount=_amount("stripe", _integer(intent, received), _text(intent, "currency")),
        payment_id=_optional(metadata, "berth_payment"),
        organization_id=_optional(metadata, "berth_organization"),
        decline_code=(_optional(error, "decline_code") or _optional(error, "code") or "declined")
        if isinstance(error, Mapping)
        else None,
    )


_MIDTRANS: Mapping[str, PaymentStatus] = {
    "settlement": PaymentStatus.SUCCEEDED,
    "pending": PaymentStatus.PENDING,
    "deny": PaymentStatus.FAILED,
    "failure": PaymentStatus.FAILED,
    "expire": PaymentStatus.EXPIRED,
    "cancel": PaymentStatus.CANCELLED,
}


def midtrans(body: Mapping[str, Any]) -> GatewayMessage:
    """Read a Midtrans notification. Its order id is our payment's id; it has no event id, so one is put together.

    ``capture`` counts as paid only when Midtrans' fraud check accepted it.

    Raises:
        Malformed: a documented field is missing or of another type.
    """
    order_id, transaction, kind = (
        _text(body, "order_id"),
        _text(body, "transaction_id"),
        _text(body, "transaction_status"),
    )
    event_id = f"{transaction}:{kind}:{_text(body, 'status_code')}"
    status = _MIDTRANS.get(kind)
    if kind == "capture":
        status = PaymentStatus.SUCCEEDED if body.get("fraud_status") == "accept" else PaymentStatus.PENDING
    if status is None:
        return Irrelevant(gateway="midtrans", event_id=event_id, kind=kind)
    try:
        whole = Decimal(_text(body, "gross_amount"))
    except InvalidOperation as error:
        raise Malformed("gross_amount") from error
    if not whole.is_finite() or whole != int(whole):
        raise Malformed("gross_amount")
    return PaymentFact(
        gateway="midtrans",
        event_id=event_id,
        kind=kind,
        reference=transaction,
        status=status,
        amount=_amount("midtrans", int(whole), _optional(body, "currency") or "IDR"),
        payment_id=order_id,
        decline_code=_optional(body, "status_message") and kind if status is PaymentStatus.FAILED else None,
    )


_RAZORPAY: Mapping[str, PaymentStatus] = {
    "payment.captured": PaymentStatus.SUCCEEDED,
    "payment.authorized": PaymentStatus.AUTHORIZED,
    "payment.failed": PaymentStatus.FAILED,
}


def razorpay(body: Mapping[str, Any], event_id: str) -> GatewayMessage:
    """Read a Razorpay webhook; ``event_id`` is its header ``x-razorpay-event-id``.

    Raises:
        Malformed: a documented field is missing or of another type.
    """
    if not event_id:
        raise Malformed("x-razorpay-event-id")
    kind = _text(body, "event")
    status = _RAZORPAY.get(kind)
    if status is None:
        return Irrelevant(gateway="razorpay", event_id=event_id, kind=kind)
    entity = _mapping(_mapping(_mapping(body, "payload"), "payment"), "entity")
    notes = entity.get("notes") or {}
    if not isinstance(notes, Mapping):
        raise Malformed("notes")
    return PaymentFact(
        gateway="razorpay",
        event_id=event_id,
        kind=kind,
        reference=_text(entity, "id"),
        status=status,
        amount=_amount("razorpay", _integer(entity, "amount"), _text(entity, "currency")),
        payment_id=_optional(notes, "berth_payment"),
        organization_id=_optional(notes, "berth_organization"),
        decline_code=_optional(entity, "error_code") if status is PaymentStatus.FAILED else None,
    )


def _amount(gateway: str, amount: int, currency: str) -> Money:
    try:
        return from_gateway(gateway, amount, currency)
    except ValueError as error:
        raise Malformed("amount") from error


def _mapping(source: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = source.get(name)
    if not isinstance(value, Mapping):
        raise Malformed(name)
    return value


def _text(source: Mapping[str, Any], name: str) -> str:
    value = source.get(name)
    if not isinstance(value, str) or not value:
        raise Malformed(name)
    return value


def _optional(source: Mapping[str, Any], name: str) -> str | None:
    value = source.get(name)
    return value if isinstance(value, str) and value else None


def _integer(source: Mapping[str, Any], name: str) -> int:
    value = source.get(name)
    if type(value) is not int:
        raise Malformed(name)
    return value
