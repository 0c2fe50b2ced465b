"""Authorizations and captures of orders whose workflows were lost: each is captured or voided once."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.support.lost_payments import LostPayments
from tests.support.wait import wait_until
from workflows.rules.payment import PaymentStatus


@pytest.mark.scenario("B23")
async def test_an_order_with_an_authorized_card_is_captured_once(lost: LostPayments) -> None:
    subscription = await lost.start_order()
    await lost.lose(subscription)
    await lost.restart()
    lost.subscriptions.external.provisioning_done.set()
    await lost.subscriptions.wait_for_status(subscription, "active")
    await lost.wait_until_paid(subscription)
    await lost.assert_collected_once(subscription, 500)


@pytest.mark.scenario("B23")
async def test_an_order_that_is_lost_during_the_capture_is_captured_once(lost: LostPayments) -> None:
    subscription = await lost.lose_order_during_capture()
    assert [row["status"] for row in await lost.subscriptions.invoices(subscription)] == ["open"]
    await lost.restart()
    await lost.wait_until_paid(subscription)
    await lost.assert_collected_once(subscription, 500)


@pytest.mark.scenario("B48")
async def test_an_order_that_is_cancelled_after_its_workflow_was_lost_voids_the_authorization(
    lost: LostPayments,
) -> None:
    subscription = await lost.start_order()
    await lost.lose(subscription)
    await lost.restart()
    await lost.subscriptions.cancel(subscription)
    assert (await lost.subscriptions.subscription(subscription))["status"] == "cancelled"
    assert [row["status"] for row in await lost.payments(subscription)] == ["cancelled"]


@pytest.mark.scenario("B23")
async def test_an_authorization_whose_workflow_is_terminated_is_captured(lost: LostPayments) -> None:
    subscription = await lost.start_order()
    (payment,) = await lost.payments(subscription)
    await lost.handle(payment["id"]).terminate()
    lost.subscriptions.external.provisioning_done.set()
    await lost.wait_until_paid(subscription)
    await lost.assert_collected_once(subscription, 500)


@pytest.mark.scenario("B23")
async def test_an_authorization_is_left_to_the_order_that_is_being_fulfilled(lost: LostPayments) -> None:
    subscription = await lost.start_order()
    (payment,) = await lost.payments(subscription)
    await lost.terminate_payment(payment["id"])
    if await lost.restart_payments():
        await lost.handle(payment["id"]).result()
    lost.subscriptions.external.provisioning_done.set()
    await lost.wait_until_paid(subscription)
    await lost.assert_collected_once(subscription, 500)


@pytest.mark.scenario("B20")
async def test_a_webhook_does_not_void_the_authorization_of_an_order_that_is_being_fulfilled(
    lost: LostPayments,
) -> None:
    subscription = await lost.start_order_with_terminated_payment()
    handle = await lost.deliver_webhook(subscription, PaymentStatus.AUTHORIZED)
    await lost.wait_for_activity(handle, "payments.cancel")
    assert [row["status"] for row in await lost.payments(subscription)] == ["authorized"]
    lost.subscriptions.external.provisioning_done.set()
    await lost.wait_until_paid(subscription)
    await lost.assert_collected_once(subscription, 500)


@pytest.mark.scenario("B48")
async def test_a_webhook_voids_the_authorization_once_its_order_has_ended(lost: LostPayments) -> None:
    subscription = await lost.start_order_with_terminated_payment()
    handle = await lost.deliver_webhook(subscription, PaymentStatus.AUTHORIZED)
    await lost.wait_for_activity(handle, "payments.cancel")
    # The answer does not wait for the end of the compensation.
    await lost.subscriptions.cancel(subscription)
    await lost.subscriptions.handle(subscription).result()
    assert (await lost.subscriptions.subscription(subscription))["status"] == "cancelled"
    await lost.subscriptions.temporal.fast_forward(handle, timedelta(minutes=1, seconds=1))
    await handle.result()
    assert [row["status"] for row in await lost.payments(subscription)] == ["cancelled"]
    (charge,) = await lost.gateway_charges(subscription)
    assert not charge["captured"]


@pytest.mark.scenario("B20", "B23")
async def test_a_capture_that_a_webhook_completes_pays_the_order(lost: LostPayments) -> None:
    """The subscription's workflow is started again after the webhook. The card was charged a second time."""
    subscription = await lost.lose_order_during_capture()
    handle = await lost.deliver_webhook(subscription, PaymentStatus.SUCCEEDED)
    await handle.result()
    await lost.restart()
    await lost.wait_until_paid(subscription)
    await lost.assert_collected_once(subscription, 500)


@pytest.mark.scenario("B22", "B23")
async def test_a_capture_that_a_poll_finds_pays_the_order(lost: LostPayments) -> None:
    """A late webhook of the authorization starts the payment again; the webhook of the capture is delayed."""
    subscription = await lost.lose_order_during_capture()
    handle = await lost.deliver_webhook(subscription, PaymentStatus.AUTHORIZED)
    await lost.wait_for_activity(handle, "payments.cancel")
    await lost.subscriptions.temporal.fast_forward(handle, timedelta(minutes=1, seconds=1))
    await handle.result()
    await lost.restart()
    await lost.wait_until_paid(subscription)
    await lost.assert_collected_once(subscription, 500)


@pytest.mark.scenario("B48")
async def test_an_authorization_of_an_order_that_has_ended_is_voided(lost: LostPayments) -> None:
    subscription = await lost.start_order_with_terminated_payment()
    await lost.subscriptions.cancel(subscription)
    assert [row["status"] for row in await lost.payments(subscription)] == ["authorized"]
    assert await lost.restart_payments() == 1

    async def voided() -> bool:
        return [row["status"] for row in await lost.payments(subscription)] == ["cancelled"]

    await wait_until(voided, description="the authorization is void")
