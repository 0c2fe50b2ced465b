"""Webhooks over HTTP: signed or refused, recorded once, delivered before they are answered."""

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

from tests.support.api import error_of
from tests.support.databases import Database
from tests.support.desk import Shop, payment
from tests.support.desk import shop as open_shop
from workflows.client import Unavailable
from workflows.rules.payment import PaymentStatus

SECRET, SERVER_KEY = "whsec_of_a_test", "SB-Mid-server-test"


@pytest_asyncio.fixture
async def gateway(database: Database) -> AsyncIterator[Shop]:
    given = {
        "stripe_webhook_secret": SecretStr(SECRET),
        "midtrans_server_key": SecretStr(SERVER_KEY),
        "razorpay_webhook_secret": SecretStr(SECRET),
    }
    async with open_shop(database, **given) as made:
        yield made


def succeeded(shop: Shop, payment_id: str, *, event: str = "evt_1", amount: int = 1500) -> bytes:
    (row,) = shop.api.rows("SELECT * FROM payments WHERE id = %s", payment_id)
    intent = {
        "id": row["gateway_reference"],
        "amount": amount,
        "amount_received": amount,
        "currency": "usd",
        "metadata": {"berth_payment": payment_id, "berth_organization": row["organization_id"]},
    }
    return json.dumps({"id": event, "type": "payment_intent.succeeded", "data": {"object": intent}}).encode()


async def send(
    shop: Shop, payload: bytes, *, secret: str = SECRET, age: int = 0, path: str = "/webhooks/stripe"
) -> httpx.Response:
    at = str(int(time.time()) - age)
    digest = hmac.new(secret.encode(), at.encode() + b"." + payload, hashlib.sha256).hexdigest()
    headers = {"Stripe-Signature": f"t={at},v1={digest}", "Content-Type": "application/json"}
    return await shop.api.http.post(path, content=payload, headers=headers)


def events(shop: Shop) -> list[dict[str, Any]]:
    return shop.api.rows("SELECT * FROM webhook_events ORDER BY received_at")


async def test_a_fact_reaches_its_payment(gateway: Shop) -> None:
    mine = payment(gateway.api, gateway.customer, status="pending")
    answer = await send(gateway, succeeded(gateway, mine))
    assert (answer.status_code, answer.json()["data"]) == (200, {"outcome": "delivered"}), answer.text
    ((event, resume),) = gateway.desk.ordered("payment_event")
    assert (event.status, event.amount.amount_minor) == (PaymentStatus.SUCCEEDED, 1500)
    assert (resume.payment_id, resume.organization_id) == (mine, gateway.customer.organization_id)
    (row,) = events(gateway)
    assert (row["status"], row["payment_id"]) == ("delivered", mine)


@pytest.mark.scenario("B19")
async def test_the_same_webhook_again_is_recorded_once(gateway: Shop) -> None:
    mine = payment(gateway.api, gateway.customer, status="pending")
    payload = succeeded(gateway, mine)
    answers = await asyncio.gather(*(send(gateway, payload) for _ in range(5)))
    assert {answer.status_code for answer in answers} == {200}
    again = await send(gateway, payload)
    assert again.json()["data"] == {"outcome": "known"}
    assert len(events(gateway)) == 1
    # Signals of one event carry its id: the payment takes it once, however often it is told.
    assert {event.event_id for event, _ in gateway.desk.ordered("payment_event")} == {"evt_1"}


@pytest.mark.scenario("B28", "S5")
async def test_what_is_not_signed_changes_nothing(gateway: Shop) -> None:
    mine = payment(gateway.api, gateway.customer, status="pending")
    payload = succeeded(gateway, mine)
    refused = [
        await send(gateway, payload, secret="another"),
        await send(gateway, payload, age=3600),
        await gateway.api.http.post("/webhooks/stripe", content=payload),
        await gateway.api.http.post("/webhooks/razorpay", content=payload),
        await gateway.api.http.post("/webhooks/midtrans", content=payload),
    ]
    for answer in refused:
        assert answer.status_code == 400, answer.text
        assert error_of(answer)["code"] == "BAD_SIGNATURE"
    assert (events(gateway), gateway.desk.calls) == ([], [])
    metrics = (await gateway.api.http.get("http://api/metrics")).text
    assert 'berth_webhooks_total{gateway="stripe",outcome="refused"} 3.0' in metrics


