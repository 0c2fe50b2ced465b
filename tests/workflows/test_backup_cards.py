"""A declined card is followed by the next one on file: the default first, then the backups in their order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from tests.support.subscription_fixture import SubscriptionFixture

DAY = timedelta(days=1)


async def create_subscription_with_cards(subscriptions: SubscriptionFixture) -> tuple[str, str, str]:
    """Return a subscription whose renewal no credit covers, its default card and its backup."""
    await subscriptions.top_up(500)
    # Saved before the default, and charged after it.
    backup = await subscriptions.add_card(default=False, charge_order=2)
    default = await subscriptions.add_card(charge_order=1)
    return await subscriptions.create_active_subscription("starter"), default, backup


async def advance_past_renewal(subscriptions: SubscriptionFixture, subscription: str, by: timedelta = DAY / 24) -> None:
    end = (await subscriptions.subscription(subscription))["current_period_end"]
    await subscriptions.advance_to(subscription, end + by)


async def test_a_backup_pays_a_renewal_that_the_default_declines(subscriptions: SubscriptionFixture) -> None:
    subscription, default, backup = await create_subscription_with_cards(subscriptions)
    subscriptions.external.decline_codes = {default: "insufficient_funds"}
    await advance_past_renewal(subscriptions, subscription)
    assert (await subscriptions.subscription(subscription))["status"] == "active"
    assert subscriptions.external.charged_methods == [default, backup]
    assert [row["status"] for row in await subscriptions.invoices(subscription)] == ["paid", "paid"]
    kinds = await subscriptions.notification_kinds()
    assert (kinds.count("subscription_renewed"), kinds.count("payment_failed")) == (1, 0)


async def test_backups_are_charged_in_their_order(subscriptions: SubscriptionFixture) -> None:
    last = await subscriptions.add_card(default=False, charge_order=3)
    subscription, default, backup = await create_subscription_with_cards(subscriptions)
    subscriptions.external.decline_codes = dict.fromkeys((default, backup), "insufficient_funds")
    await advance_past_renewal(subscriptions, subscription)
    assert subscriptions.external.charged_methods == [default, backup, last]


async def test_each_retry_charges_the_cards_again_and_mails_once(subscriptions: SubscriptionFixture) -> None:
    subscription, default, backup = await create_subscription_with_cards(subscriptions)
    subscriptions.external.decline_code = "insufficient_funds"
    await advance_past_renewal(subscriptions, subscription)
    assert (await subscriptions.subscription(subscription))["status"] == "past_due"
    assert (await subscriptions.notification_kinds()).count("payment_failed") == 1
    subscriptions.external.decline_codes, subscriptions.external.decline_code = {default: "insufficient_funds"}, None
    due = (await subscriptions.subscription(subscription))["past_due_since"]
    await subscriptions.advance_to(subscription, due + DAY + timedelta(minutes=1))
    assert (await subscriptions.subscription(subscription))["status"] == "active"
    assert subscriptions.external.charged_methods == [default, backup] * 2


async def test_a_customers_attempt_charges_the_backup(subscriptions: SubscriptionFixture) -> None:
    subscription, default, backup = await create_subscription_with_cards(subscriptions)
    subscriptions.external.decline_code = "insufficient_funds"
    await advance_past_renewal(subscriptions, subscription)
    subscriptions.external.decline_codes, subscriptions.external.decline_code = {default: "insufficient_funds"}, None
    await subscriptions.workflows.retry_payment(subscription, subscriptions.lifecycle_command("retry"))
    assert (await subscriptions.subscription(subscription))["status"] == "active"
    assert subscriptions.external.charged_methods[-1] == backup


@pytest.mark.scenario("B42")
async def test_a_hard_declined_default_is_not_charged_by_the_retries_of_its_backup(
    subscriptions: SubscriptionFixture,
) -> None:
    subscription, default, backup = await create_subscription_with_cards(subscriptions)
    subscriptions.external.decline_codes = {default: "account_closed", backup: "insufficient_funds"}
    await advance_past_renewal(subscriptions, subscription)
    due = (await subscriptions.subscription(subscription))["past_due_since"]
    await subscriptions.advance_to(subscription, due + DAY + timedelta(minutes=1))
    assert subscriptions.external.charged_methods == [default, backup, backup]


@pytest.mark.scenario("B42")
async def test_no_card_is_charged_again_once_each_was_hard_declined(subscriptions: SubscriptionFixture) -> None:
    subscription, default, backup = await create_subscription_with_cards(subscriptions)
    subscriptions.external.decline_codes = {default: "account_closed", backup: "lost_card"}
    await advance_past_renewal(subscriptions, subscription, 5 * DAY)
    assert subscriptions.external.charged_methods == [default, backup]


async def test_no_backup_is_charged_when_fraud_is_suspected(subscriptions: SubscriptionFixture) -> None:
    subscription, default, _ = await create_subscription_with_cards(subscriptions)
    subscriptions.external.decline_codes = {default: "fraudulent"}
    await advance_past_renewal(subscriptions, subscription, 5 * DAY)
    assert (await subscriptions.subscription(subscription))["status"] == "past_due"
    assert subscriptions.external.charged_methods == [default]


async def test_a_backup_secures_an_order_that_the_default_declines(subscriptions: SubscriptionFixture) -> None:
    default = await subscriptions.add_card()
    backup = await subscriptions.add_card(default=False, charge_order=1)
    subscriptions.external.decline_codes = {default: "insufficient_funds"}
    subscription = await subscriptions.create_active_subscription("starter")
    assert (await subscriptions.subscription(subscription))["status"] == "active"
    assert [payment.payment_method_id for payment in subscriptions.external.payments] == [backup]
    assert [row["status"] for row in await subscriptions.invoices(subscription)] == ["paid"]


async def change_plan(subscriptions: SubscriptionFixture, subscription: str) -> None:
    await subscriptions.change_plan(subscription, "pro")


async def pause_and_resume(subscriptions: SubscriptionFixture, subscription: str) -> None:
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    await subscriptions.wait_until_idle(subscription)
    await subscriptions.workflows.resume(subscription, subscriptions.lifecycle_command("resume"))


@pytest.mark.parametrize("charge", [change_plan, pause_and_resume])
async def test_a_backup_pays_what_a_customer_orders(
    subscriptions: SubscriptionFixture, charge: Callable[[SubscriptionFixture, str], Awaitable[None]]
) -> None:
    subscription, default, backup = await create_subscription_with_cards(subscriptions)
    subscriptions.external.decline_codes = {default: "insufficient_funds"}
    await charge(subscriptions, subscription)
    assert (await subscriptions.subscription(subscription))["status"] == "active"
    assert subscriptions.external.charged_methods == [default, backup]


async def test_a_card_is_charged_at_the_gateway_that_saved_it(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(500)
    await subscriptions.add_card(gateway="other")
    subscription = await subscriptions.create_active_subscription("starter")
    await advance_past_renewal(subscriptions, subscription)
    assert [payment.gateway for payment in subscriptions.external.payments] == ["other"]
