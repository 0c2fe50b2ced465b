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

import httpx
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.types import Message
from temporalio.client import WithStartWorkflowOperation
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor, Worker

from db.queries.catalogue import plan_id
from deploy.ports import LOOPBACK
from tests.bench import bare, renewals
from tests.bench.driver import each_statement, recorded_statements
from tests.bench.ground import API_ROLE, PLAN, WALLET_MINOR, WORKER_ROLE, Ground, Running
from tests.bench.hand import Hand, runner
from tests.bench.results import Figure, Rule, percentile
from tests.support.api import ApiFixture, RegisteredUser, serve_api, settings
from tests.support.wait import wait_until
from worker.registry import WORKFLOWS, activities_by_queue, open_dependencies
from workflows import names
from workflows.client import WorkflowClient
from workflows.ports.subscription import CreateSubscription

CONCURRENT_ORDERS = 8
SETTLING_SECONDS = 0.1
"""Before each request whose latency is measured: what the one before it left to do must not run beside it."""

IN = ContextVar("in", default="")


# ---------------------------------------------------------------- throughput


async def throughput(ground: Ground, *, rounds: int, size: int) -> list[Figure]:
    """Take ``size`` orders to active, Berth's and bare ones in turn, on the same cluster."""
    seconds: dict[bool, float] = {False: 0.0, True: 0.0}
    ground.accounts("t", size * rounds + CONCURRENT_ORDERS, datetime.now(UTC))
    numbers = iter(range(1, size * rounds + CONCURRENT_ORDERS + 1))
    async with (
        ground.hand(bare=False, counted="billing.start_first_period") as subject,
        ground.hand(bare=True, counted="bare.done") as reference,
    ):
        for measured in (CONCURRENT_ORDERS, *[size] * rounds):
            for is_bare, hand in ((False, subject), (True, reference)):
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
            target=0.85,
        )
    ]


async def _round(ground: Ground, hand: Running, size: int, numbers: Iterator[int], *, is_bare: bool) -> float:
    workflow_client = WorkflowClient(ground.client)
    before, _ = hand.counter.read()
    waiting = iter([f"x{before + n}" if is_bare else f"t-{next(numbers)}" for n in range(size)])

    async def ordering() -> None:
        for name in waiting:
            if is_bare:
                await _bare_order(ground, f"ins-bare-{name}")
            else:
                await workflow_client.create_subscription(_order(name))

    began = time.monotonic()
    await asyncio.gather(*(ordering() for _ in range(CONCURRENT_ORDERS)))
    return await hand.counts(before + size, timeout=60 + size * 5) - began


def _order(name: str) -> CreateSubscription:
    return CreateSubscription(
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
    subject: list[float] = []
    reference: list[float] = []
    # What the API reads beside requests (revoked tokens) is not to be counted as theirs.
    api_settings = settings(
        ground.url(API_ROLE), temporal_address=ground.temporal.address, revocation_refresh_seconds=600
    )
    async with (
        ground.hand(bare=False, counted="subscriptions.record_order", cluster=False),
        ground.hand(bare=True, counted="bare.done", cluster=False),
        serve_api(api_settings, ground.postgres.dsn(database="berth")) as api,
    ):
        customer = await _rich(ground, api)
        requests += _WARMUP
        for number in range(requests):
            await asyncio.sleep(SETTLING_SECONDS)
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
            reference.append(time.perf_counter() - began)
            await asyncio.sleep(SETTLING_SECONDS)
            request = _order_request(customer)
            began = time.perf_counter()
            status = await _handle(api, request)
            subject.append(time.perf_counter() - began)
            # 202 says that it took longer than the API waits; what that took is measured like everything else.
            assert status in (201, 202)
        await api.context.wait_for_tasks_after_responses()
        with recorded_statements() as sent:
            await _handle(api, _order_request(customer))
            await api.context.wait_for_tasks_after_responses()
    subject, reference = (
        [1000 * seconds for seconds in subject[_WARMUP:]],
        [1000 * seconds for seconds in reference[_WARMUP:]],
    )
    return [
        Figure(
            name="order accepted, p50",
            value=percentile(subject, 50),
            unit="ms",
            reference=percentile(reference, 50),
            rule=Rule.RATIO_AT_MOST,
            target=2,
        ),
        Figure(
            name="order accepted, p99",
            value=percentile(subject, 99),
            unit="ms",
            reference=percentile(reference, 99),
            rule=Rule.RATIO_AT_MOST,
            target=2,
        ),
        Figure(
            name="order accepted, p99 in milliseconds",
            value=percentile(subject, 99),
            unit="ms",
            rule=Rule.VALUE_AT_MOST,
            target=200,
        ),
        Figure(
            name="transactions of an order's request",
            value=sum(statement == "BEGIN" for statement, _ in sent),
            unit="",
            rule=Rule.VALUE_AT_MOST,
            target=2,
        ),
        Figure(
            name="statements of an order's request",
            value=sum(statement not in ("BEGIN", "COMMIT") for statement, _ in sent),
            unit="",
        ),
    ]


_WARMUP = 10


def _order_request(customer: RegisteredUser) -> httpx.Request:
    return customer.http.build_request(
        "POST", "/subscriptions", json={"plan_id": plan_id(PLAN)}, headers=customer.idempotency_header()
    )


async def _handle(api: ApiFixture, request: httpx.Request) -> int:
    """Let the application handle a request, and return the status of its response once the body is complete.

    What an HTTP client does for a request is not measured: the reference has none. httpx takes more than a millisecond.
    """
    body, statuses = request.read(), list[int]()
    received = asyncio.Event()

    async def receive() -> Message:
        if not received.is_set():
            received.set()
            return {"type": "http.request", "body": body, "more_body": False}
        return await asyncio.Future()  # the client stays connected

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.url.scheme,
        "path": request.url.path,
        "raw_path": request.url.raw_path,
        "query_string": request.url.query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "client": (LOOPBACK, 1),
        "server": (request.url.host, request.url.port),
    }
    await api.app(scope, receive, send)
    return statuses[0]


