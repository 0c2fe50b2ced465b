"""Webhooks about refunds: recorded once, and handed to the workflow of the refund only if they say something new."""

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
from tests.support.fake_workflow_client import (
    ApiWithCatalogue,
    insert_payment,
    insert_refund,
    serve_api_with_catalogue,
)
from workflows.rpc_errors import TemporalUnavailable

SECRET = "whsec_of_a_test"


@pytest_asyncio.fixture
async def gateway(database: DatabaseFixture) -> AsyncIterator[ApiWithCatalogue]:
    async with serve_api_with_catalogue(database, stripe_webhook_secret=SecretStr(SECRET)) as fixture:
        yield fixture


def refunded(gateway: ApiWithCatalogue, *, status: str = "succeeded", reference: str | None = "re_1") -> str:
    """Insert a payment with one refund; return the refund's id."""
    payment = insert_payment(gateway.api, gateway.customer)
    refund_id = insert_refund(gateway.api, gateway.customer, payment, f"ref_{payment}", status=status)
    gateway.api.execute("UPDATE refunds SET gateway_reference = %s WHERE id = %s", reference, refund_id)
    return refund_id


def event(
    status: str | None,
    *,
    kind: str = "refund.failed",
    number: int = 1,
    reference: str = "re_1",
    refund_id: str | None = None,
) -> bytes:
    """Return an event as Stripe sends it; its object is the refund."""
    refund = {
        "id": reference,
        "object": "refund",
        "amount": 500,
        "currency": "usd",
        "status": status,
        "failure_reason": "expired_or_canceled_card" if status == "failed" else None,
        "metadata": {"berth_refund": refund_id} if refund_id is not None else {},
    }
    return json.dumps({"id": f"evt_{number}", "type": kind, "data": {"object": refund}}).encode()


async def send(gateway: ApiWithCatalogue, payload: bytes, *, secret: str = SECRET) -> httpx.Response:
    at = str(int(time.time()))
    digest = hmac.new(secret.encode(), at.encode() + b"." + payload, hashlib.sha256).hexdigest()
    headers = {"Stripe-Signature": f"t={at},v1={digest}", "Content-Type": "application/json"}
    return await gateway.api.http.post("/webhooks/stripe", content=payload, headers=headers)


async def outcome(gateway: ApiWithCatalogue, payload: bytes) -> str:
    response = await send(gateway, payload)
    assert response.status_code == 200, response.text
    return str(response.json()["data"]["outcome"])


def events(gateway: ApiWithCatalogue) -> list[dict[str, Any]]:
    return gateway.api.query_as_superuser("SELECT * FROM webhook_events ORDER BY received_at, event_id")


@pytest.mark.parametrize("kind", ["refund.failed", "refund.updated", "charge.refund.updated"])
async def test_a_refund_that_the_gateway_calls_failed_is_handed_to_its_workflow(
    gateway: ApiWithCatalogue, kind: str
) -> None:
    mine = refunded(gateway)
    assert await outcome(gateway, event("failed", kind=kind)) == "delivered"
    ((event_id, command),) = gateway.workflows.commands_of("deliver_refund_event")
    assert (event_id, command.refund_id) == ("evt_1", mine)
    assert command.organization_id == gateway.customer.organization_id
    (row,) = events(gateway)
    assert (row["status"], row["refund_id"], row["payment_id"]) == ("delivered", mine, command.payment_id)
    # The event alone moves nothing.
    assert gateway.api.query_as_superuser("SELECT status FROM refunds") == [{"status": "succeeded"}]


async def test_the_same_event_is_recorded_once(gateway: ApiWithCatalogue) -> None:
    refunded(gateway)
    payload = event("failed")
    responses = await asyncio.gather(*(send(gateway, payload) for _ in range(5)))
    assert {response.status_code for response in responses} == {200}
    # Its workflow may be lost: until the refund has applied the event, a redelivery is delivered.
    assert await outcome(gateway, payload) == "delivered"
    gateway.api.execute(
        "WITH rejected AS (UPDATE refunds SET status = 'failed') UPDATE payments SET refunded_minor = 0"
        " WHERE refunded_minor > 0"
    )
    assert await outcome(gateway, payload) == "known"
    assert len(events(gateway)) == 1


@pytest.mark.parametrize(
    ("recorded", "reported"),
    [
        ("succeeded", "succeeded"),
        ("succeeded", "pending"),
        ("succeeded", None),
        ("pending", "pending"),
        ("pending", "requires_action"),
        ("failed", "failed"),
        ("failed", "canceled"),
        ("failed", "succeeded"),
    ],
)
async def test_an_event_that_says_nothing_new_reaches_no_workflow(
    gateway: ApiWithCatalogue, recorded: str, reported: str | None
) -> None:
    refunded(gateway, status=recorded)
    assert await outcome(gateway, event(reported, kind="refund.updated")) == "known"
    assert [row["status"] for row in events(gateway)] == ["delivered"]
    assert gateway.workflows.calls == []


@pytest.mark.parametrize(
    ("recorded", "reported"), [("succeeded", "canceled"), ("pending", "succeeded"), ("pending", "failed")]
)
async def test_an_event_that_may_change_the_refund_is_delivered(
    gateway: ApiWithCatalogue, recorded: str, reported: str
) -> None:
    refunded(gateway, status=recorded)
    assert await outcome(gateway, event(reported, kind="refund.updated")) == "delivered"


async def test_a_refund_whose_response_was_lost_is_found_by_our_id(gateway: ApiWithCatalogue) -> None:
    mine = refunded(gateway, status="pending", reference=None)
    assert await outcome(gateway, event("failed", refund_id=mine)) == "delivered"


async def test_a_refund_that_was_made_at_the_gateway_is_recorded_and_ignored(gateway: ApiWithCatalogue) -> None:
    mine = refunded(gateway)
    assert await outcome(gateway, event("failed", reference="re_by_hand", number=1)) == "ignored"
    # Metadata that was copied to another refund does not make it ours.
    assert await outcome(gateway, event("failed", reference="re_copy", refund_id=mine, number=2)) == "ignored"
    assert [row["status"] for row in events(gateway)] == ["ignored", "ignored"]
    assert gateway.workflows.calls == []


async def test_an_undelivered_event_is_retried(gateway: ApiWithCatalogue) -> None:
    refunded(gateway)
    gateway.workflows.raises = TemporalUnavailable("away")
    response = await send(gateway, event("failed"))
    assert (response.status_code, parse_error(response)["code"]) == (503, "UNAVAILABLE")
    assert [row["status"] for row in events(gateway)] == ["received"]
    gateway.workflows.raises = None
    assert await outcome(gateway, event("failed")) == "delivered"


async def test_an_event_with_a_bad_signature_or_without_a_refund_is_rejected(gateway: ApiWithCatalogue) -> None:
    refunded(gateway)
    response = await send(gateway, event("failed"), secret="another")
    assert (response.status_code, parse_error(response)["code"]) == (400, "BAD_SIGNATURE")
    for payload in (
        b'{"id": "evt_1", "type": "refund.failed"}',
        b'{"id": "evt_1", "type": "refund.failed", "data": {"object": {}}}',
        b'{"id": "evt_1", "type": "refund.failed", "data": {"object": {"id": "re_1", "metadata": ["a"]}}}',
    ):
        response = await send(gateway, payload)
        assert (response.status_code, parse_error(response)["code"]) == (400, "MALFORMED_REQUEST"), payload
    assert (events(gateway), gateway.workflows.calls) == ([], [])
