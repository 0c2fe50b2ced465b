"""Processes that stop: what is asked meanwhile is answered in time, and nothing is lost or doubled when they return.

A stopped process (SIGSTOP) is the worse case of a killed one: its sockets stay open and say nothing. The supervisor
restarts what dies within seconds and lets what merely hangs be for a minute.
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
from tests.support.stack import Customer, Json, RunningStack, running_stack, start
from tests.support.wait import eventually_sync, in_time

pytestmark = [pytest.mark.faults, pytest.mark.stack, pytest.mark.xdist_group("outages")]

ANSWERS_WITHIN = in_time(5.0)
V1 = "/api/v1"
TOP_UP = {"amount_minor": 1500, "currency": "USD", "gateway": "stripe", "payment_method": "pm_card_visa"}


@pytest.fixture(scope="module")
def stack() -> Iterator[RunningStack]:
    with running_stack() as running:
        yield running


@contextmanager
def stopped(stack: RunningStack, name: str) -> Iterator[None]:
    """The process and its children take no step until this ends."""
    main = psutil.Process(stack.card["processes"][name])
    frozen = [main, *main.children(recursive=True)]
    for process in frozen:
        process.suspend()
    try:
        yield
    finally:
        for process in frozen:
            process.resume()


def timed(customer: Customer, method: str, path: str, body: Json | None = None, key: str | None = None) -> Any:
    """Ask and insist on an answer in time: its status, and its envelope."""
    began = time.monotonic()
    status, answer = customer.call(method, path, body, key=key)
    took = time.monotonic() - began
    assert took < ANSWERS_WITHIN, (method, path, took, answer)
    return status, answer


def unavailable(stack: RunningStack, customer: Customer, method: str, path: str, body: Json | None = None) -> None:
    """503 in time, with the envelope and when to come again."""
    began = time.monotonic()
    headers = {"Authorization": f"Bearer {customer.token}", "Idempotency-Key": uuid.uuid4().hex}
    response = httpx.request(method, f"{stack.api}{path}", json=body, headers=headers, timeout=30)
    assert time.monotonic() - began < ANSWERS_WITHIN, path
    assert response.status_code == 503, response.text
    assert response.json()["error"]["code"] == "UNAVAILABLE"
    assert int(response.headers["Retry-After"]) >= 1


def reads_go_on(stack: RunningStack, customer: Customer) -> None:
    for path in ("users/me", "subscriptions", "billing/wallet", "billing/transactions", "billing/invoices", "services"):
        assert timed(customer, "GET", f"{V1}/{path}")[0] == 200, path
    again = stack.visitor(customer.credentials)
    assert timed(again, "POST", f"{V1}/auth/login", again.credentials)[0] == 200
    fresh = stack.visitor()
    body = {"email": f"{uuid.uuid4().hex}@customer.example", "password": "a long enough password", "name": "Late"}
    assert timed(fresh, "POST", f"{V1}/auth/register", body)[0] == 201


def insist(customer: Customer, path: str, body: Json, key: str) -> Json:
    """Under the same key until it is accepted, as clients do."""
    found: list[Json] = []

    def ask() -> bool:
        status, answer = customer.call("POST", path, body, key=key)
        assert status in (201, 202, 409, 503), answer
        if status in (201, 202):
            found.append(answer["data"])
        return bool(found)

    eventually_sync(ask, what=f"{path} is accepted")
    return found[-1]


def is_back(stack: RunningStack, name: str, gone: int) -> None:
    """The supervisor has started it anew."""
    eventually_sync(lambda: stack.card["processes"].get(name) not in (None, gone), what=f"{name} is back")


def well(stack: RunningStack) -> None:
    """Everything that is under way ends, and what is left agrees with everything else."""
    eventually_sync(lambda: invariants.no_workflow_is_stuck(stack) == [], what="no workflow is stuck")
    invariants.ledger_is_sound(stack)
    invariants.nobody_is_charged_twice(stack)
    invariants.one_invoice_per_period_without_gaps(stack)
    invariants.cluster_holds_exactly_the_instances(stack)


def test_a_stopped_worker(stack: RunningStack) -> None:
    customer = stack.register()
    customer.top_up(3000)
    eventually_sync(lambda: _spendable(customer) == 3000, what="the money is there")
    running = customer.order()["id"]
    customer.until(running, "active")
    order = {"plan_id": customer.plan("n8n-starter")}
    money, key = uuid.uuid4().hex, uuid.uuid4().hex
    with stopped(stack, "worker"):
        reads_go_on(stack, customer)
        first = timed(customer, "POST", f"{V1}/subscriptions", order, key)
        assert first[0] in (202, 503), first
        paid = timed(customer, "POST", f"{V1}/billing/topups", TOP_UP, money)
        assert paid[0] in (202, 503), paid
        if first[0] == 202:
            seen = timed(customer, "GET", f"{V1}/subscriptions/{first[1]['data']['id']}")
            assert (seen[0], seen[1]["data"]["status"]) == (200, "pending")
        for what, body in (("pause", None), ("cancel", {"at": "period_end"}), ("retry-payment", None)):
            assert timed(customer, "POST", f"{V1}/subscriptions/{running}/{what}", body)[0] in (200, 503)
        saved = timed(customer, "POST", f"{V1}/billing/payment-methods", {"gateway": "stripe", "token": "pm_card_visa"})
        assert saved[0] in (202, 503), saved
    accepted = insist(customer, f"{V1}/subscriptions", order, key)
    if first[0] == 202:
        assert accepted["id"] == first[1]["data"]["id"]
    insist(customer, f"{V1}/billing/topups", TOP_UP, money)
    customer.until(accepted["id"], "active")
    eventually_sync(lambda: _spendable(customer) == 1500, what="the top-up came once")
    assert len(customer.get(f"{V1}/subscriptions")) == 2
    well(stack)


def test_a_stopped_temporal(stack: RunningStack) -> None:
    customer = stack.register()
    customer.top_up(1500)
    eventually_sync(lambda: _spendable(customer) == 1500, what="the money is there")
    order = {"plan_id": customer.plan("n8n-starter")}
    with stopped(stack, "temporal"):
        unavailable(stack, customer, "POST", f"{V1}/subscriptions", order)
        unavailable(stack, customer, "POST", f"{V1}/billing/topups", TOP_UP)
        reads_go_on(stack, customer)
        status = httpx.get(f"{stack.api}/status", timeout=10)
        assert (status.status_code, status.json()["status"]) == (200, "degraded")
    accepted = insist(customer, f"{V1}/subscriptions", order, uuid.uuid4().hex)
    customer.until(accepted["id"], "active")
    well(stack)


def test_a_temporal_that_dies_again_and_again(stack: RunningStack) -> None:
    customer = stack.register()
    customer.top_up(1500)
    eventually_sync(lambda: _spendable(customer) == 1500, what="the money is there")
    order, key = {"plan_id": customer.plan("n8n-starter")}, uuid.uuid4().hex
    answers = []
    for _ in range(3):
        gone = stack.kill("temporal")
        answers.append(timed(customer, "POST", f"{V1}/subscriptions", order, key)[0])
        reads_go_on(stack, customer)
        is_back(stack, "temporal", gone)
    assert set(answers) <= {201, 202, 503}, answers
    accepted = insist(customer, f"{V1}/subscriptions", order, key)
    customer.until(accepted["id"], "active", timeout=90)
    assert len(customer.get(f"{V1}/subscriptions")) == 1
    well(stack)


def test_a_stopped_postgresql(stack: RunningStack) -> None:
    customer = stack.register()
    customer.top_up(3000)
    eventually_sync(lambda: _spendable(customer) == 3000, what="the money is there")
    order = {"plan_id": customer.plan("n8n-starter")}
    under_way = customer.order()
    with stopped(stack, "postgres"):
        unavailable(stack, customer, "POST", f"{V1}/subscriptions", order)
        unavailable(stack, customer, "GET", f"{V1}/subscriptions")
        unavailable(stack, customer, "GET", f"{V1}/billing/wallet")
        unavailable(stack, customer, "POST", f"{V1}/auth/login", customer.credentials)
        assert httpx.get(f"{stack.api}/health", timeout=5).status_code == 200
        assert httpx.get(f"{stack.api}/status", timeout=5).status_code == 503
    # What was begun goes on by itself.
    eventually_sync(lambda: customer.call("GET", f"{V1}/users/me")[0] == 200, what="reads work again")
    customer.until(under_way["id"], "active")
    accepted = insist(customer, f"{V1}/subscriptions", order, uuid.uuid4().hex)
    customer.until(accepted["id"], "active")
    well(stack)


@pytest.mark.parametrize("name", ["mailbox", "stripe", "cluster"])
def test_a_stopped_neighbour(stack: RunningStack, name: str) -> None:
    """What does not need it goes on; what needs it waits and is then done once."""
    customer = stack.register()
    customer.top_up(1500)
    eventually_sync(lambda: _spendable(customer) == 1500, what="the money is there")
    order, key, money = {"plan_id": customer.plan("n8n-starter")}, uuid.uuid4().hex, uuid.uuid4().hex
    with stopped(stack, name):
        reads_go_on(stack, customer)
        first = timed(customer, "POST", f"{V1}/subscriptions", order, key)
        assert first[0] in (201, 202), first
        paid = timed(customer, "POST", f"{V1}/billing/topups", TOP_UP, money)
        assert paid[0] in (201, 202), paid
        if name == "stripe":
            assert paid[1]["data"]["status"] in ("created", "pending", "unknown")
        if name != "cluster":
            customer.until(first[1]["data"]["id"], "active")
    customer.until(first[1]["data"]["id"], "active", timeout=90)
    eventually_sync(lambda: _spendable(customer) == 1500, timeout=90, what="the top-up came once")
    email = customer.credentials["email"]

    def mailed() -> bool:
        subjects = [mail["subject"] for mail in stack.mails(email)]
        return [sum(word in subject for subject in subjects) for word in ("is ready", "added to")] == [1, 2]

    eventually_sync(mailed, what="every mail came once")
    well(stack)


@pytest.mark.scenario("P41")
def test_running_instances_do_not_notice(stack: RunningStack) -> None:
    customer = stack.register()
    customer.top_up(1500)
    eventually_sync(lambda: _spendable(customer) == 1500, what="the money is there")
    found = customer.until(customer.order()["id"], "active")
    before = invariants.namespaces(stack)
    for name in ("api", "temporal", "worker"):
        stack.kill(name)
    assert invariants.namespaces(stack) == before
    eventually_sync(
        lambda: all(psutil.pid_exists(pid) for pid in stack.card["processes"].values()), what="all are back"
    )
    eventually_sync(lambda: _answers(customer), what="the API answers")
    assert customer.get(f"{V1}/instances/{found['instance']['id']}")["status"] == "ready"


@pytest.mark.scenario("P2")
def test_a_second_start_after_everything_was_killed_finds_everything(stack: RunningStack) -> None:
    customer = stack.register()
    customer.top_up(3000)
    eventually_sync(lambda: _spendable(customer) == 3000, what="the money is there")
    ready = customer.until(customer.order()["id"], "active")
    under_way = customer.order()
    card = stack.card
    port = int(card["urls"]["api"].rpartition(":")[2])
    # The supervisor first, so that it restarts nothing.
    for name in sorted(card["processes"], key=lambda name: name != "supervisor"):
        try:
            os.kill(card["processes"][name], signal.SIGKILL)
        except ProcessLookupError:
            assert name != "supervisor"
    stack.process.wait(timeout=10)
    stack.process = start(stack.home, port).process
    eventually_sync(lambda: _answers(customer), what="the API answers")
    customer.sign_in()
    assert customer.get(f"{V1}/subscriptions/{ready['id']}")["status"] == "active"
    customer.until(under_way["id"], "active", timeout=90)
    assert _spendable(customer) == 0
    assert stack.card["accounts"] == card["accounts"]
    well(stack)


def _spendable(customer: Customer) -> int:
    return sum(int(amount["amount_minor"]) for amount in customer.get(f"{V1}/billing/wallet")["balances"])


def _answers(customer: Customer) -> bool:
    try:
        return customer.call("GET", "/health")[0] == 200
    except httpx.TransportError:
        return False
