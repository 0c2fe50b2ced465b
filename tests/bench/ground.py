"""Servers, worker processes and rows of thousands of accounts for the benchmarks."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import httpx
import psutil
import psycopg
from temporalio.client import Client

from db.queries import catalogue as plans
from db.session import create_database_engine, session_factory
from deploy.local.postgres import API_ROLE, OWNER_ROLE, WORKER_ROLE, Postgres
from deploy.local.process import ChildProcess
from deploy.local.sandbox_commands import cluster_command
from deploy.local.temporal import NAMESPACE, TemporalServer
from deploy.ports import LOOPBACK, free_ports
from tests.bench.hand import Counter, Hand
from tests.support.api import ENCRYPTION_KEY
from tests.support.wait import wait_until
from worker import seed_catalogue
from worker.migrate import migrate
from workflows.connection import connect
from workflows.ports.subscription import PlanTerms, Resources
from workflows.rules.money import Money
from workflows.rules.periods import Interval
from workflows.settings import TemporalSettings, parse_encryption_keys

ROOT = Path(__file__).resolve().parents[2]
PLAN, PRICE = "n8n-starter", Money(amount_minor=1500, currency="USD")
WALLET_MINOR = 100_000_000


@dataclass(slots=True, kw_only=True)
class Ground:
    """Servers that run, and a client. ``folder`` goes with them."""

    folder: Path
    postgres: Postgres
    temporal: TemporalServer
    kubeconfig: Path
    client: Client
    _hands: list[ChildProcess] = field(default_factory=list)

    def url(self, role: str) -> str:
        return self.postgres.url(role)

    def rows(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        """Look past row-level security."""
        with psycopg.connect(self.postgres.dsn(database="berth")) as connection:
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []

    @asynccontextmanager
    async def hand(
        self, *, bare: bool, counted: str, cluster: bool = True, max_cached_workflows: int | None = None
    ) -> AsyncIterator[Running]:
        """Run a worker process until the block is left; ``max_cached_workflows`` None is the product's cache."""
        name = f"hand-{len(self._hands)}"
        counter = self.folder / f"{name}.count"
        worker = Running(
            counter=Counter(counter, create=True),
            process=ChildProcess(name, [], log=self.folder / f"{name}.log", stop_timeout=30),
        )
        settings = Hand(
            bare=bare,
            address=self.temporal.address,
            namespace=NAMESPACE,
            database_url=self.url(WORKER_ROLE),
            kubeconfig=str(self.kubeconfig),
            counter=str(counter),
            counted=counted,
            cluster=cluster,
            max_cached_workflows=max_cached_workflows,
        )
        worker.process.argv, worker.process.cwd = settings.argv(), ROOT
        worker.process.start()
        self._hands.append(worker.process)
        try:
            await wait_until(worker.works, timeout=60, description="a worker process")
            yield worker
        finally:
            await asyncio.to_thread(worker.process.stop)

    def accounts(self, prefix: str, count: int, at: datetime) -> None:
        """Write organizations ``<prefix>-1`` … with full wallets, one each for so many subscriptions."""
        parameters = {"prefix": f"org_{prefix}-", "count": count, "at": at, "amount": WALLET_MINOR}
        with psycopg.connect(self.postgres.dsn(database="berth")) as connection:
            # Credentials of an instance name the customer's address.
            connection.execute(
                "INSERT INTO users (id, email, name, password_hash, password_changed_at, created_at, updated_at)"
                " VALUES ('usr_bench', 'bench@example.com', 'Bench', '', %(at)s, %(at)s, %(at)s)"
                " ON CONFLICT DO NOTHING",
                parameters,
            )
            connection.execute(
                "INSERT INTO organizations (id, name, currency, timezone, created_at, updated_at)"
                " SELECT %(prefix)s || n, 'Bench', 'USD', 'UTC', %(at)s, %(at)s FROM generate_series(1, %(count)s) n",
                parameters,
            )
            connection.execute(
                "INSERT INTO ledger_transactions (id, organization_id, kind, currency, customer_delta_minor,"
                " entry_count, posted_at, description, idempotency_key) SELECT 'tx_' || %(prefix)s || n,"
                " %(prefix)s || n, 'top_up', 'USD',"
                " %(amount)s, 2, %(at)s, '', %(prefix)s || n FROM generate_series(1, %(count)s) n",
                parameters,
            )
            connection.execute(
                "INSERT INTO ledger_entries (transaction_id, organization_id, account, currency, amount_minor)"
                " SELECT 'tx_' || %(prefix)s || n, CASE a WHEN 'wallet' THEN %(prefix)s || n END, a, 'USD',"
                " CASE a WHEN 'wallet' THEN 1 ELSE -1 END * %(amount)s::bigint"
                " FROM generate_series(1, %(count)s) n, (VALUES ('wallet'), ('clearing:stripe')) AS named(a)",
                parameters,
            )

    def subscriptions(
        self, prefix: str, count: int, start: datetime, end: datetime, *, organization_id: str | None = None
    ) -> None:
        """Write ready subscriptions ``sub_<prefix>-1`` …, whose period is ``start`` to ``end``.

        Each belongs to the account of its number, or all to ``organization_id``.
        """
        parameters = {
            "prefix": prefix, "count": count, "start": start, "end": end, "plan": plans.plan_id(PLAN),
            "owner": organization_id,
        }  # fmt: skip
        with psycopg.connect(self.postgres.dsn(database="berth")) as connection:
            connection.execute(
                """
                INSERT INTO subscriptions (id, organization_id, user_id, plan_id, price_id, service_id, status,
                    currency, price_minor, timezone, billing_anchor, current_period_start, current_period_end,
                    workflow_id, created_at, updated_at)
                SELECT 'sub_' || %(prefix)s || '-' || n, COALESCE(%(owner)s, 'org_' || %(prefix)s || '-' || n),
                    'usr_bench', p.id, r.id, p.service_id, 'active', 'USD', r.amount_minor, 'UTC', %(start)s, %(start)s,
                    %(end)s,
                    'subscription/sub_' || %(prefix)s || '-' || n, %(start)s, %(start)s
                FROM generate_series(1, %(count)s) n, plans p
                JOIN prices r ON r.plan_id = p.id AND r.currency = 'USD' WHERE p.id = %(plan)s
                """,
                parameters,
            )
            connection.execute(
                """
                INSERT INTO instances (id, organization_id, subscription_id, service_slug, version, hostname,
                    namespace, status, cpu_millicores, memory_mib, storage_gib, url, created_at, ready_at)
                SELECT 'ins_' || %(prefix)s || '-' || n, COALESCE(%(owner)s, 'org_' || %(prefix)s || '-' || n),
                    'sub_' || %(prefix)s || '-' || n, 'n8n', '1', %(prefix)s || n || '.bench.localhost',
                    %(prefix)s || n, 'ready', 1000, 2048, 10, 'https://' || %(prefix)s || n, %(start)s, %(start)s
                FROM generate_series(1, %(count)s) n
                """,
                parameters,
            )

    def terms(self) -> PlanTerms:
        ((price_id,),) = self.rows("SELECT id FROM prices WHERE plan_id = %s AND currency = 'USD'", plans.plan_id(PLAN))
        return PlanTerms(
            plan_id=plans.plan_id(PLAN),
            plan_code=PLAN,
            price_id=str(price_id),
            price=PRICE,
            interval=Interval.MONTH,
            trial_days=0,
            timezone="UTC",
            resources=Resources(cpu_millicores=1000, memory_mib=2048, storage_gib=10),
        )


