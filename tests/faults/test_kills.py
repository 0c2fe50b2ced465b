"""kill -9 of random processes in the middle of a busy run; afterwards the books, the gateway and the cluster agree.

``BERTH_FAULT_ORDERS`` and ``BERTH_FAULT_KILLS`` make the run longer (100 and 50 are what a release is held to);
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
from tests.support.stack import Customer, RunningStack, running_stack
from tests.support.wait import eventually_sync

ORDERS = int(os.environ.get("BERTH_FAULT_ORDERS", "16"))
KILLS = int(os.environ.get("BERTH_FAULT_KILLS", "8"))
SEED = int(os.environ.get("BERTH_FAULT_SEED", "7"))
VICTIMS = ("worker", "api", "postgres", "temporal")
PRICE = 1500
PATIENCE_SECONDS = 90


@dataclass
class Run:
    """What a customer was told."""

    customer: Customer
    accepted: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def await_orders(self, number: int, buying: list[Future[None]]) -> None:
        """Wait until so many orders are through, or nobody buys any more."""
        eventually_sync(
            lambda: len(self.accepted) >= number or any(half.done() for half in buying),
            timeout=PATIENCE_SECONDS * 2,
            what=f"{number} orders are through",
        )

    def insist(self, path: str, body: dict[str, object], key: str) -> dict[str, object]:
        """Ask again under the same key, as a client does, until the answer is yes."""
        finished: list[dict[str, object]] = []

        def ask() -> bool:
            try:
                status, answer = self.customer.call("POST", path, body, key=key)
            except (httpx.TransportError, ValueError):
                return False
            if status in (201, 202):
                finished.append(answer["data"])
                return True
            assert status in (409, 429, 500, 503), answer
            if status == 500:
                self.errors.append(str(answer))
            return False

        eventually_sync(ask, timeout=PATIENCE_SECONDS, what=f"{path} is accepted")
        return finished[-1]


def _buy(run: Run, plan: str, numbers: range) -> None:
    for number in numbers:
        key = f"order-{number}-{uuid.uuid4().hex}"
        top_up = {"amount_minor": PRICE, "currency": "USD", "gateway": "stripe", "payment_method": "pm_card_visa"}
        paid = run.insist("/api/v1/billing/topups", top_up, f"{key}-money")
        assert paid["status"] != "failed"

        def funded(payment: object = paid["id"]) -> bool:
            rows = run.customer.get("/api/v1/billing/transactions?limit=100")
            return any(row["ref"] == payment for row in rows)

        eventually_sync(lambda: _tolerant(funded), timeout=PATIENCE_SECONDS, what="the top-up is settled")
        answer = run.insist("/api/v1/subscriptions", {"plan_id": plan, "name": f"order {number}"}, key)
        run.accepted[key] = str(answer["id"])


def _tolerant(look: object) -> bool:
    try:
        return bool(look())  # type: ignore[operator]  # a callable by construction
    except (httpx.TransportError, AssertionError, ValueError):
        return False


def _victims(chance: random.Random) -> Iterator[str]:
    """At random, and each of them before any comes again."""
    while True:
        yield from chance.sample(VICTIMS, len(VICTIMS))


def _kill_one(stack: RunningStack, victim: str) -> None:
    def killed() -> int | None:
        try:
            return stack.kill(victim)
        except (ProcessLookupError, KeyError, FileNotFoundError):
            return None

    pid = eventually_sync(killed, what=f"{victim} is there to be killed")
    eventually_sync(lambda: stack.card["processes"].get(victim) not in (None, pid), what=f"{victim} is back")


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
                # Spread over the whole run: the next one comes when as many orders are through.
                run.await_orders(done * ORDERS // KILLS, bought)
                _kill_one(stack, next(victims))
            for half in bought:
                half.result(timeout=PATIENCE_SECONDS * ORDERS)
        assert len(set(run.accepted.values())) == ORDERS

        def all_active() -> bool:
            rows = stack.rows("SELECT status, count(*) AS n FROM subscriptions GROUP BY status")
            return {row["status"]: row["n"] for row in rows} == {"active": ORDERS}

        eventually_sync(lambda: _tolerant(all_active), timeout=PATIENCE_SECONDS * 2, what="every order is active")
        eventually_sync(
            lambda: not stack.rows("SELECT id FROM notifications WHERE status IN ('pending', 'sending')"),
            timeout=PATIENCE_SECONDS,
            what="every mail is sent",
        )
        eventually_sync(lambda: invariants.no_workflow_is_stuck(stack) == [], what="no workflow is stuck")
        invariants.everything_holds(stack)
        recorded = {row["id"] for row in stack.rows("SELECT id FROM subscriptions")}
        assert recorded == set(run.accepted.values())
        assert sum(charge["amount"] for charge in stack.charges() if charge["captured"]) == ORDERS * PRICE
        ready = [mail for mail in stack.mails() if "ready" in mail["subject"].lower()]
        assert len(ready) == ORDERS
