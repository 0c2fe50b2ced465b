"""Orders as their activity reads and writes them: one statement that reads and locks, one that inserts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from db.driver import DriverStatement, begin_and_fetch_one, driver_sql, fetch_one
from db.models.instances import Instance
from db.models.subscriptions import Subscription, TimelineEvent
from db.queries.json_inserts import JsonInsert
from db.queries.locked_subscriptions import (
    FUNDS_COLUMNS,
    HAS_WAITED,
    PLAN_COLUMNS,
    PRICE_JOIN,
    AvailableFunds,
    PlanWithPrice,
    to_funds,
    to_plan_with_price,
)
from workflows.rules.subscription import CANCELLATION_REQUESTED


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderFacts:
    """What an order is decided by.

    Attributes:
        timezone: The organization's.
        plan: The ordered plan, priced in the organization's currency; None when either is missing.
        funds: What the organization can spend in its currency; locked, unless the order is recorded.
        is_recorded: The order's subscription was written by an earlier attempt.
        past_due_subscription_id: A subscription of the organization to the same service that is past due or suspended.
    """

    timezone: str
    plan: PlanWithPrice | None
    funds: AvailableFunds
    is_recorded: bool
    past_due_subscription_id: str | None


# A recorded order locks nothing here: its subscription has to be locked before the balances.
_FACTS = driver_sql(
    f"""
WITH o AS MATERIALIZED (
    SELECT id, currency, timezone, EXISTS (SELECT FROM subscriptions WHERE id = :subscription_id) AS is_recorded
    FROM organizations WHERE id = :organization_id),
total AS MATERIALIZED (
    SELECT b.organization_id, b.currency, b.ctid AS version FROM customer_balances b
    JOIN o ON o.id = b.organization_id AND o.currency = b.currency AND NOT o.is_recorded
    FOR NO KEY UPDATE OF b),
kept AS MATERIALIZED (
    SELECT a.account, a.balance_minor FROM ledger_accounts a
    WHERE (SELECT count(*) FROM total) >= 0 AND a.id IN (
        SELECT o.id || '/' || account || '/' || o.currency
        FROM o, (VALUES ('wallet'), ('promotional'), ('debt')) AS named(account) WHERE NOT o.is_recorded
    )
    ORDER BY a.account DESC FOR UPDATE
)
SELECT {PLAN_COLUMNS}, o.timezone, o.currency AS organization_currency, o.is_recorded,
    (SELECT s.id FROM subscriptions s WHERE s.organization_id = o.id AND s.service_id = p.service_id
        AND s.status IN ('past_due', 'suspended') LIMIT 1) AS past_due_subscription_id,
    {FUNDS_COLUMNS.format(organization="o.id")},
    {HAS_WAITED} AS has_waited
FROM (VALUES (1)) AS one
LEFT JOIN o ON true
LEFT JOIN plans p ON p.id = :plan_id
LEFT JOIN services v ON v.id = p.service_id
{PRICE_JOIN.format(currency="o.currency")}
"""
)

_SUBSCRIPTIONS = JsonInsert(
    Subscription, expressions={"collection_method": "collection_method", "is_trial": "is_trial"}
)
_INSTANCES = JsonInsert(Instance, expressions={"status": "status", "replicas": "replicas", "parameters": "parameters"})
_INSERT = driver_sql(
    "WITH written AS (SELECT CAST(:rows AS jsonb) AS rows),"
    f" subscription AS ({_SUBSCRIPTIONS.sql(0)}) {_INSTANCES.sql(1)}"
)


async def begin_order(
    session: AsyncSession, *, organization_id: str, subscription_id: str, plan_id: str, now: datetime
) -> OrderFacts | None:
    """Begin a transaction, and return what an order is decided by.

    The organization's balances are locked. One round trip, and a second one if another transaction held them. None
    when there is no such organization.
    """
    parameters = {
        "organization_id": organization_id,
        "subscription_id": subscription_id,
        "plan_id": plan_id,
        "now": now,
    }
    statement = DriverStatement(_FACTS, parameters)
    row = await begin_and_fetch_one(session, statement)
    while row is not None and row["has_waited"]:
        row = await fetch_one(session, statement)
    if row is None or row["timezone"] is None:
        return None
    return OrderFacts(
        timezone=row["timezone"],
        plan=to_plan_with_price(row),
        funds=to_funds(row, row["organization_currency"]),
        is_recorded=row["is_recorded"],
        past_due_subscription_id=row["past_due_subscription_id"],
    )


async def is_recorded(session: AsyncSession, subscription_id: str) -> bool:
    """Return whether the order's subscription is written."""
    statement = text("SELECT EXISTS (SELECT FROM subscriptions WHERE id = :id)")
    return bool((await session.execute(statement, {"id": subscription_id})).scalar_one())


def order_insert(subscription: Mapping[str, Any], instance: Mapping[str, Any]) -> DriverStatement:
    """Return the statement that inserts both rows of an order; a column that is not given is null or has its default.

    Raises:
        ValueError: The statement does not write one of the columns.
    """
    for insert, row in ((_SUBSCRIPTIONS, subscription), (_INSTANCES, instance)):
        if unknown := row.keys() - insert.columns:
            raise ValueError(f"{insert.table.name} has no column {', '.join(sorted(unknown))} that an order writes")
    return DriverStatement(_INSERT, {"rows": orjson.dumps([[subscription], [instance]]).decode()})


async def is_cancellation_requested(session: AsyncSession, subscription_id: str) -> bool:
    """Return whether an accepted cancellation of the order is recorded."""
    recorded = select(TimelineEvent.id).where(
        TimelineEvent.subscription_id == subscription_id, TimelineEvent.dedup_key == CANCELLATION_REQUESTED
    )
    return await session.scalar(recorded) is not None
