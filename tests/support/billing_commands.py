"""Billing commands about one subscription, as its workflow would send them."""

from __future__ import annotations

from datetime import datetime, timedelta

from db.queries import ledger as ledger_rows
from tests.support.billing_fixture import (
    ORDERED_AT,
    ORGANIZATION,
    USER,
    BillingFixture,
    OpenedSubscription,
    current_period,
)
from tests.support.billing_fixture import credit_wallet as topped_up
from tests.support.billing_fixture import insert_card_payment as paid_by_card
from workflows.ports.billing import (
    ApplyCardPayment,
    ApplyPlanChange,
    BillingOutcome,
    CollectInvoice,
    RecordPaymentFailure,
    RollbackPlanChange,
)
from workflows.ports.subscription import ChangeStatus, PlanChangeRollback, SetCancelAtPeriodEnd, StartProvisioning
from workflows.rules import ledger
from workflows.rules.ids import derive_id
from workflows.rules.money import Money
from workflows.rules.proration import PlanChangeMode
from workflows.rules.subscription import SubscriptionStatus

DAY = timedelta(days=1)
TEN_DAYS_AFTER_ORDER = ORDERED_AT + 10 * DAY


def usd(amount_minor: int) -> Money:
    return Money(amount_minor=amount_minor, currency="USD")


async def top_up(billing: BillingFixture, amount_minor: int) -> None:
    await topped_up(billing.sessions, usd(amount_minor))


async def grant_promotional_credit(billing: BillingFixture, amount_minor: int) -> None:
    async with billing.sessions.begin() as session:
        await ledger_rows.post_transaction(
            session,
            ledger.promotional_credit_transaction(usd(amount_minor)),
            transaction_id=derive_id("tx", "promotional"),
            organization_id=ORGANIZATION,
            at=ORDERED_AT,
            ref=None,
            description="promotional credit",
            idempotency_key="promotional",
        )


def collect_command(ordered: OpenedSubscription, outcome: BillingOutcome) -> CollectInvoice:
    return CollectInvoice(
        subscription_id=ordered.id,
        invoice_id=outcome.invoice_id or "",
        scheduled=True,
        actor="platform",
        now=ordered.period.end + DAY,
        next_retry_at=ordered.period.end + 3 * DAY,
    )


async def card_payment_command(
    billing: BillingFixture, ordered: OpenedSubscription, outcome: BillingOutcome, **columns: str
) -> ApplyCardPayment:
    """Insert the card payment that an outcome requires, and return the command that applies it."""
    assert outcome.card_charge is not None
    await paid_by_card(billing.sessions, "pay_1", ordered.id, outcome.card_charge.amount, **columns)
    return ApplyCardPayment(
        subscription_id=ordered.id, invoice_id=outcome.invoice_id or "", payment_id="pay_1", now=ordered.period.end
    )


def payment_failure_command(ordered: OpenedSubscription, outcome: BillingOutcome) -> RecordPaymentFailure:
    return RecordPaymentFailure(
        subscription_id=ordered.id,
        invoice_id=outcome.invoice_id or "",
        payment_id="pay_1",
        decline_code="generic_decline",
        next_retry_at=None,
        now=ordered.period.end,
    )


def change_status_command(ordered: OpenedSubscription, to: SubscriptionStatus) -> ChangeStatus:
    cancelled = to is SubscriptionStatus.CANCELLED
    return ChangeStatus(
        subscription_id=ordered.id,
        status=to,
        reason="because",
        actor=USER,
        now=TEN_DAYS_AFTER_ORDER,
        data_deletion_at=TEN_DAYS_AFTER_ORDER + 30 * DAY if cancelled else None,
        void_invoice=cancelled,
    )


def cancel_at_period_end_command(
    ordered: OpenedSubscription, now: datetime, *, cancels: bool = True
) -> SetCancelAtPeriodEnd:
    """Return the command of a customer who cancels at the end of the period, or who withdraws that."""
    return SetCancelAtPeriodEnd(
        subscription_id=ordered.id,
        cancel_at_period_end=cancels,
        pending_plan_id=None,
        reason="",
        actor=USER,
        now=now,
    )


def plan_change_command(ordered: OpenedSubscription, plan: str, mode: PlanChangeMode | None = None) -> ApplyPlanChange:
    return ApplyPlanChange(
        subscription_id=ordered.id,
        plan_id=f"pln_{plan}",
        mode=mode,
        plan_change_id="order_1",
        actor=USER,
        now=TEN_DAYS_AFTER_ORDER,
    )


def rollback_command(ordered: OpenedSubscription) -> RollbackPlanChange:
    fallback = PlanChangeRollback(
        plan_change_id="order_1",
        terms=ordered.terms,
        anchor=ordered.period.start,
        period_start=ordered.period.start,
        period_end=ordered.period.end,
    )
    return RollbackPlanChange(
        subscription_id=ordered.id,
        fallback=fallback,
        plan_change_id="order_1",
        reason="no room",
        now=TEN_DAYS_AFTER_ORDER + DAY,
    )


async def create_past_due_subscriptions(billing: BillingFixture, *plans: str) -> list[OpenedSubscription]:
    """Create one past-due subscription per plan, the oldest debt first; they were ordered in the opposite order."""
    prices = {"starter": 500, "pro": 2_000}
    ordered = []
    for plan in reversed(plans):
        await top_up(billing, prices[plan])
        ordered.append(await billing.create_active_subscription(plan))
    ordered.reverse()
    for age, subscription in enumerate(ordered):
        start = subscription.period.end + age * DAY
        await billing.billing_activities.start_period(billing.start_period_command(subscription, start=start))
    return ordered


async def start_first_period_with_card(
    billing: BillingFixture, plan: str = "starter"
) -> tuple[OpenedSubscription, BillingOutcome]:
    command = billing.create_command(plan)
    opened = await billing.subscription_activities.record_order(command)
    secured = StartProvisioning(subscription_id=command.order.subscription_id, payment_id="pay_1", now=ORDERED_AT)
    await billing.subscription_activities.start_provisioning(secured)
    outcome = await billing.billing_activities.start_first_period(billing.start_first_period_command(command, opened))
    return OpenedSubscription(command=command.order, opened=opened, period=current_period(outcome)), outcome


async def collect(billing: BillingFixture, ordered: OpenedSubscription, *, credit_only: bool = False) -> BillingOutcome:
    invoice = (await billing.invoices(ordered.id))[-1]
    return await billing.billing_activities.collect_invoice(
        CollectInvoice(
            subscription_id=ordered.id,
            invoice_id=invoice["id"],
            scheduled=False,
            actor="platform",
            now=ordered.period.end + 5 * DAY,
            next_retry_at=None,
            credit_only=credit_only,
        )
    )


async def remove_cards(billing: BillingFixture) -> None:
    await billing.execute("UPDATE payment_methods SET is_default = false, detached_at = created_at")
