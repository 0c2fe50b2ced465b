"""What a payment is started with and how it ends. Its activities are declared beside the gateways' needs below."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from workflows.rules.money import Money
from workflows.rules.payment import PaymentStatus


class Purpose(StrEnum):
    """``order``: authorised, captured when the instance is ready. ``invoice``: charged at once. ``top_up``: wallet."""

    TOP_UP = "top_up"
    ORDER = "order"
    INVOICE = "invoice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pay:
    """Start input of the ``Payment`` workflow.

    Attributes:
        payment_id: Also the root of the gateway's idempotency key.
        payment_method_id: A method on file (``pm_…`` of ours), or None.
        token: A gateway's own token for a method that is not on file (``pm_card_visa``); never card data.
        subscription_id, invoice_id: What is paid for, unless it is a top-up.
        business_time: The instant of the subscription's own clock that the payment belongs to; None means now.
        manual_capture: Authorise only; the signals ``capture`` and ``release`` decide.
    """

    payment_id: str
    organization_id: str
    amount: Money
    gateway: str
    purpose: Purpose
    payment_method_id: str | None = None
    token: str | None = None
    subscription_id: str | None = None
    invoice_id: str | None = None
    business_time: datetime | None = None
    manual_capture: bool = False
    actor: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentOutcome:
    """Where a payment stands; also the signal ``payment_moved`` that it sends to the workflow that started it."""

    payment_id: str
    status: PaymentStatus
    decline_code: str | None = None
    redirect_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayEvent:
    """Signal ``gateway_event``: a verified webhook said this about a payment."""

    event_id: str
    gateway: str
    reference: str
    status: PaymentStatus
    amount: Money
    decline_code: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AddPaymentMethod:
    """Start input of ``PaymentMethodSetup``. ``token`` is the gateway's own name of the card, never card data."""

    payment_method_id: str
    organization_id: str
    gateway: str
    token: str
    default: bool
    actor: str
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentMethodAdded:
    payment_method_id: str
    brand: str
    last4: str
    expires: str
    default: bool


class RefundTo(StrEnum):
    SOURCE = "source"
    WALLET = "wallet"


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundOrder:
    """Start input of ``Refund``. ``amount`` None means all that is left."""

    refund_id: str
    payment_id: str
    organization_id: str
    amount: Money | None
    to: RefundTo
    reason: str
    actor: str
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundOutcome:
    refund_id: str
    status: str
    amount: Money
