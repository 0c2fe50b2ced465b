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
    card,
    done,
    every,
    held,
    instant,
    invoices,
    key,
    ready,
    settled,
    spendable,
    subscription,
    the_books_agree,
)
from tests.support import invariants
from tests.support.stack import Customer, Json, RunningStack
from tests.support.wait import eventually_sync, in_time

REQUESTS = ("lost_reply", "stall", "server_error", "reset")
WEBHOOKS = ("duplicate_webhook", "reorder_webhook", "hold_webhook")
ANSWERS_WITHIN = in_time(5.0)
# A stall that outlasts what a caller is kept waiting for, not what a test should.
STALLED = 4


def strike(sandbox: Sandbox, fault: str) -> None:
    if fault in REQUESTS:
        sandbox.gateway(fault, count=1, **({"seconds": STALLED} if fault == "stall" else {}))
    else:
        sandbox.gateway(fault, seconds=2)


def taken(stack: RunningStack, amount_minor: int) -> list[Json]:
    """What the gateway took in exactly this amount: tests use amounts of their own."""
    return [
        row
        for row in stack.charges()
        if row["amount"] == amount_minor and row["captured"] and row["status"] == "succeeded"
    ]


def accepted(customer: Customer, path: str, body: Json, once: str) -> Json:
    began = time.monotonic()
    status, answer = customer.call("POST", path, body, key=once)
    assert time.monotonic() - began < ANSWERS_WITHIN
    assert status in (201, 202), answer
    found: Json = answer["data"]
    return found


@pytest.mark.scenario("B20", "B22", "B23")
@pytest.mark.parametrize("fault", [*REQUESTS, *WEBHOOKS])
def test_a_top_up_an_order_and_a_renewal_are_charged_once(
    stack: RunningStack, customer: Customer, sandbox: Sandbox, fault: str
) -> None:
    """One after the other, each with the fault anew."""
    amount = 7001 + 13 * (*REQUESTS, *WEBHOOKS).index(fault)
    before, once = len(taken(stack, amount)), key()
    body = {"amount_minor": amount, "currency": "USD", "gateway": "stripe", "payment_method": "pm_card_visa"}
    strike(sandbox, fault)
    made = accepted(customer, f"{V1}/billing/topups", body, once)
    assert accepted(customer, f"{V1}/billing/topups", body, once)["id"] == made["id"]
    eventually_sync(lambda: spendable(customer) == amount, what="the top-up can be spent")
    assert len(taken(stack, amount)) == before + 1
    assert customer.get(f"{V1}/billing/payments/{made['id']}")["status"] == "succeeded"
    assert [row["kind"] for row in every(customer, f"{V1}/billing/transactions")] == ["top_up"]

    card(customer)
    before, once = len(taken(stack, 1500)), key()
    order = {"plan_id": customer.plan("n8n-starter"), "collection": "card"}
    sandbox.clear()
    strike(sandbox, fault)
    found = accepted(customer, f"{V1}/subscriptions", order, once)
    assert accepted(customer, f"{V1}/subscriptions", order, once)["id"] == found["id"]
    found = customer.until(found["id"], "active", timeout=60)
    settled(customer, found["id"])
    assert len(taken(stack, 1500)) == before + 1

    sandbox.clear()
    strike(sandbox, fault)
    customer.advance(found["id"], until=(instant(found["current_period"]["end"]) + timedelta(minutes=1)).isoformat())

    def paid() -> bool:
        return [invoice["status"] for invoice in invoices(customer, found["id"])] == ["paid", "paid"]

    eventually_sync(paid, what="the renewal is paid")
    assert subscription(customer, found["id"])["status"] == "active"
    assert len(taken(stack, 1500)) == before + 2
    assert Counter(row["status"] for row in every(customer, f"{V1}/billing/payments")) == {"succeeded": 3}
    assert (spendable(customer), held(customer)) == (amount, 0)
    the_books_agree(customer)


@pytest.mark.scenario("B19")
def test_everything_again_changes_nothing(stack: RunningStack, customer: Customer, sandbox: Sandbox) -> None:
    """After all that happened here: every webhook once more, forwards and backwards."""
    card(customer)
    settled(customer, ready(customer, collection="card")["id"])
    tables = ("payments", "ledger_entries", "ledger_accounts", "invoices", "subscriptions", "refunds")

    def picture() -> list[list[Json]]:
        return [stack.rows(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]

    def quiet() -> bool:
        return invariants.no_workflow_is_stuck(stack) == []

    eventually_sync(quiet, what="nothing is under way")
    before = picture()
    for backwards in (False, True):
        told = httpx.post(f"{stack.card['urls']['stripe']}/sandbox/redeliver", json={"reverse": backwards}, timeout=120)
        assert told.status_code == 200, told.text
        eventually_sync(quiet, what="nothing is under way")
    assert picture() == before
    assert done(customer.call("GET", f"{V1}/billing/wallet"))["held"][0]["amount_minor"] == 0
    invariants.ledger_is_sound(stack)
    invariants.nobody_is_charged_twice(stack)
    invariants.one_invoice_per_period_without_gaps(stack)
