"""The dispatcher's side of the outbox: claim what is due, and record what became of it.

All instants are the database's own clock, so that workers with clocks apart agree on whose claim holds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

_CLAIM = text(
    """
WITH due AS (
    SELECT id FROM notifications
    WHERE channel = :channel AND status IN ('pending', 'sending') AND next_attempt_at <= now()
    ORDER BY next_attempt_at LIMIT :most FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE notifications n
    SET status = 'sending', attempts = n.attempts + 1, claim = :claim,
        next_attempt_at = now() + make_interval(secs => :seconds)
    FROM due WHERE n.id = due.id
    RETURNING n.*
)
SELECT c.id, c.organization_id, c.kind, c.context, c.secret_context, c.request_id, c.attempts, c.business_at,
       c.created_at, now() AS now, o.name AS organization_name, o.timezone, r.addresses, r.name AS reader_name
FROM claimed c
LEFT JOIN organizations o ON o.id = c.organization_id
LEFT JOIN LATERAL (
    SELECT json_agg(found.email ORDER BY found.email) AS addresses,
           CASE WHEN count(*) = 1 THEN min(found.name) END AS name
    FROM (
        SELECT u.email, u.name FROM users u WHERE u.id = c.user_id AND u.disabled_at IS NULL
        UNION
        SELECT u.email, u.name FROM memberships m JOIN users u ON u.id = m.user_id
        WHERE c.user_id IS NULL AND m.organization_id = c.organization_id AND m.role IN ('owner', 'billing')
          AND u.disabled_at IS NULL
        UNION
        SELECT u.email, u.name FROM users u
        WHERE c.user_id IS NULL AND c.organization_id IS NULL AND u.role = 'ADMINISTRATOR' AND u.disabled_at IS NULL
    ) found
) r ON true
ORDER BY c.business_at, c.created_at, c.id
"""
)

_RECORD = text(
    """
UPDATE notifications n
SET status = r.status,
    attempts = n.attempts - r.returned,
    next_attempt_at = now() + make_interval(secs => r.pause),
    claim = NULL,
    sent_at = CASE WHEN r.status = 'sent' THEN now() END,
    recipient = COALESCE(r.recipient, n.recipient),
    message_id = COALESCE(r.message_id, n.message_id),
    error = r.error,
    secret_context = CASE WHEN r.status = 'pending' THEN n.secret_context END
FROM jsonb_to_recordset(CAST(:outcomes AS jsonb)) AS r(
    id text, status text, returned bigint, pause double precision, recipient text, message_id text, error text)
WHERE n.id = r.id AND n.claim = :claim
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A notice that is ours to send until the claim lapses. ``attempts`` counts this one; ``now`` is the database's."""

    id: str
    organization_id: str | None
    kind: str
    context: dict[str, Any]
    secret_context: str | None
    request_id: str
    attempts: int
    business_at: datetime
    created_at: datetime
    now: datetime
    addresses: tuple[str, ...]
    reader_name: str | None
    organization_name: str | None
    timezone: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """``sent``, ``failed`` for good, or ``pending`` again after ``pause``.

    ``uncounted`` gives the attempt back: it was never made. ``error`` names codes and types, never values.
    """

    id: str
    status: str
    pause: timedelta = timedelta()
    uncounted: bool = False
    recipient: str | None = None
    message_id: str | None = None
    error: str | None = None


async def claim(session: AsyncSession, *, channel: str, claim: str, most: int, lasts: timedelta) -> list[Claimed]:
    """Claim up to ``most`` due notices under the name ``claim``, with who reads them.

    What somebody else is claiming is skipped, not waited for; a claim that has lapsed is taken over.
    """
    parameters = {"channel": channel, "claim": claim, "most": most, "seconds": lasts.total_seconds()}
    rows = (await session.execute(_CLAIM, parameters)).mappings()
    return [Claimed(**{**row, "addresses": tuple(row["addresses"] or ())}) for row in rows]


async def record(session: AsyncSession, *, claim: str, outcomes: Sequence[Outcome]) -> int:
    """Record outcomes and return how many: a notice whose claim was taken over is left to its new owner."""
    rows = [
        {
            "id": outcome.id,
            "status": outcome.status,
            "returned": int(outcome.uncounted),
            "pause": outcome.pause.total_seconds(),
            "recipient": outcome.recipient,
            "message_id": outcome.message_id,
            "error": outcome.error,
        }
        for outcome in outcomes
    ]
    result = await session.execute(_RECORD, {"outcomes": json.dumps(rows), "claim": claim})
    return int(getattr(result, "rowcount", 0))


async def backlog(session: AsyncSession, channel: str) -> tuple[int, float]:
    """How many notices wait, and how many seconds the oldest of them is overdue."""
    row = (
        await session.execute(
            text(
                "SELECT count(*), COALESCE(GREATEST(EXTRACT(EPOCH FROM now() - min(next_attempt_at)), 0), 0)"
                " FROM notifications WHERE channel = :channel AND status IN ('pending', 'sending')"
            ),
            {"channel": channel},
        )
    ).one()
    return int(row[0]), float(row[1])
