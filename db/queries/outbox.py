"""Transactional outbox: notifications are enqueued in the transaction of the event that they report.

``berth_api`` and ``berth_worker`` enqueue. Only the dispatcher claims, sends and records. Enqueueing the same event
again (a retried activity) changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from db.encryption import SESSION_INFO_KEY, FieldEncryption
from workflows.rules.ids import derive_id
from workflows.rules.notifications import CHANNEL_EMAIL, NotificationKind


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxNotification:
    """A message to one user, or (``user_id`` None) to the organization's owners and billing members.

    Without an organization as well it addresses the administrators.

    Attributes:
        dedup_key: Unique within the organization, e.g. ``subscription/sub_1/renewed/2027-01-31``.
        context: JSON values with the keys of ``activities/notification_keys.py``; money is
            ``{"amount_minor", "currency"}``, instants are ISO 8601 text. Never a secret.
        occurred_at: When the event happened, on the clock of what it is about.
        secret_context: Template values that must be encrypted at rest (tokens); cleared when the message is sent.
    """

    organization_id: str | None
    user_id: str | None
    kind: NotificationKind
    dedup_key: str
    context: Mapping[str, Any]
    occurred_at: datetime
    secret_context: Mapping[str, str] | None = None
    channel: str = CHANNEL_EMAIL
    request_id: str = ""

    @property
    def id(self) -> str:
        return derive_id("ntf", self.organization_id or "", self.dedup_key, self.channel, self.user_id or "")


def build_operator_alert(
    dedup_key: str, at: datetime, title: str, details: str, *, severity: str, **ids: str
) -> OutboxNotification:
    """Build a message to the administrators.

    Args:
        severity: ``warning`` or ``critical``.
        ids: Context keys that identify what the alert is about, e.g. ``subscription_id``.
    """
    return OutboxNotification(
        organization_id=None,
        user_id=None,
        kind=NotificationKind.OPERATOR_ALERT,
        dedup_key=dedup_key,
        context={"title": title, "details": details, "severity": severity, **ids},
        occurred_at=at,
    )


_INSERT = text(
    """
INSERT INTO notifications
    (id, organization_id, user_id, kind, channel, dedup_key, template_context, encrypted_context, request_id,
    occurred_at, priority)
SELECT id, organization_id, user_id, kind, channel, dedup_key, template_context, encrypted_context, request_id,
    occurred_at, priority
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(
    id text, organization_id text, user_id text, kind text, channel text, dedup_key text,
    template_context jsonb, encrypted_context text, request_id text, occurred_at timestamptz, priority smallint)
ON CONFLICT DO NOTHING
"""
)


def to_outbox_row(notification: OutboxNotification, encryptor: FieldEncryption | None = None) -> dict[str, Any]:
    """Return the notification as a JSON-ready row.

    Raises:
        ValueError: ``kind`` is unknown, or there is a secret context and no encryptor.
    """
    kind, encrypted = NotificationKind(notification.kind), None
    if notification.secret_context:
        if encryptor is None:
            raise ValueError("a notification with a secret context requires a session factory with an encryptor")
        encrypted = encryptor.encrypt_mapping(notification.secret_context, purpose=f"notifications/{notification.id}")
    return {
        "id": notification.id,
        "organization_id": notification.organization_id,
        "user_id": notification.user_id,
        "kind": kind.value,
        "channel": notification.channel,
        "dedup_key": notification.dedup_key,
        "template_context": dict(notification.context),
        "encrypted_context": encrypted,
        "request_id": notification.request_id,
        "occurred_at": notification.occurred_at.isoformat(),
        "priority": kind.priority,
    }


async def enqueue(session: AsyncSession, *notifications: OutboxNotification) -> None:
    """Enqueue notifications in the session's transaction with one statement; existing rows stay unchanged."""
    if notifications:
        encryptor = session.info.get(SESSION_INFO_KEY)
        rows = [to_outbox_row(notification, encryptor) for notification in notifications]
        await session.execute(_INSERT, {"rows": json.dumps(rows)})


async def is_enqueued(session: AsyncSession, notification: OutboxNotification) -> bool:
    """Return whether this notification was enqueued before, sent or not."""
    statement = text("SELECT EXISTS (SELECT FROM notifications WHERE id = :id)")
    return bool((await session.execute(statement, {"id": notification.id})).scalar_one())
