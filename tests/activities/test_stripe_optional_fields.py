"""Stripe leaves optional fields out of its answers; every answer is read without them, over the wire.

The server answers with the documented shape of each object, with one optional field absent or null at a time.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from activities.gateways.protocol import CardDeclined, ChargeRequest, GatewayRejected, GatewayUnavailable
from activities.gateways.stripe import StripeGateway
from workflows.rules.money import Money
from workflows.rules.payment import PaymentStatus, RefundStatus

Json = dict[str, Any]
AMOUNT = Money(amount_minor=1500, currency="USD")

ERROR: Json = {
    "type": "card_error",
    "code": "card_declined",
    "decline_code": "insufficient_funds",
    "message": "Your card has insufficient funds.",
    "charge": "ch_1",
    "doc_url": "https://stripe.com/docs/error-codes/card-declined",
    "payment_method": {"id": "pm_1", "object": "payment_method", "type": "card"},
}
INTENT: Json = {
    "id": "pi_1",
    "object": "payment_intent",
    "amount": 1500,
    "amount_received": 1500,
    "amount_capturable": 0,
    "currency": "usd",
    "customer": "cus_1",
    "description": None,
    "charges": {
        "object": "list",
        "data": [{"id": "ch_1", "object": "charge"}],
        "has_more": False,
        "url": "/v1/charges",
    },
    "latest_charge": "ch_1",
    "last_payment_error": None,
    "next_action": None,
    "metadata": {"berth_payment": "pay_1", "berth_organization": "org_1"},
    "payment_method": "pm_1",
    "status": "succeeded",
}
DECLINED: Json = {**INTENT, "status": "requires_payment_method", "amount_received": 0, "last_payment_error": ERROR}
REDIRECTED: Json = {
    **INTENT,
    "status": "requires_action",
    "amount_received": 0,
    "next_action": {
        "type": "redirect_to_url",
        "redirect_to_url": {"url": "https://hooks.example/3ds", "return_url": "https://localhost/billing/return"},
    },
}
CANCELLED: Json = {**INTENT, "status": "canceled", "amount_received": 0, "last_payment_error": ERROR}
METHOD: Json = {
    "id": "pm_1",
    "object": "payment_method",
    "type": "card",
    "customer": "cus_1",
    "billing_details": {"name": None},
    "metadata": {},
    "card": {
        "brand": "visa",
        "last4": "4242",
        "exp_month": 12,
        "exp_year": 2040,
        "fingerprint": "abc",
        "funding": "credit",
        "country": "US",
    },
}
REFUND: Json = {
    "id": "re_1",
    "object": "refund",
    "amount": 400,
    "currency": "usd",
    "charge": "ch_1",
    "payment_intent": "pi_1",
    "failure_reason": "lost_or_stolen_card",
    "metadata": {"berth_refund": "ref_1"},
    "reason": None,
    "status": "failed",
}
OF_INTENTS = (
    "customer", "description", "charges", "latest_charge", "last_payment_error", "next_action", "metadata",
    "payment_method", "amount_capturable", "amount_received",
)  # fmt: skip
OF_ERRORS = tuple(f"last_payment_error.{name}" for name in ERROR if name != "type")
OF_METHODS = ("customer", "billing_details", "metadata", *(f"card.{name}" for name in METHOD["card"]))
OF_REFUNDS = ("charge", "payment_intent", "failure_reason", "metadata", "reason", "status")


def without(response: Json, path: str, *, null: bool) -> Json:
    """Return a copy of ``response`` where the field at the dotted ``path`` is absent, or null."""
    changed = copy.deepcopy(response)
    *parents, name = path.split(".")
    holder = changed
    for parent in parents:
        holder = holder[parent]
    if null:
        holder[name] = None
    else:
        del holder[name]
    return changed


class ScriptedResponses:
    """One answer for every request: a status and a body; a list of intents where a list is asked for."""

    def __init__(self) -> None:
        self.status, self.body = 200, INTENT

    async def respond(self, request: web.Request) -> web.Response:
        body = self.body
        if request.method == "GET" and request.path == "/v1/payment_intents":
            body = {"object": "list", "data": [self.body], "has_more": False, "url": "/v1/payment_intents"}
        return web.json_response(body, status=self.status)


@pytest.fixture
def responses() -> ScriptedResponses:
    return ScriptedResponses()


@pytest_asyncio.fixture
async def gateway(responses: ScriptedResponses) -> AsyncIterator[StripeGateway]:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", responses.respond)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    fixture = StripeGateway(api_key="sk_test", base_url=f"http://{host}:{port}")
    yield fixture
    await fixture.close()
    await runner.cleanup()


REQUEST = ChargeRequest(
    idempotency_key="pay_1:1",
    payment_id="pay_1",
    organization_id="org_1",
    amount=AMOUNT,
    customer="cus_1",
    payment_method="pm_1",
    off_session=True,
    manual_capture=False,
)
absent_or_null = pytest.mark.parametrize("null", [False, True], ids=["absent", "null"])


@absent_or_null
@pytest.mark.parametrize("path", OF_INTENTS)
async def test_a_payment_is_read_without_an_optional_field(
    gateway: StripeGateway, responses: ScriptedResponses, path: str, null: bool
) -> None:
    responses.body = without(INTENT, path, null=null)
    for charge in (
        await gateway.charge(REQUEST),
        await gateway.retrieve_charge("pi_1"),
        await gateway.capture("pi_1", key="capture"),
        await gateway.cancel_charge("pi_1", key="cancel"),
    ):
        assert (charge.status, charge.amount, charge.decline_code) == (PaymentStatus.SUCCEEDED, AMOUNT, None)
    found_charge = await gateway.find_charge("pay_1", "cus_1")
    assert (found_charge is None) == (path == "metadata")


@absent_or_null
@pytest.mark.parametrize("path", [*(name for name in OF_INTENTS if name != "last_payment_error"), *OF_ERRORS])
@pytest.mark.parametrize(
    ("body", "status"), [(DECLINED, PaymentStatus.FAILED), (CANCELLED, PaymentStatus.CANCELLED)], ids=["failed", "gone"]
)
async def test_a_payment_that_failed_is_read_without_an_optional_field(
    gateway: StripeGateway, responses: ScriptedResponses, body: Json, status: PaymentStatus, path: str, null: bool
) -> None:
    responses.body = without(body, path, null=null)
    charge = await gateway.retrieve_charge("pi_1")
    code = "card_declined" if path == "last_payment_error.decline_code" else "insufficient_funds"
    assert (charge.status, charge.amount, charge.decline_code) == (status, AMOUNT, code)


async def test_a_failure_that_carries_neither_code_is_a_decline(
    gateway: StripeGateway, responses: ScriptedResponses
) -> None:
    responses.body = {**DECLINED, "last_payment_error": {"type": "api_error"}}
    charge = await gateway.retrieve_charge("pi_1")
    assert (charge.status, charge.decline_code) == (PaymentStatus.FAILED, "declined")


@absent_or_null
@pytest.mark.parametrize(
    "path", ["next_action", "next_action.type", "next_action.redirect_to_url", "next_action.redirect_to_url.url"]
)
async def test_a_payment_that_waits_is_read_without_an_optional_field(
    gateway: StripeGateway, responses: ScriptedResponses, path: str, null: bool
) -> None:
    responses.body = without(REDIRECTED, path, null=null)
    charge = await gateway.retrieve_charge("pi_1")
    url = "https://hooks.example/3ds" if path == "next_action.type" else None
    assert (charge.status, charge.redirect_url) == (PaymentStatus.PENDING, url)


@absent_or_null
@pytest.mark.parametrize("path", [name for name in ERROR if name != "type"])
async def test_a_declined_charge_is_read_without_an_optional_field(
    gateway: StripeGateway, responses: ScriptedResponses, path: str, null: bool
) -> None:
    responses.status = 402
    responses.body = {"error": without({**ERROR, "payment_intent": DECLINED}, path, null=null)}
    charge = await gateway.charge(REQUEST)
    code = "card_declined" if path == "decline_code" else "insufficient_funds"
    assert (charge.reference, charge.status, charge.decline_code) == ("pi_1", PaymentStatus.FAILED, code)
    with pytest.raises(CardDeclined) as declined:
        await gateway.attach_payment_method("pm_1", "cus_1", key="attach")
    assert declined.value.decline_code == code


@absent_or_null
@pytest.mark.parametrize("path", OF_METHODS)
async def test_a_card_is_saved_without_an_optional_field(
    gateway: StripeGateway, responses: ScriptedResponses, path: str, null: bool
) -> None:
    responses.body = without(METHOD, path, null=null)
    card = await gateway.attach_payment_method("pm_1", "cus_1", key="attach")
    assert card.reference == "pm_1"
    assert card.brand == ("" if path == "card.brand" else "visa")
    assert card.last4 == ("" if path == "card.last4" else "4242")
    assert card.exp_month == (None if path == "card.exp_month" else 12)
    assert card.exp_year == (None if path == "card.exp_year" else 2040)
    assert card.fingerprint == (None if path == "card.fingerprint" else "abc")
    await gateway.detach_payment_method("pm_1")


@absent_or_null
@pytest.mark.parametrize("path", OF_REFUNDS)
async def test_a_refund_is_read_without_an_optional_field(
    gateway: StripeGateway, responses: ScriptedResponses, path: str, null: bool
) -> None:
    responses.body = without(REFUND, path, null=null)
    expected = RefundStatus.PENDING if path == "status" else RefundStatus.FAILED
    refund = await gateway.refund("pi_1", Money(amount_minor=400, currency="USD"), refund_id="ref_1", key="refund")
    for loaded in (refund, await gateway.retrieve_refund("re_1")):
        assert (loaded.reference, loaded.status) == ("re_1", expected)
        assert loaded.failure_code == (None if path == "failure_reason" else "lost_or_stolen_card")


async def test_only_a_missing_card_counts_as_detached(gateway: StripeGateway, responses: ScriptedResponses) -> None:
    responses.status = 404
    responses.body = {"error": {"type": "invalid_request_error", "code": "resource_missing", "message": "No such card"}}
    await gateway.detach_payment_method("pm_1")
    responses.status = 400
    for code in ("parameter_invalid_empty", None):
        responses.body = {"error": {"type": "invalid_request_error", "code": code, "message": "Refused"}}
        with pytest.raises(GatewayRejected):
            await gateway.detach_payment_method("pm_1")
    responses.status = 500
    with pytest.raises(GatewayUnavailable):
        await gateway.detach_payment_method("pm_1")