@pytest.mark.scenario("B20")
async def test_what_could_not_be_delivered_comes_again(gateway: Shop) -> None:
    mine = payment(gateway.api, gateway.customer, status="pending")
    payload = succeeded(gateway, mine)
    gateway.desk.refuses = Unavailable("away")
    answer = await send(gateway, payload)
    assert (answer.status_code, error_of(answer)["code"]) == (503, "UNAVAILABLE")
    assert [row["status"] for row in events(gateway)] == ["received"]
    gateway.desk.refuses = None
    assert (await send(gateway, payload)).json()["data"] == {"outcome": "delivered"}
    assert [row["status"] for row in events(gateway)] == ["delivered"]


async def test_events_about_nothing_of_ours_are_noted_and_answered(gateway: Shop) -> None:
    foreign = payment(gateway.api, gateway.customer, status="pending")
    payload = succeeded(gateway, foreign).replace(foreign.encode(), b"pay_of_somebody")
    for body in (payload, json.dumps({"id": "evt_2", "type": "customer.created", "data": {"object": {}}}).encode()):
        answer = await send(gateway, body)
        assert (answer.status_code, answer.json()["data"]) == (200, {"outcome": "ignored"})
    assert [row["status"] for row in events(gateway)] == ["ignored", "ignored"]
    assert gateway.desk.calls == []


@pytest.mark.scenario("S1", "S5")
async def test_a_payment_is_not_reached_through_another_account(gateway: Shop) -> None:
    mine = payment(gateway.api, gateway.customer, status="pending")
    other = await gateway.api.customer()
    payload = succeeded(gateway, mine).replace(
        gateway.customer.organization_id.encode(), other.organization_id.encode()
    )
    assert (await send(gateway, payload)).json()["data"] == {"outcome": "ignored"}
    assert gateway.desk.calls == []


async def test_signed_nonsense_is_malformed(gateway: Shop) -> None:
    for payload in (b"{}", b"[]", b'{"id": "evt_1", "type": "payment_intent.succeeded"}'):
        answer = await send(gateway, payload)
        assert (answer.status_code, error_of(answer)["code"]) == (400, "MALFORMED_REQUEST"), payload
    answer = await send(gateway, b"{" + b" " * 300_000 + b"}")
    assert (answer.status_code, error_of(answer)["code"]) == (413, "PAYLOAD_TOO_LARGE")
    assert events(gateway) == []


async def test_one_address_serves_every_gateway(gateway: Shop) -> None:
    mine = payment(gateway.api, gateway.customer, status="pending")
    answer = await send(gateway, succeeded(gateway, mine), path="/payments/webhook")
    assert answer.json()["data"] == {"outcome": "delivered"}
    signed = f"order-1200150000.00{SERVER_KEY}".encode()
    note = {
        "order_id": "order-1", "status_code": "200", "gross_amount": "150000.00", "transaction_id": "t1",
        "transaction_status": "settlement", "signature_key": hashlib.sha512(signed).hexdigest(),
    }  # fmt: skip
    answer = await gateway.api.http.post("/payments/webhook", json=note)
    assert answer.json()["data"] == {"outcome": "ignored"}
    body = b'{"event": "order.paid"}'
    headers = {
        "X-Razorpay-Signature": hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest(),
        "X-Razorpay-Event-Id": "rzp_1",
    }
    answer = await gateway.api.http.post("/payments/webhook", content=body, headers=headers)
    assert answer.json()["data"] == {"outcome": "ignored"}
    assert [row["gateway"] for row in events(gateway)] == ["stripe", "midtrans", "razorpay"]
