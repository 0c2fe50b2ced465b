"""Card payments that were in flight when the subscription's workflow was lost: each is collected once."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from tests.support.billing_fixture import ORGANIZATION
from tests.support.lost_payments import LostPayments
from tests.support.temporal import TemporalFixture
from tests.support.wait import wait_until
from workflows.ports.payments import PaymentInput, Purpose
from workflows.rules.money import Money
from workflows.rules.payment import PaymentStatus


@pytest.mark.scenario("B23")
async def test_a_renewal_whose_charge_is_in_flight_is_collected_once(lost: LostPayments) -> None:
    subscription = await lost.start_renewal()
    await lost.lose(subscription)
    assert [row["status"] for row in await lost.subscriptions.invoices(subscription)] == ["paid", "open"]
    await lost.restart()
    await lost.wait_until_paid(subscription)
    await lost.assert_collected_once(subscription, 400)


@pytest.mark.scenario("B23")
async def test_a_renewal_whose_payment_was_lost_as_well_is_collected_once(lost: LostPayments) -> None:
    subscription = await lost.start_renewal()
    await lost.lose(subscription, payments=True)
    assert [row["status"] for row in await lost.subscriptions.invoices(subscription)] == ["paid", "open"]
    await lost.restart()
    await lost.wait_until_paid(subscription)
    await lost.assert_collected_once(subscription, 400)


@pytest.mark.scenario("B23")
async def test_a_payment_that_succeeded_while_the_subscription_was_lost_pays_its_invoice(lost: LostPayments) -> None:
    subscription = await lost.start_renewal()
    await lost.lose(subscription)

    async def succeeded() -> bool:
        return [row["status"] for row in await lost.payments(subscription)] == ["succeeded"]

    await wait_until(succeeded, description="the payment has succeeded")
    assert [row["status"] for row in await lost.subscriptions.invoices(subscription)] == ["paid", "open"]
    await lost.restart()
    await lost.wait_until_paid(subscription)
    await lost.assert_collected_once(subscription, 400)


@pytest.mark.scenario("B20", "B23")
async def test_a_payment_that_a_webhook_completed_while_everything_was_lost_is_not_made_again(
    lost: LostPayments,
) -> None:
    subscription = await lost.start_renewal()
    await lost.lose(subscription, payments=True)
    handle = await lost.deliver_webhook(subscription, PaymentStatus.SUCCEEDED)
    await handle.result()
    await lost.restart()
    await lost.wait_until_paid(subscription)
    assert [charged["amount"] for charged in await lost.gateway_charges(subscription)] == [400]
    assert (await lost.subscriptions.balance("held"), await lost.subscriptions.balance()) == (0, 0)
    await lost.subscriptions.assert_ledger_balanced()


@pytest.mark.scenario("B20", "B23")
async def test_the_end_of_a_trial_that_a_webhook_completed_while_everything_was_lost_is_not_charged_again(
    lost: LostPayments,
) -> None:
    subscription = await lost.subscriptions.create_active_subscription("trial")
    await lost.add_card()
    end = (await lost.subscriptions.subscription(subscription))["trial_end"]
    lost.stall_gateway()
    await lost.subscriptions.advance_to(subscription, end - timedelta(seconds=1))
    await lost.wait_for_charge(subscription)
    await lost.lose(subscription, payments=True)
    handle = await lost.deliver_webhook(subscription, PaymentStatus.SUCCEEDED)
    await handle.result()
    await lost.restart()
    await lost.subscriptions.advance_to(subscription, end + timedelta(minutes=1))
    await lost.wait_until_paid(subscription)
    assert [charged["amount"] for charged in await lost.gateway_charges(subscription)] == [500]
    assert (await lost.subscriptions.balance("held"), await lost.subscriptions.balance()) == (0, 0)
    await lost.subscriptions.assert_ledger_balanced()


@pytest.mark.scenario("B27")
async def test_a_card_that_paid_for_a_lost_plan_change_is_credited_to_the_wallet(lost: LostPayments) -> None:
    await lost.subscriptions.top_up(500)
    subscription = await lost.subscriptions.create_active_subscription("starter")
    await lost.add_card()
    lost.stall_gateway()
    changing = asyncio.ensure_future(lost.subscriptions.change_plan(subscription, "pro"))
    await lost.wait_for_charge(subscription)
    await lost.lose(subscription)
    await asyncio.gather(changing, return_exceptions=True)
    await lost.restart()
    (charge,) = await lost.gateway_charges(subscription)

    async def credited() -> bool:
        return bool(await lost.subscriptions.balance() == charge["amount"])

    await wait_until(credited, description="the payment is wallet credit")
    await lost.subscriptions.wait_until_idle(subscription)
    row = await lost.subscriptions.subscription(subscription)
    assert (row["status"], row["plan_id"]) == ("active", lost.subscriptions.plan("starter"))
    assert sorted(row["status"] for row in await lost.subscriptions.invoices(subscription)) == ["paid", "void"]
    assert await lost.subscriptions.balance("held") == 0
    await lost.subscriptions.assert_ledger_balanced()


@pytest.mark.scenario("B23")
async def test_a_top_up_whose_workflow_was_lost_is_credited_once(lost: LostPayments) -> None:
    top_up = PaymentInput(
        payment_id=TemporalFixture.unique_id("pay"),
        organization_id=ORGANIZATION,
        amount=Money(amount_minor=1500, currency="USD"),
        gateway="stripe",
        purpose=Purpose.TOP_UP,
        gateway_token="pm_card_visa",
    )
    lost.stall_gateway(seconds=20)
    ordering = asyncio.ensure_future(lost.subscriptions.workflows.start_top_up(top_up))
    charge = await lost.wait_for_charge_of(top_up.payment_id)
    await lost.terminate_payment(top_up.payment_id)
    await asyncio.gather(ordering, return_exceptions=True)
    assert await lost.restart_payments(age="10 minutes") == 0
    assert await lost.restart_payments() == 1

    async def credited() -> bool:
        return bool(await lost.subscriptions.balance() == charge["amount"] == 1500)

    await wait_until(credited, description="the top-up is wallet credit")
    assert await lost.wait_for_charge_of(top_up.payment_id) == charge
    assert await lost.restart_payments() == 0
    await lost.subscriptions.assert_ledger_balanced()


@pytest.mark.scenario("B23")
async def test_a_renewal_whose_payment_is_terminated_is_collected_once(lost: LostPayments) -> None:
    subscription = await lost.start_renewal()
    (payment,) = await lost.payments(subscription)
    await lost.handle(payment["id"]).terminate()
    await lost.wait_until_paid(subscription)
    await lost.assert_collected_once(subscription, 400)


@pytest.mark.scenario("B23")
async def test_a_payment_of_a_lost_subscription_is_left_to_its_next_run(lost: LostPayments) -> None:
    subscription = await lost.start_renewal()
    await lost.lose(subscription, payments=True)
    assert await lost.restart_payments() == 0
    await lost.restart()
    await lost.wait_until_paid(subscription)
    await lost.assert_collected_once(subscription, 400)
