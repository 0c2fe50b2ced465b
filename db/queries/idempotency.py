"""Answers that are given once per key: claimed before the work, settled after it. One statement each."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

KEEP = timedelta(hours=24)
HOLD = timedelta(seconds=12)
"""After which a claim whose request never came back is given to the next one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What stands under a key. ``mine`` is leave to do the work; ``status`` None is somebody else at work."""

    mine: bool
    same_body: bool
    status: int | None
    body: str | None


async def claim(
    session: AsyncSession,
    *,
    organization_id: str,
    user_id: str,
    route: str,
    key: str,
    body_hash: str,
    claim_id: str,
    at: datetime,
) -> Claim:
    """Claim the key for this request, unless it is claimed or answered.

    From here on the transaction speaks for the organisation and user, as after ``act_as``: it is the first statement.
    """
    found = await session.execute(
        text(
            "SELECT mine, same_body, status, body, set_config('berth.user', :user, true),"
            " set_config('berth.role', 'USER', true)"
            " FROM idempotency_claim(:account, :route, :key, :hashed, :claim, :at, :hold, :keep)"
        ),
        {
            "account": organization_id,
            "user": user_id,
            "route": route,
            "key": key,
            "hashed": body_hash,
            "claim": claim_id,
            "at": at,
            "hold": HOLD,
            "keep": KEEP,
        },
    )
    row = found.one()
    return Claim(mine=row.mine, same_body=row.same_body, status=row.status, body=row.body)


async def settle(
    session: AsyncSession,
    *,
    organization_id: str,
    route: str,
    key: str,
    claim_id: str,
    status: int | None,
    body: str | None,
) -> None:
    """Keep the answer, or (``status`` None) give the claim back."""
    await session.execute(
        text("SELECT idempotency_settle(:account, :route, :key, :claim, :status, :body)"),
        {
            "account": organization_id,
            "route": route,
            "key": key,
            "claim": claim_id,
            "status": status,
            "body": body,
        },
    )


async def accepted_order(
    session: AsyncSession, organization_id: str, route: str, identifier: str
) -> dict[str, Any] | None:
    """Return ``data`` of the 202 that ``route`` answered about the object of this id, as long as answers are kept."""
    found = await session.scalars(
        text(
            "SELECT CAST(body AS jsonb) -> 'data' FROM idempotency_records"
            " WHERE organization_id = :account AND route = :route AND status = 202"
            " AND CAST(body AS jsonb) -> 'data' ->> 'id' = :id LIMIT 1"
        ),
        {"account": organization_id, "route": route, "id": identifier},
    )
    kept: dict[str, Any] | None = found.first()
    return kept
