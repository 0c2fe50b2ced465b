"""What is done to an instance, who may see what, and many orders at once."""

from __future__ import annotations

import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bcrypt
import httpx
import pytest

from activities.adapters.kubernetes.client import KubernetesClient
from tests.e2e.steps import (
    V1,
    assert_error,
    assert_success,
    card,
    get_subscription,
    invoices,
    kinds,
    new_key,
    order_until_ready,
    send_command,
    spendable,
    top_up,
)
from tests.support.running_stack import ApiUser, Json, RunningStack
from tests.support.wait import wait_until_sync


def run_operation(customer: ApiUser, instance_id: str, kind: str) -> Json:
    """Order an operation and wait until it has succeeded."""
    operation = assert_success(customer.request("POST", f"{V1}/instances/{instance_id}/{kind}", key=new_key()), 202)[
        "operation"
    ]
    assert operation.keys() >= {"id", "kind", "status"}
    path = f"{V1}/instances/{instance_id}/operations/{operation['id']}"

    def ended() -> Json | None:
        current: Json = customer.get(path)
        return current if current["status"] in ("succeeded", "failed", "cancelled") else None

    current = wait_until_sync(ended, description=f"{kind} has ended")
    assert current is not None
    assert current["status"] == "succeeded", current
    return current


def test_restart_stop_start_and_backup(customer: ApiUser) -> None:
    top_up(customer, 1500)
    subscription = order_until_ready(customer)
    instance = subscription["instance"]["id"]
    path = f"{V1}/instances/{instance}"
    assert run_operation(customer, instance, "restart")["kind"] == "restart"
    assert customer.get(path)["status"] == "ready"
    run_operation(customer, instance, "stop")
    assert customer.get(path)["status"] == "stopped"
    assert get_subscription(customer, subscription["id"])["status"] == "active"
    assert_error(customer.request("POST", f"{path}/restart"), 409, "ILLEGAL_MOVE")
    run_operation(customer, instance, "start")
    assert customer.get(path)["status"] == "ready"
    run_operation(customer, instance, "backups")
    # One key, one operation.
    once = new_key()
    first = assert_success(customer.request("POST", f"{path}/restart", key=once), 202)
    assert assert_success(customer.request("POST", f"{path}/restart", key=once), 202) == first
    assert customer.request("POST", f"{path}/explode")[0] in (404, 422)
    assert_error(customer.request("GET", f"{path}/operations/op_nothing"), 404, "NOT_FOUND")


def test_the_customer_signs_in_with_credentials_that_are_handed_over_once(
    stack: RunningStack, customer: ApiUser
) -> None:
    top_up(customer, 1500)
    subscription = order_until_ready(customer)
    path = f"{V1}/instances/{subscription['instance']['id']}"
    instance = customer.get(path)
    credentials = assert_success(customer.request("POST", f"{path}/credentials"))
    assert credentials.keys() == {"url", "username", "password"}
    assert credentials["url"].startswith(instance["url"])
    assert credentials["username"] == customer.credentials["email"].lower()
    # What the application was started with.
    gateway = KubernetesClient.from_kubeconfig(Path(stack.card["cluster"]["kubeconfig"]))
    stored_secret = asyncio.run(gateway.get("Secret", instance["namespace"], "app"))
    gateway.close()
    assert stored_secret is not None
    secret = {key: base64.b64decode(value).decode() for key, value in stored_secret["data"].items()}
    assert (secret["owner-email"], secret["owner-password"]) == (credentials["username"], credentials["password"])
    assert bcrypt.checkpw(credentials["password"].encode(), secret["owner-password-hash"].encode())
    assert_error(customer.request("POST", f"{path}/credentials"), 409, "CONFLICT")

    # The mail says how to get them, and holds none.
    def mail() -> Json | None:
        mails = stack.mails(customer.credentials["email"])
        return next((message for message in mails if f"{path}/credentials" in message["text"]), None)

    found_mail = wait_until_sync(mail, description="the mail that says how to sign in")
    assert found_mail is not None
    assert credentials["password"] not in found_mail["text"] + found_mail["html"]


