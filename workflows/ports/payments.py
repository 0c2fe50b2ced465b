"""What payments and cards on file are started with, what they ask of activities, and how they end.

Activities that write are one transaction; those that ask a gateway hold none open meanwhile. Every one may run any
number of times. ``now`` is business time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from temporalio import activity

from workflows.rules.money import Money
from workflows.rules.payment import PaymentRecord, PaymentStatus
from workflows.rules.webhook_events import PaymentEvent


class Purpose(StrEnum):
    """``order``: authorized, captured when the instance is ready. ``invoice``: charged at once. ``top_up``: wallet."""

    TOP_UP = "top_up"
    ORDER = "order"
    INVOICE = "invoice"


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentInput:
    """Start input of the ``Payment`` workflow.

    Attributes:
        payment_id: Also the root of the gateway's idempotency key.
        payment_method_id: A method on file (``pm_…`` of ours), or None.
        gateway_token: A gateway's own token for a method that is not on file (``pm_card_visa``); never card data.
        subscription_id, invoice_id: What is paid for, unless it is a top-up.
        business_time: The instant of the subscription's own clock that the payment belongs to; None means now.
        is_recorded: A payment of a lost workflow, or of a webhook: the gateway is asked for it before it is charged.
        manual_capture: Authorize only; the signals ``capture`` and ``cancel_authorization`` decide.
    """

    payment_id: str
    organization_id: str
    amount: Money
    gateway: str
    purpose: Purpose
    payment_method_id: str | None = None
    gateway_token: str | None = None
    subscription_id: str | None = None
    invoice_id: str | None = None
    business_time: datetime | None = None
    manual_capture: bool = False
    is_recorded: bool = False
    actor: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentOutcome:
    """Status of a payment; also the payload of the signal ``payment_status_changed`` to its parent workflow."""

    payment_id: str
    status: PaymentStatus
    decline_code: str | None = None
    redirect_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayEvent:
    """Signal ``gateway_event``: a verified webhook said this about a payment."""

    event_id: str
    gateway: str
    gateway_reference: str
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
    expires: str | None
    default: bool


def payment_input_from_record(facts: PaymentRecord) -> PaymentInput:
    """Return the start input of a payment that is on record, to resume it."""
    return PaymentInput(
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
        is_recorded=True,
        actor="gateway",
    )


def to_gateway_event(fact: PaymentEvent) -> GatewayEvent:
    """Return the signal for what a webhook said."""
    return GatewayEvent(
        event_id=fact.event_id,
        gateway=fact.gateway,
        gateway_reference=fact.gateway_reference,
        status=fact.status,
        amount=fact.amount,
        decline_code=fact.decline_code,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentProgress:
    """Where a payment stands after an activity.

    Attributes:
        past_due_subscription_ids: Subscriptions to signal that funds arrived, the oldest debt first.
        received_after_close: It succeeded after it had ended otherwise; the money is in the wallet and nothing
            waits for it.
        has_unwanted_authorization: The gateway has authorized an abandoned payment; the authorization has to be
            voided there.
    """

    outcome: PaymentOutcome
    past_due_subscription_ids: list[str] = field(default_factory=list)
    received_after_close: bool = False
    has_unwanted_authorization: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargePayment:
    input: PaymentInput
    now: datetime


class Requester(StrEnum):
    """Where the workflow stands that ordered a payment; of a top-up, the customer.

    ``waiting``: it awaits this run of the payment. ``withdrawn``: it awaited this run, and needs the payment no more.
    ``absent``: a webhook or the reconciliation started this run. The workflow that ordered the payment has ended, or it
    runs and awaits another run of this payment, which an operator terminated.
    """

    WAITING = "waiting"
    WITHDRAWN = "withdrawn"
    ABSENT = "absent"

    @property
    def abandons_payment(self) -> bool:
        """Whether the payment must not be charged, and late money becomes wallet credit.

        The first invoice of an order may expect the payment nevertheless (``order_payments.is_capture_expected``).
        """
        return self is not Requester.WAITING


@dataclass(frozen=True, slots=True, kw_only=True)
class PollPayment:
    """Ask the gateway where the payment stands."""

    input: PaymentInput
    requester: Requester
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyGatewayEvent:
    """Apply the status that a webhook reports."""

    payment_id: str
    event: GatewayEvent
    requester: Requester
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturePayment:
    payment_id: str
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelPayment:
    """Cancel at the gateway; ``final_status`` is ``cancelled`` or ``expired``.

    Attributes:
        requester: While it is absent, an authorization that an order needs is kept.
    """

    payment_id: str
    final_status: PaymentStatus
    requester: Requester
    now: datetime


class PaymentActivities(Protocol):
    """A payment's records and its gateway. A repeated command returns the same progress."""

    @activity.defn(name="payments.charge")
    async def charge(self, command: ChargePayment) -> PaymentProgress:
        """Record the payment, create it at the gateway, record the outcome.

        Raises (non-retryable): ``NOT_FOUND`` for the payment method, ``CONFLICT`` when another payment of the invoice
        is in flight. A gateway that does not answer raises and is retried with the same key.
        """
        ...

    @activity.defn(name="payments.poll")
    async def poll(self, command: PollPayment) -> PaymentProgress:
        """Ask the gateway for the payment's state and record it."""
        ...

    @activity.defn(name="payments.apply_gateway_event")
    async def apply_gateway_event(self, command: ApplyGatewayEvent) -> PaymentProgress:
        """Apply a gateway's event; one that contradicts the payment changes nothing and alerts the operators.

        Raises (non-retryable): ``NOT_FOUND``.
        """
        ...

    @activity.defn(name="payments.capture")
    async def capture(self, command: CapturePayment) -> PaymentProgress:
        """Capture the authorization."""
        ...

    @activity.defn(name="payments.cancel")
    async def cancel(self, command: CancelPayment) -> PaymentProgress:
        """Cancel at the gateway, or record that the payment succeeded before."""
        ...

    @activity.defn(name="payments.mark_unknown")
    async def mark_unknown(self, command: ChargePayment) -> PaymentProgress:
        """Record that the gateway did not respond: the payment is ``unknown`` until a poll or a webhook reports it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachPaymentMethod:
    command: AddPaymentMethod
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachOutcome:
    added: PaymentMethodAdded
    past_due_subscription_ids: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovePaymentMethod:
    """Start input of ``PaymentMethodRemoval``.

    Attributes:
        only_at_gateway: Finish a removal that is recorded; a card that was saved again since then stays on file.
    """

    payment_method_id: str
    organization_id: str
    actor: str
    request_id: str = ""
    only_at_gateway: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MakePaymentMethodDefault:
    """Start input of ``PaymentMethodDefault``."""

    default_change_id: str
    payment_method_id: str
    organization_id: str
    actor: str
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetDefault:
    command: MakePaymentMethodDefault
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class DetachPaymentMethod:
    command: RemovePaymentMethod
    now: datetime


class PaymentMethodActivities(Protocol):
    @activity.defn(name="payment_methods.attach")
    async def attach(self, command: AttachPaymentMethod) -> AttachOutcome:
        """Save a card at its gateway and on file; an account's first one becomes the default.

        A card that is on file already is returned as it is saved, as the default if the order says so.

        Raises (non-retryable): ``PAYMENT_DECLINED``, ``VALIDATION_ERROR`` for a token that the gateway does not know.
        """
        ...

    @activity.defn(name="payment_methods.set_default")
    async def set_default(self, command: SetDefault) -> list[str]:
        """Make a card on file the one that is charged first.

        Returns the account's subscriptions that it may pay, the oldest debt first.

        Raises (non-retryable): ``NOT_FOUND``.
        """
        ...

    @activity.defn(name="payment_methods.remove")
    async def remove(self, command: DetachPaymentMethod) -> list[str]:
        """Take a card off file.

        Returns the account's subscriptions that the new default may pay, the oldest debt first; none for a backup.

        Raises (non-retryable): ``NOT_FOUND``, ``PAYMENT_METHOD_IN_USE`` for the last one while a debt is open.
        """
        ...

    @activity.defn(name="payment_methods.detach")
    async def detach(self, command: DetachPaymentMethod) -> None:
        """Forget a removed card at its gateway. One that was saved again since then stays.

        Raises (non-retryable): ``NOT_FOUND``.
        """
        ...
