"""What paid an invoice is recorded in the transaction that pays it, and money goes back to the source it came from."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy.exc import IntegrityError
from temporalio.exceptions import ApplicationError

from activities.refunds import GatewayRefundActivities
from tests.support.billing_commands import (
    DAY,
    TEN_DAYS_AFTER_ORDER,
    card_payment_command,
    change_status_command,
    grant_promotional_credit,
    plan_change_command,
    rollback_command,
    top_up,
    usd,
)
from tests.support.billing_fixture import (
    ORDERED_AT,
    ORGANIZATION,
    USER,
    BillingFixture,
    OpenedSubscription,
    current_period,
    insert_card_payment,
    insert_coupon,
    insert_payment_method,
)
from tests.support.payment_fixture import run_activity
from workflows.ports.billing import ApplyPlanChange, CompletePlanChange
from workflows.ports.refunds import RefundDestination, RefundInput, ReserveRefund, SendRefund
from workflows.ports.subscription import StartProvisioning
from workflows.rules.errors import ErrorCode
from workflows.rules.proration import PlanChangeMode
from workflows.rules.subscription import SubscriptionStatus


async def allocations(billing: BillingFixture, invoice_id: str | None) -> dict[str, int]:
    """Return the sum per source of an invoice's allocations, without the sources that sum to zero."""
    rows = await billing.query(
        "SELECT source, sum(amount_minor)::bigint AS amount FROM invoice_allocations WHERE invoice_id = :id"
        " GROUP BY source HAVING sum(amount_minor) <> 0",
        id=invoice_id,
    )
    return {row["source"]: row["amount"] for row in rows}


async def order_with_card(billing: BillingFixture) -> tuple[OpenedSubscription, str]:
    """Order a starter plan (5.00) with 1.00 of promotional credit, 0.50 in the wallet and a card for the rest; return
    the subscription and the id of its open first invoice."""
    await grant_promotional_credit(billing, 100)
    await top_up(billing, 50)
    await insert_payment_method(billing.sessions)
    command = billing.create_command()
    opened = await billing.subscription_activities.record_order(command)
    assert opened.card_charge is not None
    secured = StartProvisioning(subscription_id=command.order.subscription_id, payment_id="pay_1", now=ORDERED_AT)
    await billing.subscription_activities.start_provisioning(secured)
    outcome = await billing.billing_activities.start_first_period(billing.start_first_period_command(command, opened))
    assert outcome.invoice_id is not None
    return OpenedSubscription(command=command.order, opened=opened, period=current_period(outcome)), outcome.invoice_id


@pytest.mark.scenario("B12")
async def test_an_order_allocates_credit_at_once_and_the_card_when_it_is_captured(billing: BillingFixture) -> None:
    ordered, invoice_id = await order_with_card(billing)
    assert await allocations(billing, invoice_id) == {"promotional": 100, "wallet": 50}
    outcome = await billing.billing_activities.start_first_period(
        billing.start_first_period_command(replace(billing.create_command(), order=ordered.command), ordered.opened)
    )
    captured = await card_payment_command(billing, ordered, outcome)
    await billing.assert_idempotent(billing.billing_activities.apply_card_payment, captured)
    assert await allocations(billing, invoice_id) == {"promotional": 100, "wallet": 50, "payment": 350}


async def test_a_renewal_allocates_promotional_credit_before_the_wallet(billing: BillingFixture) -> None:
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription()
    await grant_promotional_credit(billing, 200)
    await top_up(billing, 1_000)
    renewed = await billing.assert_idempotent(
        billing.billing_activities.start_period, billing.start_period_command(ordered)
    )
    assert await allocations(billing, renewed.invoice_id) == {"promotional": 200, "wallet": 300}