@dataclass(slots=True, kw_only=True)
class Running:
    counter: Counter
    process: ChildProcess

    def works(self) -> bool:
        """Whether its workers run."""
        if not self.process.is_alive:
            raise RuntimeError(self.process.log_tail())
        return self.counter.read()[0] > 0

    async def counts(self, target: int, *, timeout: float) -> float:
        """Wait until so many completions were counted; return when the last one was (monotonic seconds)."""

        def there() -> bool:
            return self.works() and self.counter.read()[0] >= target

        await wait_until(there, timeout=timeout, description=f"{target} completions")
        return self.counter.read()[1]

    def mebibytes(self) -> float:
        """The process's resident memory."""
        assert self.process.pid is not None
        return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20


@asynccontextmanager
async def ground() -> AsyncIterator[Ground]:
    """Start PostgreSQL (durable), Temporal (in memory) and the simulated cluster; write the catalogue."""
    folder = Path(tempfile.mkdtemp(prefix="berth-bench-"))
    (port,) = free_ports(1)
    kubeconfig = folder / "kubeconfig"
    cluster = ChildProcess(
        "cluster", cluster_command(port=port, state=None, kubeconfig=kubeconfig), log=folder / "cluster.log", cwd=ROOT
    )
    created: Ground | None = None
    try:
        cluster.start()
        with Postgres(folder / "postgres") as postgres, TemporalServer(log=folder / "temporal.log") as temporal:
            postgres.ensure_roles()
            await asyncio.to_thread(migrate, postgres.url(OWNER_ROLE))
            engine = create_database_engine(postgres.url(OWNER_ROLE), pool_size=1)
            async with session_factory(engine).begin() as session:
                await seed_catalogue.upsert_catalogue(
                    session, seed_catalogue.load_catalogue(), seed_catalogue.FIRST_PRICE_EFFECTIVE_FROM
                )
            await engine.dispose()
            await wait_until(
                lambda: _is_serving(f"http://{LOOPBACK}:{port}/version"), timeout=30, description="the cluster"
            )
            created = Ground(
                folder=folder,
                postgres=postgres,
                temporal=temporal,
                kubeconfig=kubeconfig,
                client=await connect(
                    TemporalSettings(address=temporal.address, encryption_keys=parse_encryption_keys(ENCRYPTION_KEY))
                ),
            )
            yield created
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _is_serving(url: str) -> bool:
    try:
        return httpx.get(url).status_code < 500
    except httpx.TransportError:
        return False


__all__ = ["API_ROLE", "WORKER_ROLE", "Ground", "Running", "ground"]
