"""The commands on an account's money, drawn in any sequence by hypothesis."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
)

from tests.support.billing_commands import usd
from tests.support.billing_fixture import (
    ORDERED_AT,
    ORGANIZATION,
    USER,
    insert_card_payment,
    insert_payment_method,
)
from tests.support.money_invariants import BALANCE, assert_money_is_conserved
from tests.support.money_refunds import AMOUNTS, POSITIONS, RefundSteps
from tests.support.money_steps import SMALL_COUPON, MachineContext, TrackedSubscription
from workflows.ports.billing import (
    AdjustWallet,
    ApplyPlanChange,
    CollectInvoice,
    CompletePlanChange,
    PlanChangeResult,
    RollbackPlanChange,
)
from workflows.ports.subscription import (
    AbortOrder,
    PlanChangeRollback,
    StartProvisioning,
)
from workflows.rules import ledger
from workflows.rules.funding import CollectionMethod
from workflows.rules.proration import PlanChangeMode
from workflows.rules.renewal import PeriodKind
from workflows.rules.subscription import LIVE_STATUSES, PAST_DUE_STATUSES, SubscriptionStatus

PLANS = st.sampled_from(["starter", "pro", "pro-yearly", "trial"])
CARD_RESULTS = st.sampled_from(["paid", "declined", "paid", "declined", "cancelled_then_paid"])
COUPONS = st.sampled_from([None, None, SMALL_COUPON])
OWN = f"organization_id = '{ORGANIZATION}'"


class MoneyMachine(RefundSteps):
    """Every sequence of these commands keeps the money of the account."""

    def __init__(self, account: MachineContext) -> None:
        super().__init__(account)
        self.statuses: dict[str, SubscriptionStatus] = {}

    def has(self, *statuses: SubscriptionStatus) -> bool:
        return any(self.statuses.get(ordered.id) in statuses for ordered in self.subscriptions)

    @initialize(
        amount=st.sampled_from([2_000, 21_000]),
        promotional=st.booleans(),
        card=st.booleans(),
        plan=st.sampled_from(["starter", "pro"]),
        result=st.sampled_from(["paid", "declined"]),
        renewal=st.sampled_from([None, None, "paid", "declined"]),
        debt=st.booleans(),
    )
    def start(
        self, amount: int, promotional: bool, card: bool, plan: str, result: str, renewal: str | None, debt: bool
    ) -> None:
        """Start with a first order that credit pays; every other sequence renews it by card, paid or declined.

        Args:
            debt: An order before it left debt, because its amount is below the gateway's minimum.
        """
        self.account.clear()
        if debt:
            self.add_card()
            self.order("starter", CollectionMethod.WALLET_THEN_CARD, result, SMALL_COUPON)
        self.top_up(amount)
        if promotional:
            self.grant_promotional_credit(170)
        if card:
            self.add_card()
        self.order(plan, CollectionMethod.WALLET_THEN_CARD, result)
        if renewal is not None:
            self.renew(0, renewal, "card")

    # Money arrives

    @rule(amount=AMOUNTS)
    def grant_promotional_credit(self, amount: int) -> None:
        self.run(self.post(ledger.promotional_credit_transaction(usd(amount)), f"promotional/{self.unique('grant')}"))

    @rule(amount=AMOUNTS, negative=st.booleans())
    def adjust_wallet(self, amount: int, negative: bool) -> None:
        command = AdjustWallet(
            adjustment_id=self.unique("adj"),
            organization_id=ORGANIZATION,
            amount=usd(-amount if negative else amount),
            reason="correction",
            actor=USER,
            request_id="",
            now=ORDERED_AT,
        )
        self.perform(self.account.billing.billing_activities.adjust_wallet, command)

    def empty_wallet(self) -> None:
        (row,) = self.query(f"SELECT ({BALANCE} = 'wallet' AND {OWN})::bigint AS balance")
        if row["balance"]:
            self.adjust_wallet(row["balance"], negative=True)

    @rule()
    def add_card(self) -> None:
        self.account.rows.execute(f"UPDATE payment_methods SET is_default = false WHERE {OWN}")
        self.run(insert_payment_method(self.account.billing.sessions))

    @precondition(lambda self: self.query(f"SELECT FROM payment_methods WHERE {OWN} AND detached_at IS NULL"))
    @rule()
    def remove_cards(self) -> None:
        self.account.rows.execute(f"UPDATE payment_methods SET is_default = false, detached_at = now() WHERE {OWN}")

    # Subscriptions

    @rule(plan=PLANS, collection=st.sampled_from(CollectionMethod), result=CARD_RESULTS, coupon=COUPONS)
    def order(self, plan: str, collection: CollectionMethod, result: str, coupon: str | None = None) -> None:
        billing = self.account.billing
        command = billing.create_command(plan, collection_method=collection, coupon=coupon)
        opened = self.perform(billing.subscription_activities.record_order, command)
        if opened is None:
            return
        ordered = TrackedSubscription(command.order, opened.terms, ORDERED_AT)
        if opened.card_charge is not None and result == "declined":
            self.perform(
                billing.subscription_activities.abort_order,
                AbortOrder(
                    subscription_id=ordered.id,
                    status=SubscriptionStatus.EXPIRED,
                    reason="declined",
                    actor="platform",
                    now=ORDERED_AT,
                ),
            )
            self.note("an order is aborted")
            return
        self.subscriptions.append(ordered)
        if opened.card_charge is not None:
            secured = StartProvisioning(subscription_id=ordered.id, payment_id=None, now=ORDERED_AT)
            self.perform(billing.subscription_activities.start_provisioning, secured)
        started = self.perform(
            billing.billing_activities.start_first_period, billing.start_first_period_command(command, opened)
        )
        self.settle(ordered, started, result)

    @precondition(lambda self: self.has(SubscriptionStatus.ACTIVE, SubscriptionStatus.TRIALING))
    @rule(position=POSITIONS, result=CARD_RESULTS, source=st.sampled_from(["any", "card", "none", "none"]))
    def renew(self, position: int, result: str, source: str) -> None:
        ordered = self.choose(position, SubscriptionStatus.ACTIVE, SubscriptionStatus.TRIALING)
        if ordered is None:
            return
        row = self.row(ordered)
        end = row["current_period_end"]
        kind = PeriodKind.TRIAL_END if row["status"] == SubscriptionStatus.TRIALING else PeriodKind.RENEWAL
        ordered.clock = max(ordered.clock, end)
        if source != "any":
            self.empty_wallet()
            self.remove_cards()
        if source == "card":
            self.add_card()
        self.start_period(ordered, kind, end, result)

    @precondition(lambda self: self.has(SubscriptionStatus.ACTIVE))
    @rule(position=POSITIONS)
    def pause(self, position: int) -> None:
        if ordered := self.choose(position, SubscriptionStatus.ACTIVE):
            self.change_status(ordered, SubscriptionStatus.PAUSED)

    @precondition(lambda self: self.has(SubscriptionStatus.PAUSED))
    @rule(position=POSITIONS, result=CARD_RESULTS)
    def resume(self, position: int, result: str) -> None:
        if ordered := self.choose(position, SubscriptionStatus.PAUSED):
            ordered.clock += timedelta(days=3)
            self.start_period(ordered, PeriodKind.RESUMPTION, ordered.clock, result)

    @precondition(lambda self: self.has(SubscriptionStatus.PAST_DUE))
    @rule(position=POSITIONS)
    def suspend(self, position: int) -> None:
        if ordered := self.choose(position, SubscriptionStatus.PAST_DUE):
            self.change_status(ordered, SubscriptionStatus.SUSPENDED)

    @precondition(lambda self: len(self.subscriptions) > 1 and self.has(*LIVE_STATUSES))
    @rule(position=POSITIONS)
    def cancel(self, position: int) -> None:
        if ordered := self.choose(position, *LIVE_STATUSES):
            self.change_status(ordered, SubscriptionStatus.CANCELLED)

    @precondition(lambda self: self.has(*PAST_DUE_STATUSES))
    @rule(position=POSITIONS, result=CARD_RESULTS)
    def collect(self, position: int, result: str) -> None:
        ordered = self.choose(position, *PAST_DUE_STATUSES)
        if ordered is None:
            return
        (invoice,) = self.query("SELECT id FROM invoices WHERE subscription_id = %s AND status = 'open'", ordered.id)
        ordered.clock += timedelta(hours=1)
        outcome = self.perform(
            self.account.billing.billing_activities.collect_invoice,
            CollectInvoice(
                subscription_id=ordered.id,
                invoice_id=invoice["id"],
                scheduled=True,
                actor="platform",
                now=ordered.clock,
                next_retry_at=None,
            ),
        )
        self.settle(ordered, outcome, result)

    @precondition(lambda self: self.has(SubscriptionStatus.ACTIVE))
    @rule(
        position=POSITIONS,
        plan=PLANS,
        mode=st.sampled_from([PlanChangeMode.IMMEDIATE, PlanChangeMode.IMMEDIATE, None, PlanChangeMode.PERIOD_END]),
        result=CARD_RESULTS,
        card=st.booleans(),
        hours=st.integers(min_value=1, max_value=200),
        rolled_back=st.booleans(),
    )
    def change_plan(
        self,
        position: int,
        plan: str,
        mode: PlanChangeMode | None,
        result: str,
        card: bool,
        hours: int,
        rolled_back: bool,
    ) -> None:
        ordered = self.choose(position, SubscriptionStatus.ACTIVE)
        if ordered is None:
            return
        before = self.row(ordered)
        at = ordered.clock + timedelta(hours=hours)
        if at >= before["current_period_end"]:
            return
        if plan == ordered.terms.plan_code:
            plan = "pro" if plan == "starter" else "starter"
        if card:
            self.empty_wallet()
            self.add_card()
        ordered.clock = at
        plan_change_id = self.unique("change")
        billing = self.account.billing.billing_activities
        changed = self.perform(
            billing.change_plan,
            ApplyPlanChange(
                subscription_id=ordered.id,
                plan_id=f"pln_{plan}",
                mode=mode,
                plan_change_id=plan_change_id,
                actor=USER,
                now=at,
            ),
        )
        if changed is None or changed.result is PlanChangeResult.SCHEDULED:
            return
        if changed.result is PlanChangeResult.CARD_CHARGE_REQUIRED:
            assert changed.invoice_id is not None
            assert changed.card_charge is not None
            payment_id = self.unique("pay")
            if result == "declined":
                self.fail_payment(ordered, changed.invoice_id, payment_id)
                return
            self.run(
                insert_card_payment(self.account.billing.sessions, payment_id, ordered.id, changed.card_charge.amount)
            )
            if result == "cancelled_then_paid":
                self.change_status(ordered, SubscriptionStatus.CANCELLED)
            completed = self.perform(
                billing.complete_plan_change,
                CompletePlanChange(
                    subscription_id=ordered.id,
                    invoice_id=changed.invoice_id,
                    payment_id=payment_id,
                    plan_change_id=plan_change_id,
                    actor=USER,
                    terms=changed.terms,
                    restarts=changed.is_new_anchor,
                    now=at,
                ),
            )
            self.note(f"a card payment of a plan change is {result}")
            if completed is None or not completed.paid or result == "cancelled_then_paid":
                return
        self.note(f"a plan change is applied {'with' if changed.invoice_id else 'without'} an invoice")
        old_terms, ordered.terms = ordered.terms, changed.terms
        if rolled_back:
            ordered.clock += timedelta(hours=1)
            self.perform(
                billing.rollback_plan_change,
                RollbackPlanChange(
                    subscription_id=ordered.id,
                    fallback=PlanChangeRollback(
                        plan_change_id=plan_change_id,
                        terms=old_terms,
                        anchor=before["billing_anchor"],
                        period_start=before["current_period_start"],
                        period_end=before["current_period_end"],
                    ),
                    plan_change_id=plan_change_id,
                    reason="no room",
                    now=ordered.clock,
                ),
            )
            ordered.terms = old_terms
            self.note("a plan change is rolled back")

    @precondition(lambda self: self.has(SubscriptionStatus.ACTIVE))
    @rule(
        position=POSITIONS, plan=st.sampled_from(["pro", "pro-yearly"]), result=CARD_RESULTS, rolled_back=st.booleans()
    )
    def upgrade_by_card(self, position: int, plan: str, result: str, rolled_back: bool) -> None:
        self.change_plan(
            position, plan, PlanChangeMode.IMMEDIATE, result=result, card=True, hours=5, rolled_back=rolled_back
        )

    # After each command

    @invariant()
    def money_is_where_it_belongs(self) -> None:
        rows = self.query("SELECT id, status FROM subscriptions")
        self.statuses = {row["id"]: SubscriptionStatus(row["status"]) for row in rows}
        assert_money_is_conserved(self.account.rows)
        self.account.other_organization.assert_unchanged(self.account.rows)
        for row in self.query(
            f"SELECT DISTINCT amount_minor > 0 AS carried FROM invoice_allocations WHERE {OWN} AND source = 'debt'"
        ):
            self.note(f"debt is {'carried' if row['carried'] else 'repaid'}")

    def teardown(self) -> None:
        self.run(self.account.billing.assert_ledger_balanced())
