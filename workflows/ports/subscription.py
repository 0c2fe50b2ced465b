"""Input, state, commands and outcomes of the ``Subscription`` workflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from workflows.rules import dunning
from workflows.rules.funding import CollectionMethod, PaymentMethodReference
from workflows.rules.money import Money
from workflows.rules.periods import Interval
from workflows.rules.proration import PlanChangeMode
from workflows.rules.schedule import ScheduleInput
from workflows.rules.subscription import SubscriptionStatus

PLATFORM_ACTOR = "platform"
"""The ``actor`` of what the platform does by its schedule or by a signal, beside the ids of users."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateSubscription:
    """The order. It is the workflow's start input, so it is durable before the API answers.

    Attributes:
        parameters: What the customer chose for the instance, validated against the service's schema.
    """

    subscription_id: str
    instance_id: str
    organization_id: str
    user_id: str
    plan_id: str
    name: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    coupon: str | None = None
    collection_method: CollectionMethod = CollectionMethod.WALLET_THEN_CARD
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """The envelope of an instance: millicores, MiB and GiB."""

    cpu_millicores: int
    memory_mib: int
    storage_gib: int
    replicas: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTerms:
    """Terms of a plan: fixed when it is ordered, changed only by a plan change."""

    plan_id: str
    plan_code: str
    price_id: str
    price: Money
    interval: Interval
    trial_days: int
    timezone: str
    resources: Resources
    dunning_policy: dunning.DunningPolicy = field(default_factory=dunning.DunningPolicy)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanChangeRollback:
    """What a plan change replaced; it is restored when the instance cannot be resized.

    Attributes:
        pending_terms: What was agreed for the plan change that was scheduled; None without one.
    """

    plan_change_id: str
    terms: PlanTerms
    anchor: datetime
    period_start: datetime
    period_end: datetime
    pending_terms: PlanTerms | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedState:
    """The subscription's row as a transaction left it.

    Every activity that writes the row returns it, also when a retry finds the work done. It is stored by
    ``SubscriptionContext.store_committed`` alone, so that the workflow and the database cannot differ.

    Attributes:
        billing_anchor: The instant that all period boundaries are counted from; None before the first period.
        past_due_since: When the unpaid invoice was due; None unless the subscription is past due or suspended.
        open_invoice_id: The unpaid invoice; None unless the subscription is past due or suspended.
    """

    status: SubscriptionStatus
    plan_id: str
    pending_plan_id: str | None = None
    billing_anchor: datetime | None = None
    period_start: datetime | None = None
    period_end: datetime | None = None
    cancel_at_period_end: bool = False
    past_due_since: datetime | None = None
    open_invoice_id: str | None = None
    cancelled_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusOutcome:
    """Outcome of a status change that collects no money.

    Attributes:
        past_due_subscription_ids: The account's subscriptions that the released credit may pay, the oldest debt first.
    """

    state: CommittedState
    past_due_subscription_ids: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class SubscriptionState:
    """Everything that the next run of the workflow needs; carried through continue-as-new.

    Attributes:
        committed: The row. Stored by ``SubscriptionContext.store_committed`` alone.
        terms: What was agreed for ``committed.plan_id``.
        pending_terms: What was agreed for ``committed.pending_plan_id``.
        grace_extension_seconds: Platform downtime, which does not count as grace period.
        retries_made: Scheduled retries of the open invoice so far.
        hard_declined: No card is charged automatically: each had a hard decline, or one was declined for suspected
            fraud. See ``ChargeResult``.
        hard_declined_payment_method_ids: The cards with a hard decline while the open invoice was collected.
        payment_count: How many payments were started; part of each payment's id.
        operation_count: How many operations the platform started; part of each operation's id.
        operation_failure_count: How many operations of the platform failed in a row, all of one kind.
        failed_operation: Their ``OperationKind``; ``suspend`` also after a customer's stop that failed. A failed
            suspension may have stopped a part of the instance, and a failed resumption may have started one: the
            instance is then resumed, or suspended, whichever the subscription's status needs.
        operation_retry_at: When the platform repeats the operation that failed; None unless it backs off.
        recovery_id: Part of the ids of payments and operations after a terminated workflow was started again, so that
            they differ from those of the terminated run. Empty otherwise.
        instance_plan_id: The plan whose resources the instance has.
        instance_desired_running: Whether the last operation that changed it may have left the instance running.
        is_stopped_by_customer: The customer stopped the instance; the platform does not start it.
        plan_change_rollback: What the last plan change replaced, until the instance is resized.
        handled_update_ids: Update ids that were answered, newest last, bounded; they survive continue-as-new.
    """

    committed: CommittedState
    terms: PlanTerms
    pending_terms: PlanTerms | None = None
    grace_extension_seconds: float = 0.0
    retries_made: int = 0
    hard_declined: bool = False
    hard_declined_payment_method_ids: list[str] = field(default_factory=list)
    payment_count: int = 0
    operation_count: int = 0
    operation_failure_count: int = 0
    operation_retry_at: datetime | None = None
    failed_operation: str | None = None
    recovery_id: str = ""
    instance_plan_id: str = ""
    instance_desired_running: bool = False
    is_stopped_by_customer: bool = False
    plan_change_rollback: PlanChangeRollback | None = None
    handled_update_ids: list[str] = field(default_factory=list)

    @property
    def grace_started_at(self) -> datetime | None:
        """Return the instant that the dunning schedule is counted from; None unless the subscription is past due."""
        since = self.committed.past_due_since
        return None if since is None else since + timedelta(seconds=self.grace_extension_seconds)

    def schedule_input(self) -> ScheduleInput:
        """Return what the schedule depends on."""
        row = self.committed
        return ScheduleInput(
            status=row.status,
            period_start=row.period_start,
            period_end=row.period_end,
            cancel_at_period_end=row.cancel_at_period_end,
            grace_started_at=self.grace_started_at,
            retries_made=self.retries_made,
            hard_declined=self.hard_declined,
            cancelled_at=row.cancelled_at,
            policy=self.terms.dunning_policy,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionInput:
    """Start input: the order, and after a continue-as-new the state."""

    command: CreateSubscription
    state: SubscriptionState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedOrder:
    """Values of a recorded order that neither the order nor its plan contains; the API shows them without a read.

    Attributes:
        price: What one interval costs before discounts.
    """

    hostname: str
    price: Money
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionResult:
    """Result of the updates; the API reads the subscription from the database.

    Attributes:
        order: Of ``await_created``, until the instance is ready: the order is shown without reading it.
    """

    subscription_id: str
    state: SubscriptionStatus
    order: RecordedOrder | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockStatus:
    """The subscription's clock.

    Attributes:
        is_idle: No action is in progress.
        is_changing: A change of the state is being written: the row may be past ``state`` already.
        reminders_at: When the reminders of the current period are due, past ones included.
    """

    now: datetime
    next_action_at: datetime | None
    is_idle: bool
    state: SubscriptionStatus
    is_changing: bool = False
    reminders_at: list[datetime] = field(default_factory=list)


class CancelAt(StrEnum):
    NOW = "now"
    PERIOD_END = "period_end"


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelSubscription:
    update_id: str
    actor: str
    at: CancelAt
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleCommand:
    """A command without arguments: resume, pause, retry the payment."""

    update_id: str
    actor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangePlan:
    update_id: str
    actor: str
    plan_id: str
    mode: PlanChangeMode | None = None


class CustomerOperation(StrEnum):
    RESTART = "restart"
    STOP = "stop"
    START = "start"
    BACKUP = "backup"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOperation:
    update_id: str
    actor: str
    operation_id: str
    kind: CustomerOperation


@dataclass(frozen=True, slots=True, kw_only=True)
class FundsArrived:
    """Signal: credit or a card was added, so the open invoice can be collected. ``source``: the id of its cause."""

    source: str
    kind: dunning.FundsKind


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOrder:
    order: CreateSubscription
    workflow_id: str
    run_id: str
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CardCharge:
    """The amount that a card has to pay, and the cards in charging order: each is charged if those before decline."""

    amount: Money
    payment_methods: tuple[PaymentMethodReference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateSubscriptionOutcome:
    """``card_charge`` is None when credit (or a trial) secures the first period by itself.

    ``cancellation_requested``: a lost run accepted the cancellation of this order, and had not compensated all of it.
    """

    state: CommittedState
    terms: PlanTerms
    card_charge: CardCharge | None
    order: RecordedOrder
    pending_terms: PlanTerms | None = None
    cancellation_requested: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StartProvisioning:
    subscription_id: str
    payment_id: str | None
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordCancellationRequest:
    """Records an accepted cancellation of an order, before the compensations, which can take days."""

    subscription_id: str
    actor: str
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortOrder:
    """Ends an order whose instance did not become ready: ``expired``, ``failed`` or ``cancelled``."""

    subscription_id: str
    status: SubscriptionStatus
    reason: str
    actor: str
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeStatus:
    """Changes the status without collecting money; the mail depends on the status."""

    subscription_id: str
    status: SubscriptionStatus
    reason: str
    actor: str
    now: datetime
    data_deletion_at: datetime | None = None
    cancellation_at: datetime | None = None
    void_invoice: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetCancelAtPeriodEnd:
    """Sets or clears the cancellation, or the plan change, at the end of the period."""

    subscription_id: str
    cancel_at_period_end: bool
    pending_plan_id: str | None
    reason: str
    actor: str
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseReminders:
    """``now`` is the subscription's clock."""

    subscription_id: str
    now: datetime
