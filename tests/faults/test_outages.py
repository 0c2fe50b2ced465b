"""Stopped processes: requests are answered in time, and nothing is lost or duplicated after the processes return.

A stopped process (SIGSTOP) is harder than a killed one: its sockets stay open and send nothing. The supervisor
restarts a dead process within seconds and a hanging one after a minute.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psutil
import pytest

from tests.support import invariants
from tests.support.running_stack import ApiUser, Json, RunningStack, running_stack, start_stack
from tests.support.wait import scale_timeout, wait_until_sync

pytestmark = [pytest.mark.faults, pytest.mark.stack]

RESPONSE_TIMEOUT = scale_timeout(5.0)
V1 = "/api/v1"
TOP_UP = {"amount_minor": 1500, "currency": "USD", "gateway": "stripe", "payment_method": "pm_card_visa"}


@pytest.fixture(scope="module")
def stack() -> Iterator[RunningStack]:
    with running_stack() as running:
        yield running


@contextmanager
def stopped(stack: RunningStack, name: str) -> Iterator[None]:
    """Suspend the process and its children."""
    main = psutil.Process(stack.card["processes"][name])
    frozen = [main, *main.children(recursive=True)]
    for process in frozen:
        process.suspend()
    try:
        yield
    finally:
        for process in frozen:
            process.resume()


def timed(customer: ApiUser, method: str, path: str, body: Json | None = None, key: str | None = None) -> Any:
    """Send a request. Assert that the response arrives in time; return its status and envelope."""
    began = time.monotonic()
    status, response = customer.request(method, path, body, key=key)
    took = time.monotonic() - began
    assert took < RESPONSE_TIMEOUT, (method, path, took, response)
    return status, response


def assert_unavailable(
    stack: RunningStack, customer: ApiUser, method: str, path: str, body: Json | None = None
) -> None:
    """Assert a response of 503 in time, with the error envelope and a Retry-After header."""
    began = time.monotonic()
    headers = {"Authorization": f"Bearer {customer.token}", "Idempotency-Key": uuid.uuid4().hex}
    response = httpx.request(method, f"{stack.api}{path}", json=body, headers=headers, timeout=30)
    assert time.monotonic() - began < RESPONSE_TIMEOUT, path
    assert response.status_code == 503, response.text
    assert response.json()["error"]["code"] == "UNAVAILABLE"
    assert int(response.headers["Retry-After"]) >= 1


def assert_reads_work(stack: RunningStack, customer: ApiUser) -> None:
    for path in ("users/me", "subscriptions", "billing/wallet", "billing/transactions", "billing/invoices", "services"):
        assert timed(customer, "GET", f"{V1}/{path}")[0] == 200, path
    second_session = stack.anonymous(customer.credentials)
    assert timed(second_session, "POST", f"{V1}/auth/login", second_session.credentials)[0] == 200
    fresh = stack.anonymous()
    body = {"email": f"{uuid.uuid4().hex}@customer.example", "password": "a long enough password", "name": "Late"}
    assert timed(fresh, "POST", f"{V1}/auth/register", body)[0] == 201


def post_until_accepted(customer: ApiUser, path: str, body: Json, key: str) -> Json:
    """Repeat a request under the same key until it is accepted. Return the data of the response."""
    accepted: list[Json] = []

    def ask() -> bool:
        status, response = customer.request("POST", path, body, key=key)
        assert status in (201, 202, 409, 503), response
        if status in (201, 202):
            accepted.append(response["data"])
        return bool(accepted)

    wait_until_sync(ask, description=f"{path} is accepted")
    return accepted[-1]


def wait_for_restart(stack: RunningStack, name: str, gone: int) -> None:
    """Wait until the supervisor has restarted the process."""
    wait_until_sync(lambda: stack.card["processes"].get(name) not in (None, gone), description=f"{name} is back")


def assert_recovered(stack: RunningStack) -> None:
    """Assert that no workflow is stuck and that ledger, gateway and cluster agree."""
    wait_until_sync(lambda: invariants.list_stuck_workflows(stack) == [], description="no workflow is stuck")
    invariants.assert_ledger_balanced(stack)
    invariants.assert_no_duplicate_charges(stack)
    invariants.assert_invoice_numbers_gapless(stack)
    invariants.assert_cluster_matches_instances(stack)


def test_a_stopped_worker(stack: RunningStack) -> None:
    customer = stack.register()
    customer.top_up(3000)
    wait_until_sync(lambda: _spendable(customer) == 3000, description="the money is there")
    running = customer.create_subscription()["id"]
    customer.wait_for_status(running, "active")
    order = {"plan_id": customer.plan("n8n-starter")}
    money, key = uuid.uuid4().hex, uuid.uuid4().hex
    with stopped(stack, "worker"):
        assert_reads_work(stack, customer)
        first = timed(customer, "POST", f"{V1}/subscriptions", order, key)
        assert first[0] in (202, 503), first
        paid = timed(customer, "POST", f"{V1}/billing/topups", TOP_UP, money)
        assert paid[0] in (202, 503), paid
        if first[0] == 202:
            loaded = timed(customer, "GET", f"{V1}/subscriptions/{first[1]['data']['id']}")
            assert (loaded[0], loaded[1]["data"]["status"]) == (200, "pending")
        for command, body in (("pause", None), ("cancel", {"at": "period_end"}), ("retry-payment", None)):
            assert timed(customer, "POST", f"{V1}/subscriptions/{running}/{command}", body)[0] in (200, 202, 503)
        saved = timed(customer, "POST", f"{V1}/billing/payment-methods", {"gateway": "stripe", "token": "pm_card_visa"})
        assert saved[0] in (202, 503), saved
    accepted = post_until_accepted(customer, f"{V1}/subscriptions", order, key)
    if first[0] == 202:
        assert accepted["id"] == first[1]["data"]["id"]
    post_until_accepted(customer, f"{V1}/billing/topups", TOP_UP, money)
    customer.wait_for_status(accepted["id"], "active")
    wait_until_sync(lambda: _spendable(customer) == 1500, description="the top-up came once")
    assert len(customer.get(f"{V1}/subscriptions")) == 2
    assert_recovered(stack)


def test_an_order_that_a_stopped_worker_has_not_recorded_can_be_cancelled(stack: RunningStack) -> None:
    customer = stack.register()
    customer.top_up(1500)
    wait_until_sync(lambda: _spendable(customer) == 1500, description="the money is there")
    cancellation = uuid.uuid4().hex
    with stopped(stack, "worker"):
        status, ordered = timed(
            customer, "POST", f"{V1}/subscriptions", {"plan_id": customer.plan("n8n-starter")}, uuid.uuid4().hex
        )
        assert status == 202, ordered
        subscription = f"{V1}/subscriptions/{ordered['data']['id']}"
        status, events = timed(customer, "GET", f"{subscription}/timeline")
        assert (status, events["data"]) == (200, [])
        status, refused = timed(customer, "POST", f"{subscription}/cancel", {"at": "now"}, cancellation)
        # No worker has accepted it, so it may not be answered as accepted: a repetition under its key is the same one.
        assert (status, refused["error"]["code"]) == (503, "UNAVAILABLE")

    def is_cancelled() -> bool:
        status, response = customer.request("POST", f"{subscription}/cancel", {"at": "now"}, key=cancellation)
        assert status in (200, 202, 409, 503), response
        return bool(customer.get(subscription)["status"] == "cancelled")

    wait_until_sync(is_cancelled, description="the order is cancelled")
    wait_until_sync(lambda: _spendable(customer) == 1500, description="nothing was charged")
    assert_recovered(stack)


def test_a_stopped_temporal(stack: RunningStack) -> None:
    customer = stack.register()
    customer.top_up(1500)
    wait_until_sync(lambda: _spendable(customer) == 1500, description="the money is there")
    order = {"plan_id": customer.plan("n8n-starter")}
    with stopped(stack, "temporal"):
        assert_unavailable(stack, customer, "POST", f"{V1}/subscriptions", order)
        assert_unavailable(stack, customer, "POST", f"{V1}/billing/topups", TOP_UP)
        assert_reads_work(stack, customer)
        status = httpx.get(f"{stack.api}/status", timeout=10)
        assert (status.status_code, status.json()["status"]) == (200, "degraded")
    accepted = post_until_accepted(customer, f"{V1}/subscriptions", order, uuid.uuid4().hex)
    customer.wait_for_status(accepted["id"], "active")
    assert_recovered(stack)


def test_a_temporal_that_dies_again_and_again(stack: RunningStack) -> None:
    customer = stack.register()
    customer.top_up(1500)
    wait_until_sync(lambda: _spendable(customer) == 1500, description="the money is there")
    order, key = {"plan_id": customer.plan("n8n-starter")}, uuid.uuid4().hex
    statuses = []
    for _ in range(3):
        gone = stack.kill("temporal")
        statuses.append(timed(customer, "POST", f"{V1}/subscriptions", order, key)[0])
        assert_reads_work(stack, customer)
        wait_for_restart(stack, "temporal", gone)
    assert set(statuses) <= {201, 202, 503}, statuses
    accepted = post_until_accepted(customer, f"{V1}/subscriptions", order, key)
    customer.wait_for_status(accepted["id"], "active", timeout=90)
    assert len(customer.get(f"{V1}/subscriptions")) == 1
    assert_recovered(stack)


def test_a_stopped_postgresql(stack: RunningStack) -> None:
    customer = stack.register()
    customer.top_up(3000)
    wait_until_sync(lambda: _spendable(customer) == 3000, description="the money is there")
    order = {"plan_id": customer.plan("n8n-starter")}
    under_way = customer.create_subscription()
    with stopped(stack, "postgres"):
        assert_unavailable(stack, customer, "POST", f"{V1}/subscriptions", order)
        assert_unavailable(stack, customer, "GET", f"{V1}/subscriptions")
        assert_unavailable(stack, customer, "GET", f"{V1}/billing/wallet")
        assert_unavailable(stack, customer, "POST", f"{V1}/auth/login", customer.credentials)
        assert httpx.get(f"{stack.api}/health", timeout=5).status_code == 200
        assert httpx.get(f"{stack.api}/status", timeout=5).status_code == 503
    # Provisioning that was in flight continues.
    wait_until_sync(lambda: customer.request("GET", f"{V1}/users/me")[0] == 200, description="reads work again")
    customer.wait_for_status(under_way["id"], "active")
    accepted = post_until_accepted(customer, f"{V1}/subscriptions", order, uuid.uuid4().hex)
    customer.wait_for_status(accepted["id"], "active")
    assert_recovered(stack)


@pytest.mark.parametrize("name", ["mailbox", "stripe", "cluster", "cluster_proxy"])
def test_a_stopped_dependency(stack: RunningStack, name: str) -> None:
    """Requests that do not need the process succeed; work that needs it waits and is then done once."""
    customer = stack.register()
    customer.top_up(1500)
    wait_until_sync(lambda: _spendable(customer) == 1500, description="the money is there")
    order, key, money = {"plan_id": customer.plan("n8n-starter")}, uuid.uuid4().hex, uuid.uuid4().hex
    with stopped(stack, name):
        assert_reads_work(stack, customer)
        first = timed(customer, "POST", f"{V1}/subscriptions", order, key)
        assert first[0] in (201, 202), first
        paid = timed(customer, "POST", f"{V1}/billing/topups", TOP_UP, money)
        assert paid[0] in (201, 202), paid
        if name == "stripe":
            assert paid[1]["data"]["status"] in ("created", "pending", "unknown")
        if not name.startswith("cluster"):
            customer.wait_for_status(first[1]["data"]["id"], "active")
    customer.wait_for_status(first[1]["data"]["id"], "active", timeout=90)
    wait_until_sync(lambda: _spendable(customer) == 1500, timeout=90, description="the top-up came once")
    email = customer.credentials["email"]

    def all_mails_arrived() -> bool:
        subjects = [mail["subject"] for mail in stack.mails(email)]
        return [sum(word in subject for subject in subjects) for word in ("is ready", "added to")] == [1, 2]

    wait_until_sync(all_mails_arrived, description="every mail came once")
    assert_recovered(stack)


@pytest.mark.scenario("P41")
def test_running_instances_are_not_affected(stack: RunningStack) -> None:
    customer = stack.register()
    customer.top_up(1500)
    wait_until_sync(lambda: _spendable(customer) == 1500, description="the money is there")
    subscription = customer.wait_for_status(customer.create_subscription()["id"], "active")
    before = invariants.namespaces(stack)
    for name in ("api", "temporal", "worker"):
        stack.kill(name)
    assert invariants.namespaces(stack) == before
    wait_until_sync(
        lambda: all(psutil.pid_exists(pid) for pid in stack.card["processes"].values()), description="all are back"
    )
    wait_until_sync(lambda: _is_serving(customer), description="the API answers")
    assert customer.get(f"{V1}/instances/{subscription['instance']['id']}")["status"] == "ready"


@pytest.mark.scenario("P2")
def test_a_second_start_after_everything_was_killed_finds_everything(stack: RunningStack) -> None:
    customer = stack.register()
    customer.top_up(3000)
    wait_until_sync(lambda: _spendable(customer) == 3000, description="the money is there")
    ready = customer.wait_for_status(customer.create_subscription()["id"], "active")
    under_way = customer.create_subscription()
    card = stack.card
    port = int(card["urls"]["api"].rpartition(":")[2])
    # The supervisor first, so that it restarts nothing.
    for name in sorted(card["processes"], key=lambda name: name != "supervisor"):
        try:
            os.kill(card["processes"][name], signal.SIGKILL)
        except ProcessLookupError:
            assert name != "supervisor"
    stack.process.wait(timeout=10)
    stack.process = start_stack(stack.home, port).process
    wait_until_sync(lambda: _is_serving(customer), description="the API answers")
    customer.sign_in()
    assert customer.get(f"{V1}/subscriptions/{ready['id']}")["status"] == "active"
    customer.wait_for_status(under_way["id"], "active", timeout=90)
    assert _spendable(customer) == 0
    assert stack.card["accounts"] == card["accounts"]
    assert_recovered(stack)


def _spendable(customer: ApiUser) -> int:
    return sum(int(amount["amount_minor"]) for amount in customer.get(f"{V1}/billing/wallet")["balances"])


def _is_serving(customer: ApiUser) -> bool:
    try:
        return customer.request("GET", "/health")[0] == 200
    except httpx.TransportError:
        return False
