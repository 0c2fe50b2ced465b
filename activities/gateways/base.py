"""What every payment gateway can be asked, and the three ways in which it refuses.

Amounts are ours (``Money`` in ISO minor units); each gateway converts. Every call that moves money carries a key: the
same key again gives the first call's answer and never a second deed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from workflows.rules.money import Money
from workflows.rules.payment import Seen


class Unavailable(Exception):
    """No certain answer: connection lost, time out, rate limit, the gateway's own fault. The deed may have happened."""


class Rejected(Exception):
    """The gateway understood and will never do this; nothing happened.

    Attributes:
        code: The gateway's own stable code.
    """

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Declined(Exception):
    """The card's issuer refused.

    Attributes:
        decline_code: As ``rules.dunning`` knows them, e.g. ``insufficient_funds``.
    """

    def __init__(self, decline_code: str) -> None:
        super().__init__(decline_code)
        self.decline_code = decline_code


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """``currencies`` empty means any; ``minimum`` is in minor units per currency."""

    saved_methods: bool = False
    off_session: bool = False
    authorization: bool = False
    refund: bool = False
    partial_refund: bool = False
    redirect: bool = False
    currencies: frozenset[str] = frozenset()
    minimum: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeRequest:
    """``method`` is the gateway's own name of the card or a token of it; None lets the customer choose there."""

    key: str
    payment_id: str
    organization_id: str
    amount: Money
    customer: str
    method: str | None
    off_session: bool
    manual_capture: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    reference: str
    brand: str
    last4: str
    exp_month: int
    exp_year: int
    fingerprint: str | None


class RefundStatus(StrEnum):
    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundSeen:
    reference: str
    status: RefundStatus
    failure_code: str | None = None


class Gateway(Protocol):
    """One gateway. Every method raises ``Unavailable`` or ``Rejected``; a declined charge is a ``Seen`` that failed."""

    name: str
    capabilities: Capabilities

    async def create_customer(self, organization_id: str, *, key: str) -> str:
        """Return the gateway's name of a new customer."""
        ...

    async def attach(self, token: str, customer: str, *, key: str) -> Card:
        """Save a card. Raises ``Declined`` as well."""
        ...

    async def detach(self, reference: str) -> None:
        """Forget a card; one that is forgotten already is no error."""
        ...

    async def charge(self, request: ChargeRequest) -> Seen: ...

    async def find(self, payment_id: str, customer: str) -> Seen | None:
        """Look for a charge whose answer was lost; None proves that there is none."""
        ...

    async def retrieve(self, reference: str) -> Seen: ...

    async def capture(self, reference: str, *, key: str) -> Seen: ...

    async def cancel(self, reference: str, *, key: str) -> Seen:
        """Let go of what was authorised or waits. What cannot be cancelled any more is returned as it stands."""
        ...

    async def refund(self, reference: str, amount: Money, *, refund_id: str, key: str) -> RefundSeen: ...

    async def retrieve_refund(self, reference: str) -> RefundSeen: ...
