"""What stands in the database at the end of a simulated life."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from db.queries import ledger
from workflows.rules.money import Money

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """An event of the file and what came of it: ``done``, or the code of the refusal."""

    at: datetime
    do: str
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """Rows are oldest first. ``changes`` are moves of status and plan, ``drift`` counts accounts that do not add up."""

    months: int
    subscription: Row
    invoices: Sequence[Row]
    notifications: Sequence[Row]
    changes: Sequence[Row]
    timeline: Sequence[Row]
    happened: Sequence[Happened]
    transactions: int
    unbalanced: int
    wallet: Money
    drift: int


async def read(
    session: AsyncSession,
    subscription_id: str,
    organization_id: str,
    currency: str,
    months: int,
    happened: Sequence[Happened],
) -> Story:
    parameters = {"id": subscription_id, "organization": organization_id}

    async def rows(statement: str) -> list[Row]:
        return [dict(row) for row in (await session.execute(text(statement), parameters)).mappings()]

    (subscription,) = await rows(
        "SELECT s.id, s.status, p.code AS plan, i.status AS instance, i.hostname FROM subscriptions s"
        " JOIN plans p ON p.id = s.plan_id LEFT JOIN instances i ON i.subscription_id = s.id WHERE s.id = :id"
    )
    (counted,) = await rows("SELECT count(*) AS transactions FROM ledger_transactions")
    return Story(
        months=months,
        subscription=subscription,
        invoices=await rows(
            "SELECT number, kind, period_start, period_end, total_minor, currency, status FROM invoices"
            " WHERE subscription_id = :id ORDER BY period_start, created_at, number"
        ),
        notifications=await rows(
            "SELECT kind, business_at AS at, context FROM notifications WHERE organization_id = :organization"
            " ORDER BY business_at, created_at, id"
        ),
        changes=await rows(
            """
            SELECT c.at, COALESCE(b.code, c.before) AS "from", COALESCE(a.code, c.after) AS "to", c.reason, c.what
            FROM subscription_changes c
            LEFT JOIN plans b ON c.what = 'plan' AND b.id = c.before
            LEFT JOIN plans a ON c.what = 'plan' AND a.id = c.after
            WHERE c.subscription_id = :id AND c.what IN ('status', 'plan') ORDER BY c.id
            """
        ),
        timeline=await rows(
            "SELECT at, kind, message FROM timeline_events WHERE subscription_id = :id"
            " AND kind <> 'notification.sent' ORDER BY id"
        ),
        happened=happened,
        transactions=counted["transactions"],
        unbalanced=await ledger.unbalanced(session),
        wallet=(await ledger.balances(session, organization_id, currency)).wallet,
        drift=len(await ledger.drift(session)),
    )
