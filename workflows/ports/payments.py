"""What payments, cards on file and refunds are started with, what they ask of activities, and how they end.

Activities that write are one transaction; those that ask a gateway hold none open meanwhile. Every one may run any
number of times. ``now`` is business time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from temporalio import activity

from workflows.rules.gateway_events import PaymentFact
from workflows.rules.money import Money
from workflows.rules.payment import Facts, PaymentStatus


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


def pay_of(facts: Facts) -> Pay:
    """Return the start input of a payment that is on record, to resume it."""
    return Pay(
        payment_id=facts.payment_id,
        organization_id=facts.organization_id,
        amount=facts.amount,
        gateway=facts.gateway,
        purpose=Purpose(facts.purpose),
        payment_method_id=facts.payment_method_id,
        subscription_id=facts.subscription_id,
        invoice_id=facts.invoice_id,
        business_time=facts.created_at,
        manual_capture=facts.purpose == Purpose.ORDER,
        actor="gateway",
    )


def event_of(fact: PaymentFact) -> GatewayEvent:
    """Return the signal for what a webhook said."""
    return GatewayEvent(
        event_id=fact.event_id,
        gateway=fact.gateway,
        reference=fact.reference,
        status=fact.status,
        amount=fact.amount,
        decline_code=fact.decline_code,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a payment stands after an activity.

    Attributes:
        indebted: Subscriptions that are to be told that funds arrived, the oldest debt first.
        late: It succeeded after it had ended otherwise; the money is in the wallet and nothing waits for it.
        stray: The gateway has authorised what is no longer wanted; it has to be withdrawn there.
    """

    outcome: PaymentOutcome
    indebted: list[str] = field(default_factory=list)
    late: bool = False
    stray: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    pay: Pay
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquire:
    """``abandoned``: nobody waits for this payment any more, so it must not be charged and late money is credit."""

    pay: Pay
    abandoned: bool
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Hear:
    """Apply what a webhook said."""

    payment_id: str
    event: GatewayEvent
    abandoned: bool
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    payment_id: str
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdraw:
    """Cancel at the gateway; ``ends_as`` is ``cancelled`` or ``expired``."""

    payment_id: str
    ends_as: PaymentStatus
    now: datetime


class Payments(Protocol):
    """A payment's records and its gateway. ``Progress`` is the same however often the same is asked."""

    @activity.defn(name="payments.charge")
    async def charge(self, command: Charge) -> Progress:
        """Record the payment, create it at the gateway, record the outcome.

        Raises (non-retryable): ``NOT_FOUND`` for the payment method, ``CONFLICT`` when another payment of the invoice
        is in flight. A gateway that does not answer raises and is retried with the same key.
        """
        ...

    @activity.defn(name="payments.inquire")
    async def inquire(self, command: Inquire) -> Progress:
        """Ask the gateway for the payment's state and record it."""
        ...

    @activity.defn(name="payments.hear")
    async def hear(self, command: Hear) -> Progress:
        """Apply a gateway's event; one that contradicts the payment moves nothing and alerts.

        Raises (non-retryable): ``NOT_FOUND``.
        """
        ...

    @activity.defn(name="payments.capture")
    async def capture(self, command: Capture) -> Progress:
        """Take what was authorised."""
        ...

    @activity.defn(name="payments.withdraw")
    async def withdraw(self, command: Withdraw) -> Progress:
        """Cancel at the gateway, or record that the money was faster."""
        ...

    @activity.defn(name="payments.lose_sight")
    async def lose_sight(self, command: Charge) -> Progress:
        """The gateway's answer stayed out: ``unknown`` until it is heard."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    order: AddPaymentMethod
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    added: PaymentMethodAdded
    indebted: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovePaymentMethod:
    """Start input of ``PaymentMethodRemoval``."""

    payment_method_id: str
    organization_id: str
    actor: str
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detach:
    order: RemovePaymentMethod
    now: datetime


class PaymentMethods(Protocol):
    @activity.defn(name="payment_methods.attach")
    async def attach(self, command: Attach) -> Attached:
        """Save a card at its gateway and on file; an account's first one becomes the default.

        Raises (non-retryable): ``PAYMENT_DECLINED``, ``VALIDATION_ERROR`` for a token that the gateway does not know.
        """
        ...

    @activity.defn(name="payment_methods.detach")
    async def detach(self, command: Detach) -> None:
        """Take a card off file, then forget it at its gateway.

        Raises (non-retryable): ``NOT_FOUND``, ``PAYMENT_METHOD_IN_USE`` for the last one while a debt is open.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    order: RefundOrder
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveBack:
    refund_id: str
    now: datetime


class Refunds(Protocol):
    @activity.defn(name="refunds.reserve")
    async def reserve(self, command: Reserve) -> RefundOutcome:
        """Reserve the amount of its payment, once per refund; a refund to the wallet is done with that.

        Raises (non-retryable): ``NOT_FOUND``, ``REFUND_EXCEEDS_PAYMENT``, ``INSUFFICIENT_FUNDS`` when a top-up was
        spent, ``CONFLICT`` when the payment has not been received or its money is in the wallet already.
        """
        ...

    @activity.defn(name="refunds.give_back")
    async def give_back(self, command: GiveBack) -> RefundOutcome:
        """Have the gateway send the money back and record what it says: ``succeeded``, ``failed`` or ``pending``."""
        ...
