"""What a verified webhook says about a payment or a refund: each gateway's JSON reduced to the same few facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from workflows.rules.gateway_amounts import from_gateway_amount
from workflows.rules.money import Money
from workflows.rules.payment import PaymentStatus, RefundStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentEvent:
    """An event about a payment.

    Attributes:
        gateway_reference: The gateway's name of the payment.
        payment_id, organization_id: Ours, as the gateway carried them along; None when it did not.
    """

    gateway: str
    event_id: str
    event_type: str
    gateway_reference: str
    status: PaymentStatus
    amount: Money
    payment_id: str | None = None
    organization_id: str | None = None
    decline_code: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundEvent:
    """An event about a refund.

    Attributes:
        gateway_reference: The gateway's name of the refund.
        refund_id: Ours, as the gateway carried it along; None when it did not.
    """

    gateway: str
    event_id: str
    event_type: str
    gateway_reference: str
    status: RefundStatus
    refund_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IgnoredEvent:
    """An event that says nothing new about a payment or a refund. It is recorded and answered, nothing else."""

    gateway: str
    event_id: str
    event_type: str


WebhookEvent = PaymentEvent | RefundEvent | IgnoredEvent


class MalformedWebhook(ValueError):
    """The signature was good, but the body is not what the gateway documents."""


_STRIPE_STATUSES: Mapping[str, PaymentStatus] = {
    "payment_intent.succeeded": PaymentStatus.SUCCEEDED,
    "payment_intent.payment_failed": PaymentStatus.FAILED,
    "payment_intent.canceled": PaymentStatus.CANCELLED,
    "payment_intent.amount_capturable_updated": PaymentStatus.AUTHORIZED,
    "payment_intent.requires_action": PaymentStatus.PENDING,
    "payment_intent.processing": PaymentStatus.PENDING,
}


_STRIPE_REFUND_EVENTS = frozenset({"refund.updated", "refund.failed", "charge.refund.updated"})
"""Their object is the refund."""

STRIPE_REFUND_STATUSES: Mapping[str, RefundStatus] = {
    "succeeded": RefundStatus.SUCCEEDED,
    "pending": RefundStatus.PENDING,
    "requires_action": RefundStatus.PENDING,
    "failed": RefundStatus.FAILED,
    "canceled": RefundStatus.FAILED,
}


def parse_stripe_event(event: Mapping[str, Any]) -> WebhookEvent:
    """Read a Stripe event (API object ``event``).

    Raises:
        MalformedWebhook: a documented field is missing or of another type.
    """
    event_id, kind = _require_text(event, "id"), _require_text(event, "type")
    if kind in _STRIPE_REFUND_EVENTS:
        return _parse_stripe_refund(event, event_id, kind)
    status = _STRIPE_STATUSES.get(kind)
    if status is None:
        return IgnoredEvent(gateway="stripe", event_id=event_id, event_type=kind)
    intent = _require_mapping(_require_mapping(event, "data"), "object")
    metadata = _metadata(intent)
    received = "amount_received" if status is PaymentStatus.SUCCEEDED else "amount"
    error = intent.get("last_payment_error") if status is PaymentStatus.FAILED else None
    return PaymentEvent(
        gateway="stripe",
        event_id=event_id,
        event_type=kind,
        gateway_reference=_require_text(intent, "id"),
        status=status,
        amount=_amount("stripe", _require_integer(intent, received), _require_text(intent, "currency")),
        payment_id=_optional_text(metadata, "berth_payment"),
        organization_id=_optional_text(metadata, "berth_organization"),
        decline_code=(_optional_text(error, "decline_code") or _optional_text(error, "code") or "declined")
        if isinstance(error, Mapping)
        else None,
    )


def _parse_stripe_refund(event: Mapping[str, Any], event_id: str, kind: str) -> RefundEvent:
    refund = _require_mapping(_require_mapping(event, "data"), "object")
    return RefundEvent(
        gateway="stripe",
        event_id=event_id,
        event_type=kind,
        gateway_reference=_require_text(refund, "id"),
        status=STRIPE_REFUND_STATUSES.get(_optional_text(refund, "status") or "pending", RefundStatus.PENDING),
        refund_id=_optional_text(_metadata(refund), "berth_refund"),
    )


def _metadata(source: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = source.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise MalformedWebhook("metadata")
    return metadata


_MIDTRANS_STATUSES: Mapping[str, PaymentStatus] = {
    "settlement": PaymentStatus.SUCCEEDED,
    "pending": PaymentStatus.PENDING,
    "deny": PaymentStatus.FAILED,
    "failure": PaymentStatus.FAILED,
    "expire": PaymentStatus.EXPIRED,
    "cancel": PaymentStatus.CANCELLED,
}


def parse_midtrans_notification(body: Mapping[str, Any]) -> WebhookEvent:
    """Read a Midtrans notification. Its order id is our payment's id; it has no event id, so one is put together.

    ``capture`` counts as paid only when Midtrans' fraud check accepted it.

    Raises:
        MalformedWebhook: a documented field is missing or of another type.
    """
    payment_id, transaction, kind = (
        _require_text(body, "order_id"),
        _require_text(body, "transaction_id"),
        _require_text(body, "transaction_status"),
    )
    event_id = f"{transaction}:{kind}:{_require_text(body, 'status_code')}"
    status = _MIDTRANS_STATUSES.get(kind)
    if kind == "capture":
        status = PaymentStatus.SUCCEEDED if body.get("fraud_status") == "accept" else PaymentStatus.PENDING
    if status is None:
        return IgnoredEvent(gateway="midtrans", event_id=event_id, event_type=kind)
    try:
        amount = Decimal(_require_text(body, "gross_amount"))
    except InvalidOperation as error:
        raise MalformedWebhook("gross_amount") from error
    if not amount.is_finite() or amount != int(amount):
        raise MalformedWebhook("gross_amount")
    return PaymentEvent(
        gateway="midtrans",
        event_id=event_id,
        event_type=kind,
        gateway_reference=transaction,
        status=status,
        amount=_amount("midtrans", int(amount), _optional_text(body, "currency") or "IDR"),
        payment_id=payment_id,
        decline_code=_optional_text(body, "status_message") and kind if status is PaymentStatus.FAILED else None,
    )


_RAZORPAY_STATUSES: Mapping[str, PaymentStatus] = {
    "payment.captured": PaymentStatus.SUCCEEDED,
    "payment.authorized": PaymentStatus.AUTHORIZED,
    "payment.failed": PaymentStatus.FAILED,
}


def parse_razorpay_event(body: Mapping[str, Any], event_id: str) -> WebhookEvent:
    """Read a Razorpay webhook; ``event_id`` is its header ``x-razorpay-event-id``.

    Raises:
        MalformedWebhook: a documented field is missing or of another type.
    """
    if not event_id:
        raise MalformedWebhook("x-razorpay-event-id")
    kind = _require_text(body, "event")
    status = _RAZORPAY_STATUSES.get(kind)
    if status is None:
        return IgnoredEvent(gateway="razorpay", event_id=event_id, event_type=kind)
    entity = _require_mapping(_require_mapping(_require_mapping(body, "payload"), "payment"), "entity")
    notes = entity.get("notes") or {}
    if not isinstance(notes, Mapping):
        raise MalformedWebhook("notes")
    return PaymentEvent(
        gateway="razorpay",
        event_id=event_id,
        event_type=kind,
        gateway_reference=_require_text(entity, "id"),
        status=status,
        amount=_amount("razorpay", _require_integer(entity, "amount"), _require_text(entity, "currency")),
        payment_id=_optional_text(notes, "berth_payment"),
        organization_id=_optional_text(notes, "berth_organization"),
        decline_code=_optional_text(entity, "error_code") if status is PaymentStatus.FAILED else None,
    )


def _amount(gateway: str, amount: int, currency: str) -> Money:
    try:
        return from_gateway_amount(gateway, amount, currency)
    except ValueError as error:
        raise MalformedWebhook("amount") from error


def _require_mapping(source: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = source.get(name)
    if not isinstance(value, Mapping):
        raise MalformedWebhook(name)
    return value


def _require_text(source: Mapping[str, Any], name: str) -> str:
    value = source.get(name)
    if not isinstance(value, str) or not value:
        raise MalformedWebhook(name)
    return value


def _optional_text(source: Mapping[str, Any], name: str) -> str | None:
    value = source.get(name)
    return value if isinstance(value, str) and value else None


def _require_integer(source: Mapping[str, Any], name: str) -> int:
    value = source.get(name)
    if type(value) is not int:
        raise MalformedWebhook(name)
    return value
