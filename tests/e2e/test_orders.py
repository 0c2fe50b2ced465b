"""Orders: by wallet, by card, with a coupon, a trial, a year; and those that cannot be secured."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.e2e.steps import (
    INSTANCE_FIELDS,
    V1,
    assert_error,
    assert_success,
    assert_wallet_matches_transactions,
    card,
    get_subscription,
    held,
    instant,
    invoices,
    kinds,
    list_all,
    money,
    new_key,
    order_until_ready,
    send_command,
    spendable,
    top_up,
    wait_for_first_payment,
    wait_for_mails,
)
from tests.support.invariants import namespaces
from tests.support.running_stack import ApiUser, RunningStack
from tests.support.wait import wait_until_sync

ORDERS = f"{V1}/subscriptions"


@pytest.mark.scenario("P1")
def test_an_order_paid_from_the_wallet(stack: RunningStack, customer: ApiUser) -> None:
    top_up(customer, 4000)
    plan = customer.plan("n8n-starter")
    assert_error(customer.request("POST", ORDERS, {"plan_id": plan}), 400, "IDEMPOTENCY_KEY_REQUIRED")
    once, body = new_key(), {"plan_id": plan, "name": "Zoë's 🚀 automation"}
    ordered = assert_success(customer.request("POST", ORDERS, body, key=once), 201)
    repeated = assert_success(customer.request("POST", ORDERS, body, key=once), 201)
    assert repeated["id"] == ordered["id"]
    assert_error(customer.request("POST", ORDERS, {**body, "name": "other"}, key=once), 422, "IDEMPOTENCY_KEY_REUSED")
    assert_wallet_matches_transactions(customer)
    subscription = customer.wait_for_status(ordered["id"], "active")
    assert (spendable(customer), held(customer)) == (2500, 0)
    assert [row["id"] for row in list_all(customer, ORDERS)] == [ordered["id"]]
    assert subscription["name"] == body["name"]

    instance = customer.get(f"{V1}/instances/{subscription['instance']['id']}")
    assert instance.keys() >= INSTANCE_FIELDS
    assert (instance["status"], instance["service"]) == ("ready", "n8n")
    assert instance["url"] == f"https://{instance['hostname']}" == subscription["instance"]["url"]
    assert instance["namespace"] in namespaces(stack)

    (invoice,) = invoices(customer, ordered["id"])
    assert invoice["status"] == "paid"
    assert invoice["total"] == money(1500) == invoice["subtotal"]
    assert (invoice["tax"], invoice["amount_due"]) == (money(0), money(0))
    period = subscription["current_period"]
    assert (invoice["period_start"], invoice["period_end"]) == (period["start"], period["end"])
    assert sum(line["amount"]["amount_minor"] for line in invoice["lines"]) == 1500
    event_kinds = kinds(customer, ordered["id"])
    for kind in (
        "subscription.created", "instance.provisioning", "instance.ready", "subscription.activated", "invoice.paid"
    ):  # fmt: skip
        assert event_kinds.count(kind) == 1, event_kinds
    wait_for_mails(stack, customer, "ready")
    wait_until_sync(lambda: "notification.sent" in kinds(customer, ordered["id"]), description="the mail is noted")
    assert_wallet_matches_transactions(customer)


def test_an_invoice_has_an_explanation_and_a_document(customer: ApiUser) -> None:
    top_up(customer, 1500)
    subscription = order_until_ready(customer)
    (invoice,) = invoices(customer, subscription["id"])
    assert customer.get(f"{V1}/billing/invoices/{invoice['id']}") == invoice
    explanation = customer.get(f"{V1}/billing/invoices/{invoice['id']}/explain")
    assert explanation["total"] == invoice["total"]
    assert [line["amount"] for line in explanation["lines"]] == [line["amount"] for line in invoice["lines"]]
    assert explanation["explanation"]
    response = customer.http.get(
        f"{customer.api}{V1}/billing/invoices/{invoice['id']}/pdf",
        headers={"Authorization": f"Bearer {customer.token}"},
    )
    assert (response.status_code, response.headers["content-type"]) == (200, "application/pdf")
    assert response.content.startswith(b"%PDF-")
    assert response.content.rstrip().endswith(b"%%EOF")
    assert len(response.content) > 1000


def test_wordpress_paid_by_a_saved_card(stack: RunningStack, customer: ApiUser) -> None:
    saved = card(customer)
    assert (saved["brand"], saved["last4"], saved["default"]) == ("visa", "4242", True)
    subscription = order_until_ready(customer, "wordpress-starter", service="wordpress", collection="card")
    wait_for_first_payment(customer, subscription["id"])
    assert spendable(customer) == held(customer) == 0
    (invoice,) = invoices(customer, subscription["id"])
    assert (invoice["status"], invoice["total"]) == ("paid", money(1200))
    event_kinds = kinds(customer, subscription["id"])
    assert (
        event_kinds.index("payment.authorized")
        < event_kinds.index("instance.ready")
        < event_kinds.index("payment.succeeded")
    )
    (payment,) = list_all(customer, f"{V1}/billing/payments", subscription_id=subscription["id"])
    assert (payment["status"], payment["amount"]) == ("succeeded", money(1200))
    assert_wallet_matches_transactions(customer)


def test_the_wallet_pays_first_and_a_card_the_remainder(customer: ApiUser) -> None:
    top_up(customer, 1000)
    card(customer)
    subscription = order_until_ready(customer)
    wait_for_first_payment(customer, subscription["id"])
    assert spendable(customer) == held(customer) == 0
    (payment,) = list_all(customer, f"{V1}/billing/payments", subscription_id=subscription["id"])
    assert payment["amount"] == money(500)
    assert_wallet_matches_transactions(customer)


def test_what_cannot_be_secured_leaves_nothing_behind(stack: RunningStack, customer: ApiUser) -> None:
    plan = customer.plan("n8n-starter")
    assert_error(customer.request("POST", ORDERS, {"plan_id": plan}, key=new_key()), 402, "INSUFFICIENT_FUNDS")
    top_up(customer, 1499)
    assert_error(
        customer.request("POST", ORDERS, {"plan_id": plan, "collection": "wallet"}, key=new_key()),
        402,
        "INSUFFICIENT_FUNDS",
    )
    assert_error(customer.request("POST", ORDERS, {"plan_id": plan}, key=new_key()), 402, "INSUFFICIENT_FUNDS")
    assert list_all(customer, ORDERS) == []
    assert (spendable(customer), held(customer)) == (1499, 0)

    assert_error(customer.request("POST", ORDERS, {"plan_id": "pln_nothing"}, key=new_key()), 404, "NOT_FOUND")
    unknown = {"plan_id": plan, "parameters": {"root_password": "x"}}
    assert_error(customer.request("POST", ORDERS, unknown, key=new_key()), 422, "VALIDATION_ERROR")
    assert_error(
        customer.request("POST", ORDERS, {"plan_id": plan, "coupon": "NO-SUCH"}, key=new_key()), 422, "COUPON_INVALID"
    )
    assert list_all(customer, ORDERS) == []


@pytest.mark.scenario("B18")
def test_a_card_declined_later_expires_the_order(stack: RunningStack, customer: ApiUser) -> None:
    top_up(customer, 1000)
    card(customer, "pm_card_chargeCustomerFail")
    status, response = customer.request("POST", ORDERS, {"plan_id": customer.plan("n8n-starter")}, key=new_key())
    if status == 402:
        assert response["error"]["code"] in ("INSUFFICIENT_FUNDS", "PAYMENT_DECLINED")
    else:
        assert status in (201, 202), response
        assert customer.wait_for_status(response["data"]["id"], "expired")["current_period"] is None
        assert invoices(customer, response["data"]["id"]) == []
    wait_until_sync(
        lambda: (spendable(customer), held(customer)) == (1000, 0), description="what was held is free again"
    )
    assert_wallet_matches_transactions(customer)


@pytest.mark.scenario("B16", "B17")
def test_a_trial_without_funds_is_paused(stack: RunningStack, customer: ApiUser) -> None:
    subscription = order_until_ready(customer, "n8n-trial")
    assert subscription["status"] == "trialing"
    assert invoices(customer, subscription["id"]) == []
    start, end = instant(subscription["current_period"]["start"]), instant(subscription["trial_end"])
    assert (end - start).days == 14
    assert_error(
        customer.request("POST", ORDERS, {"plan_id": customer.plan("n8n-trial")}, key=new_key()),
        409,
        "TRIAL_ALREADY_USED",
    )
    customer.advance(subscription["id"], days=15)
    now = get_subscription(customer, subscription["id"])
    assert now["status"] == "paused"
    assert all(invoice["status"] != "paid" for invoice in invoices(customer, subscription["id"]))
    # Money makes it go on: a new period that is charged now.
    top_up(customer, 1500)
    send_command(customer, subscription["id"], "resume")
    assert customer.wait_for_status(subscription["id"], "active")["current_period"]["start"] > subscription["trial_end"]
    assert spendable(customer) == 0
    assert_wallet_matches_transactions(customer)


def test_a_trial_that_is_paid_becomes_active(stack: RunningStack, customer: ApiUser) -> None:
    subscription = order_until_ready(customer, "n8n-trial")
    card(customer)
    customer.advance(subscription["id"], until=subscription["trial_end"])
    customer.advance(subscription["id"], days=0.05)
    now = get_subscription(customer, subscription["id"])
    assert now["status"] == "active"
    assert now["current_period"]["start"] == subscription["trial_end"]
    (invoice,) = invoices(customer, subscription["id"])
    assert (invoice["status"], invoice["total"]) == ("paid", money(1500))
    assert_wallet_matches_transactions(customer)


@pytest.mark.scenario("B17")
def test_a_trial_that_is_cancelled_costs_nothing(customer: ApiUser) -> None:
    card(customer)
    subscription = order_until_ready(customer, "n8n-trial")
    assert send_command(customer, subscription["id"], "cancel", {"at": "now"})["status"] == "cancelled"
    assert invoices(customer, subscription["id"]) == []
    assert list_all(customer, f"{V1}/billing/transactions") == []
    assert_error(
        customer.request("POST", ORDERS, {"plan_id": customer.plan("n8n-trial")}, key=new_key()),
        409,
        "TRIAL_ALREADY_USED",
    )


def test_a_year_is_paid_by_the_year(customer: ApiUser) -> None:
    top_up(customer, 90_000)
    subscription = order_until_ready(customer, "n8n-pro-yearly")
    start, end = instant(subscription["current_period"]["start"]), instant(subscription["current_period"]["end"])
    # A year after 29 February ends on 28 February.
    day = 28 if (start.month, start.day) == (2, 29) else start.day
    assert end == start.replace(year=start.year + 1, day=day)
    customer.advance(subscription["id"], days=340)
    assert len(invoices(customer, subscription["id"])) == 1
    customer.advance(subscription["id"], days=30)
    first, second = invoices(customer, subscription["id"])
    assert (first["total"], second["total"]) == (money(45_000), money(45_000))
    assert first["period_end"] == second["period_start"]
    assert spendable(customer) == 0


def test_a_coupon_reduces_its_number_of_periods(customer: ApiUser, administrator: ApiUser) -> None:
    code = f"TWO-{new_key()[:8].upper()}"
    coupon = {
        "code": code, "kind": "percent", "percent": 25, "duration": "periods", "periods": 2, "max_redemptions": 1
    }  # fmt: skip
    assert_success(administrator.request("POST", f"{V1}/admin/coupons", coupon), 201)
    top_up(customer, 1125 * 2 + 1500)
    subscription = order_until_ready(customer, coupon=code.lower())
    customer.advance(subscription["id"], days=62)
    assert [invoice["total"] for invoice in invoices(customer, subscription["id"])] == [
        money(1125),
        money(1125),
        money(1500),
    ]
    assert spendable(customer) == 0
    top_up(customer, 1500)
    body = {"plan_id": customer.plan("n8n-starter"), "coupon": code}
    assert_error(customer.request("POST", ORDERS, body, key=new_key()), 422, "COUPON_INVALID")
    assert_wallet_matches_transactions(customer)


@pytest.mark.scenario("B29")
def test_concurrent_orders_do_not_overspend_the_wallet(stack: RunningStack, customer: ApiUser) -> None:
    top_up(customer, 2 * 1500 + 700)
    body = {"plan_id": customer.plan("n8n-starter"), "collection": "wallet"}

    def ask(number: int) -> int:
        headers = {"Authorization": f"Bearer {customer.token}", "Idempotency-Key": f"crowd-{number}"}
        return httpx.post(f"{stack.api}{ORDERS}", json=body, headers=headers, timeout=30).status_code

    with ThreadPoolExecutor(8) as crowd:
        responses = list(crowd.map(ask, range(8)))
    # An order that was accepted with 202 may still be rejected.
    assert set(responses) <= {201, 202, 402}, responses
    wait_until_sync(
        lambda: [row["status"] for row in list_all(customer, ORDERS)] == ["active"] * 2, description="two are active"
    )
    assert (spendable(customer), held(customer)) == (700, 0)
    assert_wallet_matches_transactions(customer)


@pytest.mark.scenario("P1")
def test_concurrent_requests_with_one_key_create_one_order(stack: RunningStack, customer: ApiUser) -> None:
    top_up(customer, 6 * 1500)
    body = {"plan_id": customer.plan("n8n-starter")}
    headers = {"Authorization": f"Bearer {customer.token}", "Idempotency-Key": new_key()}

    def ask(_: int) -> httpx.Response:
        return httpx.post(f"{stack.api}{ORDERS}", json=body, headers=headers, timeout=30)

    with ThreadPoolExecutor(6) as crowd:
        responses = list(crowd.map(ask, range(6)))
    assert {response.status_code for response in responses} <= {201, 202, 409}
    assert len({response.json()["data"]["id"] for response in responses if response.status_code < 300}) == 1
    (subscription,) = list_all(customer, ORDERS)
    customer.wait_for_status(subscription["id"], "active")
    assert spendable(customer) == 5 * 1500