async def test_a_voided_first_invoice_returns_promotional_credit_as_promotional_credit(billing: BillingFixture) -> None:
    ordered, invoice_id = await order_with_card(billing)
    await billing.assert_idempotent(
        billing.subscription_activities.change_status, change_status_command(ordered, SubscriptionStatus.CANCELLED)
    )
    assert await allocations(billing, invoice_id) == {}
    assert (await billing.balance("promotional"), await billing.balance("wallet")) == (100, 50)
    assert (await billing.balance("held"), await billing.balance("receivable")) == (0, 0)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE invoices SET amount_due_minor = 1, status = 'open'", "the invoice is not open any more"),
        ("UPDATE invoices SET status = 'void', voided_at = now()", "its allocations are 500"),
        ("UPDATE invoices SET refunded_minor = 1", "its allocations are 500"),
        (_INSERT := "INSERT INTO invoice_allocations SELECT 'alc_2', organization_id, invoice_id, currency, 'wallet',"
         " NULL, NULL, 1, NULL, ledger_transaction_id, allocated_at FROM invoice_allocations",
         "its allocations are 501"),
        (_INSERT.replace("'wallet'", "'payment'"), "payment_of_source"),
        (_INSERT.replace("'wallet'", "'cheque'"), "ck_invoice_allocations_source"),
        (_INSERT.replace(" organization_id,", " 'org_other',"), "fk_invoice_allocations"),
        (_INSERT.replace(" currency,", " 'EUR',"), "fk_invoice_allocations"),
        (_INSERT.replace(" 1,", " -1,"), "reversal_is_negative"),
        (
            _INSERT.replace("'wallet', NULL, NULL, 1, NULL", "'promotional', NULL, NULL, -1, id"),
            "fk_invoice_allocations_reverses",
        ),
        (_INSERT.replace("NULL, NULL, 1, NULL", "NULL, NULL, -501, id"), "its allocations are -1"),
    ],
)  # fmt: skip
async def test_the_database_refuses_allocations_that_contradict_the_invoice(
    billing: BillingFixture, statement: str, message: str
) -> None:
    await top_up(billing, 500)
    await billing.create_active_subscription()
    with pytest.raises(IntegrityError, match=message):
        await billing.execute(statement)


_SHIFT_TO_CARD = (
    "INSERT INTO invoice_allocations SELECT 'alc_2', organization_id, invoice_id, currency, 'payment', 'pay_card',"
    " NULL, 500, NULL, ledger_transaction_id, allocated_at FROM invoice_allocations"
    " UNION ALL SELECT 'alc_3', organization_id, invoice_id, currency, 'wallet', NULL, NULL, -500, id,"
    " ledger_transaction_id, allocated_at FROM invoice_allocations"
)


async def test_the_database_refuses_to_allocate_more_of_a_payment_than_it_captured(billing: BillingFixture) -> None:
    await top_up(billing, 500)
    await billing.create_active_subscription()
    await insert_card_payment(billing.sessions, "pay_card", None, usd(499))
    with pytest.raises(IntegrityError, match="payment pay_card captured 499 but its allocations are 500"):
        await billing.execute(_SHIFT_TO_CARD)
    await insert_card_payment(billing.sessions, "pay_full", None, usd(500))
    await billing.execute(_SHIFT_TO_CARD.replace("pay_card", "pay_full"))
    with pytest.raises(IntegrityError, match="payment pay_full keeps its owner and its amounts"):
        await billing.execute(
            "UPDATE payments SET captured_minor = 0, status = 'failed', succeeded_at = NULL WHERE id = 'pay_full'"
        )


@pytest.mark.scenario("B21")
async def test_a_rolled_back_upgrade_returns_promotional_credit_as_promotional_credit(billing: BillingFixture) -> None:
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription()
    await grant_promotional_credit(billing, 600)
    await top_up(billing, 1_000)
    changed = await billing.billing_activities.change_plan(plan_change_command(ordered, "pro"))
    paid = await allocations(billing, changed.invoice_id)
    assert paid["promotional"] == 600
    assert paid["wallet"] > 0
    await billing.assert_idempotent(billing.billing_activities.rollback_plan_change, rollback_command(ordered))
    assert await allocations(billing, changed.invoice_id) == {}
    assert (await billing.balance("promotional"), await billing.balance("wallet")) == (600, 1_000)


