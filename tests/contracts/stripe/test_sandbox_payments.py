"""Payments through the official library behave as Stripe documents them."""

from __future__ import annotations

import asyncio

import httpx
import pytest
import stripe

from deploy.local.stripe import StripeSandbox
from tests.contracts.stripe.support import WebhookReceiver, client

# stripe 16 hands httpx its form bodies in a way that httpx 0.28 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


async def customer_with_card(gateway: stripe.StripeClient, token: str = "pm_card_visa") -> tuple[str, str]:
    customer = await gateway.v1.customers.create_async({"email": "ada@example.org"})
    method = await gateway.v1.payment_methods.attach_async(token, {"customer": customer.id})
    return customer.id, method.id


async def test_a_saved_card_is_charged_off_session(gateway: stripe.StripeClient, endpoint: WebhookReceiver) -> None:
    customer, method = await customer_with_card(gateway)
    intent = await gateway.v1.payment_intents.create_async(
        {
            "amount": 1500,
            "currency": "usd",
            "customer": customer,
            "payment_method": method,
            "confirm": True,
            "off_session": True,
            "metadata": {"payment_id": "p-1"},
        }
    )
    assert (intent.status, intent.amount_received, intent.currency) == ("succeeded", 1500, "usd")
    (event,) = await endpoint.until("payment_intent.succeeded")
    received_intent = event["data"]["object"]
    assert received_intent["id"] == intent.id
    assert received_intent["metadata"] == {"payment_id": "p-1"}
    assert (received_intent["amount"], received_intent["currency"], received_intent["status"]) == (
        1500,
        "usd",
        "succeeded",
    )
    assert endpoint.types(intent.id) == ["payment_intent.created", "payment_intent.succeeded"]
    charge = await gateway.v1.charges.retrieve_async(str(intent.latest_charge), {"expand": ["balance_transaction"]})
    assert charge.captured
    assert isinstance(charge.balance_transaction, stripe.BalanceTransaction)
    assert charge.balance_transaction.net == 1500 - charge.balance_transaction.fee


async def test_the_plain_client_works_too(sandbox: StripeSandbox) -> None:
    plain = stripe.StripeClient("sk_test_plain", base_addresses={"api": sandbox.url})
    intent = await asyncio.to_thread(
        plain.v1.payment_intents.create,
        {"amount": 900, "currency": "eur", "payment_method": "pm_card_mastercard", "confirm": True},
    )
    retrieved = await asyncio.to_thread(plain.v1.payment_intents.retrieve, intent.id, {"expand": ["payment_method"]})
    assert isinstance(retrieved.payment_method, stripe.PaymentMethod)
    assert retrieved.payment_method.card is not None
    assert (retrieved.payment_method.card.brand, retrieved.payment_method.card.last4) == ("mastercard", "4444")


@pytest.mark.parametrize(
    ("token", "code", "decline_code"),
    [
        ("pm_card_visa_chargeDeclined", "card_declined", "generic_decline"),
        ("pm_card_chargeDeclinedInsufficientFunds", "card_declined", "insufficient_funds"),
        ("pm_card_visa_chargeDeclinedLostCard", "card_declined", "lost_card"),
        ("pm_card_chargeDeclinedStolenCard", "card_declined", "stolen_card"),
        ("pm_card_chargeDeclinedExpiredCard", "expired_card", "expired_card"),
    ],
)
async def test_a_declined_card_is_a_402_that_leaves_a_failed_charge(
    gateway: stripe.StripeClient,
    endpoint: WebhookReceiver,
    control: httpx.AsyncClient,
    token: str,
    code: str,
    decline_code: str,
) -> None:
    with pytest.raises(stripe.CardError) as refused:
        await gateway.v1.payment_intents.create_async(
            {"amount": 700, "currency": "usd", "payment_method": token, "confirm": True, "metadata": {"n": "1"}},
            {"idempotency_key": "declined-1"},
        )
    assert refused.value.http_status == 402
    assert refused.value.code == code
    assert refused.value.error is not None
    assert refused.value.error.decline_code == decline_code
    failed_intent = refused.value.error.payment_intent
    assert failed_intent is not None
    assert failed_intent["status"] == "requires_payment_method"
    (event,) = await endpoint.until("payment_intent.payment_failed")
    assert event["data"]["object"]["last_payment_error"]["decline_code"] == decline_code
    assert event["data"]["object"]["metadata"] == {"n": "1"}
    (charge,) = (await control.get("/sandbox/charges")).json()
    assert (charge["status"], charge["captured"], charge["idempotency_key"]) == ("failed", False, "declined-1")
    assert charge["amount"] == 700


