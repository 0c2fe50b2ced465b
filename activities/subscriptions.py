"""Activities of subscriptions: creation, abort of an order, and status changes that collect no money."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities import coupons, reminders
from activities.attempt_time import attempt_delay, scheduled_at
from activities.holds import release_hold
from activities.invoice_allocations import reverse_all
from activities.notification_context import ContextFields, notification_context
from activities.order_placement import place_order
from activities.outcomes import committed_state, repeated_status_outcome, status_outcome
from activities.payment_application import credit_captured_payments
from activities.rule_errors import converts_rule_violations
from activities.scheduled_cancellation import (
    CANCELLATION_WITHDRAWN,
    CANCELLATION_WITHDRAWN_BY_PAUSE,
    add_cancellation_scheduled,
    drop_cancellation,
)
from activities.subscription_transitions import (
    new_change_set,
    require_paid_period,
    status_message,
    transition_subscription,
)
from db.errors import violated_constraint
from db.models.catalogue import Plan
from db.queries import instances, invoices, orders
from db.queries import reminders as reminder_rows
from db.queries.change_set import ChangeSet
from db.queries.locked_subscriptions import (
    LockedSubscription,
    begin_with_locked_subscription,
)
from db.session import SessionFactory
from workflows.errors import non_retryable_error
from workflows.ports.billing import SubscriptionActivities
from workflows.ports.subscription import (
    PLATFORM_ACTOR,
    AbortOrder,
    ChangeStatus,
    CommittedState,
    CreateSubscriptionOutcome,
    RecordCancellationRequest,
    RecordOrder,
    ReleaseReminders,
    SetCancelAtPeriodEnd,
    StartProvisioning,
    StatusOutcome,
)
from workflows.rules import ledger
from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.funding import GatewayTerms
from workflows.rules.notifications import NotificationKind
from workflows.rules.subscription import (
    CANCELLATION_REQUESTED,
    PAST_DUE_STATUSES,
    PRE_READY_STATUSES,
    SubscriptionStatus,
)

_CONSTRAINT_ERRORS = {
    "uq_subscriptions_one_trial_per_service": (
        ErrorCode.TRIAL_ALREADY_USED,
        "The organization has already used its trial of this service.",
    ),
    "uq_instances_hostname": (ErrorCode.CONFLICT, "This host name is already in use. Choose another one."),
}

_NOTIFICATION_KINDS = {
    SubscriptionStatus.FAILED: NotificationKind.SUBSCRIPTION_FAILED,
    SubscriptionStatus.EXPIRED: NotificationKind.SUBSCRIPTION_EXPIRED,
    SubscriptionStatus.CANCELLED: NotificationKind.SUBSCRIPTION_CANCELLED,
    SubscriptionStatus.SUSPENDED: NotificationKind.SUBSCRIPTION_SUSPENDED,
    SubscriptionStatus.PAUSED: NotificationKind.SUBSCRIPTION_PAUSED,
    SubscriptionStatus.TERMINATED: NotificationKind.SUBSCRIPTION_TERMINATED,
}


class PostgresSubscriptionActivities(SubscriptionActivities):
    def __init__(self, sessions: SessionFactory, base_domain: str, gateways: Mapping[str, GatewayTerms]) -> None:
        """Initialize.

        Args:
            base_domain: Parent domain of the instances' host names.
            gateways: What each gateway that charges saved cards can do, by name.
        """
        self._sessions = sessions
        self._gateways = gateways
        self._base_domain = base_domain

    @activity.defn(name="subscriptions.record_order")
    @converts_rule_violations
    async def record_order(self, command: RecordOrder) -> CreateSubscriptionOutcome:
        try:
            async with self._sessions() as session:
                try:
                    outcome = await place_order(session, command, self._gateways, base_domain=self._base_domain)
                except ApplicationError:
                    # An attempt that timed out may have committed while this one waited for its locks: then it was
                    # refused for what that attempt has held and reserved.
                    await session.rollback()
                    is_recorded = await orders.is_recorded(session, command.order.subscription_id)
                    await session.rollback()
                    if not is_recorded:
                        raise
                    outcome = await place_order(session, command, self._gateways, base_domain=self._base_domain)
                await session.commit()  # Sends nothing if the last statement was committed with its round trip.
                return outcome
        except IntegrityError as error:
            code_and_message = _CONSTRAINT_ERRORS.get(violated_constraint(error))
            if code_and_message is None:
                raise
            raise non_retryable_error(*code_and_message) from error

    @activity.defn(name="subscriptions.start_provisioning")
    @converts_rule_violations
    async def start_provisioning(self, command: StartProvisioning) -> CommittedState:
        async with self._sessions.begin() as session:
            subscription = await begin_with_locked_subscription(session, command.subscription_id)
            if subscription.status is not SubscriptionStatus.PENDING:
                return await committed_state(session, subscription, None)
            changes = new_change_set(subscription, command.now, PLATFORM_ACTOR)
            changes.add_timeline_event("payment.authorized", "Card payment authorized.", ref=command.payment_id)
            changes.add_timeline_event(
                "instance.provisioning", f"Setting up {subscription.service_name}.", ref=subscription.instance_id
            )
            transition_subscription(changes, subscription, SubscriptionStatus.PROVISIONING, "secured")
            await changes.write(session)
            return await committed_state(session, subscription, changes)

    @activity.defn(name="subscriptions.record_cancellation_request")
    @converts_rule_violations
    async def record_cancellation_request(self, command: RecordCancellationRequest) -> None:
        kind, message = CANCELLATION_REQUESTED, "Cancellation requested. The order is being rolled back."
        async with self._sessions.begin() as session:
            subscription = await begin_with_locked_subscription(session, command.subscription_id)
            changes = new_change_set(subscription, command.now, command.actor)
            changes.add_timeline_event(kind, message, dedup_key=kind)
            await changes.write(session)

    @activity.defn(name="subscriptions.abort_order")
    @converts_rule_violations
    async def abort_order(self, command: AbortOrder) -> StatusOutcome:
        async with self._sessions.begin() as session:
            subscription = await begin_with_locked_subscription(session, command.subscription_id)
            if subscription.status not in PRE_READY_STATUSES:
                return await repeated_status_outcome(session, subscription)
            changes = new_change_set(subscription, command.now, command.actor)
            await release_hold(session, changes, subscription)
            credited = await credit_captured_payments(session, changes, subscription.currency)
            await coupons.release_coupon(session, subscription.id)
            # Provisioning has not started, so no operation on the instance records the deletion.
            await instances.mark_requested_deleted(session, subscription.id, command.now)
            changes.add_timeline_event(f"subscription.{command.status}", status_message(command.status, command.reason))
            context = notification_context(subscription, reason=command.reason, credited=credited or None)
            changes.enqueue_notification(_NOTIFICATION_KINDS[command.status], context)
            columns = {"cancelled_at": command.now} if command.status is SubscriptionStatus.CANCELLED else {}
            transition_subscription(changes, subscription, command.status, command.reason, **columns)
            await changes.write(session)
            return await status_outcome(session, subscription, changes)

    @activity.defn(name="subscriptions.change_status")
    @converts_rule_violations
    async def change_status(self, command: ChangeStatus) -> StatusOutcome:
        if command.data_deletion_at is not None:
            # The retention counts from the cancellation, and so does the workflow's timer.
            command = replace(command, data_deletion_at=command.data_deletion_at + attempt_delay())
        async with self._sessions.begin() as session:
            subscription = await begin_with_locked_subscription(session, command.subscription_id)
            if subscription.status is command.status:
                if command.void_invoice:
                    return await repeated_status_outcome(session, subscription)
                return StatusOutcome(state=await committed_state(session, subscription, None))
            if subscription.status in PRE_READY_STATUSES:
                # `abort_order` ends an order, because its hold and its coupon have to be released as well.
                raise RuleViolation(
                    ErrorCode.ILLEGAL_MOVE,
                    f"An order that is {subscription.status} is aborted, not {command.status}.",
                    {"from": subscription.status, "to": command.status},
                )
            changes = new_change_set(subscription, command.now, command.actor)
            columns: dict[str, Any] = {}
            if command.status is SubscriptionStatus.CANCELLED:
                columns = {
                    "cancelled_at": command.now,
                    "data_deletion_at": command.data_deletion_at,
                    "cancel_at_period_end": False,
                    "pending_plan_id": None,
                    "past_due_since": None,
                }
            changes.void_reminders()
            if command.status is SubscriptionStatus.PAUSED:
                columns = drop_cancellation(changes, subscription, command.reason, CANCELLATION_WITHDRAWN_BY_PAUSE)
            if command.void_invoice:
                await _void_invoices(session, changes, subscription)
            if command.status is SubscriptionStatus.CANCELLED:
                await coupons.release_coupon(session, subscription.id)
            changes.add_timeline_event(f"subscription.{command.status}", status_message(command.status, command.reason))
            context = await _status_change_context(session, subscription, command)
            changes.enqueue_notification(_NOTIFICATION_KINDS[command.status], context)
            transition_subscription(changes, subscription, command.status, command.reason, **columns)
            await changes.write(session)
            return await status_outcome(session, subscription, changes)

    @activity.defn(name="subscriptions.set_cancel_at_period_end")
    @converts_rule_violations
    async def set_cancel_at_period_end(self, command: SetCancelAtPeriodEnd) -> CommittedState:
        async with self._sessions.begin() as session:
            subscription = await begin_with_locked_subscription(session, command.subscription_id)
            changes = new_change_set(subscription, command.now, command.actor)
            if subscription.cancel_at_period_end != command.cancel_at_period_end:
                if command.cancel_at_period_end:
                    # As the customer asked for it: the renewal waits for this command.
                    require_paid_period(subscription, scheduled_at(command.now))
                before, after = str(subscription.cancel_at_period_end), str(command.cancel_at_period_end)
                changes.record_change("cancel_at_period_end", before, after, command.reason)
                if command.cancel_at_period_end:
                    add_cancellation_scheduled(changes, subscription, subscription.period_end)
                    context = notification_context(
                        subscription,
                        reason=command.reason,
                        period_end=subscription.period_end,
                        cancel_at_period_end=True,
                        status=subscription.status,
                        withdrawn_plan_name=await _cancel_scheduled_change(session, changes, subscription),
                    )
                    changes.enqueue_notification(NotificationKind.SUBSCRIPTION_CANCELLED, context)
                else:
                    changes.add_timeline_event("subscription.cancellation_withdrawn", CANCELLATION_WITHDRAWN)
            changes.update_subscription(
                cancel_at_period_end=command.cancel_at_period_end,
                pending_plan_id=command.pending_plan_id,
            )
            await changes.write(session)
            return await committed_state(session, subscription, changes)

    @activity.defn(name="subscriptions.release_reminders")
    @converts_rule_violations
    async def release_reminders(self, command: ReleaseReminders) -> None:
        async with self._sessions.begin() as session:
            for reminder_id, context in await reminder_rows.lock_due(session, command.subscription_id, command.now):
                await reminder_rows.release(session, reminder_id, await reminders.load_context(session, context))
            await reminder_rows.reschedule(session, command.subscription_id, command.now)


async def _status_change_context(
    session: AsyncSession, subscription: LockedSubscription, command: ChangeStatus
) -> dict[str, Any]:
    """Return the notification's context; for a suspension with the amount due and its invoice."""
    fields = ContextFields(
        reason=command.reason,
        data_deletion_at=command.data_deletion_at or subscription.data_deletion_at,
        cancels_at=command.cancellation_at,
        cancellation_withdrawn=subscription.cancel_at_period_end and command.status is SubscriptionStatus.PAUSED,
    )
    if (
        subscription.status in PAST_DUE_STATUSES
        and command.status is SubscriptionStatus.CANCELLED
        and command.actor == PLATFORM_ACTOR
    ):
        fields["reason"] = "unpaid"
    if command.status is SubscriptionStatus.SUSPENDED:
        for invoice in await invoices.lock_open_invoices(session, subscription.id):
            fields |= {"amount": invoice.due, "invoice_id": invoice.id}
    return notification_context(subscription, **fields)


