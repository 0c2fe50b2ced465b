"""Idempotency keys, webhooks and faults: what a caller meets when the world between fails."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest
import stripe

from deploy.local.stripe import StripeSandbox
from tests.contracts.stripe.support import KEY, SECRET, WebhookReceiver, client
from tests.support.wait import scale_timeout, wait_until

# stripe 16 hands httpx its form bodies in a way that httpx 0.28 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


CHARGE = {"amount": "1200", "currency": "usd", "payment_method": "pm_card_visa", "confirm": "true"}


@pytest.fixture
def caller(control: httpx.AsyncClient) -> httpx.AsyncClient:
    """Raw requests, where the test looks at headers."""
    control.headers["Authorization"] = f"Bearer {KEY}"
    return control


async def charges(control: httpx.AsyncClient) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = (await control.get("/sandbox/charges")).json()
    return rows


# idempotency keys ----------------------------------------------------------------------------------------------------


@pytest.mark.scenario("B23")
async def test_a_repeated_key_returns_the_same_response_and_charges_once(caller: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "order-1"}
    first = await caller.post("/v1/payment_intents", data=CHARGE, headers=headers)
    repeated = await caller.post("/v1/payment_intents", data=dict(reversed(CHARGE.items())), headers=headers)
    assert (repeated.status_code, repeated.content) == (first.status_code, first.content)
    assert "Idempotent-Replayed" not in first.headers
    assert repeated.headers["Idempotent-Replayed"] == "true"
    assert repeated.headers["Original-Request"] == first.headers["Request-Id"]
    assert [charge["idempotency_key"] for charge in await charges(caller)] == ["order-1"]


async def test_a_repeated_key_with_other_parameters_is_rejected(caller: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "order-1"}
    await caller.post("/v1/payment_intents", data=CHARGE, headers=headers)
    other = await caller.post("/v1/payment_intents", data={**CHARGE, "amount": "1300"}, headers=headers)
    assert (other.status_code, other.json()["error"]["type"]) == (400, "idempotency_error")
    elsewhere = await caller.post("/v1/customers", data={}, headers=headers)
    assert (elsewhere.status_code, elsewhere.json()["error"]["type"]) == (400, "idempotency_error")
    assert len(await charges(caller)) == 1


async def test_a_decline_is_replayed_and_a_validation_error_is_not(caller: httpx.AsyncClient) -> None:
    declined = {**CHARGE, "payment_method": "pm_card_visa_chargeDeclined"}
    for turn in range(2):
        response = await caller.post("/v1/payment_intents", data=declined, headers={"Idempotency-Key": "d"})
        assert response.status_code == 402
        assert ("Idempotent-Replayed" in response.headers) == bool(turn)
    assert len(await charges(caller)) == 1
    wrong = await caller.post("/v1/payment_intents", data={"currency": "usd"}, headers={"Idempotency-Key": "v"})
    assert wrong.status_code == 400
    right = await caller.post("/v1/payment_intents", data=CHARGE, headers={"Idempotency-Key": "v"})
    assert right.status_code == 200


async def test_a_key_in_use_is_a_conflict_until_its_caller_disconnects(caller: httpx.AsyncClient) -> None:
    await caller.post("/sandbox/faults", json={"fault": "stall", "count": 1, "seconds": 30})
    headers = {"Idempotency-Key": "slow"}
    slow = asyncio.create_task(caller.post("/v1/payment_intents", data=CHARGE, headers=headers))
    await wait_until(lambda: charges(caller))
    meanwhile = await caller.post("/v1/payment_intents", data=CHARGE, headers=headers)
    assert (meanwhile.status_code, meanwhile.json()["error"]["code"]) == (409, "idempotency_key_in_use")
    slow.cancel()
    await asyncio.gather(slow, return_exceptions=True)

    async def replayed() -> bool:
        response = await caller.post("/v1/payment_intents", data=CHARGE, headers=headers)
        return "Idempotent-Replayed" in response.headers

    await wait_until(replayed)
    assert len(await charges(caller)) == 1


async def test_a_hundred_requests_with_one_key_charge_once(caller: httpx.AsyncClient) -> None:
    responses = await asyncio.gather(
        *(caller.post("/v1/payment_intents", data=CHARGE, headers={"Idempotency-Key": "storm"}) for _ in range(100))
    )
    assert {response.status_code for response in responses} <= {200, 409}
    assert len({response.content for response in responses if response.status_code == 200}) == 1
    assert len(await charges(caller)) == 1


# faults of requests --------------------------------------------------------------------------------------------------


@pytest.mark.scenario("B23")
@pytest.mark.parametrize("fault", ["lost_reply", "reset", "server_error"])
async def test_the_library_repeats_a_broken_request_and_charges_once(
    sandbox: StripeSandbox, control: httpx.AsyncClient, endpoint: WebhookReceiver, fault: str
) -> None:
    await control.post("/sandbox/faults", json={"fault": fault, "count": 1})
    patient = client(sandbox.url, retries=2)
    # Without `path` a fault waits for what moves money: the customer goes through.
    customer = await patient.v1.customers.create_async({})
    intent = await patient.v1.payment_intents.create_async(
        {
            "amount": 1200,
            "currency": "usd",
            "customer": customer.id,
            "payment_method": "pm_card_visa",
            "confirm": True,
        },
        {"idempotency_key": "once"},
    )
    assert intent.status == "succeeded"
    assert [charge["idempotency_key"] for charge in await charges(control)] == ["once"]
    assert (await control.get("/sandbox/faults")).json() == {"faults": []}
    await endpoint.until("payment_intent.succeeded", subject=intent.id)


@pytest.mark.parametrize(("fault", "happened"), [("lost_reply", 1), ("reset", 0)])
async def test_a_lost_or_reset_connection_is_an_error_of_the_caller(
    gateway: stripe.StripeClient, control: httpx.AsyncClient, fault: str, happened: int
) -> None:
    await control.post("/sandbox/faults", json={"fault": fault})
    for _ in range(2):
        with pytest.raises(stripe.APIConnectionError):
            await gateway.v1.payment_intents.create_async({"amount": 1200, "currency": "usd"}, {"idempotency_key": "k"})
    assert len((await gateway.v1.payment_intents.list_async()).data) == happened
    await control.delete("/sandbox/faults")
    await gateway.v1.payment_intents.create_async({"amount": 1200, "currency": "usd"}, {"idempotency_key": "k"})
    assert len((await gateway.v1.payment_intents.list_async()).data) == 1


@pytest.mark.scenario("B22")
async def test_a_stalled_charge_times_out_and_is_completed(
    sandbox: StripeSandbox, gateway: stripe.StripeClient, control: httpx.AsyncClient
) -> None:
    await control.post("/sandbox/faults", json={"fault": "stall", "count": 1})
    hurried = client(sandbox.url, timeout=0.3)
    with pytest.raises(stripe.APIConnectionError):
        await hurried.v1.payment_intents.create_async(
            {"amount": 1200, "currency": "usd", "payment_method": "pm_card_visa", "confirm": True},
            {"idempotency_key": "unknown"},
        )

    async def resolved() -> bool:
        try:
            intent = await gateway.v1.payment_intents.create_async(
                {"amount": 1200, "currency": "usd", "payment_method": "pm_card_visa", "confirm": True},
                {"idempotency_key": "unknown"},
            )
        except stripe.IdempotencyError:
            return False
        return intent.status == "succeeded"

    await wait_until(resolved)
    assert len(await charges(control)) == 1


async def test_unknown_faults_are_refused(control: httpx.AsyncClient) -> None:
    assert (await control.post("/sandbox/faults", json={"fault": "gremlin"})).status_code == 400
    assert (await control.post("/sandbox/faults", json={"fault": "stall", "count": 0})).status_code == 400


# webhooks ------------------------------------------------------------------------------------------------------------


async def pay(gateway: stripe.StripeClient) -> stripe.PaymentIntent:
    return await gateway.v1.payment_intents.create_async(
        {"amount": 1200, "currency": "usd", "payment_method": "pm_card_visa", "confirm": True}
    )


@pytest.mark.scenario("B20")
async def test_a_rejected_webhook_is_retried_with_the_same_id(
    gateway: stripe.StripeClient, endpoint: WebhookReceiver, control: httpx.AsyncClient
) -> None:
    endpoint.statuses = [503, 500]
    intent = await pay(gateway)

    async def all_delivered() -> bool:
        return all(hook["delivered"] for hook in (await control.get("/sandbox/webhooks")).json())

    await wait_until(all_delivered)
    assert endpoint.types(intent.id).count("payment_intent.succeeded") == 2
    assert len({event["id"] for event in endpoint.events}) == 2
    event = await gateway.v1.events.retrieve_async(endpoint.events[0]["id"])
    assert event.type == endpoint.events[0]["type"]
    listed = await gateway.v1.events.list_async({"type": "payment_intent.*"})
    assert {item.id for item in listed.data} == {received["id"] for received in endpoint.events}


@pytest.mark.scenario("B20")
async def test_a_webhook_can_arrive_before_the_response(
    sandbox: StripeSandbox, endpoint: WebhookReceiver, control: httpx.AsyncClient
) -> None:
    await control.post("/sandbox/faults", json={"fault": "stall", "count": 1, "seconds": 1})
    charge = asyncio.create_task(pay(client(sandbox.url)))
    await endpoint.until("payment_intent.succeeded")
    assert not charge.done()
    assert (await charge).status == "succeeded"


@pytest.mark.scenario("B19")
async def test_a_duplicated_webhook_arrives_twice_within_milliseconds(
    gateway: stripe.StripeClient, endpoint: WebhookReceiver, control: httpx.AsyncClient
) -> None:
    await control.post("/sandbox/faults", json={"fault": "duplicate_webhook"})
    before = time.monotonic()
    intent = await pay(gateway)
    await wait_until(lambda: endpoint.types(intent.id).count("payment_intent.succeeded") == 2)
    assert time.monotonic() - before < scale_timeout(1)
    assert len({event["id"] for event in endpoint.events if event["type"] == "payment_intent.succeeded"}) == 1


@pytest.mark.scenario("B21")
async def test_reordered_webhooks_arrive_latest_first(
    gateway: stripe.StripeClient, endpoint: WebhookReceiver, control: httpx.AsyncClient
) -> None:
    await control.post("/sandbox/faults", json={"fault": "reorder_webhook"})
    intent = await gateway.v1.payment_intents.create_async({"amount": 1200, "currency": "usd"})
    with pytest.raises(stripe.CardError):
        await gateway.v1.payment_intents.confirm_async(intent.id, {"payment_method": "pm_card_visa_chargeDeclined"})
    await gateway.v1.payment_intents.confirm_async(intent.id, {"payment_method": "pm_card_visa"})
    expected = ["payment_intent.succeeded", "payment_intent.payment_failed", "payment_intent.created"]
    await wait_until(lambda: endpoint.types(intent.id) == expected, description=f"{endpoint.types()}")


async def test_held_webhooks_wait_until_they_are_released(
    gateway: stripe.StripeClient, endpoint: WebhookReceiver, control: httpx.AsyncClient
) -> None:
    await control.post("/sandbox/faults", json={"fault": "hold_webhook", "count": 2})
    held, free = await pay(gateway), await pay(gateway)
    await endpoint.until("payment_intent.succeeded", subject=free.id)
    assert endpoint.types(held.id) == []
    hooks = (await control.get("/sandbox/webhooks")).json()
    assert [hook["held"] for hook in hooks if hook["object"] == held.id] == [True, True]
    await control.delete("/sandbox/faults")
    await endpoint.until("payment_intent.succeeded", subject=held.id)


async def test_webhooks_held_for_a_time_are_released_by_themselves(
    gateway: stripe.StripeClient, endpoint: WebhookReceiver, control: httpx.AsyncClient
) -> None:
    await control.post("/sandbox/faults", json={"fault": "hold_webhook", "seconds": 0.5})
    before = time.monotonic()
    intent = await pay(gateway)
    await endpoint.until("payment_intent.succeeded", subject=intent.id)
    assert time.monotonic() - before > 0.4


async def test_redelivery_sends_every_event_again(
    gateway: stripe.StripeClient, endpoint: WebhookReceiver, control: httpx.AsyncClient
) -> None:
    intents = [await pay(gateway) for _ in range(3)]
    await wait_until(lambda: len(endpoint.events) == 6)
    ids = sorted(event["id"] for event in endpoint.events)
    endpoint.events.clear()
    assert (await control.post("/sandbox/redeliver")).json() == {"events": 6, "accepted": 6}
    assert sorted(event["id"] for event in endpoint.events) == ids
    endpoint.events.clear()
    await control.post("/sandbox/redeliver", json={"reverse": True})
    assert endpoint.types(intents[0].id) == ["payment_intent.succeeded", "payment_intent.created"]


async def test_pending_webhooks_are_sent_once_an_endpoint_is_set(endpoint: WebhookReceiver) -> None:
    async with StripeSandbox(webhook_secret=SECRET) as sandbox:
        intent = await pay(client(sandbox.url))
        sandbox.set_webhook_url(endpoint.url)
        await endpoint.until("payment_intent.succeeded", subject=intent.id)
    assert endpoint.refused == 0


async def test_a_fault_can_target_other_requests(gateway: stripe.StripeClient, control: httpx.AsyncClient) -> None:
    intent = await pay(gateway)
    await control.post(
        "/sandbox/faults", json={"fault": "server_error", "count": 1, "path": "/v1/payment_intents/*", "method": "GET"}
    )
    with pytest.raises(stripe.APIError):
        await gateway.v1.payment_intents.retrieve_async(intent.id)
    assert (await gateway.v1.payment_intents.retrieve_async(intent.id)).status == "succeeded"


async def test_the_overview_page_lists_payments_and_events(
    gateway: stripe.StripeClient, control: httpx.AsyncClient
) -> None:
    intent = await pay(gateway)
    page = await control.get("/")
    assert page.status_code == 200
    assert str(intent.latest_charge) in page.text
    assert "payment_intent.succeeded" in page.text
