"""Billing's activities. Each method is one transaction and finds what an earlier run of it wrote."""

from __future__ import annotations

from collections.abc import Mapping

from temporalio import activity

from activities import (
    first_periods,
    invoice_collection,
    payment_application,
    periods,
    plan_change_completion,
    plan_changes,
    wallet_adjustments,
)
from activities.rule_errors import converts_rule_violations
from db.session import SessionFactory
from workflows.ports.billing import (
    Adjusted,
    AdjustWallet,
    ApplyCardPayment,
    ApplyPlanChange,
    BillingActivities,
    BillingOutcome,
    CollectInvoice,
    CompletePlanChange,
    PlanChangeOutcome,
    RecordPaymentFailure,
    RollbackPlanChange,
    StartFirstPeriod,
    StartPeriod,
)
from workflows.ports.subscription import StatusOutcome
from workflows.rules.funding import GatewayTerms


class PostgresBillingActivities(BillingActivities):
    def __init__(self, sessions: SessionFactory, gateways: Mapping[str, GatewayTerms]) -> None:
        """Initialize.

        Args:
            gateways: What each gateway that charges saved cards can do, by name.
        """
        self._sessions = sessions
        self._gateways = gateways

    @activity.defn(name="billing.start_first_period")
    @converts_rule_violations
    async def start_first_period(self, command: StartFirstPeriod) -> BillingOutcome:
        async with self._sessions.begin() as session:
            return await first_periods.start_first_period(session, command)

    @activity.defn(name="billing.start_period")
    @converts_rule_violations
    async def start_period(self, command: StartPeriod) -> BillingOutcome:
        async with self._sessions.begin() as session:
            return await periods.start_period(session, command, self._gateways)

    @activity.defn(name="billing.collect_invoice")
    @converts_rule_violations
    async def collect_invoice(self, command: CollectInvoice) -> BillingOutcome:
        async with self._sessions.begin() as session:
            return await invoice_collection.collect_invoice(session, command, self._gateways)

    @activity.defn(name="billing.apply_card_payment")
    @converts_rule_violations
    async def apply_card_payment(self, command: ApplyCardPayment) -> BillingOutcome:
        async with self._sessions.begin() as session:
            return await payment_application.apply_card_payment(session, command)

    @activity.defn(name="billing.record_payment_failure")
    @converts_rule_violations
    async def record_payment_failure(self, command: RecordPaymentFailure) -> BillingOutcome:
        async with self._sessions.begin() as session:
            return await payment_application.record_payment_failure(session, command, self._gateways)

    @activity.defn(name="billing.change_plan")
    @converts_rule_violations
    async def change_plan(self, command: ApplyPlanChange) -> PlanChangeOutcome:
        async with self._sessions.begin() as session:
            return await plan_changes.change_plan(session, command, self._gateways)

    @activity.defn(name="billing.complete_plan_change")
    @converts_rule_violations
    async def complete_plan_change(self, command: CompletePlanChange) -> BillingOutcome:
        async with self._sessions.begin() as session:
            return await plan_change_completion.complete_plan_change(session, command)

    @activity.defn(name="billing.rollback_plan_change")
    @converts_rule_violations
    async def rollback_plan_change(self, command: RollbackPlanChange) -> StatusOutcome:
        async with self._sessions.begin() as session:
            return await plan_change_completion.rollback_plan_change(session, command)

    @activity.defn(name="billing.adjust_wallet")
    @converts_rule_violations
    async def adjust_wallet(self, command: AdjustWallet) -> Adjusted:
        async with self._sessions.begin() as session:
            return await wallet_adjustments.adjust_wallet(session, command)