async def _rich(ground: Ground, api: ApiFixture) -> RegisteredUser:
    """Register and sign in a customer whose wallet covers every order."""
    customer = await api.register_verified_user()
    with_money = "tx_rich"
    ground.rows(
        "WITH t AS (INSERT INTO ledger_transactions (id, organization_id, kind, currency, customer_delta_minor,"
        " entry_count, posted_at, description, idempotency_key) VALUES (%s, %s, 'top_up', 'USD', %s, 2, now(), '',"
        " 'rich'))"
        " INSERT INTO ledger_entries (transaction_id, organization_id, account, currency, amount_minor)"
        " VALUES (%s, %s, 'wallet', 'USD', %s), (%s, NULL, 'clearing:stripe', 'USD', %s)",
        with_money, customer.organization_id, WALLET_MINOR,
        with_money, customer.organization_id, WALLET_MINOR, with_money, -WALLET_MINOR,
    )  # fmt: skip
    return customer


# ---------------------------------------------------------------- round trips


@dataclass(slots=True)
class Statements:
    """Statements that the driver sent, and transactions that engines began, by what asked for them."""

    statements: Counter[str] = field(default_factory=Counter)
    transactions: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def of(self, engine: AsyncEngine) -> Iterator[None]:
        """Count until the block is left, under the activity that runs."""

        def count_begin(*_: Any) -> None:
            self.transactions[IN.get()] += 1

        def count_statement(statement: str) -> None:
            self.statements[IN.get()] += statement not in ("BEGIN", "COMMIT")

        event.listen(engine.sync_engine, "begin", count_begin)
        try:
            with each_statement(lambda statement, _: count_statement(statement)):
                yield
        finally:
            event.remove(engine.sync_engine, "begin", count_begin)


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
    worker_settings = Hand(
        bare=False, address=ground.temporal.address, namespace="default", database_url=ground.url(WORKER_ROLE),
        kubeconfig=str(ground.kubeconfig), counter="", counted="",
    ).settings()  # fmt: skip
    ground.accounts("n", count, datetime.now(UTC))
    async with open_dependencies(worker_settings) as dependencies, AsyncExitStack() as stack:
        engine: AsyncEngine = dependencies.sessions.kw["bind"]
        stack.enter_context(counted.of(engine))
        by_queue = activities_by_queue(dependencies)
        for queue in (names.PLATFORM_QUEUE, names.INFRASTRUCTURE_QUEUE):
            worker = Worker(
                ground.client,
                task_queue=queue,
                workflows=WORKFLOWS if queue == names.PLATFORM_QUEUE else (),
                activities=by_queue[queue],
                workflow_runner=runner(),
                interceptors=[_Named()],
                build_id="bench",
            )
            await stack.enter_async_context(worker)
        workflow_client = WorkflowClient(ground.client)
        for number in range(1, count + 1):
            await workflow_client.create_subscription(_order(f"n-{number}"))
        await _have(ground, "SELECT count(*) FROM subscriptions WHERE status = 'active'", count)
        await renewals.start(ground, "m", count, datetime.now(UTC) + timedelta(seconds=3))
        await _have(ground, "SELECT count(*) FROM invoices WHERE subscription_id LIKE 'sub_m-%%'", count)
    renewed = "billing.start_period"
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


async def _have(ground: Ground, query: str, count: int) -> None:
    await wait_until(lambda: int(str(ground.rows(query)[0][0])) >= count, timeout=120, description=query)
