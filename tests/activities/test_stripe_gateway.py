"""The Stripe gateway over the wire, with the official library, against the sandbox and its faults."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from activities.gateways.protocol import CardDeclined, ChargeRequest, GatewayRejected, GatewayUnavailable
from activities.gateways.stripe import StripeGateway
from tests.support.sandboxes import StripeEndpoint
from tests.support.temporal import TemporalFixture
from workflows.rules.money import Money
from workflows.rules.payment import PaymentStatus, RefundStatus

unique = TemporalFixture.unique_id


@pytest_asyncio.fixture
async def gateway(stripe: StripeEndpoint) -> AsyncIterator[StripeGateway]:
    gateway = StripeGateway(api_key=stripe.api_key, base_url=stripe.url)
    yield gateway
    await gateway.close()


def money(amount: int = 1500, currency: str = "USD") -> Money:
    return Money(amount_minor=amount, currency=currency)


def fault(stripe: StripeEndpoint, kind: str, **more: Any) -> None:
    httpx.post(f"{stripe.url}/sandbox/faults", json={"fault": kind, "count": 1, **more}).raise_for_status()


def charges(stripe: StripeEndpoint, key: str) -> list[dict[str, Any]]:
    every = httpx.get(f"{stripe.url}/sandbox/charges").json()
    return [charge for charge in every if charge["idempotency_key"] == key]


async def request(gateway: StripeGateway, method: str = "pm_card_visa", **changes: Any) -> ChargeRequest:
    payment = unique("pay")
    customer = await gateway.create_customer("org_1", key=unique("customer"))
    values: dict[str, Any] = {
        "idempotency_key": f"{payment}:1",
        "payment_id": payment,
        "organization_id": "org_1",
        "amount": money(),
        "customer": customer,
        "payment_method": method,
        "off_session": False,
        "manual_capture": False,
    }
    return ChargeRequest(**{**values, **changes})


async def test_a_card_pays_and_the_same_key_pays_once(gateway: StripeGateway, stripe: StripeEndpoint) -> None:
    charge_request = await request(gateway)
    first, repeated = await gateway.charge(charge_request), await gateway.charge(charge_request)
    assert first == repeated
    assert (first.status, first.amount) == (PaymentStatus.SUCCEEDED, money())
    assert len(charges(stripe, charge_request.idempotency_key)) == 1


@pytest.mark.scenario("B40")
async def test_yen_are_never_multiplied(gateway: StripeGateway, stripe: StripeEndpoint) -> None:
    charge_request = await request(gateway, amount=money(1500, "JPY"))
    assert (await gateway.charge(charge_request)).amount == money(1500, "JPY")
    assert [
        (charge["amount"], charge["currency"].upper()) for charge in charges(stripe, charge_request.idempotency_key)
    ] == [(1500, "JPY")]


@pytest.mark.scenario("B38")
async def test_a_rupiah_has_two_digits_at_stripe(gateway: StripeGateway, stripe: StripeEndpoint) -> None:
    charge_request = await request(gateway, amount=money(150_000_00, "IDR"))
    await gateway.charge(charge_request)
    assert [charge["amount"] for charge in charges(stripe, charge_request.idempotency_key)] == [15_000_000]


@pytest.mark.parametrize(
    ("method", "code"),
    [
        ("pm_card_visa_chargeDeclined", "generic_decline"),
        ("pm_card_chargeDeclinedLostCard", "lost_card"),
        ("pm_card_chargeDeclinedExpiredCard", "expired_card"),
    ],
)
async def test_a_decline_is_an_outcome_with_its_code(gateway: StripeGateway, method: str, code: str) -> None:
    charge = await gateway.charge(await request(gateway, method))
    assert (charge.status, charge.decline_code) == (PaymentStatus.FAILED, code)
    assert (await gateway.retrieve_charge(charge.reference)).status is PaymentStatus.FAILED


async def test_a_customer_who_is_there_is_sent_to_authenticate(gateway: StripeGateway) -> None:
    charge = await gateway.charge(await request(gateway, "pm_card_threeDSecure2Required"))
    assert charge.status is PaymentStatus.PENDING
    assert charge.redirect_url is not None
    assert charge.redirect_url.startswith("http")


async def test_a_customer_who_is_not_there_cannot_authenticate(gateway: StripeGateway) -> None:
    charge = await gateway.charge(await request(gateway, "pm_card_threeDSecure2Required", off_session=True))
    assert (charge.status, charge.decline_code) == (PaymentStatus.FAILED, "authentication_required")


async def test_an_authorisation_is_captured_once(gateway: StripeGateway, stripe: StripeEndpoint) -> None:
    charge_request = await request(gateway, manual_capture=True)
    held = await gateway.charge(charge_request)
    assert held.status is PaymentStatus.AUTHORIZED
    taken = await gateway.capture(held.reference, key="capture:" + charge_request.idempotency_key)
    assert (taken.status, taken.amount) == (PaymentStatus.SUCCEEDED, money())
    assert (
        await gateway.capture(held.reference, key="other:" + charge_request.idempotency_key)
    ).status is PaymentStatus.SUCCEEDED
    assert (
        await gateway.cancel_charge(held.reference, key="cancel:" + charge_request.idempotency_key)
    ).status is PaymentStatus.SUCCEEDED


async def test_an_authorisation_is_let_go(gateway: StripeGateway, stripe: StripeEndpoint) -> None:
    charge_request = await request(gateway, manual_capture=True)
    held = await gateway.charge(charge_request)
    assert (
        await gateway.cancel_charge(held.reference, key="cancel:" + charge_request.idempotency_key)
    ).status is PaymentStatus.CANCELLED
    assert (
        await gateway.capture(held.reference, key="capture:" + charge_request.idempotency_key)
    ).status is PaymentStatus.CANCELLED
    assert [charge["captured"] for charge in charges(stripe, charge_request.idempotency_key)] == [False]


@pytest.mark.scenario("B23")
@pytest.mark.parametrize("kind", ["lost_reply", "server_error", "reset"])
async def test_no_certain_answer_is_unavailable_and_the_same_key_tells_the_rest(
    gateway: StripeGateway, stripe: StripeEndpoint, kind: str
) -> None:
    charge_request = await request(gateway)
    fault(stripe, kind)
    with pytest.raises(GatewayUnavailable):
        await gateway.charge(charge_request)
    assert (await gateway.charge(charge_request)).status is PaymentStatus.SUCCEEDED
    assert len(charges(stripe, charge_request.idempotency_key)) == 1


async def test_a_charge_whose_answer_was_lost_is_found(gateway: StripeGateway, stripe: StripeEndpoint) -> None:
    charge_request = await request(gateway)
    assert await gateway.find_charge(charge_request.payment_id, charge_request.customer) is None
    fault(stripe, "lost_reply")
    with pytest.raises(GatewayUnavailable):
        await gateway.charge(charge_request)
    charge = await gateway.find_charge(charge_request.payment_id, charge_request.customer)
    assert charge is not None
    assert charge.status is PaymentStatus.SUCCEEDED


async def test_what_makes_no_sense_is_rejected_for_good(gateway: StripeGateway) -> None:
    with pytest.raises(GatewayRejected) as refused:
        await gateway.charge(await request(gateway, amount=money(1)))
    assert refused.value.code == "amount_too_small"
    with pytest.raises(GatewayRejected):
        await gateway.charge(await request(gateway, "pm_no_such_card"))


async def test_a_key_that_was_used_for_something_else_proves_nothing(gateway: StripeGateway) -> None:
    charge_request = await request(gateway)
    await gateway.charge(charge_request)
    with pytest.raises(GatewayUnavailable):
        await gateway.charge(await request(gateway, idempotency_key=charge_request.idempotency_key))


async def test_a_wrong_api_key_is_an_operators_matter(stripe: StripeEndpoint) -> None:
    stranger = StripeGateway(api_key="pk_wrong", base_url=stripe.url)
    with pytest.raises(GatewayUnavailable):
        await stranger.create_customer("org_1", key=unique("customer"))
    await stranger.close()


async def test_a_card_is_saved_charged_off_session_and_forgotten(gateway: StripeGateway) -> None:
    customer = await gateway.create_customer("org_1", key=unique("customer"))
    key = unique("attach")
    card = await gateway.attach_payment_method("pm_card_mastercard", customer, key=key)
    assert card == await gateway.attach_payment_method("pm_card_mastercard", customer, key=key)
    assert (card.brand, card.last4) == ("mastercard", "4444")
    charge_request = await request(gateway, card.reference, customer=customer, off_session=True)
    assert (await gateway.charge(charge_request)).status is PaymentStatus.SUCCEEDED
    await gateway.detach_payment_method(card.reference)
    await gateway.detach_payment_method(card.reference)


async def test_a_card_that_stripe_does_not_know_is_forgotten(gateway: StripeGateway) -> None:
    await gateway.detach_payment_method("pm_unknown")


async def test_a_card_that_its_issuer_refuses_is_not_saved(gateway: StripeGateway) -> None:
    customer = await gateway.create_customer("org_1", key=unique("customer"))
    with pytest.raises(CardDeclined) as refused:
        await gateway.attach_payment_method("pm_card_chargeDeclinedStolenCard", customer, key=unique("attach"))
    assert refused.value.decline_code == "stolen_card"


@pytest.mark.scenario("B35")
async def test_a_refund_under_one_key_happens_once(gateway: StripeGateway, stripe: StripeEndpoint) -> None:
    charge_request = await request(gateway)
    paid = await gateway.charge(charge_request)
    key = unique("refund")
    fault(stripe, "lost_reply")
    with pytest.raises(GatewayUnavailable):
        await gateway.refund(paid.reference, money(400), refund_id="re_1", key=key)
    refund = await gateway.refund(paid.reference, money(400), refund_id="re_1", key=key)
    assert refund.status is RefundStatus.SUCCEEDED
    assert [charge["refunded"] for charge in charges(stripe, charge_request.idempotency_key)] == [400]
    with pytest.raises(GatewayRejected):
        await gateway.refund(paid.reference, money(1101), refund_id="re_2", key=unique("refund"))


@pytest.mark.scenario("B35")
async def test_a_refund_whose_answer_was_lost_is_found(gateway: StripeGateway, stripe: StripeEndpoint) -> None:
    paid = await gateway.charge(await request(gateway))
    await gateway.refund(paid.reference, money(300), refund_id="re_1", key=unique("refund"))
    assert await gateway.find_refund(paid.reference, "re_2") is None
    fault(stripe, "lost_reply")
    with pytest.raises(GatewayUnavailable):
        await gateway.refund(paid.reference, money(400), refund_id="re_2", key=unique("refund"))
    refund = await gateway.find_refund(paid.reference, "re_2")
    assert refund is not None
    assert refund.status is RefundStatus.SUCCEEDED
    first = await gateway.find_refund(paid.reference, "re_1")
    assert first is not None
    assert first.reference != refund.reference


async def test_a_refund_is_found_beyond_the_first_page(gateway: StripeGateway) -> None:
    """Stripe lists the newest first, a hundred at most."""
    paid = await gateway.charge(await request(gateway))
    for number in range(101):
        await gateway.refund(paid.reference, money(1), refund_id=f"re_{number}", key=unique("refund"))
    assert await gateway.find_refund(paid.reference, "re_0") is not None
    assert await gateway.find_refund(paid.reference, "re_101") is None


async def test_a_refund_that_is_on_its_way_is_asked_for_again(gateway: StripeGateway) -> None:
    paid = await gateway.charge(await request(gateway, "pm_card_pendingRefund"))
    refund = await gateway.refund(paid.reference, money(), refund_id="re_1", key=unique("refund"))
    assert refund.status is RefundStatus.PENDING
    assert (await gateway.retrieve_refund(refund.reference)).reference == refund.reference
