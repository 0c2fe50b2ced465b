"""Orders: by wallet, by card, with a coupon, a trial, a year; and those that cannot be secured."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.e2e.steps import (
    INSTANCE,
    V1,
    card,
    done,
    every,
    held,
    instant,
    invoices,
    key,
    kinds,
    mailed,
    money,
    order,
    ready,
    refused,
    settled,
    spendable,
    subscription,
    the_books_agree,
    top_up,
)
from tests.support.invariants import namespaces
from tests.support.stack import Customer, RunningStack
from tests.support.wait import eventually_sync

ORDERS = f"{V1}/subscriptions"


@pytest.mark.scenario("P1")
def test_an_order_paid_from_the_wallet(stack: RunningStack, customer: Customer) -> None:
    top_up(customer, 4000)
    plan = customer.plan("n8n-starter")
    refused(customer.call("POST", ORDERS, {"plan_id": plan}), 400, "IDEMPOTENCY_KEY_REQUIRED")
    once, body = key(), {"plan_id": plan, "name": "Zoë's 🚀 automation"}
    made = done(customer.call("POST", ORDERS, body, key=once), 201)
    again = done(customer.call("POST", ORDERS, body, key=once), 201)
    assert again["id"] == made["id"]
    refused(customer.call("POST", ORDERS, {**body, "name": "other"}, key=once), 422, "IDEMPOTENCY_KEY_REUSED")
    the_books_agree(customer)
    found = customer.until(made["id"], "active")
    assert (spendable(customer), held(customer)) == (2500, 0)
    assert [row["id"] for row in every(customer, ORDERS)] == [made["id"]]
    assert found["name"] == body["name"]

    instance = customer.get(f"{V1}/instances/{found['instance']['id']}")
    assert instance.keys() >= INSTANCE
    assert (instance["status"], instance["service"]) == ("ready", "n8n")
    assert instance["url"] == f"https://{instance['hostname']}" == found["instance"]["url"]
    assert instance["namespace"] in namespaces(stack)

    (invoice,) = invoices(customer, made["id"])
    assert invoice["status"] == "paid"
    assert invoice["total"] == money(1500) == invoice["subtotal"]
    assert (invoice["tax"], invoice["amount_due"]) == (money(0), money(0))
    period = found["current_period"]
    assert (invoice["period_start"], invoice["period_end"]) == (period["start"], period["end"])
    assert sum(line["amount"]["amount_minor"] for line in invoice["lines"]) == 1500
    told = kinds(customer, made["id"])
    for kind in (
        "subscription.created", "instance.provisioning", "instance.ready", "subscription.activated", "invoice.paid"
    ):  # fmt: skip
        assert told.count(kind) == 1, told
    mailed(stack, customer, "ready")
    eventually_sync(lambda: "notification.sent" in kinds(customer, made["id"]), what="the mail is noted")
    the_books_agree(customer)


def test_the_invoice_is_explained_and_a_document(customer: Customer) -> None:
    top_up(customer, 1500)
    found = ready(customer)
    (invoice,) = invoices(customer, found["id"])
    assert customer.get(f"{V1}/billing/invoices/{invoice['id']}") == invoice
    told = customer.get(f"{V1}/billing/invoices/{invoice['id']}/explain")
    assert told["total"] == invoice["total"]
    assert [line["amount"] for line in told["lines"]] == [line["amount"] for line in invoice["lines"]]
    assert told["explanation"]
    response = customer.http.get(
        f"{customer.api}{V1}/billing/invoices/{invoice['id']}/pdf",
        headers={"Authorization": f"Bearer {customer.token}"},
    )
    assert (response.status_code, response.headers["content-type"]) == (200, "application/pdf")
    assert response.content.startswith(b"%PDF-")
    assert response.content.rstrip().endswith(b"%%EOF")
    assert len(response.content) > 1000


def test_wordpress_by_a_card_on_file(stack: RunningStack, customer: Customer) -> None:
    saved = card(customer)
    assert (saved["brand"], saved["last4"], saved["default"]) == ("visa", "4242", True)
    found = ready(customer, "wordpress-starter", service="wordpress", collection="card")
    settled(customer, found["id"])
    assert spendable(customer) == held(customer) == 0
    (invoice,) = invoices(customer, found["id"])
    assert (invoice["status"], invoice["total"]) == ("paid", money(1200))
    told = kinds(customer, found["id"])
    assert told.index("payment.authorized") < told.index("instance.ready") < told.index("payment.succeeded")
    (payment,) = every(customer, f"{V1}/billing/payments", subscription_id=found["id"])
    assert (payment["status"], payment["amount"]) == ("succeeded", money(1200))
    the_books_agree(customer)


def test_the_wallet_first_and_a_card_for_the_rest(customer: Customer) -> None:
    top_up(customer, 1000)
    card(customer)
    found = ready(customer)
    settled(customer, found["id"])
    assert spendable(customer) == held(customer) == 0
    (payment,) = every(customer, f"{V1}/billing/payments", subscription_id=found["id"])
    assert payment["amount"] == money(500)
    the_books_agree(customer)


def test_what_cannot_be_secured_leaves_nothing_behind(stack: RunningStack, customer: Customer) -> None:
    plan = customer.plan("n8n-starter")
    refused(customer.call("POST", ORDERS, {"plan_id": plan}, key=key()), 402, "INSUFFICIENT_FUNDS")
    top_up(customer, 1499)
    refused(
        customer.call("POST", ORDERS, {"plan_id": plan, "collection": "wallet"}, key=key()), 402, "INSUFFICIENT_FUNDS"
    )
    refused(customer.call("POST", ORDERS, {"plan_id": plan}, key=key()), 402, "INSUFFICIENT_FUNDS")
    assert every(customer, ORDERS) == []
    assert (spendable(customer), held(customer)) == (1499, 0)

    refused(customer.call("POST", ORDERS, {"plan_id": "pln_nothing"}, key=key()), 404, "NOT_FOUND")
    unknown = {"plan_id": plan, "parameters": {"root_password": "x"}}
    refused(customer.call("POST", ORDERS, unknown, key=key()), 422, "VALIDATION_ERROR")
    refused(customer.call("POST", ORDERS, {"plan_id": plan, "coupon": "NO-SUCH"}, key=key()), 422, "COUPON_INVALID")
    assert every(customer, ORDERS) == []


@pytest.mark.scenario("B18")
def test_a_card_declined_later_expires_the_order(stack: RunningStack, customer: Customer) -> None:
    top_up(customer, 1000)
    card(customer, "pm_card_chargeCustomerFail")
    status, answer = customer.call("POST", ORDERS, {"plan_id": customer.plan("n8n-starter")}, key=key())
    if status == 402:
        assert answer["error"]["code"] in ("INSUFFICIENT_FUNDS", "PAYMENT_DECLINED")
    else:
        assert status in (201, 202), answer
        assert customer.until(answer["data"]["id"], "expired")["current_period"] is None
        assert invoices(customer, answer["data"]["id"]) == []
    eventually_sync(lambda: (spendable(customer), held(customer)) == (1000, 0), what="what was held is free again")
    the_books_agree(customer)


@pytest.mark.scenario("B16", "B17")
def test_a_trial_without_a_way_to_pay_is_paused(stack: RunningStack, customer: Customer) -> None:
    found = ready(customer, "n8n-trial")
    assert found["status"] == "trialing"
    assert invoices(customer, found["id"]) == []
    start, end = instant(found["current_period"]["start"]), instant(found["trial_end"])
    assert (end - start).days == 14
    refused(
        customer.call("POST", ORDERS, {"plan_id": customer.plan("n8n-trial")}, key=key()), 409, "TRIAL_ALREADY_USED"
    )
    customer.advance(found["id"], days=15)
    now = subscription(customer, found["id"])
    assert now["status"] == "paused"
    assert all(invoice["status"] != "paid" for invoice in invoices(customer, found["id"]))
    # Money makes it go on: a new period that is charged now.
    top_up(customer, 1500)
    order(customer, found["id"], "resume")
    assert customer.until(found["id"], "active")["current_period"]["start"] > found["trial_end"]
    assert spendable(customer) == 0
    the_books_agree(customer)


def test_a_trial_that_is_paid_becomes_active(stack: RunningStack, customer: Customer) -> None:
    found = ready(customer, "n8n-trial")
    card(customer)
    customer.advance(found["id"], until=found["trial_end"])
    customer.advance(found["id"], days=0.05)
    now = subscription(customer, found["id"])
    assert now["status"] == "active"
    assert now["current_period"]["start"] == found["trial_end"]
    (invoice,) = invoices(customer, found["id"])
    assert (invoice["status"], invoice["total"]) == ("paid", money(1500))
    the_books_agree(customer)


@pytest.mark.scenario("B17")
def test_a_trial_that_is_cancelled_costs_nothing(customer: Customer) -> None:
    card(customer)
    found = ready(customer, "n8n-trial")
    assert order(customer, found["id"], "cancel", {"at": "now"})["status"] == "cancelled"
    assert invoices(customer, found["id"]) == []
    assert every(customer, f"{V1}/billing/transactions") == []
    refused(
        customer.call("POST", ORDERS, {"plan_id": customer.plan("n8n-trial")}, key=key()), 409, "TRIAL_ALREADY_USED"
    )


def test_a_year_is_paid_by_the_year(customer: Customer) -> None:
    top_up(customer, 90_000)
    found = ready(customer, "n8n-pro-yearly")
    start, end = instant(found["current_period"]["start"]), instant(found["current_period"]["end"])
    assert end == start.replace(year=start.year + 1)
    customer.advance(found["id"], days=340)
    assert len(invoices(customer, found["id"])) == 1
    customer.advance(found["id"], days=30)
    first, second = invoices(customer, found["id"])
    assert (first["total"], second["total"]) == (money(45_000), money(45_000))
    assert first["period_end"] == second["period_start"]
    assert spendable(customer) == 0


def test_a_coupon_reduces_as_many_periods_as_it_says(customer: Customer, administrator: Customer) -> None:
    code = f"TWO-{key()[:8].upper()}"
    coupon = {
        "code": code, "kind": "percent", "percent": 25, "duration": "periods", "periods": 2, "max_redemptions": 1
    }  # fmt: skip
    done(administrator.call("POST", f"{V1}/admin/coupons", coupon), 201)
    top_up(customer, 1125 * 2 + 1500)
    found = ready(customer, coupon=code.lower())
    customer.advance(found["id"], days=62)
    assert [invoice["total"] for invoice in invoices(customer, found["id"])] == [money(1125), money(1125), money(1500)]
    assert spendable(customer) == 0
    top_up(customer, 1500)
    body = {"plan_id": customer.plan("n8n-starter"), "coupon": code}
    refused(customer.call("POST", ORDERS, body, key=key()), 422, "COUPON_INVALID")
    the_books_agree(customer)


@pytest.mark.scenario("B29")
def test_a_crowd_of_orders_spends_what_is_there_and_no_more(stack: RunningStack, customer: Customer) -> None:
    top_up(customer, 2 * 1500 + 700)
    body = {"plan_id": customer.plan("n8n-starter"), "collection": "wallet"}

    def ask(number: int) -> int:
        headers = {"Authorization": f"Bearer {customer.token}", "Idempotency-Key": f"crowd-{number}"}
        return httpx.post(f"{stack.api}{ORDERS}", json=body, headers=headers, timeout=30).status_code

    with ThreadPoolExecutor(8) as crowd:
        answers = list(crowd.map(ask, range(8)))
    # Who was told "on its way" may still be refused.
    assert set(answers) <= {201, 202, 402}, answers
    eventually_sync(lambda: [row["status"] for row in every(customer, ORDERS)] == ["active"] * 2, what="two are active")
    assert (spendable(customer), held(customer)) == (700, 0)
    the_books_agree(customer)


@pytest.mark.scenario("P1")
def test_one_key_sent_by_many_at_once_is_one_order(stack: RunningStack, customer: Customer) -> None:
    top_up(customer, 6 * 1500)
    body = {"plan_id": customer.plan("n8n-starter")}
    headers = {"Authorization": f"Bearer {customer.token}", "Idempotency-Key": key()}

    def ask(_: int) -> httpx.Response:
        return httpx.post(f"{stack.api}{ORDERS}", json=body, headers=headers, timeout=30)

    with ThreadPoolExecutor(6) as crowd:
        answers = list(crowd.map(ask, range(6)))
    assert {answer.status_code for answer in answers} <= {201, 202, 409}
    assert len({answer.json()["data"]["id"] for answer in answers if answer.status_code < 300}) == 1
    (made,) = every(customer, ORDERS)
    customer.until(made["id"], "active")
    assert spendable(customer) == 5 * 1500
