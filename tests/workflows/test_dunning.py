"""Dunning of unpaid renewals: retries, suspension, recovery and final cancellation."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from tests.support.subscription_fixture import CancelAt, SubscriptionFixture
from workflows.ports.subscription import CustomerOperation, FundsArrived, StartOperation
from workflows.rules.dunning import FundsKind
from workflows.rules.errors import RuleViolation

DAY = timedelta(days=1)


async def _create_past_due_subscription(subscriptions: SubscriptionFixture) -> str:
    """Return a subscription whose second period the wallet does not cover."""
    await subscriptions.top_up(500)
    subscription = await subscriptions.create_active_subscription("starter")
    end = (await subscriptions.subscription(subscription))["current_period_end"]
    await subscriptions.advance_to(subscription, end + timedelta(seconds=1))
    assert (await subscriptions.subscription(subscription))["status"] == "past_due"
    return subscription


@pytest.mark.scenario("B30")
async def test_an_insufficient_wallet_is_not_charged_and_a_sufficient_top_up_collects_at_once(
    subscriptions: SubscriptionFixture,
) -> None:
    subscription = await _create_past_due_subscription(subscriptions)
    assert await subscriptions.balance() == 0
    await subscriptions.top_up(499, subscription)
    await subscriptions.wait_until_idle(subscription)
    assert (await subscriptions.subscription(subscription))["status"] == "past_due"
    assert await subscriptions.balance() == 499
    await subscriptions.top_up(1, subscription)
    await subscriptions.wait_for_status(subscription, "active")
    assert await subscriptions.balance() == 0
    assert [row["status"] for row in await subscriptions.invoices(subscription)] == ["paid", "paid"]
    assert (await subscriptions.notification_kinds()).count("subscription_recovered") == 1


@pytest.mark.scenario("B46")
async def test_retries_then_suspension_on_day_seven_and_recovery_by_a_payment(
    subscriptions: SubscriptionFixture,
) -> None:
    subscription = await _create_past_due_subscription(subscriptions)
    due = (await subscriptions.subscription(subscription))["past_due_since"]
    assert due == (await subscriptions.invoices(subscription))[1]["period_start"]
    await subscriptions.advance_to(subscription, due + 6 * DAY)
    assert (await subscriptions.subscription(subscription))["status"] == "past_due"
    assert (await subscriptions.notification_kinds()).count("payment_failed") == 4
    await subscriptions.advance_to(subscription, due + 7 * DAY + timedelta(minutes=1))
    assert (await subscriptions.subscription(subscription))["status"] == "suspended"
    assert (await subscriptions.notification_kinds()).count("payment_failed") == 5
    failures = await subscriptions.rows("SELECT template_context FROM notifications WHERE kind = 'payment_failed'")
    contexts = sorted(
        (row["template_context"] for row in failures), key=lambda context: bool(context.get("suspends_now"))
    )
    assert {context["suspends_at"] for context in contexts[:4]} == {(due + 7 * DAY).isoformat()}
    assert (contexts[4]["suspends_now"], contexts[4]["suspends_at"]) == (True, None)
    assert subscriptions.external.operations() == ["suspend"]
    await subscriptions.top_up(500, subscription)
    await subscriptions.wait_for_status(subscription, "active")
    assert subscriptions.external.operations() == ["suspend", "resume"]
    assert (await subscriptions.subscription(subscription))["past_due_since"] is None


async def test_an_unpaid_subscription_is_cancelled_on_day_thirty_and_deleted_thirty_days_later(
    subscriptions: SubscriptionFixture,
) -> None:
    subscription = await _create_past_due_subscription(subscriptions)
    due = (await subscriptions.subscription(subscription))["past_due_since"]
    await subscriptions.advance_to(subscription, due + 30 * DAY - timedelta(minutes=1))
    assert (await subscriptions.subscription(subscription))["status"] == "suspended"
    await subscriptions.advance_to(subscription, due + 30 * DAY + timedelta(minutes=1))
    assert (await subscriptions.subscription(subscription))["status"] == "cancelled"
    assert [row["status"] for row in await subscriptions.invoices(subscription)] == ["paid", "void"]
    await subscriptions.advance(subscription, 31 * DAY)
    assert (await subscriptions.subscription(subscription))["status"] == "terminated"
    assert subscriptions.external.operations() == ["suspend", "delete"]


async def test_giving_up_collects_first(subscriptions: SubscriptionFixture) -> None:
    subscription = await _create_past_due_subscription(subscriptions)
    due = (await subscriptions.subscription(subscription))["past_due_since"]
    await subscriptions.advance_to(subscription, due + 8 * DAY)
    assert (await subscriptions.subscription(subscription))["status"] == "suspended"
    await subscriptions.top_up(500)
    await subscriptions.advance_to(subscription, due + 30 * DAY + timedelta(minutes=1))
    assert (await subscriptions.subscription(subscription))["status"] == "active"
    assert await subscriptions.balance() == 0


@pytest.mark.scenario("B41")
async def test_a_customers_failed_retry_consumes_no_scheduled_attempt(subscriptions: SubscriptionFixture) -> None:
    subscription = await _create_past_due_subscription(subscriptions)
    await subscriptions.add_card()
    subscriptions.external.decline_code = "insufficient_funds"
    due = (await subscriptions.subscription(subscription))["past_due_since"]
    for _ in range(3):
        with pytest.raises(RuleViolation) as refused:
            await subscriptions.workflows.retry_payment(subscription, subscriptions.lifecycle_command("retry"))
        assert refused.value.code == "PAYMENT_DECLINED"
        assert refused.value.details["decline_code"] == "insufficient_funds"
    charges_before = len([verb for verb, _ in subscriptions.external.calls if verb == "charge"])
    await subscriptions.advance_to(subscription, due + 6 * DAY)
    scheduled = len([verb for verb, _ in subscriptions.external.calls if verb == "charge"]) - charges_before
    assert scheduled == 3
    assert (await subscriptions.subscription(subscription))["status"] == "past_due"


@pytest.mark.scenario("B42")
async def test_a_hard_decline_is_not_retried_and_a_new_card_is_tried_at_once(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(500)
    await subscriptions.add_card()
    subscriptions.external.decline_code = "stolen_card"
    subscription = await subscriptions.create_active_subscription("starter")
    end = (await subscriptions.subscription(subscription))["current_period_end"]
    await subscriptions.advance_to(subscription, end + 5 * DAY)
    charges = [payment for verb, payment in subscriptions.external.calls if verb == "charge"]
    assert len(charges) == 1
    subscriptions.external.decline_code = None
    await subscriptions.workflows.signal_funds_arrived(
        subscription, FundsArrived(source="pm_new", kind=FundsKind.PAYMENT_METHOD)
    )
    await subscriptions.wait_for_status(subscription, "active")
    assert [row["status"] for row in await subscriptions.invoices(subscription)] == ["paid", "paid"]
    assert [pay.amount.amount_minor for pay in subscriptions.external.payments] == [500]


@pytest.mark.scenario("B42")
@pytest.mark.parametrize(
    ("default_code", "backup_code", "charges"),
    [
        ("insufficient_funds", "stolen_card", 2),
        ("insufficient_funds", "stop_payment_order", 2),
        ("stolen_card", "insufficient_funds", 1),
        ("stop_payment_order", "insufficient_funds", 3),
    ],
)
async def test_a_promoted_backup_is_charged_unless_it_was_hard_declined_or_fraud_is_suspected(
    subscriptions: SubscriptionFixture, default_code: str, backup_code: str, charges: int
) -> None:
    await subscriptions.top_up(500)
    default, backup = await subscriptions.add_card(), await subscriptions.add_card(default=False, charge_order=1)
    subscription = await subscriptions.create_active_subscription("starter")
    subscriptions.external.decline_codes = {default: default_code, backup: backup_code}
    end = (await subscriptions.subscription(subscription))["current_period_end"]
    await subscriptions.advance_to(subscription, end + timedelta(minutes=1))
    await subscriptions.execute("UPDATE payment_methods SET detached_at = now() WHERE id = :id", id=default)
    await subscriptions.execute("UPDATE payment_methods SET is_default = true WHERE id = :id", id=backup)
    await subscriptions.workflows.signal_funds_arrived(
        subscription, FundsArrived(source=default, kind=FundsKind.PROMOTED_PAYMENT_METHOD)
    )
    await subscriptions.wait_until_idle(subscription)
    assert subscriptions.external.charged_methods == [default, backup, backup][:charges]


@pytest.mark.scenario("B42")
async def test_credit_pays_after_a_hard_decline_and_the_declined_card_is_not_charged_again(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(500)
    await subscriptions.add_card()
    subscriptions.external.decline_code = "stolen_card"
    subscription = await subscriptions.create_active_subscription("starter")
    end = (await subscriptions.subscription(subscription))["current_period_end"]
    await subscriptions.advance_to(subscription, end + DAY)
    await subscriptions.top_up(499, subscription)
    await subscriptions.wait_until_idle(subscription)
    await subscriptions.advance_to(subscription, end + 6 * DAY)
    assert [verb for verb, _ in subscriptions.external.calls].count("charge") == 1
    assert (await subscriptions.subscription(subscription))["status"] == "past_due"
    await subscriptions.top_up(1, subscription)
    await subscriptions.wait_for_status(subscription, "active")
    assert [verb for verb, _ in subscriptions.external.calls].count("charge") == 1


@pytest.mark.scenario("B42")
async def test_a_card_that_arrives_while_the_previous_one_is_hard_declined_is_tried_at_once(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(500)
    await subscriptions.add_card()
    subscriptions.external.decline_code = "insufficient_funds"
    subscription = await subscriptions.create_active_subscription("starter")
    end = (await subscriptions.subscription(subscription))["current_period_end"]
    await subscriptions.advance_to(subscription, end + timedelta(hours=1))
    subscriptions.external.gateway_responses.clear()
    retry = subscriptions.lifecycle_command("retry")
    retrying = asyncio.create_task(subscriptions.workflows.retry_payment(subscription, retry))
    await subscriptions.wait_for_charges(2)
    subscriptions.external.decline_code = "stolen_card"
    new_card = FundsArrived(source="pm_new", kind=FundsKind.PAYMENT_METHOD)
    await subscriptions.workflows.signal_funds_arrived(subscription, new_card)
    subscriptions.external.gateway_responses.set()
    with pytest.raises(RuleViolation):
        await retrying
    await subscriptions.wait_for_charges(3)


async def test_credit_that_a_declined_card_releases_charges_no_card_of_another_debt(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(1_000)
    first, second = [await subscriptions.create_active_subscription("starter") for _ in range(2)]
    end = (await subscriptions.subscription(second))["current_period_end"]
    for subscription in (first, second):
        await subscriptions.advance_to(subscription, end + timedelta(minutes=5))
        assert (await subscriptions.subscription(subscription))["status"] == "past_due"
    await subscriptions.top_up(400)
    await subscriptions.add_card()
    subscriptions.external.decline_code = "insufficient_funds"
    with pytest.raises(RuleViolation):
        await subscriptions.workflows.retry_payment(first, subscriptions.lifecycle_command("retry"))
    for subscription in (second, first):
        await subscriptions.wait_until_idle(subscription)
    assert [verb for verb, _ in subscriptions.external.calls].count("charge") == 1
    assert await subscriptions.balance() == 400


@pytest.mark.scenario("B43")
async def test_cancelling_while_past_due_stops_the_retries_and_voids_the_invoice(
    subscriptions: SubscriptionFixture,
) -> None:
    subscription = await _create_past_due_subscription(subscriptions)
    await subscriptions.cancel(subscription)
    await subscriptions.advance(subscription, 10 * DAY)
    assert [row["status"] for row in await subscriptions.invoices(subscription)] == ["paid", "void"]
    assert (await subscriptions.notification_kinds()).count("payment_failed") == 1
    assert await subscriptions.balance("receivable") == 0


@pytest.mark.scenario("B22")
async def test_nothing_new_is_charged_while_a_payment_is_unresolved(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(500)
    await subscriptions.add_card()
    subscription = await subscriptions.create_active_subscription("starter")
    subscriptions.external.gateway_responses.clear()
    end = (await subscriptions.subscription(subscription))["current_period_end"]
    handle = subscriptions.handle(subscription)
    view = await subscriptions.workflows.get_clock_status(subscription)
    while view.next_action_at is not None and view.next_action_at < end:
        await subscriptions.advance_to(subscription, view.next_action_at + timedelta(milliseconds=5))
        view = await subscriptions.workflows.get_clock_status(subscription)
    await subscriptions.temporal.fast_forward(
        handle, end - await subscriptions.now(subscription) - timedelta(seconds=1)
    )
    await subscriptions.wait_for_charges(1)
    assert not (await subscriptions.workflows.get_clock_status(subscription)).is_idle
    assert [row["status"] for row in await subscriptions.invoices(subscription)] == ["paid", "open"]
    subscriptions.external.gateway_responses.set()
    await subscriptions.wait_for_status(subscription, "active")
    assert [row["status"] for row in await subscriptions.invoices(subscription)] == ["paid", "paid"]
    assert len(subscriptions.external.payments) == 1


@pytest.mark.scenario("B27")
async def test_money_that_arrives_after_the_cancellation_stays_in_the_wallet(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(500)
    await subscriptions.add_card()
    subscription = await subscriptions.create_active_subscription("starter")
    subscriptions.external.gateway_responses.clear()
    end = (await subscriptions.subscription(subscription))["current_period_end"]
    await subscriptions.advance_to(subscription, end - timedelta(hours=1))
    await subscriptions.temporal.fast_forward(subscriptions.handle(subscription), timedelta(hours=1, seconds=-2))
    await subscriptions.wait_for_charges(1)
    await subscriptions.cancel(subscription)
    assert (await subscriptions.subscription(subscription))["status"] == "cancelled"
    subscriptions.external.gateway_responses.set()
    await subscriptions.wait_until_idle(subscription)
    assert await subscriptions.balance() == 500
    assert await subscriptions.balance("held") == 0
    assert (await subscriptions.subscription(subscription))["status"] == "cancelled"


async def test_a_customers_stop_survives_a_renewal(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(5000)
    subscription = await subscriptions.create_active_subscription("starter")
    order = StartOperation(update_id="stop/1", actor="usr", operation_id="op_1", kind=CustomerOperation.STOP)
    await subscriptions.workflows.start_operation(subscription, order)
    await subscriptions.wait_until_idle(subscription)
    await subscriptions.advance(subscription, 40 * DAY)
    assert subscriptions.external.operations() == ["stop"]
    start = StartOperation(update_id="start/1", actor="usr", operation_id="op_2", kind=CustomerOperation.START)
    await subscriptions.workflows.start_operation(subscription, start)
    await subscriptions.wait_until_idle(subscription)
    assert subscriptions.external.operations() == ["stop", "start"]


async def test_a_soft_decline_after_a_hard_one_neither_moves_the_grace_period_nor_repeats_missed_retries(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(500)
    await subscriptions.add_card()
    subscriptions.external.decline_code = "stolen_card"
    subscription = await subscriptions.create_active_subscription("starter")
    end = (await subscriptions.subscription(subscription))["current_period_end"]
    await subscriptions.advance_to(subscription, end + 6 * DAY)
    subscriptions.external.decline_code = "insufficient_funds"
    await subscriptions.workflows.signal_funds_arrived(
        subscription, FundsArrived(source="pm_new", kind=FundsKind.PAYMENT_METHOD)
    )
    await subscriptions.wait_for_charges(2)
    await subscriptions.wait_until_idle(subscription)
    assert [verb for verb, _ in subscriptions.external.calls].count("charge") == 2
    failures = await subscriptions.rows("SELECT template_context FROM notifications WHERE kind = 'payment_failed'")
    # Exactly: around midnight, the instant of the decline is another day than the due date.
    assert {row["template_context"]["suspends_at"] for row in failures} == {(end + 7 * DAY).isoformat()}
    # Day 7 has the last retry and the suspension, counted from the due date.
    await subscriptions.advance_to(subscription, end + 7 * DAY + timedelta(minutes=5))
    assert [verb for verb, _ in subscriptions.external.calls].count("charge") == 3
    assert (await subscriptions.subscription(subscription))["status"] == "suspended"
    await subscriptions.advance_to(subscription, end + 30 * DAY + timedelta(minutes=5))
    assert (await subscriptions.subscription(subscription))["status"] == "cancelled"


@pytest.mark.scenario("B43")
@pytest.mark.parametrize(("status", "days"), [("past_due", 32), ("suspended", 42)])
async def test_a_cancellation_at_the_end_of_an_unpaid_period_is_refused(
    subscriptions: SubscriptionFixture, status: str, days: int
) -> None:
    """It was executed at once: the invoice was void, the instance stopped and its deletion dated."""
    await subscriptions.top_up(500)
    subscription = await subscriptions.create_active_subscription("starter")
    await subscriptions.advance(subscription, days * DAY)
    with pytest.raises(RuleViolation, match=f"{status} cannot be cancelled at the end of its period"):
        await subscriptions.cancel(subscription, CancelAt.PERIOD_END)
    row = await subscriptions.subscription(subscription)
    assert (row["status"], row["cancel_at_period_end"], row["data_deletion_at"]) == (status, False, None)
