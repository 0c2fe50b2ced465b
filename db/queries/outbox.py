"""The outbox: what somebody will be told, written in the transaction of the fact.

Whoever records a fact enqueues its notice in the same transaction, as ``berth_api`` or ``berth_worker``; only the
dispatcher claims, sends and records. A fact that is told again (a repeated activity) changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from db.sealing import INFO, Sealer
from workflows.rules.ids import derived
from workflows.rules.notices import CHANNEL_EMAIL, NoticeKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What happened, told to a user, or (``user_id`` None) to the organisation's owners and billing members.

    Without an organisation as well it goes to the administrators.

    Attributes:
        kind: One of ``NoticeKind``.
        fact: Unique name of the fact within the organisation, e.g. ``subscription/sub_1/renewed/2027-01-31``.
        context: JSON values as ``templates/email/README.md`` names them; money is ``{"amount_minor", "currency"}``,
            instants are ISO 8601 text. Never a secret.
        at: The business instant of the fact, on its own clock.
        secret: Values for the template that must not rest readable (tokens); encrypted, and blank once sent.
    """

    organization_id: str | None
    user_id: str | None
    kind: str
    fact: str
    context: Mapping[str, Any]
    at: datetime
    secret: Mapping[str, str] | None = None
    channel: str = CHANNEL_EMAIL
    request_id: str = ""

    @property
    def id(self) -> str:
        return derived("ntf", self.organization_id or "", self.fact, self.channel, self.user_id or "")


def operator_alert(fact: str, at: datetime, title: str, details: str, *, severity: str, **ids: str) -> Notice:
    """Return what administrators are told: ``severity`` is ``warning`` or ``critical``, ``ids`` what it is about."""
    return Notice(
        organization_id=None,
        user_id=None,
        kind=NoticeKind.OPERATOR_ALERT,
        fact=fact,
        context={"title": title, "details": details, "severity": severity, **ids},
        at=at,
    )


INSERT_NOTICES = """
INSERT INTO notifications
    (id, organization_id, user_id, kind, channel, fact, context, secret_context, request_id, business_at)
SELECT id, organization_id, user_id, kind, channel, fact, context, secret_context, request_id, business_at
FROM jsonb_to_recordset(CAST(:notices AS jsonb)) AS notice(
    id text, organization_id text, user_id text, kind text, channel text, fact text,
    context jsonb, secret_context text, request_id text, business_at timestamptz)
ON CONFLICT DO NOTHING
"""
"""One statement for any number of notices, also as a step of a longer ``WITH``: the parameter is ``notices_json``."""

_INSERT = text(INSERT_NOTICES)


def enqueue_values(notice: Notice, sealer: Sealer | None = None) -> dict[str, Any]:
    """Return the notice as a row, JSON-ready.

    Raises:
        ValueError: the kind is unknown, or there is a secret and nothing to seal it with.
    """
    kind, sealed = NoticeKind(notice.kind), None
    if notice.secret:
        if sealer is None:
            raise ValueError("a notice with a secret needs a session whose factory was given a sealer")
        sealed = sealer.seal_mapping(notice.secret, purpose=f"notifications/{notice.id}")
    return {
        "id": notice.id,
        "organization_id": notice.organization_id,
        "user_id": notice.user_id,
        "kind": kind.value,
        "channel": notice.channel,
        "fact": notice.fact,
        "context": dict(notice.context),
        "secret_context": sealed,
        "request_id": notice.request_id,
        "business_at": notice.at.isoformat(),
    }


def notices_json(notices: Sequence[Notice], sealer: Sealer | None = None) -> str:
    """Return the parameter ``notices`` of ``INSERT_NOTICES``."""
    return json.dumps([enqueue_values(notice, sealer) for notice in notices])


async def enqueue(session: AsyncSession, *notices: Notice) -> None:
    """Queue notices in the session's transaction with one statement; what was queued before stays as it is."""
    if notices:
        await session.execute(_INSERT, {"notices": notices_json(notices, session.info.get(INFO))})
