"""Orders: how many become active per second, how long one takes to be accepted, and what the database is asked."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine
from temporalio.client import WithStartWorkflowOperation
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor, Worker

from db.queries.catalogue import plan_id
from tests.bench import bare, renewals
from tests.bench.ground import API, PLAN, WALLET_MINOR, WORKER, Ground, Running
from tests.bench.hand import Hand, runner
from tests.bench.results import Figure, Rule, percentile
from tests.support.api import Account, Api, serving, settings
from tests.support.wait import eventually
from worker.registry import WORKFLOWS, activities, dependencies
from workflows import names
from workflows.client import Orchestrator
from workflows.ports.subscription import Subscribe

AT_ONCE = 8
IN = ContextVar("in", default="")


# ---------------------------------------------------------------- throughput


async def throughput(ground: Ground, *, rounds: int, size: int) -> list[Figure]:
    """Take ``size`` orders to active, Berth's and bare ones in turn, on the same cluster."""
    seconds: dict[bool, float] = {False: 0.0, True: 0.0}
    ground.accounts("t", size * rounds + AT_ONCE, datetime.now(UTC))
    numbers = iter(range(1, size * rounds + AT_ONCE + 1))
    async with (
        ground.hand(bare=False, counted="billing.activate") as ours,
        ground.hand(bare=True, counted="bare.done") as others,
    ):
        for measured in (AT_ONCE, *[size] * rounds):
            for is_bare, hand in ((False, ours), (True, others)):
                took = await _round(ground, hand, measured, numbers, is_bare=is_bare)
                if measured == size:
                    seconds[is_bare] += took
    return [
        Figure(
            name="orders taken to active per second",
            value=size * rounds / seconds[False],
            unit="1/s",
            reference=size * rounds / seconds[True],
            rule=Rule.RATIO_AT_LEAST,
            target=0.6,
        )
    ]


async def _round(ground: Ground, hand: Running, size: int, numbers: Iterator[int], *, is_bare: bool) -> float:
    orchestrator = Orchestrator(ground.client)
    before, _ = hand.counter.read()
    waiting = iter([f"x{before + n}" if is_bare else f"t-{next(numbers)}" for n in range(size)])

    async def ordering() -> None:
        for name in waiting:
            if is_bare:
                await _bare_order(ground, f"ins-bare-{name}")
            else:
                await orchestrator.subscribe(_order(name))

    began = time.monotonic()
    await asyncio.gather(*(ordering() for _ in range(AT_ONCE)))
    return await hand.counts(before + size, timeout=60 + size * 5) - began


def _order(name: str) -> Subscribe:
    return Subscribe(
        subscription_id=f"sub_{name}",
        instance_id=f"ins-{name}",
        organization_id=f"org_{name}",
        user_id="usr_bench",
        plan_id=plan_id(PLAN),
        name="bench",
    )


async def _bare_order(ground: Ground, instance_id: str) -> None:
    await ground.client.execute_update_with_start_workflow(
        bare.BareOrder.opened,
        start_workflow_operation=WithStartWorkflowOperation(
            bare.BareOrder.run,
            instance_id,
            id=instance_id,
            task_queue=bare.QUEUE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        ),
    )


# ---------------------------------------------------------------- latency


async def latency(ground: Ground, *, requests: int) -> list[Figure]:
    """Order over HTTP, one after the other, in turn with empty updates-with-start.

    The cluster's queue is not served: provisioning would run beside and blur what a customer waits for.
    """
    ours: list[float] = []
    others: list[float] = []
    # What the API reads beside requests (revoked tokens) is not to be counted as theirs.
    told = settings(ground.url(API), temporal_address=ground.temporal.address, revocation_refresh_seconds=600)
    async with (
        ground.hand(bare=False, counted="subscriptions.open", cluster=False),
        ground.hand(bare=True, counted="bare.done", cluster=False),
        serving(told, ground.postgres.dsn(database="berth")) as api,
    ):
        customer = await _rich(ground, api)
        requests += _WARMUP
        counted = Statements()
        for number in range(requests):
            began = time.perf_counter()
            await ground.client.execute_update_with_start_workflow(
                bare.BareUpdate.opened,
                start_workflow_operation=WithStartWorkflowOperation(
                    bare.BareUpdate.run,
                    "x",
                    id=f"update-{number}",
                    task_queue=bare.QUEUE,
                    id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                ),
            )
            others.append(time.perf_counter() - began)
            began = time.perf_counter()
            with counted.of(api.context.sessions.kw["bind"], "order") if number == requests - 1 else _nothing():
                answer = await customer.http.post(
                    "/subscriptions", json={"plan_id": plan_id(PLAN)}, headers=customer.key()
                )
            ours.append(time.perf_counter() - began)
            # 202 says that it took longer than the API waits; what that took is measured like everything else.
            assert answer.status_code in (201, 202), answer.text
    ours, others = [1000 * one for one in ours[_WARMUP:]], [1000 * one for one in others[_WARMUP:]]
    return [
        Figure(
            name="order accepted, p50",
            value=percentile(ours, 50),
            unit="ms",
            reference=percentile(others, 50),
            rule=Rule.RATIO_AT_MOST,
            target=2,
        ),
        Figure(
            name="order accepted, p99",
            value=percentile(ours, 99),
            unit="ms",
            reference=percentile(others, 99),
            rule=Rule.VALUE_AT_MOST,
            target=200,
        ),
        Figure(
            name="transactions of an order's request",
            value=counted.transactions["order"],
            unit="",
            rule=Rule.VALUE_AT_MOST,
            target=3,
        ),
        Figure(name="statements of an order's request", value=counted.statements["order"], unit=""),
    ]