async def _cancel_scheduled_change(
    session: AsyncSession, changes: ChangeSet, subscription: LockedSubscription
) -> str | None:
    """Record that the scheduled plan change does not happen. Return the name of its plan; None if none is dropped."""
    if subscription.pending_plan_id is None:
        return None
    changes.record_change(
        "pending_plan", subscription.pending_plan_id, None, "withdrawn by the cancellation at the end of the period"
    )
    plan = await session.get_one(Plan, subscription.pending_plan_id)
    changes.add_timeline_event(
        "subscription.plan_change_withdrawn",
        f"Scheduled plan change to {plan.name} withdrawn: the subscription is cancelled at the end of the period.",
    )
    return plan.name


async def _void_invoices(session: AsyncSession, changes: ChangeSet, subscription: LockedSubscription) -> None:
    """Void open and draft invoices. What they received is returned to its sources."""
    await invoices.void_drafts(session, subscription.id, changes.occurred_at)
    for invoice in await invoices.lock_open_invoices(session, subscription.id):
        changes.add_ledger_transaction(
            ledger.void_transaction(total=invoice.due, tax=invoice.tax),
            key=f"void/{invoice.id}",
            description="Invoice voided",
            ref=invoice.id,
        )
        await reverse_all(
            session,
            changes,
            invoice.id,
            invoice.total.currency,
            key=f"void/{invoice.id}/paid",
            description="Invoice voided",
        )
        await invoices.mark_void(session, invoice.id, changes.occurred_at)
        changes.add_timeline_event(
            "invoice.voided", "Open invoice voided.", ref=invoice.id, dedup_key=f"void/{invoice.id}"
        )