async def test_a_card_that_fails_later_can_be_saved_but_not_charged(gateway: stripe.StripeClient) -> None:
    customer, method = await customer_with_card(gateway, "pm_card_chargeCustomerFail")
    with pytest.raises(stripe.CardError) as refused:
        await gateway.v1.payment_intents.create_async(
            {
                "amount": 700,
                "currency": "usd",
                "customer": customer,
                "payment_method": method,
                "confirm": True,
                "off_session": True,
            }
        )
    assert refused.value.code == "card_declined"


async def test_a_card_that_declines_at_once_cannot_be_saved(gateway: stripe.StripeClient) -> None:
    with pytest.raises(stripe.CardError):
        await customer_with_card(gateway, "pm_card_visa_chargeDeclined")


async def test_each_attach_of_a_token_creates_a_method(gateway: stripe.StripeClient) -> None:
    customer, first = await customer_with_card(gateway)
    second = (await gateway.v1.payment_methods.attach_async("pm_card_visa", {"customer": customer})).id
    assert first != second
    listed = await gateway.v1.customers.payment_methods.list_async(customer)
    assert {method.id for method in listed.data} == {first, second}
    gone = await gateway.v1.payment_methods.detach_async(first)
    assert gone.customer is None
    with pytest.raises(stripe.InvalidRequestError):
        await gateway.v1.payment_methods.attach_async(first, {"customer": customer})
    assert [method.id for method in (await gateway.v1.customers.payment_methods.list_async(customer)).data] == [second]


async def test_a_method_of_another_customer_is_refused(gateway: stripe.StripeClient) -> None:
    _, method = await customer_with_card(gateway)
    other = await gateway.v1.customers.create_async({})
    with pytest.raises(stripe.InvalidRequestError):
        await gateway.v1.payment_intents.create_async(
            {"amount": 100, "currency": "usd", "customer": other.id, "payment_method": method, "confirm": True}
        )


async def test_authorize_then_capture(gateway: stripe.StripeClient, endpoint: WebhookReceiver) -> None:
    intent = await gateway.v1.payment_intents.create_async(
        {
            "amount": 2000,
            "currency": "usd",
            "payment_method": "pm_card_visa",
            "confirm": True,
            "capture_method": "manual",
        }
    )
    assert (intent.status, intent.amount_capturable, intent.amount_received) == ("requires_capture", 2000, 0)
    with pytest.raises(stripe.InvalidRequestError):
        await gateway.v1.payment_intents.capture_async(intent.id, {"amount_to_capture": 2001})
    taken = await gateway.v1.payment_intents.capture_async(intent.id, {"amount_to_capture": 1800})
    assert (taken.status, taken.amount_received, taken.amount_capturable) == ("succeeded", 1800, 0)
    with pytest.raises(stripe.InvalidRequestError) as twice:
        await gateway.v1.payment_intents.capture_async(intent.id)
    assert twice.value.code == "payment_intent_unexpected_state"
    await endpoint.until("payment_intent.amount_capturable_updated", "payment_intent.succeeded", subject=intent.id)


async def test_a_cancelled_authorization_charges_nothing(
    gateway: stripe.StripeClient, endpoint: WebhookReceiver, control: httpx.AsyncClient
) -> None:
    intent = await gateway.v1.payment_intents.create_async(
        {
            "amount": 2000,
            "currency": "usd",
            "payment_method": "pm_card_visa",
            "confirm": True,
            "capture_method": "manual",
        }
    )
    assert (await gateway.v1.payment_intents.cancel_async(intent.id)).status == "canceled"
    with pytest.raises(stripe.InvalidRequestError):
        await gateway.v1.payment_intents.cancel_async(intent.id)
    await endpoint.until("payment_intent.canceled", subject=intent.id)
    (charge,) = (await control.get("/sandbox/charges")).json()
    assert (charge["captured"], charge["refunded"], charge["amount_captured"]) == (False, 0, 0)


