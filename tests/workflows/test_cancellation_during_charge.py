"""A cancellation at the end of the period that meets a charge which starts another period."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

import pytest

from tests.support.subscription_fixture import CancelAt, SubscriptionFixture
from workflows.rules.errors import RuleViolation


@pytest.mark.scenario("B17", "B49")
@pytest.mark.parametrize("charged", ["resumption", "trial_end", "interval_change"])
async def test_a_cancellation_at_the_period_end_during_a_charge_is_refused_and_holds_afterwards(
    subscriptions: SubscriptionFixture, charged: str
) -> None:
    """The mail of a cancellation names the end of the period, and says that no charge follows."""
    if charged != "trial_end":
        await subscriptions.top_up(500)
    await subscriptions.add_card()
    subscription = await subscriptions.create_active_subscription("trial" if charged == "trial_end" else "starter")
    if charged == "resumption":
        await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    subscriptions.external.gateway_responses.clear()
    command: Coroutine[Any, Any, object]
    match charged:
        case "resumption":
            command = subscriptions.workflows.resume(subscription, subscriptions.lifecycle_command("resume"))
        case "interval_change":
            command = subscriptions.change_plan(subscription, "pro-yearly")
        case _:
            end = (await subscriptions.subscription(subscription))["trial_end"]
            command = subscriptions.advance_to(subscription, end + timedelta(seconds=1))
    executing = asyncio.create_task(command)
    await subscriptions.wait_for_charges(1)
    with pytest.raises(RuleViolation) as refused:
        await subscriptions.cancel(subscription, CancelAt.PERIOD_END)
    assert (refused.value.code, refused.value.is_retryable) == ("CONFLICT", True)
    assert (await subscriptions.notification_kinds()).count("subscription_cancelled") == 0
    subscriptions.external.gateway_responses.set()
    await executing
    await subscriptions.wait_for_status(subscription, "active")
    await subscriptions.cancel(subscription, CancelAt.PERIOD_END, order="again")
    row = await subscriptions.subscription(subscription)
    assert (row["cancel_at_period_end"], row["current_period_start"]) == (
        True,
        (await subscriptions.invoices(subscription))[-1]["period_start"],
    )
    await subscriptions.advance_to(subscription, row["current_period_end"] + timedelta(seconds=1))
    await subscriptions.wait_for_status(subscription, "cancelled")
    assert len(await subscriptions.invoices(subscription)) == (1 if charged == "trial_end" else 2)


@pytest.mark.scenario("B49")
@pytest.mark.parametrize("is_declined", [False, True], ids=["paid", "declined"])
@pytest.mark.parametrize("charged", ["resumption", "plan_change", "interval_change"])
async def test_a_charge_that_goes_on_after_the_period_end_decides_whether_the_cancellation_holds(
    subscriptions: SubscriptionFixture, charged: str, is_declined: bool
) -> None:
    """The customer withdrew the cancellation before the end of the period, if the card pays."""
    await subscriptions.top_up(500)
    await subscriptions.add_card()
    subscription = await subscriptions.create_active_subscription("starter")
    if charged == "resumption":
        await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
        await subscriptions.wait_until_idle(subscription)
    await subscriptions.cancel(subscription, CancelAt.PERIOD_END)
    end = (await subscriptions.subscription(subscription))["current_period_end"]
    await subscriptions.advance_to(subscription, end - timedelta(seconds=4))
    subscriptions.external.gateway_responses.clear()
    subscriptions.external.decline_code = "card_declined" if is_declined else None
    command: Coroutine[Any, Any, object]
    match charged:
        case "resumption":
            command = subscriptions.workflows.resume(subscription, subscriptions.lifecycle_command("resume"))
        case "interval_change":
            command = subscriptions.change_plan(subscription, "pro-yearly")
        case _:
            # Of the usual price nothing is due for the seconds that are left of the period.
            await subscriptions.insert_price("pro", 200_000_000, end - timedelta(days=40))
            command = subscriptions.change_plan(subscription, "pro")
    executing = asyncio.create_task(command)
    await subscriptions.wait_for_charges(1)
    assert await subscriptions.now(subscription) < end, "the command was given in time"
    await asyncio.sleep((end - await subscriptions.now(subscription)).total_seconds() + 0.5)
    subscriptions.external.gateway_responses.set()
    if is_declined:
        # The command was answered before: its charge had no outcome yet.
        with contextlib.suppress(RuleViolation):
            await executing
        await subscriptions.wait_for_status(subscription, "cancelled")
        return
    await executing
    await subscriptions.wait_for_status(subscription, "active")
    row = await subscriptions.subscription(subscription)
    assert (row["cancel_at_period_end"], row["current_period_end"] > end) == (False, True)
    assert await subscriptions.balance() == 0, "what was paid is for the period"
