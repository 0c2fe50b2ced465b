"""A cluster that refuses, throttles, loses nodes or gets nothing ready: orders wait while it may pass, or end clean."""

from __future__ import annotations

import time

import pytest

from tests.e2e.steps import (
    V1,
    Sandbox,
    assert_success,
    assert_wallet_matches_transactions,
    card,
    held,
    instant,
    invoices,
    kinds,
    list_all,
    new_key,
    send_command,
    spendable,
    timeline,
    top_up,
    wait_for_mails,
)
from tests.support.invariants import namespaces
from tests.support.running_stack import ApiUser, RunningStack
from tests.support.wait import scale_timeout, wait_until_sync

TRANSIENT_FAULTS = ("image_pull", "crash_loop", "slow_ready", "unschedulable", "conflict", "throttle", "server_error")
# In the sandbox provisioning fails after a minute of the same failure reason.
FAILURE_THRESHOLD_SECONDS = 60
CLEANUP_SECONDS = 30
FAULT_SECONDS = 8
REASON_BY_FAULT = {"image_pull": "ImagePull", "crash_loop": "CrashLoop", "unschedulable": "Unschedulable"}
ORDERS = f"{V1}/subscriptions"


def place_order(customer: ApiUser, **more: object) -> str:
    body = {"plan_id": customer.plan("n8n-starter"), **more}
    started_at = time.monotonic()
    ordered = assert_success(customer.request("POST", ORDERS, body, key=new_key()), 201)
    assert time.monotonic() - started_at < scale_timeout(5)
    return str(ordered["id"])


@pytest.mark.scenario("P8")
@pytest.mark.parametrize("fault", TRANSIENT_FAULTS)
def test_provisioning_waits_for_transient_faults(customer: ApiUser, sandbox: Sandbox, fault: str) -> None:
    top_up(customer, 1500)
    sandbox.cluster(fault, seconds=4)
    subscription_id = place_order(customer)
    customer.wait_for_status(subscription_id, "active", timeout=50)
    assert [invoice["status"] for invoice in invoices(customer, subscription_id)] == ["paid"]
    assert_wallet_matches_transactions(customer)


def order_with_persistent_fault(customer: ApiUser, sandbox: Sandbox, fault: str, reason: str) -> str:
    """Place an order with a persistent fault in its namespace; other namespaces have the fault only briefly."""
    sandbox.cluster(fault, seconds=FAULT_SECONDS)
    subscription_id = place_order(customer)
    instance = f"{V1}/instances/{customer.get(f'{ORDERS}/{subscription_id}')['instance']['id']}"
    wait_until_sync(lambda: customer.get(instance)["reason"] == reason, description=f"{fault} strikes")
    sandbox.cluster(fault, namespace=customer.get(instance)["namespace"])
    wait_until_sync(lambda: not sandbox.passing(), description="only the fault in the order's namespace is left")
    return subscription_id


def order_with_unavailable_cluster(customer: ApiUser, sandbox: Sandbox) -> str:
    """Place an order whose calls to the cluster all fail; calls for other namespaces fail only briefly."""
    sandbox.cluster("server_error", seconds=4)
    subscription_id = place_order(customer)
    sandbox.until_struck(1)
    instance = customer.get(f"{V1}/instances/{customer.get(f'{ORDERS}/{subscription_id}')['instance']['id']}")
    sandbox.cluster("server_error", namespace=instance["namespace"])
    wait_until_sync(lambda: not sandbox.passing(), description="only the fault in the order's namespace is left")
    return subscription_id


