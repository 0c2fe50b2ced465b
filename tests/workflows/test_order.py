"""Orders until readiness: funding, failures and compensation."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from tests.support.databases import DatabaseFixture
from tests.support.subscription_fixture import CancelAt, CollectionMethod, SubscriptionFixture, run_subscription_fixture
from tests.support.temporal import TemporalFixture
from tests.support.wait import wait_until
from workflows.ports.instances import ProvisioningOutcome
from workflows.rules.errors import RuleViolation

DAY = timedelta(days=1)


async def test_the_wallet_is_held_at_the_order_and_charged_at_readiness(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(800)
    subscription = await subscriptions.create_subscription("starter")
    assert (await subscriptions.subscription(subscription))["status"] == "provisioning"
    assert (await subscriptions.balance(), await subscriptions.balance("held")) == (300, 500)
    assert await subscriptions.invoices(subscription) == []
    subscriptions.external.provisioning_done.set()
    await subscriptions.wait_for_status(subscription, "active")
    assert (await subscriptions.balance(), await subscriptions.balance("held")) == (300, 0)
    assert (await subscriptions.timeline(subscription))[:6] == [
        "subscription.created",
        "payment.authorized",
        "instance.provisioning",
        "instance.ready",
        "subscription.activated",
        "payment.succeeded",
    ]


@pytest.mark.scenario("B47")
async def test_a_failed_provisioning_releases_the_hold_once_and_uses_no_invoice_number(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(800)
    subscriptions.external.provisioned = ProvisioningOutcome(
        ready=False, reason="IMAGE_PULL", message="the image is missing"
    )
    subscriptions.external.provisioning_done.set()
    subscription = await subscriptions.create_subscription("starter")
    await wait_until(lambda: _has_status(subscriptions, subscription, "failed"))
    assert (await subscriptions.balance(), await subscriptions.balance("held")) == (800, 0)
    assert await subscriptions.invoices(subscription) == []
    assert await subscriptions.rows("SELECT * FROM invoice_number_sequences") == []
    releases = await subscriptions.rows("SELECT id FROM ledger_transactions WHERE kind = 'release'")
    assert len(releases) == 1
    assert "subscription_failed" in await subscriptions.notification_kinds()


@pytest.mark.scenario("B48")
async def test_a_cancellation_during_provisioning_is_compensated_once(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(800)
    subscription = await subscriptions.create_subscription("starter")
    await wait_until(lambda: "provision" in dict(subscriptions.external.calls))
    view = await subscriptions.cancel(subscription)
    assert view is None or view.state == "cancelled"
    await wait_until(lambda: _has_status(subscriptions, subscription, "cancelled"))
    verbs = [verb for verb, _ in subscriptions.external.calls]
    assert verbs.count("compensate_provision") == 1
    assert (await subscriptions.balance(), await subscriptions.balance("held")) == (800, 0)
    assert await subscriptions.invoices(subscription) == []
    assert len(await subscriptions.rows("SELECT id FROM ledger_transactions WHERE kind = 'release'")) == 1


@pytest.mark.scenario("P16")
async def test_a_cancellation_whose_compensation_takes_longer_than_the_answer_returns_the_money(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(500)
    subscriptions.external.operations_allowed.clear()
    subscription = await subscriptions.create_subscription("starter")
    await wait_until(lambda: "provision" in [verb for verb, _ in subscriptions.external.calls])
    assert await subscriptions.balance("held") == 500
    cancellation = asyncio.create_task(subscriptions.cancel(subscription))
    await wait_until(lambda: "delete" in subscriptions.external.operations())
    await subscriptions.temporal.fast_forward(subscriptions.handle(subscription), timedelta(seconds=11))
    await cancellation
    assert (await subscriptions.subscription(subscription))["status"] == "provisioning"
    assert (await subscriptions.timeline(subscription))[-1] == "subscription.cancellation_requested"
    subscriptions.external.operations_allowed.set()
    await asyncio.wait_for(subscriptions.handle(subscription).result(), 30)
    row = await subscriptions.subscription(subscription)
    assert (row["status"], row["data_deletion_at"]) == ("cancelled", None)
    kinds = await subscriptions.timeline(subscription)
    assert kinds.count("subscription.cancellation_requested") == kinds.count("subscription.cancelled") == 1
    assert (await subscriptions.balance(), await subscriptions.balance("held")) == (500, 0)


@pytest.mark.scenario("B18")
async def test_a_declined_card_expires_the_order_and_restores_coupon_and_wallet_once(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.execute(
        "INSERT INTO coupons (code, discount_type, percent, duration, redemption_count) VALUES ('WELCOME',"
        " 'percent', 20, 'once', 0)"
    )
    await subscriptions.top_up(100)
    await subscriptions.add_card()
    subscriptions.external.decline_code = "generic_decline"
    subscription = await subscriptions.create_subscription("starter", coupon="WELCOME")
    await wait_until(lambda: _has_status(subscriptions, subscription, "expired"))
    assert (await subscriptions.balance(), await subscriptions.balance("held")) == (100, 0)
    assert (await subscriptions.rows("SELECT redemption_count FROM coupons"))[0]["redemption_count"] == 0
    assert (await subscriptions.rows("SELECT status FROM instances"))[0]["status"] == "deleted"
    assert "provision" not in [verb for verb, _ in subscriptions.external.calls]
    assert await subscriptions.invoices(subscription) == []


@pytest.mark.scenario("P21")
async def test_a_hostname_is_taken_until_its_instance_is_deleted(subscriptions: SubscriptionFixture) -> None:
    mine = {"subdomain": "shop"}
    await subscriptions.add_card()
    subscriptions.external.decline_code = "generic_decline"
    declined = await subscriptions.create_subscription("starter", parameters=mine)
    await wait_until(lambda: _has_status(subscriptions, declined, "expired"))
    await subscriptions.top_up(5000)
    await subscriptions.create_active_subscription("starter", parameters=mine)
    with pytest.raises(RuleViolation) as raised:
        await subscriptions.create_subscription("starter", parameters={"subdomain": "SHOP"})
    assert (raised.value.code, await subscriptions.balance("held")) == ("CONFLICT", 0)


async def test_a_card_is_authorized_for_the_remainder_and_captured_at_readiness(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(100)
    await subscriptions.add_card()
    subscription = await subscriptions.create_active_subscription("starter")
    invoice = (await subscriptions.invoices(subscription))[0]
    assert (invoice["status"], invoice["total_minor"], invoice["amount_due_minor"]) == ("paid", 500, 0)
    assert [pay.amount.amount_minor for pay in subscriptions.external.payments] == [400]
    assert (
        await subscriptions.balance(),
        await subscriptions.balance("held"),
        await subscriptions.balance("receivable"),
    ) == (0, 0, 0)


async def test_a_capture_that_fails_leaves_the_invoice_open_and_the_subscription_past_due(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.add_card()
    subscriptions.external.gateway_responses.clear()
    subscription = await subscriptions.create_subscription("starter", collection_method=CollectionMethod.CARD)
    subscriptions.external.provisioning_done.set()
    await subscriptions.wait_for_charges(1)
    subscriptions.external.decline_code = "expired_card"
    subscriptions.external.gateway_responses.set()
    await subscriptions.wait_for_status(subscription, "past_due")
    assert [row["status"] for row in await subscriptions.invoices(subscription)] == ["open"]


@pytest.mark.scenario("B29")
async def test_of_two_concurrent_orders_for_the_same_money_one_is_rejected(
    temporal: TemporalFixture, database: DatabaseFixture
) -> None:
    async with run_subscription_fixture(temporal, database, currency="IDR") as subscriptions:
        await subscriptions.top_up(700)
        results = await asyncio.gather(
            subscriptions.create_subscription("starter"),
            subscriptions.create_subscription("starter"),
            return_exceptions=True,
        )
        refused = [result for result in results if isinstance(result, RuleViolation)]
        assert len(refused) == 1
        assert refused[0].code == "INSUFFICIENT_FUNDS"
        assert (await subscriptions.balance(), await subscriptions.balance("held")) == (200, 500)
        await subscriptions.assert_ledger_balanced()


@pytest.mark.scenario("P1")
async def test_the_same_order_twice_is_one_subscription(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(5000)
    order = subscriptions.create_command("starter")
    first, second = await asyncio.gather(
        subscriptions.workflows.create_subscription(order), subscriptions.workflows.create_subscription(order)
    )
    assert first.result == second.result
    assert len(await subscriptions.rows("SELECT id FROM subscriptions")) == 1
    assert (await subscriptions.balance("held")) == 500
    subscriptions.external.provisioning_done.set()
    await subscriptions.wait_for_status(order.subscription_id, "active")
    assert [verb for verb, _ in subscriptions.external.calls].count("provision") == 1


@pytest.mark.scenario("B16")
async def test_a_trial_that_is_not_funded_is_paused_at_its_end(subscriptions: SubscriptionFixture) -> None:
    subscription = await subscriptions.create_active_subscription("trial")
    row = await subscriptions.subscription(subscription)
    assert row["status"] == "trialing"
    assert row["trial_end"] - row["billing_anchor"] == 14 * DAY
    await subscriptions.advance(subscription, 15 * DAY)
    assert (await subscriptions.subscription(subscription))["status"] == "paused"
    assert await subscriptions.invoices(subscription) == []
    assert subscriptions.external.operations() == ["suspend"]
    assert await _payment_failed_statuses(subscriptions) == ["paused"]


async def test_a_trial_whose_card_is_declined_is_paused_and_uses_no_invoice_number(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.add_card()
    subscriptions.external.decline_code = "generic_decline"
    subscription = await subscriptions.create_active_subscription("trial")
    await subscriptions.advance(subscription, 15 * DAY)
    assert (await subscriptions.subscription(subscription))["status"] == "paused"
    invoices = await subscriptions.invoices(subscription)
    assert [(row["status"], row["number"]) for row in invoices] == [("void", None)]
    assert await subscriptions.rows("SELECT * FROM invoice_number_sequences") == []
    assert await _payment_failed_statuses(subscriptions) == ["paused"]


async def _payment_failed_statuses(subscriptions: SubscriptionFixture) -> list[str]:
    rows = await subscriptions.rows(
        "SELECT template_context FROM notifications WHERE kind = 'payment_failed' ORDER BY id"
    )
    return [row["template_context"]["status"] for row in rows]


async def test_a_funded_trial_starts_its_first_period_at_its_end(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(5000)
    subscription = await subscriptions.create_active_subscription("trial")
    trial_end = (await subscriptions.subscription(subscription))["trial_end"]
    await subscriptions.advance(subscription, 50 * DAY)
    assert (await subscriptions.subscription(subscription))["status"] == "active"
    invoices = await subscriptions.invoices(subscription)
    assert invoices[0]["period_start"] == trial_end
    assert len(invoices) == 2


@pytest.mark.scenario("B17")
async def test_a_cancelled_trial_costs_nothing_and_is_not_given_twice(subscriptions: SubscriptionFixture) -> None:
    subscription = await subscriptions.create_active_subscription("trial")
    await subscriptions.cancel(subscription, CancelAt.NOW)
    assert await subscriptions.invoices(subscription) == []
    with pytest.raises(RuleViolation) as refused:
        await subscriptions.create_subscription("trial")
    assert refused.value.code == "TRIAL_ALREADY_USED"


@pytest.mark.scenario("P15")
async def test_a_cancelled_subscription_cannot_be_cancelled_again(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(5000)
    subscription = await subscriptions.create_active_subscription("starter")
    await subscriptions.cancel(subscription)
    with pytest.raises(RuleViolation) as refused:
        await subscriptions.cancel(subscription, order="again")
    assert refused.value.code == "ILLEGAL_MOVE"


@pytest.mark.scenario("B49")
async def test_a_resumption_starts_and_charges_a_new_period(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(1000)
    subscription = await subscriptions.create_active_subscription("starter")
    await subscriptions.advance(subscription, 10 * DAY)
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    await subscriptions.advance(subscription, 70 * DAY)
    assert len(await subscriptions.invoices(subscription)) == 1
    assert subscriptions.external.operations() == ["suspend"]
    await subscriptions.workflows.resume(subscription, subscriptions.lifecycle_command("resume"))
    await subscriptions.wait_for_status(subscription, "active")
    invoices = await subscriptions.invoices(subscription)
    assert [row["status"] for row in invoices] == ["paid", "paid"]
    assert invoices[1]["period_start"] - invoices[0]["period_start"] >= 80 * DAY
    assert subscriptions.external.operations() == ["suspend", "resume"]
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    with pytest.raises(RuleViolation) as refused:
        await subscriptions.workflows.resume(subscription, subscriptions.lifecycle_command("resume"))
    assert refused.value.code == "INSUFFICIENT_FUNDS"
    assert (await subscriptions.subscription(subscription))["status"] == "paused"


async def _has_status(subscriptions: SubscriptionFixture, subscription: str, status: str) -> bool:
    return bool((await subscriptions.subscription(subscription))["status"] == status)
