"""Top-ups and cards over HTTP."""

from __future__ import annotations

import pytest

from tests.support.api import error_of
from tests.support.desk import Shop, card, payment
from workflows.client import Unavailable
from workflows.ports.payments import PaymentOutcome
from workflows.rules.errors import Refusal, RuleBroken
from workflows.rules.ids import derived
from workflows.rules.payment import PaymentStatus

TOP_UP = {"amount_minor": 5000, "currency": "USD", "gateway": "stripe", "payment_method": "pm_card_visa"}


async def test_a_top_up_answers_with_its_payment(shop: Shop) -> None:
    answer = await shop.customer.http.post("/billing/topups", json=TOP_UP, headers={"Idempotency-Key": "t"})
    assert answer.status_code == 201, answer.text
    data = answer.json()["data"]
    assert data["id"] == derived("pay", shop.customer.organization_id, "t")
    assert (data["status"], data["amount"]) == ("succeeded", {"amount_minor": 5000, "currency": "USD"})
    assert (data["gateway"], data["redirect_url"]) == ("stripe", None)
    (order,) = shop.desk.ordered("top_up")
    assert (order.token, order.payment_method_id) == ("pm_card_visa", None)
    again = await shop.customer.http.post("/billing/topups", json=TOP_UP, headers={"Idempotency-Key": "t"})
    assert again.json() == answer.json()
    other = TOP_UP | {"amount_minor": 5001}
    answer = await shop.customer.http.post("/billing/topups", json=other, headers={"Idempotency-Key": "t"})
    assert (answer.status_code, error_of(answer)["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert len(shop.desk.ordered("top_up")) == 1


async def test_a_declined_card_says_why(shop: Shop) -> None:
    key = shop.customer.key()
    shop.desk.payment = PaymentOutcome(payment_id="p", status=PaymentStatus.FAILED, decline_code="insufficient_funds")
    answer = await shop.customer.http.post("/billing/topups", json=TOP_UP, headers=key)
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (402, "PAYMENT_DECLINED")
    assert error["details"]["decline_code"] == "insufficient_funds"
    shop.desk.payment = None
    assert (await shop.customer.http.post("/billing/topups", json=TOP_UP, headers=key)).status_code == 402


async def test_a_card_that_asks_for_its_owner_redirects(shop: Shop) -> None:
    shop.desk.payment = PaymentOutcome(
        payment_id="p", status=PaymentStatus.PENDING, redirect_url="https://bank.example/confirm"
    )
    answer = await shop.customer.http.post("/payments/create-intent", json=TOP_UP, headers=shop.customer.key())
    data = answer.json()["data"]
    assert (answer.status_code, data["status"], data["redirect_url"]) == (
        201, "pending", "https://bank.example/confirm",
    )  # fmt: skip


async def test_a_top_up_that_nobody_answered_is_accepted(shop: Shop) -> None:
    shop.desk.silent = True
    answer = await shop.customer.http.post("/billing/topups", json=TOP_UP, headers=shop.customer.key())
    assert (answer.status_code, answer.json()["data"]["status"]) == (202, "pending")
    shop.desk.refuses = Unavailable("away")
    answer = await shop.customer.http.post("/billing/topups", json=TOP_UP, headers=shop.customer.key())
    assert (answer.status_code, error_of(answer)["code"]) == (503, "UNAVAILABLE")


async def test_what_cannot_be_charged_is_refused_before_anybody_is_asked(shop: Shop) -> None:
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
        answer = await shop.customer.http.post("/billing/topups", json=TOP_UP | change, headers=shop.customer.key())
        assert (answer.status_code, error_of(answer)["code"]) == (422, code), change
    answer = await shop.customer.http.post("/billing/topups", json=TOP_UP)
    assert (answer.status_code, error_of(answer)["code"]) == (400, "IDEMPOTENCY_KEY_REQUIRED")
    assert shop.desk.calls == []


@pytest.mark.scenario("B40")
async def test_yen_have_no_hundredths(shop: Shop) -> None:
    yen = TOP_UP | {"amount_minor": 5000, "currency": "JPY"}
    answer = await shop.customer.http.post("/billing/topups", json=yen, headers=shop.customer.key())
    assert answer.json()["data"]["amount"] == {"amount_minor": 5000, "currency": "JPY"}
    (order,) = shop.desk.ordered("top_up")
    assert (order.amount.amount_minor, order.amount.currency) == (5000, "JPY")


async def test_a_card_on_file_is_charged_by_its_id_or_by_default(shop: Shop) -> None:
    backup, default = card(shop.api, shop.customer, default=False), card(shop.api, shop.customer)
    for named in (backup, None):
        body = TOP_UP | {"payment_method": named}
        answer = await shop.customer.http.post("/billing/topups", json=body, headers=shop.customer.key())
        assert answer.status_code == 201
    assert [(order.payment_method_id, order.token) for order in shop.desk.ordered("top_up")] == [
        (backup, None), (default, None),
    ]  # fmt: skip


async def test_cards_come_go_and_change_places(shop: Shop) -> None:
    body = {"gateway": "stripe", "token": "pm_card_visa"}
    answer = await shop.customer.http.post("/billing/payment-methods", json=body)
    assert answer.status_code == 201
    assert {"id", "brand", "last4", "expires", "default"} <= set(answer.json()["data"])
    first, second = card(shop.api, shop.customer), card(shop.api, shop.customer, default=False)

    listed = (await shop.customer.http.get("/billing/payment-methods")).json()["data"]
    assert [(row["id"], row["default"], row["expires"]) for row in listed] == [
        (first, True, "04/2041"), (second, False, "04/2041"),
    ]  # fmt: skip
    answer = await shop.customer.http.post(f"/billing/payment-methods/{second}/default")
    assert (answer.status_code, answer.json()["data"]["default"]) == (200, True)
    listed = (await shop.customer.http.get("/billing/payment-methods")).json()["data"]
    assert [(row["id"], row["default"]) for row in listed] == [(second, True), (first, False)]
    assert (await shop.customer.http.delete(f"/billing/payment-methods/{first}")).status_code == 200
    assert [order.payment_method_id for order in shop.desk.ordered("remove_payment_method")] == [first]


async def test_a_refused_card_or_removal_says_so(shop: Shop) -> None:
    mine = card(shop.api, shop.customer)
    shop.desk.refuses = RuleBroken(Refusal.PAYMENT_DECLINED, "No.", {"decline_code": "generic_decline"})
    body = {"gateway": "stripe", "token": "pm_card_visa_chargeDeclined"}
    answer = await shop.customer.http.post("/billing/payment-methods", json=body)
    assert (answer.status_code, error_of(answer)["code"]) == (402, "PAYMENT_DECLINED")
    shop.desk.refuses = RuleBroken(Refusal.PAYMENT_METHOD_IN_USE, "A debt is open.")
    answer = await shop.customer.http.delete(f"/billing/payment-methods/{mine}")
    assert (answer.status_code, error_of(answer)["code"]) == (409, "PAYMENT_METHOD_IN_USE")


@pytest.mark.scenario("S1")
async def test_somebody_elses_card_is_not_there(shop: Shop) -> None:
    theirs = card(shop.api, await shop.api.customer())
    body = TOP_UP | {"payment_method": theirs}
    answer = await shop.customer.http.post("/billing/topups", json=body, headers=shop.customer.key())
    assert (answer.status_code, error_of(answer)["code"]) == (404, "NOT_FOUND")
    assert (await shop.customer.http.post(f"/billing/payment-methods/{theirs}/default")).status_code == 404
    assert (await shop.customer.http.delete(f"/billing/payment-methods/{theirs}")).status_code == 404
    assert shop.desk.calls == []


async def test_payments_are_listed(shop: Shop) -> None:
    mine = payment(shop.api, shop.customer)
    data = (await shop.customer.http.get(f"/billing/payments/{mine}")).json()["data"]
    assert (data["status"], data["refunded"]["amount_minor"]) == ("succeeded", 0)
    assert (await shop.customer.http.get("/billing/payments")).json()["data"] == [data]