@pytest.mark.scenario("S1")
def test_objects_of_other_organizations_are_not_found(stack: RunningStack, customer: ApiUser) -> None:
    card_id = card(customer)["id"]
    paid = top_up(customer, 1500)
    subscription = order_until_ready(customer)
    instance = subscription["instance"]["id"]
    (invoice,) = invoices(customer, subscription["id"])
    operation = run_operation(customer, instance, "restart")["id"]
    plan = customer.plan("n8n-pro")
    mine = f"{V1}/subscriptions/{subscription['id']}"
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
        *(
            ("POST", f"{V1}/instances/{instance}/{kind}", None)
            for kind in ("restart", "stop", "start", "backups", "credentials")
        ),
        ("GET", f"{V1}/billing/invoices/{invoice['id']}", None),
        ("GET", f"{V1}/billing/invoices/{invoice['id']}/explain", None),
        ("GET", f"{V1}/billing/invoices/{invoice['id']}/pdf", None),
        ("GET", f"{V1}/billing/payments/{paid['id']}", None),
        ("DELETE", f"{V1}/billing/payment-methods/{card_id}", None),
        ("POST", f"{V1}/billing/payment-methods/{card_id}/default", None),
        ("POST", f"{V1}/sandbox/clock/advance", {"subscription_id": subscription["id"], "days": 1}),
    ]
    stranger = stack.register()
    for method, path, body in calls:
        assert_error(stranger.request(method, path, body, key=new_key()), 404, "NOT_FOUND")
    theirs = {"amount_minor": 500, "currency": "USD", "gateway": "stripe", "payment_method": card_id}
    assert_error(stranger.request("POST", f"{V1}/billing/topups", theirs, key=new_key()), 404, "NOT_FOUND")
    listed = stranger.request("GET", f"{V1}/billing/invoices?subscription_id={subscription['id']}")
    assert assert_success(listed) == []
    for path in ("admin/users", "admin/subscriptions", "admin/payments", "admin/audit-log"):
        assert_error(stranger.request("GET", f"{V1}/{path}"), 403, "FORBIDDEN")
    assert get_subscription(customer, subscription["id"])["status"] == "active"
    assert spendable(stranger) == 0


@pytest.mark.parametrize("command", ["cancel", "pause", "change-plan"])
def test_twenty_concurrent_commands_on_one_subscription(stack: RunningStack, customer: ApiUser, command: str) -> None:
    """One of them is carried out, the others are refused or find it done, and the worker is well."""
    top_up(customer, 1500 + 4500)
    subscription = order_until_ready(customer)
    worker = stack.card["processes"]["worker"]
    bodies: dict[str, Json | None] = {
        "cancel": {"at": "now"}, "pause": None, "change-plan": {"plan_id": customer.plan("n8n-pro")}
    }  # fmt: skip
    url = f"{stack.api}{V1}/subscriptions/{subscription['id']}/{command}"
    headers = {"Authorization": f"Bearer {customer.token}"}

    def ask(_: int) -> httpx.Response:
        return httpx.post(url, json=bodies[command], headers=headers, timeout=30)

    with ThreadPoolExecutor(20) as crowd:
        responses = list(crowd.map(ask, range(20)))
    assert {response.status_code for response in responses} <= {200, 202, 409, 503}, [
        response.text for response in responses
    ]
    assert sum(response.status_code == 200 for response in responses) >= 1
    for response in responses:
        assert response.status_code != 503 or "Retry-After" in response.headers
    kind = {"cancel": "subscription.cancelled", "pause": "subscription.paused"}.get(
        command, "subscription.plan_changed"
    )
    wait_until_sync(lambda: kinds(customer, subscription["id"]).count(kind) == 1, description=f"one {kind}")
    # The same worker still serves: the next orders go through.
    top_up(customer, 1500)
    other = order_until_ready(customer)
    send_command(customer, other["id"], "cancel", {"at": "now"})
    assert stack.card["processes"]["worker"] == worker
    assert kinds(customer, subscription["id"]).count(kind) == 1


def test_concurrent_commands_of_every_kind(stack: RunningStack, customer: ApiUser) -> None:
    top_up(customer, 20_000)
    subscription = order_until_ready(customer)
    path = f"{stack.api}{V1}/subscriptions/{subscription['id']}"
    instance = f"{stack.api}{V1}/instances/{subscription['instance']['id']}"
    pro, starter = customer.plan("n8n-pro"), customer.plan("n8n-starter")
    commands: list[tuple[str, Json | None]] = [
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
        url, body = commands[number % len(commands)]
        return httpx.post(url, json=body, headers=headers, timeout=60)

    with ThreadPoolExecutor(16) as crowd:
        responses = list(crowd.map(ask, range(24)))
    assert {response.status_code for response in responses} <= {200, 202, 402, 409, 503}, [
        response.text for response in responses
    ]
    ended = wait_until_sync(
        lambda: (
            customer.request("POST", f"{V1}/subscriptions/{subscription['id']}/cancel", {"at": "now"})[0]
            in (200, 202, 409)
        ),
        description="it takes orders",
    )
    assert ended
    customer.wait_for_status(subscription["id"], "cancelled")
