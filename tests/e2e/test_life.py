"""The life of a subscription on its own calendar: renewals, plan changes, pauses, dunning, the end."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

import pytest

from tests.e2e.steps import (
    V1,
    card,
    done,
    held,
    instant,
    invoices,
    kinds,
    mailed,
    money,
    order,
    ready,
    refused,
    spendable,
    subscription,
    the_books_agree,
    timeline,
    top_up,
)
from tests.support.invariants import namespaces
from tests.support.stack import Customer, Json, RunningStack
from tests.support.wait import eventually_sync


def late(found: Json, **by: float) -> str:
    """An instant after the end of the current period."""
    return (instant(found["current_period"]["end"]) + timedelta(**by)).isoformat()


def instance_is(customer: Customer, found: Json, status: str) -> None:
    """The instance follows its subscription, a moment later."""
    path = f"{V1}/instances/{found['instance']['id']}"
    eventually_sync(lambda: customer.get(path)["status"] == status, what=f"the instance is {status}")


@pytest.mark.scenario("B1")
def test_periods_begin_on_the_anchor_day_also_after_a_short_month(customer: Customer) -> None:
    top_up(customer, 1500 * 6)
    found = ready(customer)
    order(customer, found["id"], "pause")
    year = instant(found["current_period"]["start"]).year + 1
    customer.advance(found["id"], until=f"{year}-01-31T09:30:00Z")
    resumed = order(customer, found["id"], "resume")
    assert resumed["status"] == "active"
    start = instant(resumed["current_period"]["start"])
    assert (start.month, start.day, start.hour, start.minute) == (1, 31, 9, 30)
    customer.advance(found["id"], until=f"{year}-05-01T00:00:00Z")
    billed = [instant(invoice["period_start"]) for invoice in invoices(customer, found["id"])][1:]
    leap = 29 if year % 4 == 0 else 28
    assert [(at.month, at.day) for at in billed] == [(1, 31), (2, leap), (3, 31), (4, 30)]
    assert {at.time() for at in billed} == {start.time()}
    periods = [(invoice["period_start"], invoice["period_end"]) for invoice in invoices(customer, found["id"])][1:]
    assert all(first[1] == second[0] for first, second in pairwise(periods))
    assert spendable(customer) == 1500
    the_books_agree(customer)


@pytest.mark.scenario("B49")
def test_a_pause_costs_nothing_and_going_on_begins_a_new_period(stack: RunningStack, customer: Customer) -> None:
    top_up(customer, 3000)
    found = ready(customer)
    paused = order(customer, found["id"], "pause")
    assert paused["status"] == "paused"
    refused(customer.call("POST", f"{V1}/subscriptions/{found['id']}/pause"), 409, "ILLEGAL_MOVE")
    instance_is(customer, found, "suspended")
    customer.advance(found["id"], days=100)
    assert len(invoices(customer, found["id"])) == 1
    assert spendable(customer) == 1500
    resumed = order(customer, found["id"], "resume")
    assert resumed["status"] == "active"
    assert (instant(resumed["current_period"]["start"]) - instant(found["current_period"]["start"])).days >= 100
    assert [invoice["status"] for invoice in invoices(customer, found["id"])] == ["paid", "paid"]
    assert spendable(customer) == 0
    # There is nothing to pay a second time with.
    order(customer, found["id"], "pause")
    refused(customer.call("POST", f"{V1}/subscriptions/{found['id']}/resume"), 402, "INSUFFICIENT_FUNDS")
    assert subscription(customer, found["id"])["status"] == "paused"
    the_books_agree(customer)


def test_an_upgrade_costs_what_the_preview_said(customer: Customer, administrator: Customer) -> None:
    top_up(customer, 1500 + 4500)
    found = ready(customer)
    customer.advance(found["id"], days=10)
    pro = customer.plan("n8n-pro")
    body = {"plan_id": pro, "mode": "immediate"}
    preview = done(customer.call("POST", f"{V1}/subscriptions/{found['id']}/change-plan/preview", body))
    assert preview.keys() >= {"lines", "due_now", "credit", "next_invoice"}
    due = preview["due_now"]["amount_minor"]
    assert due == sum(line["amount"]["amount_minor"] for line in preview["lines"]) > 0
    before = spendable(customer)
    changed = order(customer, found["id"], "change-plan", body)
    assert changed["plan"]["code"] == "n8n-pro"
    assert before - spendable(customer) == due
    invoice = invoices(customer, found["id"])[-1]
    assert invoice["total"] == preview["due_now"]
    assert [(line["description"], line["amount"], line["period"]["end"]) for line in invoice["lines"]] == [
        (line["description"], line["amount"], line["period"]["end"]) for line in preview["lines"]
    ]
    assert "subscription.plan_changed" in kinds(customer, found["id"])
    eventually_sync(
        lambda: customer.get(f"{V1}/instances/{found['instance']['id']}")["resources"]["memory_mib"] == 4096,
        what="the instance has grown",
    )
    # The period stays as it was; the next one costs the new price.
    assert changed["current_period"] == found["current_period"]
    assert preview["next_invoice"]["amount_minor"] == 4500
    the_books_agree(customer)


@pytest.mark.scenario("B11")
def test_an_upgrade_that_cannot_be_paid_changes_nothing(customer: Customer) -> None:
    top_up(customer, 1500)
    found = ready(customer)
    answer = customer.call(
        "POST", f"{V1}/subscriptions/{found['id']}/change-plan", {"plan_id": customer.plan("n8n-pro")}
    )
    assert answer[0] == 402, answer
    now = subscription(customer, found["id"])
    assert (now["plan"]["code"], now["status"]) == ("n8n-starter", "active")
    assert (spendable(customer), held(customer)) == (0, 0)
    assert [invoice["total"] for invoice in invoices(customer, found["id"])] == [money(1500)]


@pytest.mark.scenario("B8")
def test_a_downgrade_waits_for_the_period_that_is_paid(customer: Customer) -> None:
    top_up(customer, 4500 + 1500)
    found = ready(customer, "n8n-pro")
    body = {"plan_id": customer.plan("n8n-starter")}
    preview = done(customer.call("POST", f"{V1}/subscriptions/{found['id']}/change-plan/preview", body))
    assert (preview["lines"], preview["due_now"]["amount_minor"]) == ([], 0)
    assert preview["next_invoice"]["amount_minor"] == 1500
    asked = order(customer, found["id"], "change-plan", body)
    assert asked["plan"]["code"] == "n8n-pro"
    customer.advance(found["id"], until=late(found, hours=1))
    assert subscription(customer, found["id"])["plan"]["code"] == "n8n-starter"
    assert [invoice["total"] for invoice in invoices(customer, found["id"])] == [money(4500), money(1500)]
    the_books_agree(customer)


def test_an_immediate_downgrade_gives_credit(customer: Customer) -> None:
    top_up(customer, 4500)
    found = ready(customer, "n8n-pro")
    body = {"plan_id": customer.plan("n8n-starter"), "mode": "immediate"}
    preview = done(customer.call("POST", f"{V1}/subscriptions/{found['id']}/change-plan/preview", body))
    assert preview["due_now"]["amount_minor"] == 0
    assert 2900 < preview["credit"]["amount_minor"] <= 3000
    order(customer, found["id"], "change-plan", body)
    the_books_agree(customer)
    # The credit pays the next periods.
    customer.advance(found["id"], until=late(found, hours=1))
    now = subscription(customer, found["id"])
    assert (now["plan"]["code"], now["status"]) == ("n8n-starter", "active")
    the_books_agree(customer)


@pytest.mark.scenario("B30", "B46")
def test_days_1_3_5_7_then_suspended_and_a_top_up_brings_it_back(stack: RunningStack, customer: Customer) -> None:
    top_up(customer, 1500)
    found = ready(customer)
    due = found["current_period"]["end"]
    customer.advance(found["id"], until=late(found, minutes=5))
    assert subscription(customer, found["id"])["status"] == "past_due"
    seen = []
    for day in range(1, 9):
        customer.advance(found["id"], until=late(found, days=day, hours=1))
        seen.append(subscription(customer, found["id"])["status"])
    assert seen == ["past_due"] * 6 + ["suspended"] * 2
    failures = [
        (instant(event["at"]) - instant(due)).days
        for event in timeline(customer, found["id"])
        if event["kind"] == "payment.failed"
    ]
    assert failures[-4:] == [1, 3, 5, 7], timeline(customer, found["id"])
    instance_is(customer, found, "suspended")
    assert held(customer) == 0
    mailed(stack, customer, "suspended")

    top_up_body = {"amount_minor": 1500, "currency": "USD", "gateway": "stripe", "payment_method": "pm_card_visa"}
    done(customer.call("POST", f"{V1}/billing/topups", top_up_body, key=found["id"]), 201)
    customer.until(found["id"], "active")
    instance_is(customer, found, "ready")
    second = invoices(customer, found["id"])[-1]
    assert (second["status"], second["period_start"]) == ("paid", due)
    assert spendable(customer) == 0
    told = kinds(customer, found["id"])
    assert told.index("subscription.past_due") < told.index("subscription.suspended")
    the_books_agree(customer)


def test_a_new_card_pays_what_is_due_at_once(stack: RunningStack, customer: Customer) -> None:
    bad = card(customer, "pm_card_chargeCustomerFail")
    top_up(customer, 1500)
    found = ready(customer)
    customer.advance(found["id"], until=late(found, days=2))
    assert subscription(customer, found["id"])["status"] == "past_due"
    refused(customer.call("DELETE", f"{V1}/billing/payment-methods/{bad['id']}"), 409, "PAYMENT_METHOD_IN_USE")
    retried = customer.call("POST", f"{V1}/subscriptions/{found['id']}/retry-payment")
    assert retried[0] in (200, 402), retried
    assert subscription(customer, found["id"])["status"] == "past_due"
    before = len(stack.charges())
    good = card(customer, "pm_card_visa")
    customer.until(found["id"], "active")
    second = invoices(customer, found["id"])[-1]
    assert (second["status"], second["amount_due"]) == ("paid", money(0))
    paid = [row for row in stack.charges()[before:] if row["captured"] and row["status"] == "succeeded"]
    assert [row["amount"] for row in paid] == [1500]
    done(customer.call("DELETE", f"{V1}/billing/payment-methods/{bad['id']}"))
    assert good["default"]
    the_books_agree(customer)


def test_never_paid_again_is_cancelled_on_day_30_and_deleted_30_days_later(
    stack: RunningStack, customer: Customer
) -> None:
    top_up(customer, 1500)
    found = ready(customer)
    namespace = customer.get(f"{V1}/instances/{found['instance']['id']}")["namespace"]
    customer.advance(found["id"], until=late(found, days=29))
    assert subscription(customer, found["id"])["status"] == "suspended"
    customer.advance(found["id"], until=late(found, days=30, hours=1))
    cancelled = subscription(customer, found["id"])
    assert cancelled["status"] == "cancelled"
    assert invoices(customer, found["id"])[-1]["status"] in ("void", "uncollectible")
    assert namespace in namespaces(stack)
    customer.advance(found["id"], until=late(found, days=59))
    assert subscription(customer, found["id"])["status"] == "cancelled"
    customer.advance(found["id"], until=late(found, days=60, hours=2))
    assert customer.until(found["id"], "terminated")["status"] == "terminated"
    eventually_sync(lambda: namespace not in namespaces(stack), what="the namespace is gone")
    assert customer.get(f"{V1}/instances/{found['instance']['id']}")["status"] == "deleted"
    assert kinds(customer, found["id"])[-2:].count("subscription.terminated") <= 1
    assert "subscription.terminated" in kinds(customer, found["id"])
    refused(customer.call("POST", f"{V1}/subscriptions/{found['id']}/cancel", {"at": "now"}), 409, "ILLEGAL_MOVE")
    the_books_agree(customer)


def test_cancelling_now_refunds_nothing_and_cancelling_at_the_end_can_be_taken_back(customer: Customer) -> None:
    top_up(customer, 4500)
    found = ready(customer)
    path = f"{V1}/subscriptions/{found['id']}"
    refused(customer.call("POST", f"{path}/cancel", {"at": "whenever"}), 422, "VALIDATION_ERROR")
    refused(customer.call("POST", f"{path}/resume"), 409, "ILLEGAL_MOVE")
    noted = order(customer, found["id"], "cancel", {"at": "period_end", "reason": "too dear"})
    assert (noted["status"], noted["cancel_at_period_end"]) == ("active", True)
    taken_back = order(customer, found["id"], "resume")
    assert (taken_back["status"], taken_back["cancel_at_period_end"]) == ("active", False)
    customer.advance(found["id"], until=late(found, hours=1))
    renewed = subscription(customer, found["id"])
    assert renewed["status"] == "active"
    order(customer, found["id"], "cancel", {"at": "period_end"})
    customer.advance(found["id"], until=late(renewed, hours=1))
    assert subscription(customer, found["id"])["status"] == "cancelled"
    assert len(invoices(customer, found["id"])) == 2

    other = ready(customer)
    assert spendable(customer) == 0
    ended = order(customer, other["id"], "cancel", {"at": "now"})
    assert ended["status"] == "cancelled"
    assert spendable(customer) == 0
    assert [invoice["status"] for invoice in invoices(customer, other["id"])] == ["paid"]
    assert "subscription.cancelled" in kinds(customer, other["id"])
    the_books_agree(customer)


def test_renewals_are_announced_and_paid_by_card(stack: RunningStack, customer: Customer) -> None:
    card(customer)
    found = ready(customer, collection="card")
    other = ready(customer, "n8n-starter", collection="card")
    before = subscription(customer, other["id"])
    customer.advance(found["id"], until=late(found, hours=1))
    now = subscription(customer, found["id"])
    assert now["current_period"]["start"] == found["current_period"]["end"]
    first, second = invoices(customer, found["id"])
    assert (first["status"], second["status"]) == ("paid", "paid")
    assert first["number"] != second["number"]
    for word in ("in 7 days", "in 3 days", "tomorrow"):
        mailed(stack, customer, word)
    mailed(stack, customer, "is ready", 2)
    mailed(stack, customer, "Receipt", 1)
    assert kinds(customer, found["id"]).count("subscription.renewed") == 1
    assert "subscription.renewed" not in kinds(customer, other["id"])
    assert subscription(customer, other["id"]) == before
    the_books_agree(customer)


@pytest.mark.scenario("P16")
def test_what_is_ordered_while_it_is_provisioned(stack: RunningStack, customer: Customer) -> None:
    top_up(customer, 1500)
    body = {"plan_id": customer.plan("n8n-starter")}
    made = done(customer.call("POST", f"{V1}/subscriptions", body, key="soon cancelled"), 201)
    ended = customer.call("POST", f"{V1}/subscriptions/{made['id']}/cancel", {"at": "now"})
    assert ended[0] in (200, 409), ended
    now = customer.until(made["id"], "cancelled", "active", timeout=60)
    if now["status"] == "active":
        order(customer, made["id"], "cancel", {"at": "now"})
    else:
        eventually_sync(lambda: spendable(customer) == 1500, what="what was held is free again")
        assert invoices(customer, made["id"]) == []
        instance = customer.get(f"{V1}/instances/{made['instance']['id']}")
        assert instance["status"] == "deleted"
        assert instance["namespace"] not in namespaces(stack)
    the_books_agree(customer)