@pytest.mark.scenario("P5", "P8", "P9", "P13", "P17", "B47")
def test_persistent_faults_fail_the_order_and_release_its_funds(
    stack: RunningStack, customer: ApiUser, sandbox: Sandbox
) -> None:
    """One order per fault, and one that is paid by card."""
    unlucky = stack.register()
    top_up(unlucky, 1500)
    unserved = order_with_unavailable_cluster(unlucky, sandbox)
    top_up(customer, 2 * 1500)
    by_card = stack.register()
    card(by_card)
    orders: dict[str, tuple[ApiUser, str]] = {}
    for fault, reason in REASON_BY_FAULT.items():
        owner = by_card if fault == "unschedulable" else customer
        orders[fault] = (owner, order_with_persistent_fault(owner, sandbox, fault, reason))
    assert held(customer) == 3000
    for fault, (owner, subscription_id) in orders.items():
        subscription = owner.wait_for_status(
            subscription_id, "failed", "active", timeout=FAILURE_THRESHOLD_SECONDS + 40
        )
        assert subscription["status"] == "failed"
        instance = owner.get(f"{V1}/instances/{subscription['instance']['id']}")
        assert (instance["status"], instance["reason"]) == ("failed", REASON_BY_FAULT[fault])
        assert instance["conditions"][-1]["message"]
        assert instance["namespace"] not in namespaces(stack)
        assert invoices(owner, subscription_id) == []
        assert (
            FAILURE_THRESHOLD_SECONDS - 5
            <= _provisioning_seconds(owner, subscription_id)
            <= FAILURE_THRESHOLD_SECONDS + 20
        )
    assert (spendable(customer), held(customer)) == (3000, 0)
    (payment,) = list_all(by_card, f"{V1}/billing/payments")
    wait_until_sync(
        lambda: by_card.get(f"{V1}/billing/payments/{payment['id']}")["status"] == "cancelled",
        description="the authorization is released",
    )
    crash = customer.get(f"{V1}/subscriptions/{orders['crash_loop'][1]}")["instance"]["id"]
    assert "exit code 1" in customer.get(f"{V1}/instances/{crash}")["conditions"][-1]["message"]
    subscription = unlucky.wait_for_status(unserved, "failed", "active", timeout=FAILURE_THRESHOLD_SECONDS)
    assert (subscription["status"], spendable(unlucky), held(unlucky)) == ("failed", 1500, 0)
    assert _provisioning_seconds(unlucky, unserved) <= FAILURE_THRESHOLD_SECONDS + CLEANUP_SECONDS
    instance = unlucky.get(f"{V1}/instances/{subscription['instance']['id']}")
    assert (instance["status"], instance["reason"]) == ("cleanup_pending", "Unavailable")
    for owner in (customer, by_card, unlucky):
        assert_wallet_matches_transactions(owner)
    # Once the cluster works, the same order succeeds and the leftovers of the failed one are removed.
    sandbox.clear()
    customer.wait_for_status(place_order(customer), "active")
    wait_until_sync(
        lambda: instance["namespace"] not in namespaces(stack), description="what was left of it is removed"
    )


def _provisioning_seconds(customer: ApiUser, subscription_id: str) -> float:
    """Return the seconds from the start of provisioning to its failure, by the timeline."""
    at = {event["kind"]: instant(event["at"]) for event in timeline(customer, subscription_id)}
    return (at["subscription.failed"] - at["instance.provisioning"]).total_seconds()


def test_an_order_survives_a_lost_node(stack: RunningStack, customer: ApiUser, sandbox: Sandbox) -> None:
    top_up(customer, 1500)
    sandbox.cluster("node_lost", count=1, seconds=5)
    customer.wait_for_status(place_order(customer), "active", timeout=60)
    assert_wallet_matches_transactions(customer)


@pytest.mark.scenario("P14", "B48")
def test_an_order_is_cancelled_while_the_cluster_is_slow(
    stack: RunningStack, customer: ApiUser, sandbox: Sandbox
) -> None:
    top_up(customer, 1500)
    sandbox.cluster("slow_ready", seconds=30)
    subscription_id = place_order(customer)
    customer.wait_for_status(subscription_id, "provisioning")
    sandbox.until_struck(1)
    send_command(customer, subscription_id, "cancel", {"at": "now"})
    subscription = customer.wait_for_status(subscription_id, "cancelled", timeout=40)
    assert (spendable(customer), held(customer)) == (1500, 0)
    assert invoices(customer, subscription_id) == []
    assert "subscription.activated" not in kinds(customer, subscription_id)
    instance = customer.get(f"{V1}/instances/{subscription['instance']['id']}")
    assert instance["namespace"] not in namespaces(stack)
    wait_for_mails(stack, customer, "ready", 0)
    assert_wallet_matches_transactions(customer)
