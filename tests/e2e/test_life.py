"""The life of a subscription on its own calendar: renewals, plan changes, pauses, dunning, the end."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

import pytest

from tests.e2e.steps import (
    V1,
    Sandbox,
    assert_error,
    assert_success,
    assert_wallet_matches_transactions,
    card,
    get_subscription,
    held,
    instant,
    invoices,
    kinds,
    money,
    order_until_ready,
    request_outcome,
    send_command,
    spendable,
    timeline,
    top_up,
    wait_for_mails,
)
from tests.support.invariants import namespaces
from tests.support.running_stack import ApiUser, Json, RunningStack
from tests.support.wait import wait_until_sync


def after_period_end(subscription: Json, **by: float) -> str:
    """An instant after the end of the current period."""
    return (instant(subscription["current_period"]["end"]) + timedelta(**by)).isoformat()


def wait_for_instance(customer: ApiUser, subscription: Json, status: str) -> None:
    """The instance follows its subscription, a moment later."""
    path = f"{V1}/instances/{subscription['instance']['id']}"
    wait_until_sync(lambda: customer.get(path)["status"] == status, description=f"the instance is {status}")


@pytest.mark.scenario("B1")
def test_periods_start_on_the_anchor_day_after_a_short_month(customer: ApiUser) -> None:
    top_up(customer, 1500 * 6)
    subscription = order_until_ready(customer)
    send_command(customer, subscription["id"], "pause")
    year = instant(subscription["current_period"]["start"]).year + 1
    customer.advance(subscription["id"], until=f"{year}-01-31T09:30:00Z")
    resumed = send_command(customer, subscription["id"], "resume")
    assert resumed["status"] == "active"
    start = instant(resumed["current_period"]["start"])
    assert (start.month, start.day, start.hour, start.minute) == (1, 31, 9, 30)
    customer.advance(subscription["id"], until=f"{year}-05-01T00:00:00Z")
    billed = [instant(invoice["period_start"]) for invoice in invoices(customer, subscription["id"])][1:]
    leap = 29 if year % 4 == 0 else 28
    assert [(at.month, at.day) for at in billed] == [(1, 31), (2, leap), (3, 31), (4, 30)]
    assert {at.time() for at in billed} == {start.time()}
    periods = [(invoice["period_start"], invoice["period_end"]) for invoice in invoices(customer, subscription["id"])][
        1:
    ]
    assert all(first[1] == second[0] for first, second in pairwise(periods))
    assert spendable(customer) == 1500
    assert_wallet_matches_transactions(customer)


@pytest.mark.scenario("B49")
def test_a_pause_is_free_and_resuming_starts_a_new_period(stack: RunningStack, customer: ApiUser) -> None:
    top_up(customer, 3000)
    subscription = order_until_ready(customer)
    paused = send_command(customer, subscription["id"], "pause")
    assert paused["status"] == "paused"
    assert_error(customer.request("POST", f"{V1}/subscriptions/{subscription['id']}/pause"), 409, "ILLEGAL_MOVE")
    wait_for_instance(customer, subscription, "suspended")
    customer.advance(subscription["id"], days=100)
    assert len(invoices(customer, subscription["id"])) == 1
    assert spendable(customer) == 1500
    resumed = send_command(customer, subscription["id"], "resume")
    assert resumed["status"] == "active"
    assert (instant(resumed["current_period"]["start"]) - instant(subscription["current_period"]["start"])).days >= 100
    assert [invoice["status"] for invoice in invoices(customer, subscription["id"])] == ["paid", "paid"]
    assert spendable(customer) == 0
    # There is nothing to pay a second time with.
    send_command(customer, subscription["id"], "pause")
    assert_error(request_outcome(customer, subscription["id"], "resume"), 402, "INSUFFICIENT_FUNDS")
    assert get_subscription(customer, subscription["id"])["status"] == "paused"
    assert_wallet_matches_transactions(customer)


def test_an_upgrade_charges_what_the_preview_shows(customer: ApiUser, administrator: ApiUser) -> None:
    top_up(customer, 1500 + 4500)
    subscription = order_until_ready(customer)
    customer.advance(subscription["id"], days=10)
    pro = customer.plan("n8n-pro")
    body = {"plan_id": pro, "mode": "immediate"}
    preview = assert_success(
        customer.request("POST", f"{V1}/subscriptions/{subscription['id']}/change-plan/preview", body)
    )
    assert preview.keys() >= {"lines", "due_now", "credit", "next_invoice"}
    due = preview["due_now"]["amount_minor"]
    assert due == sum(line["amount"]["amount_minor"] for line in preview["lines"]) > 0
    before = spendable(customer)
    changed = send_command(customer, subscription["id"], "change-plan", body)
    assert changed["plan"]["code"] == "n8n-pro"
    assert before - spendable(customer) == due
    invoice = invoices(customer, subscription["id"])[-1]
    assert invoice["total"] == preview["due_now"]
    assert [(line["description"], line["amount"], line["period"]["end"]) for line in invoice["lines"]] == [
        (line["description"], line["amount"], line["period"]["end"]) for line in preview["lines"]
    ]
    assert "subscription.plan_changed" in kinds(customer, subscription["id"])
    wait_until_sync(
        lambda: customer.get(f"{V1}/instances/{subscription['instance']['id']}")["resources"]["memory_mib"] == 4096,
        description="the instance has grown",
    )
    # The period stays as it was; the next one costs the new price.
    assert changed["current_period"] == subscription["current_period"]
    assert preview["next_invoice"]["amount_minor"] == 4500
    assert_wallet_matches_transactions(customer)


def test_an_upgrade_withdraws_a_scheduled_cancellation(customer: ApiUser) -> None:
    top_up(customer, 1500 + 4500 + 4500)
    subscription = order_until_ready(customer)
    assert send_command(customer, subscription["id"], "cancel", {"at": "period_end"})["cancel_at_period_end"]
    body = {"plan_id": customer.plan("n8n-pro")}
    preview = assert_success(
        customer.request("POST", f"{V1}/subscriptions/{subscription['id']}/change-plan/preview", body)
    )
    assert preview["withdraws_cancellation"] is True
    changed = send_command(customer, subscription["id"], "change-plan", body)
    assert (changed["plan"]["code"], changed["cancel_at_period_end"]) == ("n8n-pro", False)
    assert "subscription.cancellation_withdrawn" in kinds(customer, subscription["id"])
    customer.advance(subscription["id"], until=after_period_end(subscription, hours=1))
    assert get_subscription(customer, subscription["id"])["status"] == "active"
    assert (
        invoices(customer, subscription["id"])[-1]["total"]["amount_minor"] == (preview["next_invoice"]["amount_minor"])
    )


@pytest.mark.scenario("B11")
def test_an_upgrade_that_cannot_be_paid_changes_nothing(customer: ApiUser) -> None:
    top_up(customer, 1500)
    subscription = order_until_ready(customer)
    response = request_outcome(customer, subscription["id"], "change-plan", {"plan_id": customer.plan("n8n-pro")})
    assert response[0] == 402, response
    now = get_subscription(customer, subscription["id"])
    assert (now["plan"]["code"], now["status"]) == ("n8n-starter", "active")
    assert (spendable(customer), held(customer)) == (0, 0)
    assert [invoice["total"] for invoice in invoices(customer, subscription["id"])] == [money(1500)]


@pytest.mark.scenario("B8")
def test_a_downgrade_waits_for_the_end_of_the_paid_period(customer: ApiUser) -> None:
    top_up(customer, 4500 + 1500)
    subscription = order_until_ready(customer, "n8n-pro")
    body = {"plan_id": customer.plan("n8n-starter")}
    preview = assert_success(
        customer.request("POST", f"{V1}/subscriptions/{subscription['id']}/change-plan/preview", body)
    )
    assert (preview["lines"], preview["due_now"]["amount_minor"]) == ([], 0)
    assert preview["next_invoice"]["amount_minor"] == 1500
    scheduled = send_command(customer, subscription["id"], "change-plan", body)
    assert scheduled["plan"]["code"] == "n8n-pro"
    customer.advance(subscription["id"], until=after_period_end(subscription, hours=1))
    assert get_subscription(customer, subscription["id"])["plan"]["code"] == "n8n-starter"
    assert [invoice["total"] for invoice in invoices(customer, subscription["id"])] == [money(4500), money(1500)]
    assert_wallet_matches_transactions(customer)


def test_an_immediate_downgrade_gives_credit(customer: ApiUser) -> None:
    top_up(customer, 4500)
    subscription = order_until_ready(customer, "n8n-pro")
    body = {"plan_id": customer.plan("n8n-starter"), "mode": "immediate"}
    preview = assert_success(
        customer.request("POST", f"{V1}/subscriptions/{subscription['id']}/change-plan/preview", body)
    )
    assert preview["due_now"]["amount_minor"] == 0
    assert 2900 < preview["credit"]["amount_minor"] <= 3000
    send_command(customer, subscription["id"], "change-plan", body)
    assert_wallet_matches_transactions(customer)
    # The credit pays the next periods.
    customer.advance(subscription["id"], until=after_period_end(subscription, hours=1))
    now = get_subscription(customer, subscription["id"])
    assert (now["plan"]["code"], now["status"]) == ("n8n-starter", "active")
    assert_wallet_matches_transactions(customer)


@pytest.mark.scenario("B30", "B46")
def test_retries_on_days_1_3_5_7_then_suspension_until_a_top_up(stack: RunningStack, customer: ApiUser) -> None:
    top_up(customer, 1500)
    subscription = order_until_ready(customer)
    due = subscription["current_period"]["end"]
    customer.advance(subscription["id"], until=after_period_end(subscription, minutes=5))
    assert get_subscription(customer, subscription["id"])["status"] == "past_due"
    statuses = []
    for day in range(1, 9):
        customer.advance(subscription["id"], until=after_period_end(subscription, days=day, hours=1))
        statuses.append(get_subscription(customer, subscription["id"])["status"])
    assert statuses == ["past_due"] * 6 + ["suspended"] * 2
    failures = [
        (instant(event["at"]) - instant(due)).days
        for event in timeline(customer, subscription["id"])
        if event["kind"] == "payment.failed"
    ]
    assert failures[-4:] == [1, 3, 5, 7], timeline(customer, subscription["id"])
    wait_for_instance(customer, subscription, "suspended")
    assert held(customer) == 0
    wait_for_mails(stack, customer, "suspended")

    top_up_body = {"amount_minor": 1500, "currency": "USD", "gateway": "stripe", "payment_method": "pm_card_visa"}
    assert_success(customer.request("POST", f"{V1}/billing/topups", top_up_body, key=subscription["id"]), 201)
    customer.wait_for_status(subscription["id"], "active")
    wait_for_instance(customer, subscription, "ready")
    second = invoices(customer, subscription["id"])[-1]
    assert (second["status"], second["period_start"]) == ("paid", due)
    assert spendable(customer) == 0
    event_kinds = kinds(customer, subscription["id"])
    assert event_kinds.index("subscription.past_due") < event_kinds.index("subscription.suspended")
    assert_wallet_matches_transactions(customer)


def test_a_new_card_pays_the_debt_immediately(stack: RunningStack, customer: ApiUser) -> None:
    bad = card(customer, "pm_card_chargeCustomerFail")
    top_up(customer, 1500)
    subscription = order_until_ready(customer)
    customer.advance(subscription["id"], until=after_period_end(subscription, days=2))
    assert get_subscription(customer, subscription["id"])["status"] == "past_due"
    assert_error(customer.request("DELETE", f"{V1}/billing/payment-methods/{bad['id']}"), 409, "PAYMENT_METHOD_IN_USE")
    retried = request_outcome(customer, subscription["id"], "retry-payment")
    assert_error(retried, 402, "PAYMENT_DECLINED")
    assert get_subscription(customer, subscription["id"])["status"] == "past_due"
    before = len(stack.charges())
    good = card(customer, "pm_card_visa")
    customer.wait_for_status(subscription["id"], "active")
    second = invoices(customer, subscription["id"])[-1]
    assert (second["status"], second["amount_due"]) == ("paid", money(0))
    paid = [row for row in stack.charges()[before:] if row["captured"] and row["status"] == "succeeded"]
    assert [row["amount"] for row in paid] == [1500]
    assert_success(customer.request("DELETE", f"{V1}/billing/payment-methods/{bad['id']}"))
    assert good["default"]
    assert_wallet_matches_transactions(customer)


def test_an_unpaid_subscription_is_cancelled_on_day_30_and_deleted_30_days_later(
    stack: RunningStack, customer: ApiUser
) -> None:
    top_up(customer, 1500)
    subscription = order_until_ready(customer)
    namespace = customer.get(f"{V1}/instances/{subscription['instance']['id']}")["namespace"]
    customer.advance(subscription["id"], until=after_period_end(subscription, days=29))
    assert get_subscription(customer, subscription["id"])["status"] == "suspended"
    customer.advance(subscription["id"], until=after_period_end(subscription, days=30, hours=1))
    cancelled = get_subscription(customer, subscription["id"])
    assert cancelled["status"] == "cancelled"
    assert invoices(customer, subscription["id"])[-1]["status"] in ("void", "uncollectible")
    assert namespace in namespaces(stack)
    customer.advance(subscription["id"], until=after_period_end(subscription, days=59))
    assert get_subscription(customer, subscription["id"])["status"] == "cancelled"
    customer.advance(subscription["id"], until=after_period_end(subscription, days=60, hours=2))
    assert customer.wait_for_status(subscription["id"], "terminated")["status"] == "terminated"
    wait_until_sync(lambda: namespace not in namespaces(stack), description="the namespace is gone")
    assert customer.get(f"{V1}/instances/{subscription['instance']['id']}")["status"] == "deleted"
    assert kinds(customer, subscription["id"])[-2:].count("subscription.terminated") <= 1
    assert "subscription.terminated" in kinds(customer, subscription["id"])
    assert_error(
        customer.request("POST", f"{V1}/subscriptions/{subscription['id']}/cancel", {"at": "now"}), 409, "ILLEGAL_MOVE"
    )
    assert_wallet_matches_transactions(customer)


def test_cancelling_now_refunds_nothing_and_a_cancellation_at_period_end_can_be_withdrawn(customer: ApiUser) -> None:
    top_up(customer, 4500)
    subscription = order_until_ready(customer)
    path = f"{V1}/subscriptions/{subscription['id']}"
    assert_error(customer.request("POST", f"{path}/cancel", {"at": "whenever"}), 422, "VALIDATION_ERROR")
    assert_error(customer.request("POST", f"{path}/resume"), 409, "ILLEGAL_MOVE")
    noted = send_command(customer, subscription["id"], "cancel", {"at": "period_end", "reason": "too dear"})
    assert (noted["status"], noted["cancel_at_period_end"]) == ("active", True)
    taken_back = send_command(customer, subscription["id"], "resume")
    assert (taken_back["status"], taken_back["cancel_at_period_end"]) == ("active", False)
    customer.advance(subscription["id"], until=after_period_end(subscription, hours=1))
    renewed = get_subscription(customer, subscription["id"])
    assert renewed["status"] == "active"
    send_command(customer, subscription["id"], "cancel", {"at": "period_end"})
    customer.advance(subscription["id"], until=after_period_end(renewed, hours=1))
    assert get_subscription(customer, subscription["id"])["status"] == "cancelled"
    assert len(invoices(customer, subscription["id"])) == 2

    other = order_until_ready(customer)
    assert spendable(customer) == 0
    ended = send_command(customer, other["id"], "cancel", {"at": "now"})
    assert ended["status"] == "cancelled"
    assert spendable(customer) == 0
    assert [invoice["status"] for invoice in invoices(customer, other["id"])] == ["paid"]
    assert "subscription.cancelled" in kinds(customer, other["id"])
    assert_wallet_matches_transactions(customer)


def test_renewals_are_announced_and_paid_by_card(stack: RunningStack, customer: ApiUser) -> None:
    card(customer)
    subscription = order_until_ready(customer, collection="card")
    other = order_until_ready(customer, "n8n-starter", collection="card")
    before = get_subscription(customer, other["id"])
    customer.advance(subscription["id"], until=after_period_end(subscription, hours=1))
    now = get_subscription(customer, subscription["id"])
    assert now["current_period"]["start"] == subscription["current_period"]["end"]
    first, second = invoices(customer, subscription["id"])
    assert (first["status"], second["status"]) == ("paid", "paid")
    assert first["number"] != second["number"]
    for word in ("in 7 days", "in 3 days", "tomorrow"):
        wait_for_mails(stack, customer, word)
    wait_for_mails(stack, customer, "is ready", 2)
    wait_for_mails(stack, customer, "Receipt", 1)
    assert kinds(customer, subscription["id"]).count("subscription.renewed") == 1
    assert "subscription.renewed" not in kinds(customer, other["id"])
    assert get_subscription(customer, other["id"]) == before
    assert_wallet_matches_transactions(customer)


@pytest.mark.scenario("P16")
def test_a_cancellation_during_provisioning_ends_the_order(
    stack: RunningStack, customer: ApiUser, sandbox: Sandbox
) -> None:
    top_up(customer, 1500)
    sandbox.cluster("unschedulable")
    body = {"plan_id": customer.plan("n8n-starter")}
    ordered = assert_success(customer.request("POST", f"{V1}/subscriptions", body, key="soon cancelled"), 201)
    assert ordered["status"] == "provisioning"
    send_command(customer, ordered["id"], "cancel", {"at": "now"})
    customer.wait_for_status(ordered["id"], "cancelled", timeout=60)
    wait_until_sync(lambda: spendable(customer) == 1500, description="what was held is free again")
    assert invoices(customer, ordered["id"]) == []
    instance = customer.get(f"{V1}/instances/{ordered['instance']['id']}")
    assert instance["status"] == "deleted"
    assert instance["namespace"] not in namespaces(stack)
    assert_wallet_matches_transactions(customer)
