"""What is done to an instance, who may see what, and many orders at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.e2e.steps import V1, card, done, invoices, key, kinds, order, ready, refused, spendable, subscription, top_up
from tests.support.stack import Customer, Json, RunningStack
from tests.support.wait import eventually_sync


def operate(customer: Customer, instance_id: str, what: str) -> Json:
    """Order an operation and wait until it has succeeded."""
    made = done(customer.call("POST", f"{V1}/instances/{instance_id}/{what}", key=key()), 202)["operation"]
    assert made.keys() >= {"id", "kind", "status"}
    path = f"{V1}/instances/{instance_id}/operations/{made['id']}"

    def ended() -> Json | None:
        found: Json = customer.get(path)
        return found if found["status"] in ("succeeded", "failed", "cancelled") else None

    found = eventually_sync(ended, what=f"{what} has ended")
    assert found is not None
    assert found["status"] == "succeeded", found
    return found


def test_restart_stop_start_and_backup(customer: Customer) -> None:
    top_up(customer, 1500)
    found = ready(customer)
    instance = found["instance"]["id"]
    path = f"{V1}/instances/{instance}"
    assert operate(customer, instance, "restart")["kind"] == "restart"
    assert customer.get(path)["status"] == "ready"
    operate(customer, instance, "stop")
    assert customer.get(path)["status"] == "stopped"
    assert subscription(customer, found["id"])["status"] == "active"
    refused(customer.call("POST", f"{path}/restart"), 409, "ILLEGAL_MOVE")
    operate(customer, instance, "start")
    assert customer.get(path)["status"] == "ready"
    operate(customer, instance, "backups")
    # One key, one operation.
    once = key()
    first = done(customer.call("POST", f"{path}/restart", key=once), 202)
    assert done(customer.call("POST", f"{path}/restart", key=once), 202) == first
    assert customer.call("POST", f"{path}/explode")[0] in (404, 422)
    refused(customer.call("GET", f"{path}/operations/op_nothing"), 404, "NOT_FOUND")


@pytest.mark.scenario("S1")
def test_what_belongs_to_others_is_not_there(stack: RunningStack, customer: Customer) -> None:
    card_id = card(customer)["id"]
    paid = top_up(customer, 1500)
    found = ready(customer)
    instance = found["instance"]["id"]
    (invoice,) = invoices(customer, found["id"])
    operation = operate(customer, instance, "restart")["id"]
    plan = customer.plan("n8n-pro")
    mine = f"{V1}/subscriptions/{found['id']}"
    calls: list[tuple[str, str, Json | None]] = [
        ("GET", mine, None),
        ("GET", f"{mine}/timeline", None),
        ("POST", f"{mine}/cancel", {"at": "now"}),
        ("POST", f"{mine}/pause", None),
        ("POST", f"{mine}/resume", None),
        ("POST", f"{mine}/retry-payment", None),
        ("POST", f"{mine}/change-plan", {"plan_id": plan}),
        ("POST", f"{mine}/change-plan/preview", {"plan_id": plan}),
        ("GET", f"{V1}/instances/{instance}", None),
        ("GET", f"{V1}/instances/{instance}/operations/{operation}", None),
        *(("POST", f"{V1}/instances/{instance}/{what}", None) for what in ("restart", "stop", "start", "backups")),
        ("GET", f"{V1}/billing/invoices/{invoice['id']}", None),
        ("GET", f"{V1}/billing/invoices/{invoice['id']}/explain", None),
        ("GET", f"{V1}/billing/invoices/{invoice['id']}/pdf", None),
        ("GET", f"{V1}/billing/payments/{paid['id']}", None),
        ("DELETE", f"{V1}/billing/payment-methods/{card_id}", None),
        ("POST", f"{V1}/billing/payment-methods/{card_id}/default", None),
        ("POST", f"{V1}/sandbox/clock/advance", {"subscription_id": found["id"], "days": 1}),
    ]
    stranger = stack.register()
    for method, path, body in calls:
        refused(stranger.call(method, path, body, key=key()), 404, "NOT_FOUND")
    theirs = {"amount_minor": 500, "currency": "USD", "gateway": "stripe", "payment_method": card_id}
    refused(stranger.call("POST", f"{V1}/billing/topups", theirs, key=key()), 404, "NOT_FOUND")
    listed = stranger.call("GET", f"{V1}/billing/invoices?subscription_id={found['id']}")
    assert done(listed) == []
    for path in ("admin/users", "admin/subscriptions", "admin/payments", "admin/audit-log"):
        refused(stranger.call("GET", f"{V1}/{path}"), 403, "FORBIDDEN")
    assert subscription(customer, found["id"])["status"] == "active"
    assert spendable(stranger) == 0


@pytest.mark.parametrize("what", ["cancel", "pause", "change-plan"])
def test_twenty_orders_at_once_on_one_subscription(stack: RunningStack, customer: Customer, what: str) -> None:
    """One of them is carried out, the others are refused or find it done, and the worker is well."""
    top_up(customer, 1500 + 4500)
    found = ready(customer)
    worker = stack.card["processes"]["worker"]
    bodies: dict[str, Json | None] = {
        "cancel": {"at": "now"}, "pause": None, "change-plan": {"plan_id": customer.plan("n8n-pro")}
    }  # fmt: skip
    url = f"{stack.api}{V1}/subscriptions/{found['id']}/{what}"
    headers = {"Authorization": f"Bearer {customer.token}"}

    def ask(_: int) -> httpx.Response:
        return httpx.post(url, json=bodies[what], headers=headers, timeout=30)

    with ThreadPoolExecutor(20) as crowd:
        answers = list(crowd.map(ask, range(20)))
    assert {answer.status_code for answer in answers} <= {200, 409, 503}, [answer.text for answer in answers]
    assert sum(answer.status_code == 200 for answer in answers) >= 1
    for answer in answers:
        assert answer.status_code != 503 or "Retry-After" in answer.headers
    kind = {"cancel": "subscription.cancelled", "pause": "subscription.paused"}.get(what, "subscription.plan_changed")
    eventually_sync(lambda: kinds(customer, found["id"]).count(kind) == 1, what=f"one {kind}")
    # The same worker still serves: the next orders go through.
    top_up(customer, 1500)
    other = ready(customer)
    order(customer, other["id"], "cancel", {"at": "now"})
    assert stack.card["processes"]["worker"] == worker
    assert kinds(customer, found["id"]).count(kind) == 1


def test_orders_of_every_sort_at_once(stack: RunningStack, customer: Customer) -> None:
    top_up(customer, 20_000)
    found = ready(customer)
    path = f"{stack.api}{V1}/subscriptions/{found['id']}"
    instance = f"{stack.api}{V1}/instances/{found['instance']['id']}"
    pro, starter = customer.plan("n8n-pro"), customer.plan("n8n-starter")
    wanted: list[tuple[str, Json | None]] = [
        (f"{path}/pause", None),
        (f"{path}/resume", None),
        (f"{path}/change-plan", {"plan_id": pro}),
        (f"{path}/change-plan", {"plan_id": starter, "mode": "immediate"}),
        (f"{path}/cancel", {"at": "period_end"}),
        (f"{instance}/restart", None),
        (f"{instance}/stop", None),
        (f"{instance}/start", None),
    ]
    headers = {"Authorization": f"Bearer {customer.token}"}

    def ask(number: int) -> httpx.Response:
        url, body = wanted[number % len(wanted)]
        return httpx.post(url, json=body, headers=headers, timeout=60)

    with ThreadPoolExecutor(16) as crowd:
        answers = list(crowd.map(ask, range(24)))
    assert {answer.status_code for answer in answers} <= {200, 202, 402, 409, 503}, [answer.text for answer in answers]
    ended = eventually_sync(
        lambda: customer.call("POST", f"{V1}/subscriptions/{found['id']}/cancel", {"at": "now"})[0] in (200, 409),
        what="it takes orders",
    )
    assert ended
    customer.until(found["id"], "cancelled")
