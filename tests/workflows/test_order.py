"""From the order to readiness: what secures it, what gives up, and what is undone."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from tests.support.databases import Database
from tests.support.life import CancelAt, Collection, World, world
from tests.support.temporal import Temporal
from tests.support.wait import eventually
from workflows.ports.instances import Provisioned
from workflows.rules.errors import RuleBroken

DAY = timedelta(days=1)


async def test_the_wallet_is_held_with_the_order_and_taken_at_readiness(life: World) -> None:
    await life.top_up(800)
    subscription = await life.subscribe("starter")
    assert (await life.subscription(subscription))["status"] == "provisioning"
    assert (await life.balance(), await life.balance("held")) == (300, 500)
    assert await life.invoices(subscription) == []
    life.outside.ready.set()
    await life.until(subscription, "active")
    assert (await life.balance(), await life.balance("held")) == (300, 0)
    assert (await life.timeline(subscription))[:6] == [
        "subscription.created",
        "payment.authorized",
        "instance.provisioning",
        "instance.ready",
        "subscription.activated",
        "payment.succeeded",
    ]


@pytest.mark.scenario("B47")
async def test_a_failed_provisioning_releases_what_was_held_once_and_burns_no_number(life: World) -> None:
    await life.top_up(800)
    life.outside.provisioned = Provisioned(ready=False, reason="IMAGE_PULL", message="the image is missing")
    life.outside.ready.set()
    subscription = await life.subscribe("starter")
    await eventually(lambda: _is(life, subscription, "failed"))
    assert (await life.balance(), await life.balance("held")) == (800, 0)
    assert await life.invoices(subscription) == []
    assert await life.rows("SELECT * FROM invoice_series") == []
    releases = await life.rows("SELECT id FROM ledger_transactions WHERE kind = 'release'")
    assert len(releases) == 1
    assert "subscription_failed" in await life.notices()


@pytest.mark.scenario("B48")
async def test_cancelling_while_provisioning_undoes_everything_once(life: World) -> None:
    await life.top_up(800)
    subscription = await life.subscribe("starter")
    await eventually(lambda: "provision" in dict(life.outside.asked))
    view = await life.cancel(subscription)
    assert view is None or view.state == "cancelled"
    await eventually(lambda: _is(life, subscription, "cancelled"))
    verbs = [verb for verb, _ in life.outside.asked]
    assert verbs.count("undo_provision") == 1
    assert (await life.balance(), await life.balance("held")) == (800, 0)
    assert await life.invoices(subscription) == []
    assert len(await life.rows("SELECT id FROM ledger_transactions WHERE kind = 'release'")) == 1


@pytest.mark.scenario("B18")
async def test_a_declined_card_expires_the_order_and_restores_coupon_and_wallet_once(life: World) -> None:
    await life.rows_written(
        "INSERT INTO coupons (code, kind, percent, duration, redeemed) VALUES ('WELCOME', 'percent', 20, 'once', 0)"
    )
    await life.top_up(100)
    await life.add_card()
    life.outside.decline = "generic_decline"
    subscription = await life.subscribe("starter", coupon="WELCOME")
    await eventually(lambda: _is(life, subscription, "expired"))
    assert (await life.balance(), await life.balance("held")) == (100, 0)
    assert (await life.rows("SELECT redeemed FROM coupons"))[0]["redeemed"] == 0
    assert (await life.rows("SELECT status FROM instances"))[0]["status"] == "deleted"
    assert ("provision", "x") not in life.outside.asked
    assert await life.invoices(subscription) == []


@pytest.mark.scenario("P21")
async def test_a_host_name_is_taken_until_nothing_is_left_of_its_instance(life: World) -> None:
    mine = '{"subdomain": "shop"}'
    await life.add_card()
    life.outside.decline = "generic_decline"
    declined = await life.subscribe("starter", parameters_json=mine)
    await eventually(lambda: _is(life, declined, "expired"))
    await life.top_up(5000)
    await life.active("starter", parameters_json=mine)
    with pytest.raises(RuleBroken) as refusal:
        await life.subscribe("starter", parameters_json='{"subdomain": "SHOP"}')
    assert (refusal.value.code, await life.balance("held")) == ("CONFLICT", 0)


async def test_a_card_is_authorised_for_the_rest_and_captured_at_readiness(life: World) -> None:
    await life.top_up(100)
    await life.add_card()
    subscription = await life.active("starter")
    invoice = (await life.invoices(subscription))[0]
    assert (invoice["status"], invoice["total_minor"], invoice["amount_due_minor"]) == ("paid", 500, 0)
    assert [pay.amount.amount_minor for pay in life.outside.paid] == [400]
    assert (await life.balance(), await life.balance("held"), await life.balance("receivable")) == (0, 0, 0)


async def test_a_capture_that_fails_leaves_the_invoice_open_and_the_subscription_past_due(life: World) -> None:
    await life.add_card()
    life.outside.answer.clear()
    subscription = await life.subscribe("starter", collection=Collection.CARD)
    life.outside.ready.set()
    await life.charging(1)
    life.outside.decline = "expired_card"
    life.outside.answer.set()
    await life.until(subscription, "past_due")
    assert [row["status"] for row in await life.invoices(subscription)] == ["open"]


@pytest.mark.scenario("B29")
async def test_of_two_concurrent_orders_for_the_same_money_one_wins(temporal: Temporal, database: Database) -> None:
    async with world(temporal, database, currency="IDR") as life:
        await life.top_up(700)
        results = await asyncio.gather(life.subscribe("starter"), life.subscribe("starter"), return_exceptions=True)
        refused = [result for result in results if isinstance(result, RuleBroken)]
        assert len(refused) == 1
        assert refused[0].code == "INSUFFICIENT_FUNDS"
        assert (await life.balance(), await life.balance("held")) == (200, 500)
        await life.ledger_is_sound()


@pytest.mark.scenario("P1")
async def test_the_same_order_twice_is_one_subscription(life: World) -> None:
    await life.top_up(5000)
    order = life.order("starter")
    first, second = await asyncio.gather(life.orchestrator.subscribe(order), life.orchestrator.subscribe(order))
    assert first.outcome == second.outcome
    assert len(await life.rows("SELECT id FROM subscriptions")) == 1
    assert (await life.balance("held")) == 500
    life.outside.ready.set()
    await life.until(order.subscription_id, "active")
    assert [verb for verb, _ in life.outside.asked].count("provision") == 1


@pytest.mark.scenario("B16")
async def test_a_trial_that_nothing_pays_for_is_paused_never_free(life: World) -> None:
    subscription = await life.active("trial")
    row = await life.subscription(subscription)
    assert row["status"] == "trialing"
    assert row["trial_end"] - row["anchor"] == 14 * DAY
    await life.advance(subscription, 15 * DAY)
    assert (await life.subscription(subscription))["status"] == "paused"
    assert await life.invoices(subscription) == []
    assert life.outside.operations() == ["suspend"]
    assert await _told_of_failure(life) == ["paused"]


async def test_a_trial_whose_card_is_declined_is_paused_and_burns_no_number(life: World) -> None:
    await life.add_card()
    life.outside.decline = "generic_decline"
    subscription = await life.active("trial")
    await life.advance(subscription, 15 * DAY)
    assert (await life.subscription(subscription))["status"] == "paused"
    invoices = await life.invoices(subscription)
    assert [(row["status"], row["number"]) for row in invoices] == [("void", None)]
    assert await life.rows("SELECT * FROM invoice_series") == []
    assert await _told_of_failure(life) == ["paused"]


async def _told_of_failure(life: World) -> list[str]:
    rows = await life.rows("SELECT context FROM notifications WHERE kind = 'payment_failed' ORDER BY id")
    return [row["context"]["status"] for row in rows]


async def test_a_trial_that_is_paid_for_begins_its_first_period_at_its_end(life: World) -> None:
    await life.top_up(5000)
    subscription = await life.active("trial")
    trial_end = (await life.subscription(subscription))["trial_end"]
    await life.advance(subscription, 50 * DAY)
    assert (await life.subscription(subscription))["status"] == "active"
    invoices = await life.invoices(subscription)
    assert invoices[0]["period_start"] == trial_end
    assert len(invoices) == 2


@pytest.mark.scenario("B17")
async def test_a_cancelled_trial_costs_nothing_and_is_not_given_twice(life: World) -> None:
    subscription = await life.active("trial")
    await life.cancel(subscription, CancelAt.NOW)
    assert await life.invoices(subscription) == []
    with pytest.raises(RuleBroken) as refused:
        await life.subscribe("trial")
    assert refused.value.code == "TRIAL_ALREADY_USED"


@pytest.mark.scenario("P15")
async def test_cancelling_what_has_ended_is_refused(life: World) -> None:
    await life.top_up(5000)
    subscription = await life.active("starter")
    await life.cancel(subscription)
    with pytest.raises(RuleBroken) as refused:
        await life.cancel(subscription, order="again")
    assert refused.value.code == "ILLEGAL_MOVE"


@pytest.mark.scenario("B49")
async def test_resuming_from_a_pause_starts_and_charges_a_new_period_now(life: World) -> None:
    await life.top_up(1000)
    subscription = await life.active("starter")
    await life.advance(subscription, 10 * DAY)
    await life.orchestrator.pause(subscription, life.simple("pause"))
    await life.advance(subscription, 70 * DAY)
    assert len(await life.invoices(subscription)) == 1
    assert life.outside.operations() == ["suspend"]
    await life.orchestrator.resume(subscription, life.simple("resume"))
    await life.until(subscription, "active")
    invoices = await life.invoices(subscription)
    assert [row["status"] for row in invoices] == ["paid", "paid"]
    assert invoices[1]["period_start"] - invoices[0]["period_start"] >= 80 * DAY
    assert life.outside.operations() == ["suspend", "resume"]
    await life.orchestrator.pause(subscription, life.simple("pause"))
    with pytest.raises(RuleBroken) as refused:
        await life.orchestrator.resume(subscription, life.simple("resume"))
    assert refused.value.code == "INSUFFICIENT_FUNDS"
    assert (await life.subscription(subscription))["status"] == "paused"


async def _is(life: World, subscription: str, status: str) -> bool:
    return bool((await life.subscription(subscription))["status"] == status)
