"""Kill random processes during a busy run; afterwards the ledger, the gateway and the cluster agree.

``BERTH_FAULT_ORDERS`` and ``BERTH_FAULT_KILLS`` make the run longer (a release is tested with 100 and 50);
``BERTH_FAULT_SEED`` repeats one.
"""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
import pytest

from tests.support import invariants
from tests.support.running_stack import ApiUser, RunningStack, running_stack
from tests.support.wait import wait_until_sync

ORDERS = int(os.environ.get("BERTH_FAULT_ORDERS", "16"))
KILLS = int(os.environ.get("BERTH_FAULT_KILLS", "8"))
SEED = int(os.environ.get("BERTH_FAULT_SEED", "7"))
VICTIMS = ("worker", "api", "postgres", "temporal")
PRICE = 1500
TIMEOUT_SECONDS = 90


@dataclass
class Run:
    """Responses that a customer received."""

    customer: ApiUser
    accepted: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def await_orders(self, number: int, buying: list[Future[None]]) -> None:
        """Wait until `number` orders are accepted or a buyer has stopped."""
        wait_until_sync(
            lambda: len(self.accepted) >= number or any(half.done() for half in buying),
            timeout=TIMEOUT_SECONDS * 2,
            description=f"{number} orders are accepted",
        )

    def post_until_accepted(self, path: str, body: dict[str, object], key: str) -> dict[str, object]:
        """Repeat a request under the same key until it is accepted, as clients do. Return the data of the response."""
        finished: list[dict[str, object]] = []

        def ask() -> bool:
            try:
                status, response = self.customer.request("POST", path, body, key=key)
            except (httpx.TransportError, ValueError):
                return False
            if status in (201, 202):
                finished.append(response["data"])
                return True
            assert status in (409, 429, 500, 503), response
            if status == 500:
                self.errors.append(str(response))
            return False

        wait_until_sync(ask, timeout=TIMEOUT_SECONDS, description=f"{path} is accepted")
        return finished[-1]


def _buy(run: Run, plan: str, numbers: range) -> None:
    for number in numbers:
        key = f"order-{number}-{uuid.uuid4().hex}"
        top_up = {"amount_minor": PRICE, "currency": "USD", "gateway": "stripe", "payment_method": "pm_card_visa"}
        paid = run.post_until_accepted("/api/v1/billing/topups", top_up, f"{key}-money")
        assert paid["status"] != "failed"

        def funded(payment: object = paid["id"]) -> bool:
            rows = run.customer.get("/api/v1/billing/transactions?limit=100")
            return any(row["ref"] == payment for row in rows)

        wait_until_sync(lambda: _tolerant(funded), timeout=TIMEOUT_SECONDS, description="the top-up is settled")
        subscription = run.post_until_accepted(
            "/api/v1/subscriptions", {"plan_id": plan, "name": f"order {number}"}, key
        )
        run.accepted[key] = str(subscription["id"])


def _tolerant(probe: object) -> bool:
    try:
        return bool(probe())  # type: ignore[operator]  # a callable by construction
    except (httpx.TransportError, AssertionError, ValueError):
        return False


def _victims(chance: random.Random) -> Iterator[str]:
    """Yield victims at random, each once before any is repeated."""
    while True:
        yield from chance.sample(VICTIMS, len(VICTIMS))


def _kill_one(stack: RunningStack, victim: str) -> None:
    def killed() -> int | None:
        try:
            return stack.kill(victim)
        except (ProcessLookupError, KeyError, FileNotFoundError):
            return None

    pid = wait_until_sync(killed, description=f"{victim} is there to be killed")
    wait_until_sync(lambda: stack.card["processes"].get(victim) not in (None, pid), description=f"{victim} is back")


@pytest.mark.scenario("B23", "P2")
def test_kills_in_a_busy_run_lose_and_double_nothing() -> None:
    victims = _victims(random.Random(SEED))
    with running_stack() as stack:
        run = Run(stack.customer())
        plan = run.customer.plan("n8n-starter")
        halves = [range(0, ORDERS, 2), range(1, ORDERS, 2)]
        with ThreadPoolExecutor(len(halves)) as buyers:
            bought = [buyers.submit(_buy, run, plan, numbers) for numbers in halves]
            for done in range(KILLS):
                # Spread over the run: the next kill follows when its share of the orders is accepted.
                run.await_orders(done * ORDERS // KILLS, bought)
                _kill_one(stack, next(victims))
            for half in bought:
                half.result(timeout=TIMEOUT_SECONDS * ORDERS)
        assert len(set(run.accepted.values())) == ORDERS

        def all_active() -> bool:
            rows = stack.query_as_superuser("SELECT status, count(*) AS n FROM subscriptions GROUP BY status")
            return {row["status"]: row["n"] for row in rows} == {"active": ORDERS}

        wait_until_sync(lambda: _tolerant(all_active), timeout=TIMEOUT_SECONDS * 2, description="every order is active")
        wait_until_sync(
            # By available_at: what a killed worker had claimed has its next attempt only when the claim expires, after
            # 60 s. A reminder is pending until its due time.
            lambda: (
                not stack.query_as_superuser(
                    "SELECT id FROM notifications WHERE status IN ('pending', 'sending') AND available_at <= now()"
                )
            ),
            timeout=TIMEOUT_SECONDS * 2,
            description="every mail that is due is sent",
        )
        wait_until_sync(lambda: invariants.list_stuck_workflows(stack) == [], description="no workflow is stuck")
        invariants.assert_all_invariants(stack)
        recorded = {row["id"] for row in stack.query_as_superuser("SELECT id FROM subscriptions")}
        assert recorded == set(run.accepted.values())
        assert sum(charge["amount"] for charge in stack.charges() if charge["captured"]) == ORDERS * PRICE
        # The mailbox recognizes a mail that is sent again by its Message-ID, as receivers do.
        ready = [mail["subject"] for mail in stack.mails() if mail["subject"].endswith("is ready")]
        assert sorted(ready) == sorted(f"order {number} is ready" for number in range(ORDERS))
