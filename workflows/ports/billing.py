"""Activities of the subscription workflow: its row and its invoices. Implemented in ``activities/``.

Each method is one transaction and may run any number of times: the second run finds what the first one wrote and
answers the same. ``now`` is always the subscription's own clock; a late attempt receives it moved on by its delay.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from temporalio import activity

from workflows.ports.subscription import (
    AbortOrder,
    CardCharge,
    ChangeStatus,
    CommittedState,
    CreateSubscriptionOutcome,
    PlanChangeRollback,
    PlanTerms,
    RecordCancellationRequest,
    RecordOrder,
    ReleaseReminders,
    SetCancelAtPeriodEnd,
    StartProvisioning,
    StatusOutcome,
)
from workflows.rules.money import Money
from workflows.rules.proration import PlanChangeMode
from workflows.rules.renewal import PeriodKind, PeriodOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFirstPeriod:
    """Starts the first period, or a trial of ``trial_days`` (0: no trial), once the instance is ready."""

    subscription_id: str
    period_start: datetime
    trial_days: int
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StartPeriod:
    """Starts the period after the one, or the trial, that has ended; or the first period after a pause.

    The activity computes the end of the period: the time-zone data of a worker changes, and workflow code must give the
    same commands at each replay.

    Attributes:
        kind: A renewal continues from ``anchor``; a trial end and a resumption start at a new one.
        anchor: The instant that the boundaries of the period are counted from.
        terms: Terms of the period. They differ from the last period's when a scheduled plan change takes effect.
    """

    subscription_id: str
    kind: PeriodKind
    period_start: datetime
    anchor: datetime
    terms: PlanTerms
    actor: str
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingOutcome:
    """Outcome of the collection of an invoice.

    Attributes:
        state: The subscription's row after it.
        result: ``REFUSED`` when there is no invoice, or a void one.
        card_charge: What a card has to pay now; the part that credit covers is held until it has. If it is None and
            ``result`` is not ``PAID``, nothing could be collected, and that is recorded.
        past_due_subscription_ids: The organization's past-due subscriptions to signal because this added credit, the
            oldest debt first.
    """

    state: CommittedState
    result: PeriodOutcome
    invoice_id: str | None = None
    card_charge: CardCharge | None = None
    past_due_subscription_ids: list[str] = field(default_factory=list)

    @property
    def paid(self) -> bool:
        return self.result is PeriodOutcome.PAID


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectInvoice:
    """Collects an open invoice.

    Attributes:
        scheduled: Whether the attempt counts in the dunning schedule; a customer's attempt does not.
        next_retry_at: The time of the next retry, for the customer's mail.
        suspends_at: The time of the suspension if the invoice stays unpaid, for the same mail.
        credit_only: No card is charged.
        excluded_payment_method_ids: Cards that were declined for good and are not charged.
    """

    subscription_id: str
    invoice_id: str
    scheduled: bool
    actor: str
    now: datetime
    next_retry_at: datetime | None
    suspends_at: datetime | None = None
    credit_only: bool = False
    excluded_payment_method_ids: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyCardPayment:
    """Applies a card's payment to an invoice of a period. A draft is finalized by it, and its period starts.

    Attributes:
        invoice_id: None if no invoice needs the money.
        terms: Terms of the period that a draft starts; None for the first period.
    """

    subscription_id: str
    invoice_id: str | None
    payment_id: str
    now: datetime
    terms: PlanTerms | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordPaymentFailure:
    """Records that a card did not pay an invoice. A draft is voided, an open invoice stays open.

    Attributes:
        next_retry_at: The time of the next retry, for the customer's mail.
        suspends_at: The time of the suspension if the invoice stays unpaid, for the same mail.
        terms: Terms of the period that a draft starts, should credit that has arrived meanwhile pay it.
    """

    subscription_id: str
    invoice_id: str
    payment_id: str
    decline_code: str | None
    next_retry_at: datetime | None
    now: datetime
    terms: PlanTerms | None = None
    suspends_at: datetime | None = None


class PlanChangeResult(StrEnum):
    APPLIED = "applied"
    SCHEDULED = "scheduled"
    WITHDRAWN = "withdrawn"
    CARD_CHARGE_REQUIRED = "card_due"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyPlanChange:
    """Applies, schedules or prices a plan change.

    Attributes:
        is_resized: Whether a resize follows a change that is applied now: what the change replaces is then recorded.
    """

    subscription_id: str
    plan_id: str
    mode: PlanChangeMode | None
    plan_change_id: str
    actor: str
    now: datetime
    is_resized: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanChangeOutcome:
    """Outcome of a plan change.

    Attributes:
        state: The subscription's row after it.
        terms: The terms of the new plan.
        is_new_anchor: Whether the change starts a new period, from which boundaries are counted.
        past_due_subscription_ids: The account's subscriptions that the change's credit may pay, the oldest debt first.
    """

    state: CommittedState
    result: PlanChangeResult
    terms: PlanTerms
    is_new_anchor: bool
    invoice_id: str | None = None
    card_charge: CardCharge | None = None
    past_due_subscription_ids: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletePlanChange:
    """Completes a plan change that a card paid for.

    Attributes:
        is_resized: As of ``ApplyPlanChange``.
    """

    subscription_id: str
    invoice_id: str
    payment_id: str
    plan_change_id: str
    actor: str
    terms: PlanTerms
    restarts: bool
    now: datetime
    is_resized: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackPlanChange:
    """The resize failed: the old terms and periods come back and what the change took is returned to the wallet."""

    subscription_id: str
    fallback: PlanChangeRollback
    plan_change_id: str
    reason: str
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AdjustWallet:
    """An administrator's correction of a wallet.

    ``actor`` (a user's id), ``request_id`` and ``address`` (the client's IP) go into the audit log.
    """

    adjustment_id: str
    organization_id: str
    amount: Money
    reason: str
    actor: str
    request_id: str
    now: datetime
    address: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjusted:
    """A posted adjustment.

    Attributes:
        past_due_subscription_ids: The organization's subscriptions that it may pay, the oldest debt first.
    """

    transaction_id: str
    past_due_subscription_ids: list[str] = field(default_factory=list)


class SubscriptionActivities(Protocol):
    """The subscription's own records."""

    @activity.defn(name="subscriptions.record_order")
    async def record_order(self, command: RecordOrder) -> CreateSubscriptionOutcome:
        """Write subscription, instance, holds, journal and audit in one transaction.

        Refuses (nothing is written): ``NOT_FOUND`` or ``PLAN_UNAVAILABLE`` for the plan, ``COUPON_INVALID``,
        ``TRIAL_ALREADY_USED``, ``DUPLICATE_SUBSCRIPTION``, ``INSUFFICIENT_FUNDS``, ``CONFLICT`` for a host name.
        """
        ...

    @activity.defn(name="subscriptions.start_provisioning")
    async def start_provisioning(self, command: StartProvisioning) -> CommittedState:
        """Move the subscription from ``pending`` to ``provisioning`` after a card was authorized."""
        ...

    @activity.defn(name="subscriptions.record_cancellation_request")
    async def record_cancellation_request(self, command: RecordCancellationRequest) -> None:
        """Add the accepted cancellation of an order to the timeline."""
        ...

    @activity.defn(name="subscriptions.abort_order")
    async def abort_order(self, command: AbortOrder) -> StatusOutcome:
        """End an order that never became ready, and release what it held."""
        ...

    @activity.defn(name="subscriptions.change_status")
    async def change_status(self, command: ChangeStatus) -> StatusOutcome:
        """Suspend, pause, cancel or terminate, with its timeline event and mail."""
        ...

    @activity.defn(name="subscriptions.set_cancel_at_period_end")
    async def set_cancel_at_period_end(self, command: SetCancelAtPeriodEnd) -> CommittedState:
        """Set or clear the cancellation, or the plan change, at the end of the period."""
        ...

    @activity.defn(name="subscriptions.release_reminders")
    async def release_reminders(self, command: ReleaseReminders) -> None:
        """Make the reminders that are due at ``now`` due for sending, and reschedule the later ones.

        For a clock that was moved: reminders become due by the database's clock otherwise.
        """
        ...


