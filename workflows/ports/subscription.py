"""What a subscription is started with, what it carries, and what it shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from workflows.rules import dunning
from workflows.rules.agenda import Standing
from workflows.rules.money import Money
from workflows.rules.periods import Interval
from workflows.rules.proration import Mode
from workflows.rules.subscription import State


class Collection(StrEnum):
    """How an order wants to pay: the wallet alone, the card alone, or (None) the wallet and a card for the rest."""

    WALLET = "wallet"
    CARD = "card"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribe:
    """The order. It is the workflow's start input, so it is durable before anybody answers."""

    subscription_id: str
    instance_id: str
    organization_id: str
    user_id: str
    plan_id: str
    name: str | None = None
    parameters_json: str = "{}"
    coupon: str | None = None
    collection: Collection | None = None
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """The envelope of an instance: millicores, MiB and GiB."""

    cpu_millicores: int
    memory_mib: int
    storage_gib: int
    replicas: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What was agreed for a plan: fixed when it is ordered, changed only by a plan change."""

    plan_id: str
    plan_code: str
    price_id: str
    price: Money
    interval: Interval
    trial_days: int
    timezone: str
    resources: Resources
    calendar: dunning.Calendar = field(default_factory=dunning.Calendar)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """What a plan change replaced; it comes back when the instance cannot be resized."""

    order_id: str
    terms: Terms
    anchor: datetime
    periods_billed: int
    period_start: datetime
    period_end: datetime


@dataclass(slots=True, kw_only=True)
class Life:
    """Everything that the next run of the entity needs; carried through continue-as-new.

    Attributes:
        anchor: The instant that all periods are counted from.
        periods_billed: How many periods since ``anchor`` have been invoiced; ``period_*`` is the last of them.
        reminded: The smallest reminder (in days) sent in this period.
        invoice_id: The one open invoice, if any.
        first_failure: The instant that grace is counted from: when the debt began, later by what the platform was away.
        payments: How many payments were started; part of each payment's id.
        applied_plan_id: The plan whose resources the instance has.
        instance_running: What the cluster was last told.
        stopped_by_customer: The customer stopped it and nobody else may start it.
        fallback: What a plan change replaced, until the instance has been resized to it.
        handled: Update ids that were answered, newest last, bounded; they survive continue-as-new.
    """

    terms: Terms
    state: State
    anchor: datetime | None = None
    periods_billed: int = 0
    period_start: datetime | None = None
    period_end: datetime | None = None
    cancel_at_period_end: bool = False
    pending_terms: Terms | None = None
    reminded: int | None = None
    invoice_id: str | None = None
    first_failure: datetime | None = None
    attempts: int = 0
    hard_declined: bool = False
    cancelled_at: datetime | None = None
    payments: int = 0
    operations: int = 0
    applied_plan_id: str = ""
    instance_running: bool = False
    stopped_by_customer: bool = False
    fallback: Fallback | None = None
    handled: list[str] = field(default_factory=list)

    def standing(self) -> Standing:
        """Return what the calendar depends on."""
        return Standing(
            state=self.state,
            period_start=self.period_start,
            period_end=self.period_end,
            cancel_at_period_end=self.cancel_at_period_end,
            reminded=self.reminded,
            first_failure=self.first_failure,
            attempts=self.attempts,
            hard_declined=self.hard_declined,
            cancelled_at=self.cancelled_at,
            calendar=self.terms.calendar,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribed:
    """Start input: the order, and after a continue-as-new also the life so far."""

    order: Subscribe
    life: Life | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What orders on a subscription answer with; the API reads the rest from the database."""

    subscription_id: str
    state: State


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockView:
    """Where a subscription stands on its own calendar. ``idle`` means that nothing is being done right now."""

    now: datetime
    next_due: datetime | None
    idle: bool
    state: State


class CancelAt(StrEnum):
    NOW = "now"
    PERIOD_END = "period_end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    order_id: str
    actor: str
    at: CancelAt
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An order without further wishes: resume, pause, retry a payment."""

    order_id: str
    actor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangePlanOrder:
    order_id: str
    actor: str
    plan_id: str
    mode: Mode | None = None


class CustomerOperation(StrEnum):
    RESTART = "restart"
    STOP = "stop"
    START = "start"
    BACKUP = "backup"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperateOrder:
    order_id: str
    actor: str
    operation_id: str
    kind: CustomerOperation


@dataclass(frozen=True, slots=True, kw_only=True)
class FundsArrived:
    """Signal: a top-up settled or a card was added, so a debt may be collectable now. ``source`` is its id."""

    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSubscription:
    order: Subscribe
    workflow_id: str
    run_id: str
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CardDue:
    """What a card has to pay, and which one."""

    amount: Money
    payment_method_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """``card`` is None when credit (or a trial) secures the first period by itself."""

    terms: Terms
    card: CardDue | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Secured:
    subscription_id: str
    payment_id: str | None
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseOrder:
    """An order that never became ready ends: ``expired``, ``failed`` or ``cancelled``."""

    subscription_id: str
    state: State
    reason: str
    actor: str
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordState:
    """A move that touches no money: ``to`` with its reason; the mail follows from the state."""

    subscription_id: str
    to: State
    reason: str
    actor: str
    now: datetime
    delete_at: datetime | None = None
    cancels_at: datetime | None = None
    void_invoice: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordIntent:
    """Sets or clears what happens at the period's end."""

    subscription_id: str
    cancel_at_period_end: bool
    pending_plan_id: str | None
    reason: str
    actor: str
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Remind:
    subscription_id: str
    days: int
    due_at: datetime
    now: datetime
