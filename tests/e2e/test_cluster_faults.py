"""A cluster that refuses, throttles, loses nodes or gets nothing ready: orders wait while it may pass, or end clean."""

from __future__ import annotations

import time

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
    kinds,
    mailed,
    spendable,
    the_books_agree,
    timeline,
    top_up,
)
from tests.support.invariants import namespaces
from tests.support.stack import Customer, RunningStack
from tests.support.wait import eventually_sync, in_time

PASSING = ("image_pull", "crash_loop", "slow_ready", "unschedulable", "conflict", "throttle", "server_error")
# In the sandbox an order gives up after a minute of one and the same reason.
GIVES_UP = 60
UNDOES_WITHIN = 30
STRIKES_WITHIN = 8
PERSISTENT = {"image_pull": "ImagePull", "crash_loop": "CrashLoop", "unschedulable": "Unschedulable"}
ORDERS = f"{V1}/subscriptions"


def begun(customer: Customer, **more: object) -> str:
    body = {"plan_id": customer.plan("n8n-starter"), **more}
    began = time.monotonic()
    made = done(customer.call("POST", ORDERS, body, key=key()), 201)
    assert time.monotonic() - began < in_time(5)
    return str(made["id"])


@pytest.mark.scenario("P8")
@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_waited_for(customer: Customer, sandbox: Sandbox, fault: str) -> None:
    top_up(customer, 1500)
    sandbox.cluster(fault, seconds=4)
    order_id = begun(customer)
    customer.until(order_id, "active", timeout=50)
    assert [invoice["status"] for invoice in invoices(customer, order_id)] == ["paid"]
    the_books_agree(customer)


def stricken(customer: Customer, sandbox: Sandbox, fault: str, reason: str) -> str:
    """An order that suffers from a fault of its own, which stays; nobody else's suffers for long."""
    sandbox.cluster(fault, seconds=STRIKES_WITHIN)
    order_id = begun(customer)
    instance = f"{V1}/instances/{customer.get(f'{ORDERS}/{order_id}')['instance']['id']}"
    eventually_sync(lambda: customer.get(instance)["reason"] == reason, what=f"{fault} strikes")
    sandbox.cluster(fault, namespace=customer.get(instance)["namespace"])
    eventually_sync(lambda: not sandbox.passing(), what="it is the order's own fault")
    return order_id


def refused_for_good(customer: Customer, sandbox: Sandbox) -> str:
    """An order whose every call to the cluster fails from now on; nobody else's do for long."""
    sandbox.cluster("server_error", seconds=4)
    order_id = begun(customer)
    sandbox.until_struck(1)
    instance = customer.get(f"{V1}/instances/{customer.get(f'{ORDERS}/{order_id}')['instance']['id']}")
    sandbox.cluster("server_error", namespace=instance["namespace"])
    eventually_sync(lambda: not sandbox.passing(), what="it is the order's own fault")
    return order_id


@pytest.mark.scenario("P5", "P8", "P9", "P13", "P17", "B47")
def test_what_stays_wrong_ends_the_order_and_releases_everything(
    stack: RunningStack, customer: Customer, sandbox: Sandbox
) -> None:
    """One order per fault, and one that is paid by card."""
    unlucky = stack.register()
    top_up(unlucky, 1500)
    unserved = refused_for_good(unlucky, sandbox)
    top_up(customer, 2 * 1500)
    by_card = stack.register()
    card(by_card)
    orders: dict[str, tuple[Customer, str]] = {}
    for fault, reason in PERSISTENT.items():
        owner = by_card if fault == "unschedulable" else customer
        orders[fault] = (owner, stricken(owner, sandbox, fault, reason))
    assert held(customer) == 3000
    for fault, (owner, order_id) in orders.items():
        found = owner.until(order_id, "failed", "active", timeout=GIVES_UP + 40)
        assert found["status"] == "failed"
        instance = owner.get(f"{V1}/instances/{found['instance']['id']}")
        assert (instance["status"], instance["reason"]) == ("failed", PERSISTENT[fault])
        assert instance["conditions"][-1]["message"]
        assert instance["namespace"] not in namespaces(stack)
        assert invoices(owner, order_id) == []
        assert GIVES_UP - 5 <= _took(owner, order_id) <= GIVES_UP + 20
    assert (spendable(customer), held(customer)) == (3000, 0)
    (payment,) = every(by_card, f"{V1}/billing/payments")
    eventually_sync(
        lambda: by_card.get(f"{V1}/billing/payments/{payment['id']}")["status"] == "cancelled",
        what="the authorisation is released",
    )
    crash = customer.get(f"{V1}/subscriptions/{orders['crash_loop'][1]}")["instance"]["id"]
    assert "exit code 1" in customer.get(f"{V1}/instances/{crash}")["conditions"][-1]["message"]
    found = unlucky.until(unserved, "failed", "active", timeout=GIVES_UP)
    assert (found["status"], spendable(unlucky), held(unlucky)) == ("failed", 1500, 0)
    assert _took(unlucky, unserved) <= GIVES_UP + UNDOES_WITHIN
    instance = unlucky.get(f"{V1}/instances/{found['instance']['id']}")
    assert (instance["status"], instance["reason"]) == ("cleanup_pending", "Unavailable")
    for owner in (customer, by_card, unlucky):
        the_books_agree(owner)
    # It was nobody's fault: the same order works once the cluster does, and what was left is removed then.
    sandbox.clear()
    customer.until(begun(customer), "active")
    eventually_sync(lambda: instance["namespace"] not in namespaces(stack), what="what was left of it is removed")


def _took(customer: Customer, order_id: str) -> float:
    """Seconds between the beginning of the provisioning and its failure, as the customer is told them."""
    at = {event["kind"]: instant(event["at"]) for event in timeline(customer, order_id)}
    return (at["subscription.failed"] - at["instance.provisioning"]).total_seconds()


def test_a_lost_node_is_survived(stack: RunningStack, customer: Customer, sandbox: Sandbox) -> None:
    top_up(customer, 1500)
    sandbox.cluster("node_lost", count=1, seconds=5)
    customer.until(begun(customer), "active", timeout=60)
    the_books_agree(customer)


@pytest.mark.scenario("P14", "B48")
def test_an_order_is_cancelled_while_the_cluster_is_slow(
    stack: RunningStack, customer: Customer, sandbox: Sandbox
) -> None:
    top_up(customer, 1500)
    sandbox.cluster("slow_ready", seconds=30)
    order_id = begun(customer)
    customer.until(order_id, "provisioning")
    sandbox.until_struck(1)
    done(customer.call("POST", f"{ORDERS}/{order_id}/cancel", {"at": "now"}))
    found = customer.until(order_id, "cancelled", timeout=40)
    assert (spendable(customer), held(customer)) == (1500, 0)
    assert invoices(customer, order_id) == []
    assert "subscription.activated" not in kinds(customer, order_id)
    instance = customer.get(f"{V1}/instances/{found['instance']['id']}")
    assert instance["namespace"] not in namespaces(stack)
    mailed(stack, customer, "ready", 0)
    the_books_agree(customer)