@pytest.mark.scenario("B14")
async def test_a_year_that_becomes_a_month_is_invoiced_and_a_later_downgrade_credits_what_the_month_cost(
    billing: BillingFixture,
) -> None:
    await top_up(billing, 20_000)
    ordered = await billing.create_active_subscription("pro-yearly")
    changed = await billing.assert_idempotent(
        billing.billing_activities.change_plan, plan_change_command(ordered, "pro", PlanChangeMode.IMMEDIATE)
    )
    first, month = await billing.invoices(ordered.id)
    assert (month["id"], month["billing_reason"], month["status"], month["total_minor"]) == (
        changed.invoice_id,
        "interval_change",
        "paid",
        2_000,
    )
    assert await allocations(billing, month["id"]) == {"promotional": 2_000}
    unused = await billing.balance("promotional") + 2_000
    (credited,) = await billing.query("SELECT invoice_id, amount_minor FROM plan_change_credits")
    assert (credited["invoice_id"], credited["amount_minor"]) == (first["id"], unused)
    before = await billing.balance("promotional")
    downgrade = replace(
        plan_change_command(ordered, "starter", PlanChangeMode.IMMEDIATE),
        plan_change_id="order_2",
        now=TEN_DAYS_AFTER_ORDER + DAY,
    )
    await billing.assert_idempotent(billing.billing_activities.change_plan, downgrade)
    assert 1_400 < await billing.balance("promotional") - before < 1_500


@pytest.mark.scenario("B17")
async def test_a_rolled_back_interval_change_voids_its_invoice_and_returns_the_coupon_period(
    billing: BillingFixture,
) -> None:
    await insert_coupon(billing.sessions, "HALF", 50, "periods", 3)
    await top_up(billing, 30_000)
    ordered = await billing.create_active_subscription(coupon="HALF")
    changed = await billing.billing_activities.change_plan(plan_change_command(ordered, "pro-yearly"))
    remaining = "SELECT coupon_remaining_periods FROM subscriptions"
    assert (await billing.query(remaining))[0]["coupon_remaining_periods"] == 1
    await billing.assert_idempotent(billing.billing_activities.rollback_plan_change, rollback_command(ordered))
    assert (await billing.query(remaining))[0]["coupon_remaining_periods"] == 2
    _, invoice = await billing.invoices(ordered.id)
    assert (invoice["id"], invoice["status"]) == (changed.invoice_id, "void")
    assert await billing.balance() == 30_000 - 250


async def test_a_rolled_back_change_from_year_to_month_takes_back_its_credit(billing: BillingFixture) -> None:
    await top_up(billing, 20_000)
    ordered = await billing.create_active_subscription("pro-yearly")
    await billing.billing_activities.change_plan(plan_change_command(ordered, "pro", PlanChangeMode.IMMEDIATE))
    await billing.assert_idempotent(billing.billing_activities.rollback_plan_change, rollback_command(ordered))
    assert (await billing.balance("promotional"), await billing.balance()) == (0, 0)
    (total,) = await billing.query("SELECT sum(amount_minor)::bigint AS amount FROM plan_change_credits")
    assert total["amount"] == 0


async def test_a_rolled_back_change_tells_the_credit_that_it_took_back(billing: BillingFixture) -> None:
    await top_up(billing, 20_000)
    ordered = await billing.create_active_subscription("pro-yearly")
    await billing.billing_activities.change_plan(plan_change_command(ordered, "pro", PlanChangeMode.IMMEDIATE))
    spendable = await billing.balance("promotional")
    await billing.billing_activities.rollback_plan_change(rollback_command(ordered))
    assert (await billing.balance("promotional"), await billing.balance()) == (0, 0)
    (mail,) = await billing.query(
        "SELECT template_context FROM notifications WHERE template_context ->> 'reason' = 'undone'"
    )
    assert mail["template_context"]["promotional_credit"] is None
    assert mail["template_context"]["promotional_credit_reversed"] == {"amount_minor": spendable, "currency": "USD"}


async def order_by_card(billing: BillingFixture, plan: str = "pro") -> tuple[OpenedSubscription, str]:
    """Return a subscription whose first invoice a card paid in full, and the id of the payment."""
    await insert_payment_method(billing.sessions)
    command = billing.create_command(plan)
    opened = await billing.subscription_activities.record_order(command)
    secured = StartProvisioning(subscription_id=command.order.subscription_id, payment_id="pay_1", now=ORDERED_AT)
    await billing.subscription_activities.start_provisioning(secured)
    outcome = await billing.billing_activities.start_first_period(billing.start_first_period_command(command, opened))
    ordered = OpenedSubscription(command=command.order, opened=opened, period=current_period(outcome))
    captured = await card_payment_command(billing, ordered, outcome)
    await billing.billing_activities.apply_card_payment(captured)
    return ordered, captured.payment_id


