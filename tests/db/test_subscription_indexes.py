"""The indexes that serve the administrators' lists of subscriptions."""

from __future__ import annotations

import re
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
    " SELECT id || '-' || n, organization_id, user_id, plan_id, price_id, service_id,"
    " CASE WHEN n %% 100 = 0 THEN 'paused' WHEN n %% 3 = 0 THEN 'cancelled' ELSE status END, currency, price_minor,"
    " timezone, workflow_id || '-' || n, created_at + n * interval '1 minute', updated_at"
    " FROM subscriptions, generate_series(1, %s) AS n",
    "INSERT INTO instances (id, organization_id, subscription_id, service_slug, version, hostname, namespace,"
    " cpu_millicores, memory_mib, storage_gib, created_at)"
    " SELECT 'ins_' || id, organization_id, id, 'n8n', '1', id, id, 500, 512, 5, created_at FROM subscriptions",
)

INDEX = "ix_subscriptions_(status_)?created_at_id"


class StatementRecorder:
    """A reader that keeps what it is asked to read, and reads nothing."""

    statement: DriverStatement

    async def fetch(self, query: PreparedQuery[RowT], values: Mapping[str, Any]) -> list[RowT]:
        self.statement = PreparedRead(query, values).to_driver()
        return []


async def test_pages_of_all_and_of_one_status_are_read_in_the_order_of_an_index(
    database: DatabaseFixture,
) -> None:
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
            for status in (None, "active", "cancelled", "paused"):
                await list_subscriptions(recorder, None, limit=101, after=after, status=status)
                read = recorder.statement
                rows = connection.execute(f"EXPLAIN (ANALYZE) {read.sql}", read.parameters)
                plan = "\n".join(line for (line,) in rows)
                page = plan[plan.index("CTE page") : plan.index("->  Nested Loop")]
                # Of a status that many subscriptions have, the index without the status has a page as soon.
                index = "ix_subscriptions_status_created_at_id" if status == "paused" else INDEX
                assert re.search(f"Index Scan Backward using {index} on", page), plan
                assert "Sort" not in page, plan
                assert "Bitmap" not in plan, plan
                assert "Seq Scan on subscriptions" not in plan, plan
