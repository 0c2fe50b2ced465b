"""The index that serves the administrators' list of subscriptions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import psycopg

from db.driver import DriverStatement
from db.queries.subscriptions import list_subscriptions
from db.reads import PreparedQuery, PreparedRead, RowT
from deploy.local.postgres import API_ROLE
from tests.support.databases import DatabaseFixture
from tests.support.inserts import NOW, insert_organization, insert_subscription

COUNT = 100_000
"""With fewer the planner expects that sorting all is faster than walking the index."""

COPIES = (
    "INSERT INTO subscriptions (id, organization_id, user_id, plan_id, price_id, service_id, status, currency,"
    " price_minor, timezone, workflow_id, created_at, updated_at)"
    " SELECT id || '-' || n, organization_id, user_id, plan_id, price_id, service_id, status, currency, price_minor,"
    " timezone, workflow_id || '-' || n, created_at + n * interval '1 minute', updated_at"
    " FROM subscriptions, generate_series(1, %s) AS n",
    "INSERT INTO instances (id, organization_id, subscription_id, service_slug, version, hostname, namespace,"
    " cpu_millicores, memory_mib, storage_gib, created_at)"
    " SELECT 'ins_' || id, organization_id, id, 'n8n', '1', id, id, 500, 512, 5, created_at FROM subscriptions",
)


class StatementRecorder:
    """A reader that keeps what it is asked to read, and reads nothing."""

    statement: DriverStatement

    async def fetch(self, query: PreparedQuery[RowT], values: Mapping[str, Any]) -> list[RowT]:
        self.statement = PreparedRead(query, values).to_driver()
        return []


async def test_pages_of_all_subscriptions_are_read_in_the_order_of_an_index(database: DatabaseFixture) -> None:
    await insert_subscription(database.owner, await insert_organization(database.owner))
    recorder = StatementRecorder()
    with psycopg.connect(database.superuser_dsn()) as connection:
        # The keys are those of one subscription that exists; checking them is half of the time.
        connection.execute("SET session_replication_role = replica")
        for statement in COPIES:
            connection.execute(statement, [COUNT] if "%s" in statement else None)
        connection.execute("ANALYZE")
        connection.execute(f"SET ROLE {API_ROLE}")
        connection.execute("SELECT set_config('berth.role', 'ADMINISTRATOR', true)")
        for after in (None, (NOW + timedelta(minutes=COUNT // 2), "sub")):
            await list_subscriptions(recorder, None, limit=101, after=after)
            read = recorder.statement
            rows = connection.execute(f"EXPLAIN (ANALYZE) {read.sql}", read.parameters)
            plan = "\n".join(line for (line,) in rows)
            assert "Index Scan Backward using ix_subscriptions_created_at_id" in plan, plan
            assert "Seq Scan on subscriptions" not in plan, plan
