"""What a restarted subscription goes on with: settled from payments, invoices and holds that a lost run left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncSession
from temporalio import activity

from activities.credit_arrivals import list_debtors
from activities.funding import reserve_older_debts, split_funding_for
from activities.holds import agreed_card_charge, release_hold, with_released
from activities.invoice_collection import pay_if_credit_covers, pay_with_credited_payment
from activities.outcomes import billing_outcome
from activities.plan_change_recovery import load_rollback
from activities.rule_errors import converts_rule_violations
from activities.subscription_transitions import new_change_set
from db.queries import invoices, workflow_recovery
from db.queries.invoices import InvoiceSummary
from db.queries.locked_subscriptions import LockedSubscription, begin_with_locked_subscription
from db.session import SessionFactory
from workflows.ports.billing import BillingOutcome
from workflows.ports.payments import payment_input_from_record
from workflows.ports.recovery import LoadRecovery, Recovery, RecoveryActivities, ResumeCollection, UnsettledPayment
from workflows.ports.subscription import PLATFORM_ACTOR
from workflows.rules.dunning import all_hard_declined, is_hard_decline
from workflows.rules.funding import FundingPurpose, GatewayTerms
from workflows.rules.hold_keys import ORDER_HOLD
from workflows.rules.instance import SCALED_DOWN_STATUSES, InstanceStatus
from workflows.rules.invoice import BillingReason
from workflows.rules.payment import PaymentStatus
from workflows.rules.subscription import PAST_DUE_STATUSES, SubscriptionStatus


class PostgresRecoveryActivities(RecoveryActivities):
    def __init__(self, sessions: SessionFactory, gateways: Mapping[str, GatewayTerms]) -> None:
        """Initialize.

        Args:
            gateways: What each gateway that charges saved cards can do, by name.
        """
        self._sessions = sessions
        self._gateways = gateways

    @activity.defn(name="recovery.load")
    @converts_rule_violations
    async def load(self, command: LoadRecovery) -> Recovery:
        async with self._sessions.begin() as session:
            subscription = await begin_with_locked_subscription(session, command.subscription_id)
            instance = await workflow_recovery.get_instance_facts(session, subscription.id)
            recovery = Recovery(
                payments=await _unsettled_payments(session, subscription),
                payment_method_ids=[method.payment_method_id for method in subscription.funds.payment_methods],
                is_instance_running=instance.status not in SCALED_DOWN_STATUSES,
                is_instance_degraded=instance.status is InstanceStatus.DEGRADED,
                is_stopped_by_customer=instance.status is InstanceStatus.STOPPED,
                has_plan_resources=instance.has_plan_resources,
            )
            recovery = replace(recovery, plan_change_rollback=await load_rollback(session, subscription, instance))
            return await _with_dunning(session, subscription, recovery, self._gateways)

    @activity.defn(name="recovery.resume_collection")
    @converts_rule_violations
    async def resume_collection(self, command: ResumeCollection) -> BillingOutcome:
        async with self._sessions.begin() as session:
            return await _resume_collection(session, command)


async def _unsettled_payments(session: AsyncSession, subscription: LockedSubscription) -> list[UnsettledPayment]:
    """Return the payments to settle. The payment of the order names no invoice: it pays the open one."""
    open_invoice_id = await invoices.find_open_invoice_id(session, subscription.id)
    return [
        UnsettledPayment(payment=payment_input_from_record(payment), invoice_id=payment.invoice_id or open_invoice_id)
        for payment in await workflow_recovery.list_unsettled_payments(session, subscription.id)
    ]


async def _with_dunning(
    session: AsyncSession, subscription: LockedSubscription, recovery: Recovery, gateways: Mapping[str, GatewayTerms]
) -> Recovery:
    """Add what the attempts to collect the open invoice say of the retries that were made."""
    invoice_id = await invoices.find_open_invoice_id(session, subscription.id)
    if subscription.status not in PAST_DUE_STATUSES or subscription.past_due_since is None or invoice_id is None:
        return recovery
    attempts = await workflow_recovery.count_failed_attempts(session, subscription.id, subscription.past_due_since)
    failed = [
        payment
        for payment in await workflow_recovery.list_invoice_payments(session, invoice_id)
        if payment.status is PaymentStatus.FAILED and payment.payment_method_id is not None
    ]
    last_codes = {payment.payment_method_id: payment.decline_code for payment in failed}
    hard_declined = [method_id for method_id, code in last_codes.items() if method_id and is_hard_decline(code)]
    is_hard_declined = bool(failed) and all_hard_declined(
        failed[-1].decline_code, hard_declined, recovery.payment_method_ids
    )
    untried = await workflow_recovery.find_untried_payment_methods(
        session, subscription.id, subscription.organization_id
    )
    return replace(
        recovery,
        has_untried_credit=not is_hard_declined
        and await _has_untried_credit(session, subscription, invoice_id, gateways),
        has_untried_payment_method=untried.offered,
        has_promoted_payment_method=untried.promoted,
        failed_attempts=attempts.count,
        last_attempt_at=attempts.last_at,
        hard_declined=is_hard_declined,
        hard_declined_payment_method_ids=hard_declined,
    )


async def _has_untried_credit(
    session: AsyncSession, subscription: LockedSubscription, invoice_id: str, gateways: Mapping[str, GatewayTerms]
) -> bool:
    """Return whether a card has to pay less of the open invoice than was agreed for the last attempt."""
    invoice = await invoices.lock_invoice(session, invoice_id)
    assert invoice is not None  # it is the open one
    last = await invoices.find_last_hold(session, subscription.id, invoice.id)
    if last is None and invoice.billing_reason is BillingReason.ORDER:
        last = await invoices.find_hold(session, subscription.id, ORDER_HOLD)
    if last is None:
        return False
    held = await invoices.lock_open_hold(session, subscription.id)
    debts = await invoices.list_older_debts(session, subscription.id)
    available = reserve_older_debts(with_released(subscription, held), debts, gateways)
    funding = split_funding_for(available, invoice.due, FundingPurpose.DUNNING, gateways)
    return bool(funding.card) and funding.card < last.card


async def _resume_collection(session: AsyncSession, command: ResumeCollection) -> BillingOutcome:
    subscription = await begin_with_locked_subscription(session, command.subscription_id)
    changes = new_change_set(subscription, command.now, PLATFORM_ACTOR)
    is_trial = subscription.status is SubscriptionStatus.TRIALING
    # The end of a trial is in the schedule and finds its draft again. The payment of other drafts is awaited no more.
    await invoices.void_drafts(session, subscription.id, command.now, plan_changes_only=is_trial)
    awaited = await _awaited_invoice(session, subscription)
    held = await invoices.lock_open_hold(session, subscription.id)
    if held is not None and not (awaited is not None and held.key.invoice_id == awaited.id):
        subscription = with_released(subscription, await release_hold(session, changes, subscription))
        held = None
    is_due_now = awaited is not None and not is_trial
    outcome = None
    if is_due_now:
        outcome = await pay_with_credited_payment(session, changes, subscription, awaited)
    elif subscription.status in PAST_DUE_STATUSES:
        # Credit that arrived meanwhile was signaled to no workflow, and a suspension makes no more attempts.
        for invoice in (await invoices.lock_open_invoices(session, subscription.id))[:1]:
            outcome = await pay_if_credit_covers(session, changes, subscription, invoice)
    if outcome is None:
        await changes.write(session)
        agreed = held if held is not None else await invoices.find_hold(session, subscription.id, ORDER_HOLD)
        outcome = await billing_outcome(
            session,
            subscription,
            awaited if is_due_now else None,
            changes,
            card=agreed_card_charge(agreed) if is_due_now else None,
        )
    # Also when a lost run of this activity released the hold.
    if not changes.credited and not await invoices.has_released_hold(session, subscription.id):
        return outcome
    debtors = await list_debtors(session, subscription.organization_id)
    return replace(outcome, past_due_subscription_ids=[other for other in debtors if other != subscription.id])


async def _awaited_invoice(session: AsyncSession, subscription: LockedSubscription) -> InvoiceSummary | None:
    """Return the invoice that a card was about to pay: of an active subscription the open one, of a trial its draft.

    The open invoice of a past-due subscription is collected by the schedule.
    """
    if subscription.status is SubscriptionStatus.TRIALING:
        return await invoices.find_draft(session, subscription.id)
    if subscription.status is SubscriptionStatus.ACTIVE:
        return next(iter(await invoices.lock_open_invoices(session, subscription.id)), None)
    return None