async def test_refunds_never_exceed_what_was_captured(
    gateway: stripe.StripeClient, endpoint: WebhookReceiver, control: httpx.AsyncClient
) -> None:
    intent = await gateway.v1.payment_intents.create_async(
        {"amount": 10000, "currency": "usd", "payment_method": "pm_card_visa", "confirm": True}
    )
    part = await gateway.v1.refunds.create_async({"payment_intent": intent.id, "amount": 4000})
    assert (part.status, part.amount) == ("succeeded", 4000)

    async def refund_remainder() -> str:
        try:
            return (await gateway.v1.refunds.create_async({"payment_intent": intent.id, "amount": 6000})).status or ""
        except stripe.InvalidRequestError as refused:
            return str(refused.code or "refused")

    assert sorted(await asyncio.gather(refund_remainder(), refund_remainder())) == [
        "charge_already_refunded",
        "succeeded",
    ]
    (charge,) = (await control.get("/sandbox/charges")).json()
    assert charge["refunded"] == 10000
    await endpoint.until("charge.refunded", "refund.created")


async def test_a_bank_rejects_a_refund_that_was_sent(
    gateway: stripe.StripeClient, endpoint: WebhookReceiver, control: httpx.AsyncClient
) -> None:
    intent = await gateway.v1.payment_intents.create_async(
        {"amount": 10000, "currency": "usd", "payment_method": "pm_card_visa", "confirm": True}
    )
    refund = await gateway.v1.refunds.create_async({"payment_intent": intent.id, "amount": 4000})
    path = f"/sandbox/refunds/{refund.id}/fail"
    assert (await control.post(path, json={"failure_reason": "declined"})).status_code == 200
    failed = await gateway.v1.refunds.retrieve_async(refund.id)
    assert (failed.status, failed.failure_reason) == ("failed", "declined")
    (charge,) = (await control.get("/sandbox/charges")).json()
    assert charge["refunded"] == 0
    assert [row["status"] for row in (await control.get("/sandbox/refunds")).json()] == ["failed"]
    await endpoint.until("charge.refund.updated", "refund.updated", "refund.failed")
    assert (await control.post(path)).status_code == 400, "it has failed already"
    assert (await control.post("/sandbox/refunds/re_unknown/fail")).status_code == 404


async def test_the_same_refund_key_refunds_once(gateway: stripe.StripeClient, control: httpx.AsyncClient) -> None:
    intent = await gateway.v1.payment_intents.create_async(
        {"amount": 10000, "currency": "usd", "payment_method": "pm_card_visa", "confirm": True}
    )
    params: stripe.params.RefundCreateParams = {"payment_intent": intent.id, "amount": 4000}
    first = await gateway.v1.refunds.create_async(params, {"idempotency_key": "refund-1"})
    second = await gateway.v1.refunds.create_async(params, {"idempotency_key": "refund-1"})
    assert first.id == second.id
    (charge,) = (await control.get("/sandbox/charges")).json()
    assert charge["refunded"] == 4000


@pytest.mark.parametrize(("outcome", "status"), [("succeed", "succeeded"), ("fail", "requires_payment_method")])
async def test_three_d_secure_waits_for_the_card_holder(
    gateway: stripe.StripeClient, endpoint: WebhookReceiver, control: httpx.AsyncClient, outcome: str, status: str
) -> None:
    intent = await gateway.v1.payment_intents.create_async(
        {
            "amount": 500,
            "currency": "usd",
            "payment_method": "pm_card_threeDSecure2Required",
            "confirm": True,
            "return_url": "https://berth.example/back",
        }
    )
    assert intent.status == "requires_action"
    assert intent.next_action is not None
    assert intent.next_action.redirect_to_url is not None
    assert intent.next_action.redirect_to_url.url is not None
    async with httpx.AsyncClient() as browser:
        page = await browser.get(intent.next_action.redirect_to_url.url)
    assert "Complete" in page.text
    response = await control.post(f"/sandbox/payment_intents/{intent.id}/authenticate", json={"outcome": outcome})
    assert response.status_code == 200
    assert (await gateway.v1.payment_intents.retrieve_async(intent.id)).status == status
    closing = "payment_intent.succeeded" if outcome == "succeed" else "payment_intent.payment_failed"
    await endpoint.until("payment_intent.requires_action", closing, subject=intent.id)


async def test_three_d_secure_without_a_card_holder_is_a_decline(gateway: stripe.StripeClient) -> None:
    customer, method = await customer_with_card(gateway, "pm_card_authenticationRequired")
    with pytest.raises(stripe.CardError) as refused:
        await gateway.v1.payment_intents.create_async(
            {
                "amount": 500,
                "currency": "usd",
                "customer": customer,
                "payment_method": method,
                "confirm": True,
                "off_session": True,
            }
        )
    assert refused.value.code == "authentication_required"


