"""Timeline messages are whole sentences, also where the customer gave no reason or ended it with a full stop."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from temporalio.exceptions import ApplicationError

from activities.formatting import describe_decline
from activities.subscription_transitions import status_message
from tests.support.billing_commands import (
    TEN_DAYS_AFTER_ORDER,
    cancel_at_period_end_command,
    card_payment_command,
    change_status_command,
    plan_change_command,
    top_up,
)
from tests.support.billing_fixture import BillingFixture, insert_payment_method
from workflows.ports.subscription import ChangeStatus
from workflows.rules.errors import ErrorCode
from workflows.rules.renewal import PeriodKind
from workflows.rules.subscription import SubscriptionStatus


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("", "Cancelled."),
        (" ", "Cancelled."),
        ("too expensive", "Cancelled: too expensive."),
        ("Done.", "Cancelled: Done."),
    ],
)
def test_a_status_message_ends_with_the_reason(reason: str, expected: str) -> None:
    assert status_message(SubscriptionStatus.CANCELLED, reason) == expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("insufficient_funds", "insufficient funds"),
        ("generic_decline", "the card was declined"),
        (None, "the card was declined"),
    ],
)
def test_a_decline_is_described_in_words(code: str | None, expected: str) -> None:
    assert describe_decline(code) == expected


async def test_a_withdrawn_cancellation_and_a_cancellation_are_messages_with_their_day(billing: BillingFixture) -> None:
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription()
    for cancels in (True, False):
        command = cancel_at_period_end_command(ordered, TEN_DAYS_AFTER_ORDER, cancels=cancels)
        await billing.subscription_activities.set_cancel_at_period_end(command)
    await billing.subscription_activities.change_status(change_status_command(ordered, SubscriptionStatus.CANCELLED))
    rows = await billing.query(
        "SELECT kind, message FROM timeline_events WHERE kind LIKE 'subscription.cancel%' ORDER BY id"
    )
    end = ordered.period.end
    assert [row["message"] for row in rows[:2]] == [
        f"Cancellation scheduled for {end.day} {end:%B} {end.year}.",
        "Scheduled cancellation withdrawn: the subscription continues.",
    ]
    assert rows[2]["message"].startswith("Cancelled")
    assert rows[2]["message"].endswith(".")


async def test_a_cancellation_says_which_scheduled_plan_change_it_withdraws(billing: BillingFixture) -> None:
    await top_up(billing, 5000)
    ordered = await billing.create_active_subscription("pro")
    await billing.billing_activities.change_plan(plan_change_command(ordered, "starter"))
    command = cancel_at_period_end_command(ordered, TEN_DAYS_AFTER_ORDER)
    state = await billing.assert_idempotent(billing.subscription_activities.set_cancel_at_period_end, command)
    assert (state.cancel_at_period_end, state.pending_plan_id) == (True, None)
    [event] = await billing.query(
        "SELECT message FROM timeline_events WHERE kind = 'subscription.plan_change_withdrawn'"
    )
    [plan] = await billing.query("SELECT id, name FROM plans WHERE code = 'starter'")
    assert event["message"] == (
        f"Scheduled plan change to {plan['name']} withdrawn: the subscription is cancelled at the end of the period."
    )
    changes = await billing.query(
        "SELECT before, after FROM subscription_changes WHERE field = 'pending_plan' ORDER BY id"
    )
    assert [(row["before"], row["after"]) for row in changes] == [(None, plan["id"]), (plan["id"], None)]
    [mail] = await billing.query(
        "SELECT template_context->>'withdrawn_plan_name' AS plan FROM notifications"
        " WHERE kind = 'subscription_cancelled'"
    )
    assert mail["plan"] == plan["name"]


async def test_a_scheduled_plan_change_says_that_it_withdraws_the_cancellation(billing: BillingFixture) -> None:
    await top_up(billing, 5000)
    ordered = await billing.create_active_subscription("pro")
    command = cancel_at_period_end_command(ordered, TEN_DAYS_AFTER_ORDER)
    await billing.subscription_activities.set_cancel_at_period_end(command)
    change = replace(plan_change_command(ordered, "starter"), now=TEN_DAYS_AFTER_ORDER)
    await billing.assert_idempotent(billing.billing_activities.change_plan, change)
    messages = await billing.query(
        "SELECT message FROM timeline_events WHERE kind = 'subscription.cancellation_withdrawn'"
    )
    assert [row["message"] for row in messages] == ["Scheduled cancellation withdrawn: a plan change is scheduled."]
    changes = await billing.query(
        "SELECT before, after FROM subscription_changes WHERE field = 'cancel_at_period_end' ORDER BY id"
    )
    assert [(row["before"], row["after"]) for row in changes] == [("False", "True"), ("True", "False")]
    [mail] = await billing.query(
        "SELECT template_context->'cancellation_withdrawn' AS withdrawn FROM notifications WHERE kind = 'plan_changed'"
    )
    assert mail["withdrawn"] is True


async def test_a_pause_says_that_it_withdraws_the_cancellation(billing: BillingFixture) -> None:
    await top_up(billing, 5000)
    ordered = await billing.create_active_subscription()
    await billing.subscription_activities.set_cancel_at_period_end(
        cancel_at_period_end_command(ordered, TEN_DAYS_AFTER_ORDER)
    )
    pause = ChangeStatus(
        subscription_id=ordered.id,
        status=SubscriptionStatus.PAUSED,
        reason="requested by the customer",
        actor="usr_1",
        now=TEN_DAYS_AFTER_ORDER + timedelta(hours=1),
    )
    outcome = await billing.assert_idempotent(billing.subscription_activities.change_status, pause)
    assert outcome.state.cancel_at_period_end is False
    messages = await billing.query(
        "SELECT message FROM timeline_events WHERE kind = 'subscription.cancellation_withdrawn'"
    )
    assert [row["message"] for row in messages] == ["Scheduled cancellation withdrawn: the subscription is paused."]
    changes = await billing.query(
        "SELECT before, after FROM subscription_changes WHERE field = 'cancel_at_period_end' ORDER BY id"
    )
    assert [(row["before"], row["after"]) for row in changes] == [("False", "True"), ("True", "False")]
    [mail] = await billing.query(
        "SELECT template_context->'cancellation_withdrawn' AS withdrawn FROM notifications"
        " WHERE kind = 'subscription_paused'"
    )
    assert mail["withdrawn"] is True


@pytest.mark.parametrize("balance", [5_000, 500], ids=["wallet", "card"])
async def test_the_mails_of_a_cancellation_in_a_pause_and_of_the_resumption_name_what_they_do(
    billing: BillingFixture, balance: int
) -> None:
    await top_up(billing, balance)
    await insert_payment_method(billing.sessions)
    ordered = await billing.create_active_subscription()
    await billing.subscription_activities.change_status(change_status_command(ordered, SubscriptionStatus.PAUSED))
    at = TEN_DAYS_AFTER_ORDER + timedelta(hours=1)
    await billing.subscription_activities.set_cancel_at_period_end(cancel_at_period_end_command(ordered, at))
    [mail] = await billing.query(
        "SELECT template_context->>'status' AS status FROM notifications WHERE kind = 'subscription_cancelled'"
    )
    assert mail["status"] == "paused"
    resumption = billing.start_period_command(ordered, kind=PeriodKind.RESUMPTION, start=at + timedelta(hours=1))
    outcome = await billing.billing_activities.start_period(resumption)
    if outcome.card_charge is not None:
        await billing.billing_activities.apply_card_payment(await card_payment_command(billing, ordered, outcome))
    [row] = await billing.query("SELECT status, cancel_at_period_end FROM subscriptions")
    assert (row["status"], row["cancel_at_period_end"]) == ("active", False)
    [mail] = await billing.query(
        "SELECT template_context->'cancellation_withdrawn' AS withdrawn FROM notifications"
        " WHERE kind = 'subscription_resumed'"
    )
    assert mail["withdrawn"] is True


async def test_a_cancellation_at_the_end_of_a_period_that_was_not_paid_is_refused_under_the_lock(
    billing: BillingFixture,
) -> None:
    """The workflow may have lost the result of the renewal, and then takes the subscription for an active one."""
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription()
    renewal = replace(billing.start_period_command(ordered, start=ordered.period.end), now=ordered.period.end)
    assert (await billing.billing_activities.start_period(renewal)).state.status is SubscriptionStatus.PAST_DUE
    command = cancel_at_period_end_command(ordered, ordered.period.end)
    with pytest.raises(ApplicationError) as refused:
        await billing.subscription_activities.set_cancel_at_period_end(command)
    assert refused.value.type == ErrorCode.ILLEGAL_MOVE
    [row] = await billing.query("SELECT status, cancel_at_period_end FROM subscriptions")
    assert (row["status"], row["cancel_at_period_end"]) == ("past_due", False)


async def test_a_pause_is_cancelled_at_the_end_of_its_period_only_until_that_end(billing: BillingFixture) -> None:
    await top_up(billing, 5000)
    ordered = await billing.create_active_subscription()
    pause = ChangeStatus(
        subscription_id=ordered.id,
        status=SubscriptionStatus.PAUSED,
        reason="requested by the customer",
        actor="usr_1",
        now=TEN_DAYS_AFTER_ORDER,
    )
    await billing.subscription_activities.change_status(pause)
    command = cancel_at_period_end_command(ordered, ordered.period.end)
    with pytest.raises(ApplicationError) as refused:
        await billing.subscription_activities.set_cancel_at_period_end(command)
    assert refused.value.type == ErrorCode.ILLEGAL_MOVE
    before_its_end = replace(command, now=ordered.period.end - timedelta(seconds=1))
    assert (await billing.subscription_activities.set_cancel_at_period_end(before_its_end)).cancel_at_period_end is True
