"""Orders whose card payment is captured by hand at the gateway before the instance is ready."""

from __future__ import annotations

import httpx
import pytest

from tests.support.lost_payments import LostPayments
from tests.support.wait import wait_until
from workflows.ports.instances import ProvisioningOutcome
from workflows.rules.payment import PaymentStatus


async def _start_captured_order(lost: LostPayments) -> str:
    """Return a subscription that is being provisioned, and whose authorization an operator has captured."""
    subscription = await lost.start_order()
    (charge,) = await lost.gateway_charges(subscription)
    (payment,) = await lost.payments(subscription)
    httpx.post(
        f"{lost.stripe.url}/v1/payment_intents/{payment['gateway_reference']}/capture",
        headers={"Authorization": f"Bearer {lost.stripe.api_key}"},
    ).raise_for_status()
    await lost.deliver_webhook(subscription, PaymentStatus.SUCCEEDED)

    async def succeeded() -> bool:
        return [row["status"] for row in await lost.payments(subscription)] == ["succeeded"]

    await wait_until(succeeded, description="the capture is on record")
    assert charge["amount"] == await lost.subscriptions.balance("held") == 500
    return subscription


@pytest.mark.scenario("B27")
@pytest.mark.parametrize("status", ["cancelled", "failed"])
async def test_the_money_of_an_order_that_is_aborted_becomes_credit(lost: LostPayments, status: str) -> None:
    subscription = await _start_captured_order(lost)
    if status == "cancelled":
        await lost.subscriptions.cancel(subscription)
    else:
        lost.subscriptions.external.provisioned = ProvisioningOutcome(ready=False, reason="ImagePullFailed")
        lost.subscriptions.external.provisioning_done.set()
    await lost.subscriptions.handle(subscription).result()
    assert (await lost.subscriptions.subscription(subscription))["status"] == status
    assert (await lost.subscriptions.balance(), await lost.subscriptions.balance("held")) == (500, 0)
    assert [row["credited_to_wallet"] for row in await lost.payments(subscription)] == [True]
    assert await lost.subscriptions.invoices(subscription) == []
    await lost.subscriptions.assert_ledger_balanced()


@pytest.mark.parametrize("is_lost", [False, True])
async def test_an_order_is_paid_by_what_was_captured(lost: LostPayments, is_lost: bool) -> None:
    subscription = await _start_captured_order(lost)
    if is_lost:
        await lost.lose(subscription)
        await lost.restart()
    lost.subscriptions.external.provisioning_done.set()
    await lost.subscriptions.wait_for_status(subscription, "active")
    await lost.wait_until_paid(subscription)
    await lost.assert_collected_once(subscription, 500)
