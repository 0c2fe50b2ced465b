"""Port of the payment gateways, and their three errors.

Amounts are ``Money`` in ISO minor units; each gateway converts them. Every call that moves money carries an idempotency
key: a repeated key returns the first call's response without a second effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from workflows.rules.money import Money
from workflows.rules.payment import GatewayPayment, RefundStatus

CHARGE_DISPUTED = "charge_disputed"
"""Code of the rejection of a refund whose charge the customer disputes: the bank has taken the money back, or asks."""
DISPUTE_FAILURES = frozenset({CHARGE_DISPUTED, "charge_for_pending_refund_disputed"})
"""Failure codes of refunds whose charge is disputed: of one that is rejected at once, and of one that was pending."""


class GatewayUnavailable(Exception):
    """The result is unknown: lost connection, timeout, rate limit, fault of the gateway. It may have taken effect."""


class GatewayRejected(Exception):
    """The gateway rejected the request for good, without any effect.

    Attributes:
        code: The gateway's own stable code.
    """

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class CardDeclined(Exception):
    """The card's issuer declined.

    Attributes:
        decline_code: The issuer's code, e.g. ``insufficient_funds``; see ``workflows.rules.dunning``.
    """

    def __init__(self, decline_code: str) -> None:
        super().__init__(decline_code)
        self.decline_code = decline_code


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayCapabilities:
    """What a gateway supports.

    Attributes:
        currencies: Empty means any.
        minimum: Minimum charge in minor units, by currency.
    """

    saved_payment_methods: bool = False
    off_session: bool = False
    authorization: bool = False
    refund: bool = False
    currencies: frozenset[str] = frozenset()
    minimum: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeRequest:
    """One charge.

    Attributes:
        customer: The gateway's reference of the customer.
        payment_method: The gateway's reference of the card, or a token; None lets the customer choose at the gateway.
    """

    idempotency_key: str
    payment_id: str
    organization_id: str
    amount: Money
    customer: str
    payment_method: str | None
    off_session: bool
    manual_capture: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedCard:
    """A saved card. ``brand`` and ``last4`` are empty, and the expiry is None, if the gateway does not return them."""

    reference: str
    brand: str
    last4: str
    exp_month: int | None
    exp_year: int | None
    fingerprint: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayRefund:
    reference: str
    status: RefundStatus
    failure_code: str | None = None


class PaymentGateway(Protocol):
    """One gateway.

    Every method may raise ``GatewayUnavailable`` or ``GatewayRejected``. A declined charge is returned as a failed
    ``GatewayPayment``.
    """

    name: str
    capabilities: GatewayCapabilities

    async def create_customer(self, organization_id: str, *, key: str) -> str:
        """Create a customer and return its reference."""
        ...

    async def attach_payment_method(self, token: str, customer: str, *, key: str) -> SavedCard:
        """Save a card. Raises ``CardDeclined`` as well."""
        ...

    async def detach_payment_method(self, reference: str) -> None:
        """Remove a saved card. A card that is already removed is no error."""
        ...

    async def charge(self, request: ChargeRequest) -> GatewayPayment: ...

    async def find_charge(self, payment_id: str, customer: str) -> GatewayPayment | None:
        """Find a charge whose response was lost; None proves that there is none."""
        ...

    async def retrieve_charge(self, reference: str) -> GatewayPayment: ...

    async def capture(self, reference: str, *, key: str) -> GatewayPayment: ...

    async def cancel_charge(self, reference: str, *, key: str) -> GatewayPayment:
        """Cancel a pending or authorized charge. A charge that can no longer be cancelled is returned unchanged."""
        ...

    async def is_disputed(self, reference: str) -> bool:
        """Return whether the customer has the charge's money back by a dispute or an inquiry, or may get it."""
        ...

    async def refund(self, reference: str, amount: Money, *, refund_id: str, key: str) -> GatewayRefund: ...

    async def find_refund(self, reference: str, refund_id: str) -> GatewayRefund | None:
        """Find a refund of the charge ``reference`` whose response was lost; None proves that there is none."""
        ...

    async def retrieve_refund(self, reference: str) -> GatewayRefund: ...
