"""What the subscription asks of billing and of its own records. Implemented in ``activities/``.

Each method is one transaction and may run any number of times: the second run finds what the first one wrote and
answers the same. ``now`` is always the subscription's own clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from temporalio import activity

from workflows.ports.subscription import (
    CardDue,
    CloseOrder,
    Fallback,
    Opened,
    OpenSubscription,
    RecordIntent,
    RecordState,
    Remind,
    Secured,
    Terms,
)
from workflows.rules.money import Money
from workflows.rules.proration import Mode
from workflows.rules.subscription import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Activate:
    """The instance is ready: the first period begins (or the trial does)."""

    subscription_id: str
    period_start: datetime
    period_end: datetime
    trial: bool
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Renew:
    """The next period begins. ``terms`` differ from the last period's when a scheduled plan change is due.

    ``restart`` begins anew at ``period_start`` (the end of a trial, or a resume from pause): the invoice stays a
    draft without a number until it is paid, and nothing is left of it when it cannot be.
    """

    subscription_id: str
    period_start: datetime
    period_end: datetime
    terms: Terms
    restart: bool
    actor: str
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What became of an invoice.

    ``state`` is the subscription's state after it, as recorded. ``card`` says what a card has to pay now; until it
    has, the part that credit covers is held. Neither paid nor card: nothing could be collected, and that is recorded.
    ``first_failure`` is when the subscription fell into debt, if it is in debt.
    """

    invoice_id: str | None
    paid: bool
    card: CardDue | None
    state: State
    first_failure: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Collect:
    """Try to collect an open invoice. ``scheduled`` attempts count in the dunning calendar, the customer's do not."""

    subscription_id: str
    invoice_id: str
    scheduled: bool
    actor: str
    now: datetime
    next_attempt: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """A card paid an invoice of a period. A draft is finalised by it, and its period begins."""

    subscription_id: str
    invoice_id: str
    payment_id: str
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpaid:
    """A card did not pay an invoice. A draft invoice is withdrawn, an open one stays open.

    ``next_attempt`` is told to the customer.
    """

    subscription_id: str
    invoice_id: str
    payment_id: str
    decline_code: str | None
    next_attempt: datetime | None
    now: datetime


class ChangeOutcome(StrEnum):
    APPLIED = "applied"
    SCHEDULED = "scheduled"
    CARD_DUE = "card_due"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangePlan:
    subscription_id: str
    plan_id: str
    mode: Mode | None
    order_id: str
    actor: str
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """``terms`` are the new ones; ``restarts`` when the interval changed and periods are counted from now."""

    outcome: ChangeOutcome
    terms: Terms
    restarts: bool
    invoice_id: str | None = None
    card: CardDue | None = None
    period_start: datetime | None = None
    period_end: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteChange:
    subscription_id: str
    invoice_id: str
    payment_id: str
    order_id: str
    actor: str
    terms: Terms
    restarts: bool
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RevertChange:
    """The resize failed: the old terms and periods come back and what the change took is returned to the wallet."""

    subscription_id: str
    fallback: Fallback
    order_id: str
    reason: str
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountAdjustment:
    """An administrator's correction of a wallet."""

    adjustment_id: str
    organization_id: str
    amount: Money
    reason: str
    actor: str
    request_id: str
    now: datetime


class Subscriptions(Protocol):
    """The subscription's own records."""

    @activity.defn(name="subscriptions.open")
    async def open(self, command: OpenSubscription) -> Opened:
        """Write subscription, instance, holds, journal and audit in one transaction.

        Refuses (nothing is written): ``NOT_FOUND`` or ``PLAN_UNAVAILABLE`` for the plan, ``COUPON_INVALID``,
        ``TRIAL_ALREADY_USED``, ``DUPLICATE_SUBSCRIPTION``, ``INSUFFICIENT_FUNDS``, ``CONFLICT`` for a host name.
        """
        ...

    @activity.defn(name="subscriptions.secured")
    async def secured(self, command: Secured) -> None:
        """``pending`` becomes ``provisioning`` after a card was authorised."""
        ...

    @activity.defn(name="subscriptions.close_order")
    async def close_order(self, command: CloseOrder) -> None:
        """End an order that never became ready and release exactly once what it held."""
        ...

    @activity.defn(name="subscriptions.record_state")
    async def record_state(self, command: RecordState) -> None:
        """Suspend, pause, cancel or terminate, with journal and mail; voids the open invoice when told so."""
        ...

    @activity.defn(name="subscriptions.record_intent")
    async def record_intent(self, command: RecordIntent) -> None:
        """Set or clear the cancellation or plan change at the period's end."""
        ...

    @activity.defn(name="subscriptions.remind")
    async def remind(self, command: Remind) -> None:
        """Queue the reminder mail, once per period and number of days."""
        ...


class Billing(Protocol):
    """Invoices and what pays for them."""

    @activity.defn(name="billing.activate")
    async def activate(self, command: Activate) -> Bill:
        """Finalise the first invoice with its real period, capture what was held and activate."""
        ...

    @activity.defn(name="billing.renew")
    async def renew(self, command: Renew) -> Bill:
        """Finalise the period's invoice and collect what credit covers."""
        ...

    @activity.defn(name="billing.collect")
    async def collect(self, command: Collect) -> Bill:
        """Collect an open invoice from credit, or say what a card has to pay."""
        ...

    @activity.defn(name="billing.settle")
    async def settle(self, command: Settle) -> Bill:
        """Apply a succeeded card payment to its invoice; a withdrawn invoice's money goes to the wallet."""
        ...

    @activity.defn(name="billing.unpaid")
    async def unpaid(self, command: Unpaid) -> Bill:
        """Record that a card did not pay, and release what credit had been held beside it."""
        ...

    @activity.defn(name="billing.change_plan")
    async def change_plan(self, command: ChangePlan) -> Changed:
        """Apply, schedule or price a plan change.

        Refuses: ``PLAN_UNAVAILABLE``, ``CONFLICT`` (same plan, other service), ``INSUFFICIENT_FUNDS``.
        """
        ...

    @activity.defn(name="billing.complete_change")
    async def complete_change(self, command: CompleteChange) -> Bill:
        """A card paid for the change: apply it, or keep the money in the wallet if the subscription has ended."""
        ...

    @activity.defn(name="billing.revert_change")
    async def revert_change(self, command: RevertChange) -> None:
        """Undo an applied change, returning what was charged for it as wallet credit."""
        ...

    @activity.defn(name="billing.adjust")
    async def adjust(self, command: AccountAdjustment) -> str:
        """Post an administrator's correction and return the transaction's id.

        Refuses: ``INSUFFICIENT_FUNDS`` when the wallet would fall below zero, ``NOT_FOUND`` for the organisation.
        """
        ...
