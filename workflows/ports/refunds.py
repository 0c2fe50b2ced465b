"""What refunds are started with, what they ask of activities, and how they end.

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
from workflows.rules.payment import RecordedRefund


class RefundDestination(StrEnum):
    SOURCE = "source"
    WALLET = "wallet"


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundInput:
    """Start input of ``Refund``. ``amount`` None means all that is left.

    ``actor`` (a user's id), ``request_id`` and ``address`` (the client's IP) go into the audit log.
    """

    refund_id: str
    payment_id: str
    organization_id: str
    amount: Money | None
    destination: RefundDestination
    reason: str
    actor: str
    request_id: str = ""
    address: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundOutcome:
    """How a refund stands.

    Attributes:
        past_due_subscription_ids: The organization's subscriptions that money returned to the wallet may pay, the
            oldest debt first.
        failure_code: Why the gateway or the bank did not give back; None unless the refund has failed.
    """

    refund_id: str
    status: str
    amount: Money
    failure_code: str | None = None
    past_due_subscription_ids: list[str] = field(default_factory=list)


def refund_input_from_record(facts: RecordedRefund) -> RefundInput:
    """Return the start input of a refund that is on record, to resume it."""
    return RefundInput(
        refund_id=facts.refund_id,
        payment_id=facts.payment_id,
        organization_id=facts.organization_id,
        amount=facts.amount,
        destination=RefundDestination(facts.destination),
        reason=facts.reason,
        actor=facts.actor,
        request_id=facts.request_id,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReserveRefund:
    command: RefundInput
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SendRefund:
    refund_id: str
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RecheckRefund:
    refund_id: str
    now: datetime


class RefundActivities(Protocol):
    @activity.defn(name="refunds.reserve")
    async def reserve(self, command: ReserveRefund) -> RefundOutcome:
        """Reserve the amount of its payment, once per refund; a refund to the wallet is done with that.

        Raises (non-retryable): ``NOT_FOUND``, ``REFUND_EXCEEDS_PAYMENT``, ``INSUFFICIENT_FUNDS`` when a top-up was
        spent, ``CONFLICT`` when the payment has not been received or its money is in the wallet already.
        """
        ...

    @activity.defn(name="refunds.send")
    async def send(self, command: SendRefund) -> RefundOutcome:
        """Have the gateway send the money back and record what it says: ``succeeded``, ``failed`` or ``pending``."""
        ...

    @activity.defn(name="refunds.recheck")
    async def recheck(self, command: RecheckRefund) -> RefundOutcome:
        """Read a refund that has succeeded at its gateway again, and credit it to the wallet if the bank rejected it.

        A refund that is pending, has failed or went to the wallet stays as it is.

        Raises (non-retryable): ``NOT_FOUND``.
        """
        ...
