"""Webhooks over HTTP: unsigned ones are rejected; signed ones are recorded once and delivered before the response."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from pydantic import SecretStr

from tests.support.api import parse_error
from tests.support.databases import DatabaseFixture
from tests.support.fake_workflow_client import ApiWithCatalogue, insert_payment, serve_api_with_catalogue
from workflows.rpc_errors import TemporalUnavailable
from workflows.rules.payment import PaymentStatus

SECRET, SERVER_KEY = "whsec_of_a_test", "SB-Mid-server-test"


@pytest_asyncio.fixture
async def gateway(database: DatabaseFixture) -> AsyncIterator[ApiWithCatalogue]:
    overrides = {
        "stripe_webhook_secret": SecretStr(SECRET),
        "midtrans_server_key": SecretStr(SERVER_KEY),
        "razorpay_webhook_secret": SecretStr(SECRET),
    }
    async with serve_api_with_catalogue(database, **overrides) as fixture:
        yield fixture


def succeeded(seeded_api: ApiWithCatalogue, payment_id: str, *, event: str = "evt_1", amount: int = 1500) -> bytes:
    (row,) = seeded_api.api.query_as_superuser("SELECT * FROM payments WHERE id = %s", payment_id)
    intent = {
        "id": row["gateway_reference"],
        "amount": amount,
        "amount_received": amount,
        "currency": "usd",
        "metadata": {"berth_payment": payment_id, "berth_organization": row["organization_id"]},
    }
    return json.dumps({"id": event, "type": "payment_intent.succeeded", "data": {"object": intent}}).encode()


async def send(
    seeded_api: ApiWithCatalogue, payload: bytes, *, secret: str = SECRET, age: int = 0, path: str = "/webhooks/stripe"
) -> httpx.Response:
    at = str(int(time.time()) - age)
    digest = hmac.new(secret.encode(), at.encode() + b"." + payload, hashlib.sha256).hexdigest()
    headers = {"Stripe-Signature": f"t={at},v1={digest}", "Content-Type": "application/json"}
    return await seeded_api.api.http.post(path, content=payload, headers=headers)


def events(seeded_api: ApiWithCatalogue) -> list[dict[str, Any]]:
    return seeded_api.api.query_as_superuser("SELECT * FROM webhook_events ORDER BY received_at")


async def test_an_event_reaches_its_payment(gateway: ApiWithCatalogue) -> None:
    mine = insert_payment(gateway.api, gateway.customer, status="pending")
    response = await send(gateway, succeeded(gateway, mine))
    assert (response.status_code, response.json()["data"]) == (200, {"outcome": "delivered"}), response.text
    ((event, resume),) = gateway.workflows.commands_of("deliver_gateway_event")
    assert (event.status, event.amount.amount_minor) == (PaymentStatus.SUCCEEDED, 1500)
    assert (resume.payment_id, resume.organization_id) == (mine, gateway.customer.organization_id)
    (row,) = events(gateway)
    assert (row["status"], row["payment_id"]) == ("delivered", mine)


@pytest.mark.scenario("B19")
async def test_a_repeated_webhook_is_recorded_once(gateway: ApiWithCatalogue) -> None:
    mine = insert_payment(gateway.api, gateway.customer, status="pending")
    payload = succeeded(gateway, mine)
    responses = await asyncio.gather(*(send(gateway, payload) for _ in range(5)))
    assert {response.status_code for response in responses} == {200}
    repeated = await send(gateway, payload)
    assert repeated.json()["data"] == {"outcome": "known"}
    assert len(events(gateway)) == 1
    # Every signal of an event carries its id, so that the payment applies it once.
    assert {event.event_id for event, _ in gateway.workflows.commands_of("deliver_gateway_event")} == {"evt_1"}


async def test_late_money_whose_event_was_lost_with_the_workflow_is_delivered_again(gateway: ApiWithCatalogue) -> None:
    mine = insert_payment(gateway.api, gateway.customer, status="failed")
    payload = succeeded(gateway, mine)
    for _ in range(2):
        assert (await send(gateway, payload)).json()["data"] == {"outcome": "delivered"}
    gateway.api.execute(
        "UPDATE payments SET status = 'succeeded', succeeded_at = now(), captured_minor = amount_minor WHERE id = %s",
        mine,
    )
    assert (await send(gateway, payload)).json()["data"] == {"outcome": "known"}
    assert len(events(gateway)) == 1


@pytest.mark.scenario("B28", "S5")
async def test_an_unsigned_webhook_changes_nothing(gateway: ApiWithCatalogue) -> None:
    mine = insert_payment(gateway.api, gateway.customer, status="pending")
    payload = succeeded(gateway, mine)
    refused = [
        await send(gateway, payload, secret="another"),
        await send(gateway, payload, age=3600),
        await gateway.api.http.post("/webhooks/stripe", content=payload),
        await gateway.api.http.post("/webhooks/razorpay", content=payload),
        await gateway.api.http.post("/webhooks/midtrans", content=payload),
    ]
    for response in refused:
        assert response.status_code == 400, response.text
        assert parse_error(response)["code"] == "BAD_SIGNATURE"
    assert (events(gateway), gateway.workflows.calls) == ([], [])
    metrics = (await gateway.api.http.get("http://api/metrics")).text
    assert 'berth_webhooks_received_total{gateway="stripe",outcome="refused"} 3.0' in metrics


@pytest.mark.scenario("B20")
async def test_an_undelivered_webhook_is_retried(gateway: ApiWithCatalogue) -> None:
    mine = insert_payment(gateway.api, gateway.customer, status="pending")
    payload = succeeded(gateway, mine)
    gateway.workflows.raises = TemporalUnavailable("away")
    response = await send(gateway, payload)
    assert (response.status_code, parse_error(response)["code"]) == (503, "UNAVAILABLE")
    assert [row["status"] for row in events(gateway)] == ["received"]
    gateway.workflows.raises = None
    assert (await send(gateway, payload)).json()["data"] == {"outcome": "delivered"}
    assert [row["status"] for row in events(gateway)] == ["delivered"]


async def test_events_of_unknown_objects_are_recorded_and_accepted(gateway: ApiWithCatalogue) -> None:
    foreign = insert_payment(gateway.api, gateway.customer, status="pending")
    payload = succeeded(gateway, foreign).replace(foreign.encode(), b"pay_of_another")
    for body in (payload, json.dumps({"id": "evt_2", "type": "customer.created", "data": {"object": {}}}).encode()):
        response = await send(gateway, body)
        assert (response.status_code, response.json()["data"]) == (200, {"outcome": "ignored"})
    assert [row["status"] for row in events(gateway)] == ["ignored", "ignored"]
    assert gateway.workflows.calls == []


@pytest.mark.scenario("S1", "S5")
async def test_a_payment_is_not_reached_through_another_account(gateway: ApiWithCatalogue) -> None:
    mine = insert_payment(gateway.api, gateway.customer, status="pending")
    other = await gateway.api.register_verified_user()
    payload = succeeded(gateway, mine).replace(
        gateway.customer.organization_id.encode(), other.organization_id.encode()
    )
    assert (await send(gateway, payload)).json()["data"] == {"outcome": "ignored"}
    assert gateway.workflows.calls == []


async def test_a_signed_malformed_body_is_rejected(gateway: ApiWithCatalogue) -> None:
    for payload in (b"{}", b"[]", b'{"id": "evt_1", "type": "payment_intent.succeeded"}'):
        response = await send(gateway, payload)
        assert (response.status_code, parse_error(response)["code"]) == (400, "MALFORMED_REQUEST"), payload
    response = await send(gateway, b"{" + b" " * 300_000 + b"}")
    assert (response.status_code, parse_error(response)["code"]) == (413, "PAYLOAD_TOO_LARGE")
    assert events(gateway) == []


async def test_one_address_serves_every_gateway(gateway: ApiWithCatalogue) -> None:
    mine = insert_payment(gateway.api, gateway.customer, status="pending")
    response = await send(gateway, succeeded(gateway, mine), path="/payments/webhook")
    assert response.json()["data"] == {"outcome": "delivered"}
    signed = f"order-1200150000.00{SERVER_KEY}".encode()
    note = {
        "order_id": "order-1", "status_code": "200", "gross_amount": "150000.00", "transaction_id": "t1",
        "transaction_status": "settlement", "signature_key": hashlib.sha512(signed).hexdigest(),
    }  # fmt: skip
    response = await gateway.api.http.post("/payments/webhook", json=note)
    assert response.json()["data"] == {"outcome": "ignored"}
    body = b'{"event": "order.paid"}'
    headers = {
        "X-Razorpay-Signature": hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest(),
        "X-Razorpay-Event-Id": "rzp_1",
    }
    response = await gateway.api.http.post("/payments/webhook", content=body, headers=headers)
    assert response.json()["data"] == {"outcome": "ignored"}
    assert [row["gateway"] for row in events(gateway)] == ["stripe", "midtrans", "razorpay"]
