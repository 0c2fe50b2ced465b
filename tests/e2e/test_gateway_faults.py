"""A card gateway that stalls, forgets, repeats and reorders: charged once, answered in time, nothing lost."""

from __future__ import annotations

import time
from collections import Counter
from datetime import timedelta

import httpx
import pytest

from tests.e2e.steps import (
    V1,
    Sandbox,
    assert_success,
    assert_wallet_matches_transactions,
    card,
    get_subscription,
    held,
    instant,
    invoices,
    list_all,
    new_key,
    order_until_ready,
    spendable,
    wait_for_first_payment,
)
from tests.support import invariants
from tests.support.running_stack import ApiUser, Json, RunningStack
from tests.support.wait import scale_timeout, wait_until_sync

REQUESTS = ("lost_reply", "stall", "server_error", "reset")
WEBHOOKS = ("duplicate_webhook", "reorder_webhook", "hold_webhook")
ANSWERS_WITHIN = scale_timeout(5.0)
# A stall that outlasts what a caller is kept waiting for, not what a test should.
STALLED = 4


def strike(sandbox: Sandbox, fault: str) -> None:
    if fault in REQUESTS:
        sandbox.gateway(fault, count=1, **({"seconds": STALLED} if fault == "stall" else {}))
    else:
        sandbox.gateway(fault, seconds=2)


def list_charges(stack: RunningStack, amount_minor: int) -> list[Json]:
    """Return the gateway's charges of exactly this amount: each test uses another amount."""
    return [
        row
        for row in stack.charges()
        if row["amount"] == amount_minor and row["captured"] and row["status"] == "succeeded"
    ]


def send_until_accepted(customer: ApiUser, path: str, body: Json, once: str) -> Json:
    began = time.monotonic()
    status, content = customer.request("POST", path, body, key=once)
    assert time.monotonic() - began < ANSWERS_WITHIN
    assert status in (201, 202), content
    resource: Json = content["data"]
    return resource


@pytest.mark.scenario("B20", "B22", "B23")
@pytest.mark.parametrize("fault", [*REQUESTS, *WEBHOOKS])
def test_a_top_up_an_order_and_a_renewal_are_charged_once(
    stack: RunningStack, customer: ApiUser, sandbox: Sandbox, fault: str
) -> None:
    """The fault is set again before each of the three."""
    amount = 7001 + 13 * (*REQUESTS, *WEBHOOKS).index(fault)
    before, once = len(list_charges(stack, amount)), new_key()
    body = {"amount_minor": amount, "currency": "USD", "gateway": "stripe", "payment_method": "pm_card_visa"}
    strike(sandbox, fault)
    payment = send_until_accepted(customer, f"{V1}/billing/topups", body, once)
    assert send_until_accepted(customer, f"{V1}/billing/topups", body, once)["id"] == payment["id"]
    wait_until_sync(lambda: spendable(customer) == amount, description="the top-up can be spent")
    assert len(list_charges(stack, amount)) == before + 1
    assert customer.get(f"{V1}/billing/payments/{payment['id']}")["status"] == "succeeded"
    assert [row["kind"] for row in list_all(customer, f"{V1}/billing/transactions")] == ["top_up"]

    card(customer)
    before, once = len(list_charges(stack, 1500)), new_key()
    order = {"plan_id": customer.plan("n8n-starter"), "collection": "card"}
    sandbox.clear()
    strike(sandbox, fault)
    subscription = send_until_accepted(customer, f"{V1}/subscriptions", order, once)
    assert send_until_accepted(customer, f"{V1}/subscriptions", order, once)["id"] == subscription["id"]
    subscription = customer.wait_for_status(subscription["id"], "active", timeout=60)
    wait_for_first_payment(customer, subscription["id"])
    assert len(list_charges(stack, 1500)) == before + 1

    sandbox.clear()
    strike(sandbox, fault)
    customer.advance(
        subscription["id"], until=(instant(subscription["current_period"]["end"]) + timedelta(minutes=1)).isoformat()
    )

    def paid() -> bool:
        return [invoice["status"] for invoice in invoices(customer, subscription["id"])] == ["paid", "paid"]

    wait_until_sync(paid, description="the renewal is paid")
    assert get_subscription(customer, subscription["id"])["status"] == "active"
    assert len(list_charges(stack, 1500)) == before + 2
    assert Counter(row["status"] for row in list_all(customer, f"{V1}/billing/payments")) == {"succeeded": 3}
    assert (spendable(customer), held(customer)) == (amount, 0)
    assert_wallet_matches_transactions(customer)


@pytest.mark.scenario("B19")
def test_redelivered_webhooks_change_nothing(stack: RunningStack, customer: ApiUser, sandbox: Sandbox) -> None:
    """After all that happened here: every webhook once more, forwards and backwards."""
    card(customer)
    wait_for_first_payment(customer, order_until_ready(customer, collection="card")["id"])
    tables = ("payments", "ledger_entries", "ledger_accounts", "invoices", "subscriptions", "refunds")

    def picture() -> list[list[Json]]:
        return [stack.query_as_superuser(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]

    def quiet() -> bool:
        return invariants.list_stuck_workflows(stack) == []

    wait_until_sync(quiet, description="nothing is under way")
    before = picture()
    for backwards in (False, True):
        response = httpx.post(
            f"{stack.card['urls']['stripe']}/sandbox/redeliver", json={"reverse": backwards}, timeout=120
        )
        assert response.status_code == 200, response.text
        wait_until_sync(quiet, description="nothing is under way")
    assert picture() == before
    assert assert_success(customer.request("GET", f"{V1}/billing/wallet"))["held"][0]["amount_minor"] == 0
    invariants.assert_ledger_balanced(stack)
    invariants.assert_no_duplicate_charges(stack)
    invariants.assert_invoice_numbers_gapless(stack)
