"""Whether an order still needs the card payment that was authorized for it."""

from __future__ import annotations

from dataclasses import dataclass

from workflows.rules.invoice import InvoiceStatus
from workflows.rules.payment import PaymentStatus
from workflows.rules.subscription import PRE_READY_STATUSES, SubscriptionStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentPurposeFacts:
    """What a payment is for, and where that stands.

    Attributes:
        is_for_order: Whether the payment was authorized for an order.
        subscription_status: None if the payment belongs to no subscription.
        first_invoice_status: The status of the invoice of the subscription's order; None while there is none.
    """

    is_for_order: bool
    subscription_status: SubscriptionStatus | None
    first_invoice_status: InvoiceStatus | None


def is_capture_expected(facts: PaymentPurposeFacts) -> bool:
    """Return whether the order's instance is ready and its first invoice waits for the money that was authorized.

    Such a payment is not abandoned, even if the run that follows it was started by a webhook: its money pays the
    invoice and does not become wallet credit.

    A subscription that has become past due has recorded that the payment did not succeed.
    """
    return (
        facts.is_for_order
        and facts.subscription_status is SubscriptionStatus.ACTIVE
        and facts.first_invoice_status is InvoiceStatus.OPEN
    )


def is_needed_by_order(facts: PaymentPurposeFacts) -> bool:
    """Return whether an order that has neither ended nor been paid needs the payment.

    The order's instance may be ready and the subscription active: until its first invoice is paid, the order needs it.

    The order's workflow starts the payment again itself, to capture it or to void it. A run without a parent would void
    the authorization that the order is fulfilled on.
    """
    return facts.subscription_status in PRE_READY_STATUSES or is_capture_expected(facts)


def may_void(status: PaymentStatus, facts: PaymentPurposeFacts, *, is_awaited: bool) -> bool:
    """Return whether the run of a payment may cancel it at the gateway.

    Args:
        is_awaited: The workflow that ordered the payment awaits this run, and decides.
    """
    return is_awaited or status is not PaymentStatus.AUTHORIZED or not is_needed_by_order(facts)
