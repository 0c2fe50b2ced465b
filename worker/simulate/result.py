"""The rows of the database at the end of a simulation."""

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
class EventOutcome:
    """An event of the file and its outcome: ``done``, or the error code of the rejection."""

    at: datetime
    do: str
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationResult:
    """The recorded rows, oldest first.

    Attributes:
        changes: Changes of status and plan.
        balance_mismatches: Number of ledger accounts whose balance differs from the sum of their entries.
    """

    months: int
    subscription: Row
    invoices: Sequence[Row]
    notifications: Sequence[Row]
    changes: Sequence[Row]
    timeline: Sequence[Row]
    event_outcomes: Sequence[EventOutcome]
    transactions: int
    unbalanced: int
    wallet: Money
    balance_mismatches: int


async def load_result(
    session: AsyncSession,
    subscription_id: str,
    organization_id: str,
    currency: str,
    months: int,
    happened: Sequence[EventOutcome],
    end: datetime,
) -> SimulationResult:
    parameters = {"id": subscription_id, "organization": organization_id, "end": end}

    async def rows(statement: str) -> list[Row]:
        return [dict(row) for row in (await session.execute(text(statement), parameters)).mappings()]

    (subscription,) = await rows(
        "SELECT s.id, s.status, p.code AS plan, i.status AS instance, i.hostname FROM subscriptions s"
        " JOIN plans p ON p.id = s.plan_id LEFT JOIN instances i ON i.subscription_id = s.id WHERE s.id = :id"
    )
    (counted,) = await rows("SELECT count(*) AS transactions FROM ledger_transactions")
    return SimulationResult(
        months=months,
        subscription=subscription,
        invoices=await rows(
            "SELECT number, CASE billing_reason WHEN 'plan_change' THEN 'change' ELSE 'period' END AS kind,"
            " period_start, period_end, total_minor, currency, status FROM invoices"
            " WHERE subscription_id = :id ORDER BY period_start, created_at, number"
        ),
        notifications=await rows(
            "SELECT kind, occurred_at AS at, template_context FROM notifications WHERE organization_id = :organization"
            " AND status <> 'voided' AND occurred_at <= :end ORDER BY occurred_at, created_at, id"
        ),
        changes=await rows(
            """
            SELECT c.occurred_at AS at, COALESCE(b.code, c.before) AS "from", COALESCE(a.code, c.after) AS "to",
            c.reason, c.field
            FROM subscription_changes c
            LEFT JOIN plans b ON c.field = 'plan' AND b.id = c.before
            LEFT JOIN plans a ON c.field = 'plan' AND a.id = c.after
            WHERE c.subscription_id = :id AND c.field IN ('status', 'plan') ORDER BY c.id
            """
        ),
        timeline=await rows(
            "SELECT occurred_at AS at, kind, message FROM timeline_events WHERE subscription_id = :id"
            " AND kind <> 'notification.sent' ORDER BY id"
        ),
        event_outcomes=happened,
        transactions=counted["transactions"],
        unbalanced=await ledger.count_unbalanced_transactions(session),
        wallet=(await ledger.get_balances(session, organization_id, currency)).wallet,
        balance_mismatches=len(await ledger.find_balance_mismatches(session)),
    )