_WARMUP = 10


@contextmanager
def _nothing() -> Iterator[None]:
    yield


async def _rich(ground: Ground, api: Api) -> Account:
    """Somebody signed in whose wallet lasts."""
    customer = await api.customer()
    with_money = "tx_rich"
    ground.rows(
        "WITH t AS (INSERT INTO ledger_transactions (id, organization_id, kind, currency, effect_minor, at,"
        " description, idempotency_key) VALUES (%s, %s, 'top_up', 'USD', %s, now(), '', 'rich'))"
        " INSERT INTO ledger_entries (transaction_id, organization_id, account, currency, amount_minor)"
        " VALUES (%s, %s, 'wallet', 'USD', %s), (%s, NULL, 'clearing:stripe', 'USD', %s)",
        with_money, customer.organization_id, WALLET_MINOR,
        with_money, customer.organization_id, WALLET_MINOR, with_money, -WALLET_MINOR,
    )  # fmt: skip
    return customer


# ---------------------------------------------------------------- round trips


@dataclass(slots=True)
class Statements:
    """Statements and transactions that engines were asked for, by what asked."""

    statements: Counter[str] = field(default_factory=Counter)
    transactions: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def of(self, engine: AsyncEngine, name: str | None = None) -> Iterator[None]:
        """Count until the block is left, under ``name`` or under the activity that runs."""

        def executed(*_: Any) -> None:
            self.statements[name or IN.get()] += 1

        def begun(*_: Any) -> None:
            self.transactions[name or IN.get()] += 1

        listeners = (("before_cursor_execute", executed), ("begin", begun))
        for what, listener in listeners:
            event.listen(engine.sync_engine, what, listener)
        try:
            yield
        finally:
            for what, listener in listeners:
                event.remove(engine.sync_engine, what, listener)


class _Named(Interceptor):
    """Remembers which activity runs, for what is asked inside of it."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _NamedInbound(next)


class _NamedInbound(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        IN.set(getattr(input.fn, "__temporal_activity_definition").name)
        return await super().execute_activity(input)


async def trips(ground: Ground, *, count: int) -> list[Figure]:
    """Take some orders to active and renew some subscriptions, and count what the database is asked meanwhile."""
    counted = Statements()
    told = Hand(
        bare=False, address=ground.temporal.address, namespace="default", database_url=ground.url(WORKER),
        kubeconfig=str(ground.kubeconfig), counter="", counted="",
    ).settings()  # fmt: skip
    ground.accounts("n", count, datetime.now(UTC))
    async with dependencies(told) as given, AsyncExitStack() as stack:
        engine: AsyncEngine = given.sessions.kw["bind"]
        stack.enter_context(counted.of(engine))
        by_queue = activities(given)
        for queue in (names.PLATFORM, names.INFRASTRUCTURE):
            worker = Worker(
                ground.client,
                task_queue=queue,
                workflows=WORKFLOWS if queue == names.PLATFORM else (),
                activities=by_queue[queue],
                workflow_runner=runner(),
                interceptors=[_Named()],
                build_id="bench",
            )
            await stack.enter_async_context(worker)
        orchestrator = Orchestrator(ground.client)
        for number in range(1, count + 1):
            await orchestrator.subscribe(_order(f"n-{number}"))
        await _have(ground, "SELECT count(*) FROM subscriptions WHERE status = 'active'", count)
        await renewals.start(ground, "m", count, datetime.now(UTC) + timedelta(seconds=3))
        await _have(ground, "SELECT count(*) FROM invoices WHERE subscription_id LIKE 'sub_m-%%'", count)
    renewed = "billing.renew"
    ordered = [name for name in counted.transactions if name and name != renewed]
    return [
        Figure(
            name="transactions of a renewal", value=counted.transactions[renewed] / count, unit="",
            rule=Rule.VALUE_AT_MOST, target=2,
        ),
        Figure(name="statements of a renewal", value=counted.statements[renewed] / count, unit=""),
        Figure(
            name="transactions of an order until active",
            value=sum(counted.transactions[name] for name in ordered) / count,
            unit="",
        ),
        Figure(
            name="statements of an order until active",
            value=sum(counted.statements[name] for name in ordered) / count,
            unit="",
        ),
    ]  # fmt: skip


async def _have(ground: Ground, query: str, wanted: int) -> None:
    await eventually(lambda: int(str(ground.rows(query)[0][0])) >= wanted, timeout=120, what=query)
