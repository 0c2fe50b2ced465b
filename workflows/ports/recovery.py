"""What a subscription's workflow goes on with when it was started again after its run was lost or terminated."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from temporalio import activity

from workflows.ports.billing import BillingOutcome
from workflows.ports.payments import PaymentInput
from workflows.ports.subscription import PlanChangeRollback


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRecovery:
    subscription_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsettledPayment:
    """A card payment that is in flight, or that succeeded and has not paid its invoice yet.

    Attributes:
        payment: Start input of its workflow, as recorded.
        invoice_id: The invoice that it pays; None if nothing needs it any more.
    """

    payment: PaymentInput
    invoice_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What the lost run knew and the subscription's row does not say.

    Attributes:
        payments: Payments to settle before anything else is collected, oldest first.
        failed_attempts: How often the open invoice could not be collected; zero unless the subscription is past due.
        last_attempt_at: When it was tried last.
        payment_method_ids: The saved payment methods, in charging order.
        hard_declined: No card is charged again for the open invoice by itself: each was declined for good, or the last
            one for suspected fraud.
        hard_declined_payment_method_ids: The cards that were declined for good for the open invoice.
        has_untried_payment_method: Whether the customer saved a payment method, or made it the default, that the open
            invoice was not tried with; False unless the subscription is past due.
        has_promoted_payment_method: Whether a backup became the default after the open invoice was last tried, because
            the default was removed; False unless the subscription is past due.
        has_untried_credit: Whether credit arrived that pays a part of the open invoice, so that a card has to pay less
            than at the last attempt; False unless the subscription is past due.
        is_instance_running: Whether the instance is not scaled to zero.
        is_instance_degraded: Whether an operation may have left a part of the instance stopped.
        is_stopped_by_customer: Whether the customer stopped the instance.
        has_plan_resources: Whether the instance has the resources of the subscription's plan.
        plan_change_rollback: What the last plan change replaced; None once the instance is resized.
    """

    payments: list[UnsettledPayment] = field(default_factory=list)
    failed_attempts: int = 0
    last_attempt_at: datetime | None = None
    payment_method_ids: list[str] = field(default_factory=list)
    hard_declined: bool = False
    hard_declined_payment_method_ids: list[str] = field(default_factory=list)
    has_untried_payment_method: bool = False
    has_promoted_payment_method: bool = False
    has_untried_credit: bool = False
    is_instance_running: bool = True
    is_instance_degraded: bool = False
    is_stopped_by_customer: bool = False
    has_plan_resources: bool = True
    plan_change_rollback: PlanChangeRollback | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeCollection:
    subscription_id: str
    now: datetime


class RecoveryActivities(Protocol):
    """One transaction each; repeating one changes nothing more."""

    @activity.defn(name="recovery.load")
    async def load(self, command: LoadRecovery) -> Recovery:
        """Read what the lost run left.

        Refuses: ``NOT_FOUND``.
        """
        ...

    @activity.defn(name="recovery.resume_collection")
    async def resume_collection(self, command: ResumeCollection) -> BillingOutcome:
        """Void the drafts whose command was lost, release their holds, and pay what credit covers of the open invoice.

        It pays the invoice of an active subscription if its own payment became credit, and the debt of a past-due one
        from credit that arrived meanwhile; a trial's draft is left to the schedule. Returns the invoice of an active
        subscription that is still open with what a card has to pay for it. Called once every payment is settled.

        Refuses: ``NOT_FOUND``.
        """
        ...