async def test_a_refused_intent_can_be_confirmed_with_another_card(
    gateway: stripe.StripeClient, endpoint: WebhookReceiver, control: httpx.AsyncClient
) -> None:
    intent = await gateway.v1.payment_intents.create_async({"amount": 500, "currency": "usd"})
    assert intent.status == "requires_payment_method"
    with pytest.raises(stripe.CardError):
        await gateway.v1.payment_intents.confirm_async(intent.id, {"payment_method": "pm_card_visa_chargeDeclined"})
    paid = await gateway.v1.payment_intents.confirm_async(intent.id, {"payment_method": "pm_card_visa"})
    assert (paid.status, paid.last_payment_error) == ("succeeded", None)
    charges = (await control.get("/sandbox/charges")).json()
    assert [charge["status"] for charge in charges] == ["failed", "succeeded"]
    await endpoint.until("payment_intent.payment_failed", "payment_intent.succeeded", subject=intent.id)


async def test_setup_intents_save_a_card(gateway: stripe.StripeClient) -> None:
    customer = await gateway.v1.customers.create_async({})
    setup = await gateway.v1.setup_intents.create_async(
        {"customer": customer.id, "payment_method": "pm_card_visa", "confirm": True, "usage": "off_session"}
    )
    assert setup.status == "succeeded"
    method = await gateway.v1.payment_methods.retrieve_async(str(setup.payment_method))
    assert method.customer == customer.id


async def test_disputes_open_and_close(
    gateway: stripe.StripeClient, endpoint: WebhookReceiver, control: httpx.AsyncClient
) -> None:
    intent = await gateway.v1.payment_intents.create_async(
        {"amount": 1000, "currency": "usd", "payment_method": "pm_card_visa", "confirm": True}
    )
    charge = str(intent.latest_charge)
    opened = (await control.post("/sandbox/disputes", json={"charge": charge, "status": "needs_response"})).json()
    assert opened["status"] == "needs_response"
    closed = (await control.post("/sandbox/disputes", json={"charge": charge, "status": "won"})).json()
    assert (closed["id"], closed["status"]) == (opened["id"], "won")
    (event,) = await endpoint.until("charge.dispute.closed")
    assert (event["data"]["object"]["charge"], event["data"]["object"]["status"]) == (charge, "won")
    refused = await control.post("/sandbox/disputes", json={"charge": charge, "status": "lost"})
    assert refused.status_code == 400
    assert (await gateway.v1.disputes.retrieve_async(opened["id"])).amount == 1000
    await endpoint.until("charge.dispute.created", "charge.dispute.funds_withdrawn", "charge.dispute.funds_reinstated")


async def test_a_saved_card_can_be_set_to_decline_and_to_work_again(
    gateway: stripe.StripeClient, control: httpx.AsyncClient
) -> None:
    customer, method = await customer_with_card(gateway)

    async def pay() -> None:
        await gateway.v1.payment_intents.create_async(
            {"amount": 500, "currency": "usd", "customer": customer, "payment_method": method, "confirm": True}
        )

    await pay()
    await control.post("/sandbox/declines", json={"customer": customer, "decline_code": "lost_card"})
    with pytest.raises(stripe.CardError) as refused:
        await pay()
    assert refused.value.error is not None
    assert refused.value.error.decline_code == "lost_card"
    await control.post("/sandbox/declines", json={"customer": customer, "decline_code": None})
    await pay()


async def test_invalid_requests_are_rejected_like_stripe(sandbox: StripeSandbox, gateway: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError) as missing:
        await gateway.v1.payment_intents.retrieve_async("pi_nothing")
    assert (missing.value.http_status, missing.value.code) == (404, "resource_missing")
    with pytest.raises(stripe.InvalidRequestError) as unknown:
        await gateway.raw_request_async("post", "/v1/customers", emial="x")
    assert unknown.value.code == "parameter_unknown"
    with pytest.raises(stripe.AuthenticationError):
        await client(sandbox.url, key="sk_live_x").v1.customers.create_async({})
    with pytest.raises(stripe.InvalidRequestError) as small:
        await gateway.v1.payment_intents.create_async({"amount": 49, "currency": "usd"})
    assert small.value.code == "amount_too_small"


async def test_lists_page_through_everything(gateway: stripe.StripeClient) -> None:
    created_ids = [(await gateway.v1.customers.create_async({"email": f"{n}@example.org"})).id for n in range(7)]
    page = await gateway.v1.customers.list_async({"limit": 3})
    listed_ids = [customer.id async for customer in page.auto_paging_iter()]
    assert listed_ids == created_ids[::-1]
    matches = await gateway.v1.customers.search_async({"query": 'email:"3@example.org"'})
    assert [customer.id for customer in matches.data] == [created_ids[3]]