def refund_command(payment_id: str, destination: RefundDestination, amount_minor: int | None = None) -> ReserveRefund:
    return ReserveRefund(
        command=RefundInput(
            refund_id=f"re_{payment_id}_{amount_minor}",
            payment_id=payment_id,
            organization_id=ORGANIZATION,
            amount=None if amount_minor is None else usd(amount_minor),
            destination=destination,
            reason="goodwill",
            actor="usr_admin",
        ),
        now=TEN_DAYS_AFTER_ORDER,
    )


def downgrade_command(ordered: OpenedSubscription) -> ApplyPlanChange:
    return plan_change_command(ordered, "starter", PlanChangeMode.IMMEDIATE)


@pytest.mark.scenario("B14")
@pytest.mark.parametrize("destination", list(RefundDestination))
async def test_a_downgrade_after_a_refund_credits_no_money_that_was_returned(
    billing: BillingFixture, destination: RefundDestination
) -> None:
    ordered, payment_id = await order_by_card(billing)
    refunds = GatewayRefundActivities(billing.sessions, {})
    await run_activity(refunds.reserve, refund_command(payment_id, destination))
    await billing.billing_activities.change_plan(downgrade_command(ordered))
    wallet = 2_000 if destination is RefundDestination.WALLET else 0
    assert (await billing.balance(), await billing.balance("promotional")) == (wallet, 0)


@pytest.mark.scenario("B14")
@pytest.mark.parametrize(("refunded", "due"), [(100, 1_355 - 339), (500, 1_355)])
async def test_an_upgrade_after_a_refund_credits_no_refunded_time(
    billing: BillingFixture, refunded: int, due: int
) -> None:
    ordered, payment_id = await order_by_card(billing, "starter")
    refunds = GatewayRefundActivities(billing.sessions, {})
    await run_activity(refunds.reserve, refund_command(payment_id, RefundDestination.SOURCE, refunded))
    await top_up(billing, 2_000)
    changed = await billing.billing_activities.change_plan(plan_change_command(ordered, "pro"))
    _, invoice = await billing.invoices(ordered.id)
    assert (invoice["id"], invoice["total_minor"]) == (changed.invoice_id, due)


@pytest.mark.scenario("B14")
async def test_a_refund_after_a_downgrade_returns_no_money_that_was_credited(billing: BillingFixture) -> None:
    ordered, payment_id = await order_by_card(billing)
    await billing.billing_activities.change_plan(downgrade_command(ordered))
    credited = await billing.balance("promotional")
    assert credited > 0
    refunds = GatewayRefundActivities(billing.sessions, {})
    with pytest.raises(ApplicationError) as refused:
        await run_activity(refunds.reserve, refund_command(payment_id, RefundDestination.WALLET))
    assert refused.value.type == ErrorCode.REFUND_EXCEEDS_PAYMENT
    remainder = refund_command(payment_id, RefundDestination.WALLET, 2_000 - credited)
    assert (await run_activity(refunds.reserve, remainder)).status == "succeeded"
    assert await billing.balance() == 2_000 - credited


@pytest.mark.scenario("B35")
async def test_a_refund_that_fails_after_its_invoice_was_voided_goes_to_the_wallet(billing: BillingFixture) -> None:
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription()
    await insert_payment_method(billing.sessions)
    changed = await billing.billing_activities.change_plan(plan_change_command(ordered, "pro"))
    assert changed.card_charge is not None
    assert changed.invoice_id is not None
    await insert_card_payment(billing.sessions, "pay_1", ordered.id, changed.card_charge.amount)
    complete = CompletePlanChange(
        subscription_id=ordered.id,
        invoice_id=changed.invoice_id,
        payment_id="pay_1",
        plan_change_id="order_1",
        actor=USER,
        terms=changed.terms,
        restarts=changed.is_new_anchor,
        now=TEN_DAYS_AFTER_ORDER,
    )
    await billing.billing_activities.complete_plan_change(complete)
    refunds = GatewayRefundActivities(billing.sessions, {})
    reserved = refund_command("pay_1", RefundDestination.SOURCE, 300)
    await run_activity(refunds.reserve, reserved)
    await billing.billing_activities.rollback_plan_change(rollback_command(ordered))
    remaining = await billing.balance()
    failed = await run_activity(refunds.send, SendRefund(refund_id=reserved.command.refund_id, now=reserved.now))
    assert failed.status == "failed"
    assert await billing.balance() == remaining + 300