class BillingActivities(Protocol):
    """Invoices and what pays for them."""

    @activity.defn(name="billing.start_first_period")
    async def start_first_period(self, command: StartFirstPeriod) -> BillingOutcome:
        """Finalize the first invoice with its actual period, capture the hold and activate the subscription."""
        ...

    @activity.defn(name="billing.start_period")
    async def start_period(self, command: StartPeriod) -> BillingOutcome:
        """Write the invoice of a period as ``decide_period`` says, and collect what credit covers."""
        ...

    @activity.defn(name="billing.collect_invoice")
    async def collect_invoice(self, command: CollectInvoice) -> BillingOutcome:
        """Collect an open invoice from credit, or say what a card has to pay."""
        ...

    @activity.defn(name="billing.apply_card_payment")
    async def apply_card_payment(self, command: ApplyCardPayment) -> BillingOutcome:
        """Apply a succeeded card payment to its invoice. The wallet gets the money when the invoice is void, or belongs
        to a plan change that was not completed."""
        ...

    @activity.defn(name="billing.record_payment_failure")
    async def record_payment_failure(self, command: RecordPaymentFailure) -> BillingOutcome:
        """Record that a card did not pay, and release what credit had been held beside it."""
        ...

    @activity.defn(name="billing.change_plan")
    async def change_plan(self, command: ApplyPlanChange) -> PlanChangeOutcome:
        """Apply, schedule or price a plan change, or withdraw the scheduled one.

        Refuses: ``PLAN_UNAVAILABLE``, ``CONFLICT`` (same plan, other service), ``INSUFFICIENT_FUNDS``.
        """
        ...

    @activity.defn(name="billing.complete_plan_change")
    async def complete_plan_change(self, command: CompletePlanChange) -> BillingOutcome:
        """A card paid for the change: apply it, or keep the money in the wallet if the subscription has ended."""
        ...

    @activity.defn(name="billing.rollback_plan_change")
    async def rollback_plan_change(self, command: RollbackPlanChange) -> StatusOutcome:
        """Restore the terms and the period that a plan change replaced, and return what it was paid with."""
        ...

    @activity.defn(name="billing.adjust_wallet")
    async def adjust_wallet(self, command: AdjustWallet) -> Adjusted:
        """Post an administrator's correction.

        Refuses: ``INSUFFICIENT_FUNDS`` when the wallet would fall below zero, ``NOT_FOUND`` for the organization.
        """
        ...
