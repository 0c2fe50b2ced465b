"""Top-ups and cards over HTTP."""

from __future__ import annotations

import pytest

from tests.support.api import parse_error
from tests.support.fake_workflow_client import ApiWithCatalogue, insert_payment, insert_payment_method
from workflows.ports.payments import PaymentOutcome
from workflows.rpc_errors import TemporalUnavailable
from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.ids import derive_id
from workflows.rules.payment import PaymentStatus

TOP_UP = {"amount_minor": 5000, "currency": "USD", "gateway": "stripe", "payment_method": "pm_card_visa"}


async def test_a_top_up_returns_its_payment(seeded_api: ApiWithCatalogue) -> None:
    response = await seeded_api.customer.http.post("/billing/topups", json=TOP_UP, headers={"Idempotency-Key": "t"})
    assert response.status_code == 201, response.text
    data = response.json()["data"]
    assert data["id"] == derive_id("pay", seeded_api.customer.organization_id, "POST /api/v1/billing/topups", "t")
    assert (data["status"], data["amount"]) == ("succeeded", {"amount_minor": 5000, "currency": "USD"})
    assert (data["gateway"], data["redirect_url"]) == ("stripe", None)
    (order,) = seeded_api.workflows.commands_of("start_top_up")
    assert (order.gateway_token, order.payment_method_id) == ("pm_card_visa", None)
    repeated = await seeded_api.customer.http.post("/billing/topups", json=TOP_UP, headers={"Idempotency-Key": "t"})
    assert repeated.json() == response.json()
    other = TOP_UP | {"amount_minor": 5001}
    response = await seeded_api.customer.http.post("/billing/topups", json=other, headers={"Idempotency-Key": "t"})
    assert (response.status_code, parse_error(response)["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert len(seeded_api.workflows.commands_of("start_top_up")) == 1


async def test_a_declined_card_returns_the_decline_code(seeded_api: ApiWithCatalogue) -> None:
    key = seeded_api.customer.idempotency_header()
    seeded_api.workflows.payment = PaymentOutcome(
        payment_id="p", status=PaymentStatus.FAILED, decline_code="insufficient_funds"
    )
    response = await seeded_api.customer.http.post("/billing/topups", json=TOP_UP, headers=key)
    error = parse_error(response)
    assert (response.status_code, error["code"]) == (402, "PAYMENT_DECLINED")
    assert error["details"]["decline_code"] == "insufficient_funds"
    seeded_api.workflows.payment = None
    assert (await seeded_api.customer.http.post("/billing/topups", json=TOP_UP, headers=key)).status_code == 402


async def test_a_card_that_needs_authentication_returns_a_redirect(seeded_api: ApiWithCatalogue) -> None:
    seeded_api.workflows.payment = PaymentOutcome(
        payment_id="p", status=PaymentStatus.PENDING, redirect_url="https://bank.example/confirm"
    )
    response = await seeded_api.customer.http.post(
        "/payments/create-intent", json=TOP_UP, headers=seeded_api.customer.idempotency_header()
    )
    data = response.json()["data"]
    assert (response.status_code, data["status"], data["redirect_url"]) == (
        201, "pending", "https://bank.example/confirm",
    )  # fmt: skip


async def test_a_top_up_without_a_response_in_time_is_accepted(seeded_api: ApiWithCatalogue) -> None:
    seeded_api.workflows.times_out = True
    response = await seeded_api.customer.http.post(
        "/billing/topups", json=TOP_UP, headers=seeded_api.customer.idempotency_header()
    )
    assert (response.status_code, response.json()["data"]["status"]) == (202, "pending")
    seeded_api.workflows.raises = TemporalUnavailable("away")
    response = await seeded_api.customer.http.post(
        "/billing/topups", json=TOP_UP, headers=seeded_api.customer.idempotency_header()
    )
    assert (response.status_code, parse_error(response)["code"]) == (503, "UNAVAILABLE")


async def test_an_invalid_charge_is_rejected_before_the_gateway_is_called(seeded_api: ApiWithCatalogue) -> None:
    wrong: tuple[tuple[dict[str, object], str], ...] = (
        ({"amount_minor": 0}, "VALIDATION_ERROR"),
        ({"amount_minor": -5}, "VALIDATION_ERROR"),
        ({"amount_minor": 10.5}, "VALIDATION_ERROR"),
        ({"amount_minor": "5000"}, "VALIDATION_ERROR"),
        ({"amount_minor": 10**13}, "VALIDATION_ERROR"),
        ({"amount_minor": 49}, "AMOUNT_TOO_SMALL"),
        ({"currency": "XXX"}, "VALIDATION_ERROR"),
        ({"currency": "usd"}, "VALIDATION_ERROR"),
        ({"gateway": "midtrans"}, "VALIDATION_ERROR"),
        ({"payment_method": None}, "VALIDATION_ERROR"),
    )
    for change, code in wrong:
        response = await seeded_api.customer.http.post(
            "/billing/topups", json=TOP_UP | change, headers=seeded_api.customer.idempotency_header()
        )
        assert (response.status_code, parse_error(response)["code"]) == (422, code), change
    response = await seeded_api.customer.http.post("/billing/topups", json=TOP_UP)
    assert (response.status_code, parse_error(response)["code"]) == (400, "IDEMPOTENCY_KEY_REQUIRED")
    assert seeded_api.workflows.calls == []


@pytest.mark.scenario("B40")
async def test_yen_have_no_minor_unit(seeded_api: ApiWithCatalogue) -> None:
    yen = TOP_UP | {"amount_minor": 5000, "currency": "JPY"}
    response = await seeded_api.customer.http.post(
        "/billing/topups", json=yen, headers=seeded_api.customer.idempotency_header()
    )
    assert response.json()["data"]["amount"] == {"amount_minor": 5000, "currency": "JPY"}
    (order,) = seeded_api.workflows.commands_of("start_top_up")
    assert (order.amount.amount_minor, order.amount.currency) == (5000, "JPY")


async def test_a_saved_card_is_charged_by_its_id_or_by_default(seeded_api: ApiWithCatalogue) -> None:
    backup, default = (
        insert_payment_method(seeded_api.api, seeded_api.customer, default=False),
        insert_payment_method(seeded_api.api, seeded_api.customer),
    )
    for named in (backup, None):
        body = TOP_UP | {"payment_method": named}
        response = await seeded_api.customer.http.post(
            "/billing/topups", json=body, headers=seeded_api.customer.idempotency_header()
        )
        assert response.status_code == 201
    top_ups = seeded_api.workflows.commands_of("start_top_up")
    assert [(top_up.payment_method_id, top_up.gateway_token) for top_up in top_ups] == [
        (backup, None), (default, None),
    ]  # fmt: skip


async def test_cards_are_added_removed_and_made_default(seeded_api: ApiWithCatalogue) -> None:
    body = {"gateway": "stripe", "token": "pm_card_visa"}
    response = await seeded_api.customer.http.post("/billing/payment-methods", json=body)
    assert response.status_code == 201
    assert {"id", "brand", "last4", "expires", "default"} <= set(response.json()["data"])
    first, second = (
        insert_payment_method(seeded_api.api, seeded_api.customer),
        insert_payment_method(seeded_api.api, seeded_api.customer, default=False),
    )

    listed = (await seeded_api.customer.http.get("/billing/payment-methods")).json()["data"]
    assert [(row["id"], row["default"], row["expires"]) for row in listed] == [
        (first, True, "04/2041"), (second, False, "04/2041"),
    ]  # fmt: skip
    response = await seeded_api.customer.http.post(f"/billing/payment-methods/{second}/default")
    assert (response.status_code, response.json()["data"]["id"]) == (200, second)
    assert [order.payment_method_id for order in seeded_api.workflows.commands_of("make_payment_method_default")] == [
        second
    ]
    assert (await seeded_api.customer.http.delete(f"/billing/payment-methods/{first}")).status_code == 200
    assert [order.payment_method_id for order in seeded_api.workflows.commands_of("remove_payment_method")] == [first]


async def test_a_rejected_card_or_removal_returns_its_error(seeded_api: ApiWithCatalogue) -> None:
    mine = insert_payment_method(seeded_api.api, seeded_api.customer)
    seeded_api.workflows.raises = RuleViolation(ErrorCode.PAYMENT_DECLINED, "No.", {"decline_code": "generic_decline"})
    body = {"gateway": "stripe", "token": "pm_card_visa_chargeDeclined"}
    response = await seeded_api.customer.http.post("/billing/payment-methods", json=body)
    assert (response.status_code, parse_error(response)["code"]) == (402, "PAYMENT_DECLINED")
    seeded_api.workflows.raises = RuleViolation(ErrorCode.PAYMENT_METHOD_IN_USE, "A debt is open.")
    response = await seeded_api.customer.http.delete(f"/billing/payment-methods/{mine}")
    assert (response.status_code, parse_error(response)["code"]) == (409, "PAYMENT_METHOD_IN_USE")


@pytest.mark.scenario("S1")
async def test_a_card_of_another_organization_is_not_found(seeded_api: ApiWithCatalogue) -> None:
    theirs = insert_payment_method(seeded_api.api, await seeded_api.api.register_verified_user())
    body = TOP_UP | {"payment_method": theirs}
    response = await seeded_api.customer.http.post(
        "/billing/topups", json=body, headers=seeded_api.customer.idempotency_header()
    )
    assert (response.status_code, parse_error(response)["code"]) == (404, "NOT_FOUND")
    assert (await seeded_api.customer.http.post(f"/billing/payment-methods/{theirs}/default")).status_code == 404
    assert (await seeded_api.customer.http.delete(f"/billing/payment-methods/{theirs}")).status_code == 404
    assert seeded_api.workflows.calls == []


async def test_payments_are_listed(seeded_api: ApiWithCatalogue) -> None:
    mine = insert_payment(seeded_api.api, seeded_api.customer)
    data = (await seeded_api.customer.http.get(f"/billing/payments/{mine}")).json()["data"]
    assert (data["status"], data["refunded"]["amount_minor"]) == ("succeeded", 0)
    assert (await seeded_api.customer.http.get("/billing/payments")).json()["data"] == [data]
