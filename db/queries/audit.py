"""Appending to the audit log."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.identity import AuditEntry


async def append_audit_entry(
    session: AsyncSession,
    *,
    organization_id: str | None,
    actor: str,
    action: str,
    at: datetime,
    object: str | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    reason: str | None = None,
    ip: str | None = None,
    request_id: str | None = None,
) -> None:
    """Append to the audit log; the database chains it. Never a secret in ``before`` or ``after``.

    The last statement of its transaction: the end of the organization's chain is locked until the commit.
    """
    await session.execute(
        insert(AuditEntry).values(
            organization_id=organization_id,
            actor=actor,
            action=action,
            object_id=object,
            before=dict(before) if before is not None else None,
            after=dict(after) if after is not None else None,
            reason=reason,
            ip=ip,
            request_id=request_id,
            at=at,
        )
    )
