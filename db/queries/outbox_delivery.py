"""The dispatcher's side of the outbox: claim due notifications and record their delivery.

All instants are the database's clock, so that workers with different clocks agree on which claim is valid.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from workflows.rules.notifications import LIMITS

_CLAIM = text(
    """
WITH due AS (
    SELECT id FROM notifications
    WHERE channel = :channel AND status IN ('pending', 'sending') AND next_attempt_at <= now()
    ORDER BY priority, next_attempt_at LIMIT :limit FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE notifications n
    SET status = 'sending', attempts = n.attempts + 1, claim_id = :claim_id,
        next_attempt_at = now() + make_interval(secs => :seconds)
    FROM due WHERE n.id = due.id
    RETURNING n.*
)
SELECT c.id, c.organization_id, c.kind, c.template_context, c.encrypted_context, c.request_id, c.attempts,
       c.occurred_at, c.available_at, c.subscription_id, c.scheduled_for, c.requires_render,
       now() AS now, o.name AS organization_name, o.timezone, r.addresses AS recipient_addresses,
       r.name AS recipient_name
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
ORDER BY c.priority, c.occurred_at, c.created_at, c.id
"""
)

_RECORD_DELIVERIES = text(
    """
UPDATE notifications n
SET status = r.status,
    attempts = n.attempts - r.returned,
    next_attempt_at = now() + make_interval(secs => r.pause),
    claim_id = NULL,
    sent_at = CASE WHEN r.status = 'sent' THEN now() END,
    recipient_addresses = COALESCE(r.recipient_addresses, n.recipient_addresses),
    message_id = COALESCE(r.message_id, n.message_id),
    error = r.error,
    encrypted_context = CASE WHEN r.status = 'pending' THEN n.encrypted_context END
FROM jsonb_to_recordset(CAST(:outcomes AS jsonb)) AS r(
    id text, status text, returned bigint, pause double precision, recipient_addresses text, message_id text,
    error text)
WHERE n.id = r.id AND n.claim_id = :claim_id
"""
)

_ADD_TO_TIMELINE = text(
    """
INSERT INTO timeline_events (organization_id, subscription_id, occurred_at, kind, message, reference_id, dedup_key)
SELECT organization_id, subscription_id,
    COALESCE(scheduled_for, occurred_at) + GREATEST(now() - available_at, interval '0'),
    'notification.sent', 'Mail sent: ' || rtrim(r.subject, '.') || '.', n.id, 'notice/' || n.id
FROM notifications n JOIN jsonb_to_recordset(CAST(:sent AS jsonb)) AS r(id text, subject text) USING (id)
WHERE n.subscription_id IS NOT NULL
ORDER BY 3
ON CONFLICT DO NOTHING
"""
)
"""At the subscription's clock: as long after the event as the mail was sent after it could be sent first."""

PENDING_BACKLOG = text(
    """
SELECT count(*), COALESCE(GREATEST(EXTRACT(EPOCH FROM now() - min(next_attempt_at)), 0), 0)
FROM notifications WHERE channel = :channel AND status IN ('pending', 'sending')
    AND next_attempt_at <= now() + make_interval(secs => :longest_delay)
    AND (scheduled_for IS NULL OR next_attempt_at <= now())
"""
)
"""No mail waits longer than the delay for its next attempt; the reminders of later days are not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedNotification:
    """A notification that this dispatcher may send until its claim expires.

    ``attempts`` includes this one; ``now`` is the database's clock. ``scheduled_for`` is set for a reminder.
    """

    id: str
    organization_id: str | None
    kind: str
    template_context: dict[str, Any]
    encrypted_context: str | None
    request_id: str
    attempts: int
    occurred_at: datetime
    available_at: datetime
    now: datetime
    recipient_addresses: tuple[str, ...]
    recipient_name: str | None
    organization_name: str | None
    timezone: str | None
    subscription_id: str | None = None
    scheduled_for: datetime | None = None
    requires_render: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryOutcome:
    """``status``: ``sent``, ``failed``, ``voided``, or ``pending`` again after ``retry_delay``.

    ``attempt_refunded``: the attempt was not made and is not counted. ``error`` names codes and types, never values.
    ``subject``: of a mail that was sent.
    """

    id: str
    status: str
    retry_delay: timedelta = timedelta()
    attempt_refunded: bool = False
    recipient_addresses: str | None = None
    message_id: str | None = None
    subject: str | None = None
    error: str | None = None


async def claim_due(
    session: AsyncSession, *, channel: str, claim_id: str, limit: int, lease: timedelta
) -> list[ClaimedNotification]:
    """Claim up to ``limit`` due notifications as ``claim_id``, with their recipients; urgent kinds first.

    Rows that another dispatcher is claiming are skipped; a claim that has expired is taken over.
    """
    parameters = {"channel": channel, "claim_id": claim_id, "limit": limit, "seconds": lease.total_seconds()}
    rows = (await session.execute(_CLAIM, parameters)).mappings()
    return [
        ClaimedNotification(**{**row, "recipient_addresses": tuple(row["recipient_addresses"] or ())}) for row in rows
    ]


async def record_outcomes(session: AsyncSession, *, claim_id: str, outcomes: Sequence[DeliveryOutcome]) -> int:
    """Record deliveries and return their number; a notification whose claim was taken over is left unchanged.

    What was sent is added to the timeline of its subscription.
    """
    rows = [
        {
            "id": outcome.id,
            "status": outcome.status,
            "returned": int(outcome.attempt_refunded),
            "pause": outcome.retry_delay.total_seconds(),
            "recipient_addresses": outcome.recipient_addresses,
            "message_id": outcome.message_id,
            "error": outcome.error,
        }
        for outcome in outcomes
    ]
    result = await session.execute(_RECORD_DELIVERIES, {"outcomes": json.dumps(rows), "claim_id": claim_id})
    sent = [{"id": outcome.id, "subject": outcome.subject} for outcome in outcomes if outcome.status == "sent"]
    if sent:
        await session.execute(_ADD_TO_TIMELINE, {"sent": json.dumps(sent)})
    return int(getattr(result, "rowcount", 0))


async def pending_backlog(session: AsyncSession, channel: str) -> tuple[int, float]:
    """Return how many notifications are due, and how many seconds the oldest of them is overdue."""
    row = (
        await session.execute(
            PENDING_BACKLOG, {"channel": channel, "longest_delay": LIMITS.maximum_interval.total_seconds()}
        )
    ).one()
    return int(row[0]), float(row[1])
