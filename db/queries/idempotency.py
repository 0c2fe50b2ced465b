"""Responses stored per idempotency key: claimed before the work, stored after it. One statement each.

A row is never deleted while its organization exists: the ids of what a request creates derive from organization, route
and key, so a key that was forgotten would return an older object to a different request.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from db.driver import DriverStatement, begin_and_fetch, execute_together
from db.reads import PreparedRead

CLAIM_LEASE = timedelta(seconds=12)
"""How long a claim is held; a later request under the key takes over the claim of a process that died."""

_CLAIM = (
    "SELECT acquired, is_same_request, attempt, is_retry, response_status, response_body,"
    " set_config('berth.user', %(user)s, true), set_config('berth.role', %(role)s, true),"
    " set_config('synchronous_commit', 'off', true)"
    " FROM idempotency_claim_key(%(organization)s, %(route)s, %(key)s, %(request_hash)s, %(claim_id)s, %(at)s,"
    " %(lease)s)"
)
_STORE = (
    "SELECT set_config('synchronous_commit', CASE WHEN %(waits_for_disk)s THEN current_setting('synchronous_commit')"
    " ELSE 'off' END, true), idempotency_store_response(%(organization)s, %(route)s, %(key)s, %(claim_id)s, %(status)s,"
    " %(body)s, %(is_final)s, %(ends_attempt)s)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyClaim:
    """State of a key.

    Attributes:
        acquired: This request does the work.
        is_same_request: The key was used with this body.
        attempt: From 1; a refusal that passes ends an attempt.
        is_retry: An earlier request under the key may have begun the work of this attempt.
        status: None: another request is doing the work.
    """

    acquired: bool
    is_same_request: bool
    attempt: int
    is_retry: bool
    status: int | None
    body: str | None


async def claim_key(
    session: AsyncSession,
    *,
    organization_id: str,
    user_id: str,
    role: str,
    route: str,
    key: str,
    request_hash: str,
    claim_id: str,
    at: datetime,
    read: PreparedRead[Any] | None = None,
) -> tuple[KeyClaim, list[Any]]:
    """Begin the transaction and claim the key, unless it is claimed or its final response is stored.

    ``read`` is read in the same round trip; its rows are returned beside the claim.

    The transaction's row-level security context is the organization, the user and ``role``. Its commit does not wait
    for the disk, so write nothing else in it. The first commit that does wait, of the work, covers the claim too; a
    claim that a power failure took before that leaves the key free, and the ids that derive from it are the same.
    """
    claiming = DriverStatement(
        _CLAIM,
        {
            "organization": organization_id,
            "user": user_id,
            "role": role,
            "route": route,
            "key": key,
            "request_hash": request_hash,
            "claim_id": claim_id,
            "at": at,
            "lease": CLAIM_LEASE,
        },
    )
    if read is None:
        ((row,),) = await begin_and_fetch(session, claiming)
        rows = []
    else:
        (row,), rows = await begin_and_fetch(session, claiming, read.to_driver())
    claim = KeyClaim(
        acquired=row["acquired"],
        is_same_request=row["is_same_request"],
        attempt=row["attempt"],
        is_retry=row["is_retry"],
        status=row["response_status"],
        body=row["response_body"],
    )
    return claim, [read.query.make_row(list(values.values())) for values in rows] if read is not None else []


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse:
    """What a claim ends with. ``status`` None releases it; a response that is not final is superseded by a retry.

    Attributes:
        ends_attempt: The work was refused for the moment and nothing was started.
        waits_for_disk: False for work that is on disk itself, by its workflow: if a power failure takes the response
            away, a retry finds the workflow by the ids that derive from the key, and its outcome. A refusal left
            nothing that a retry could find, and would be judged again.
    """

    organization_id: str
    route: str
    key: str
    claim_id: str
    status: int | None
    body: str | None
    is_final: bool = True
    ends_attempt: bool = False
    waits_for_disk: bool = True

    def parameters(self) -> dict[str, Any]:
        return {
            "organization": self.organization_id,
            "route": self.route,
            "key": self.key,
            "claim_id": self.claim_id,
            "status": self.status,
            "body": self.body,
            "is_final": self.is_final,
            "ends_attempt": self.ends_attempt,
            "waits_for_disk": self.waits_for_disk,
        }


async def store_and_commit(session: AsyncSession, response: StoredResponse) -> None:
    """Store the response and commit the transaction that ``session`` is in: one round trip."""
    await execute_together(session, DriverStatement(_STORE, response.parameters()), commit=True)


async def store_alone(session: AsyncSession, response: StoredResponse) -> None:
    """Store the response in a separate transaction: one round trip."""
    await begin_and_fetch(session, DriverStatement(_STORE, response.parameters()), commit=True)


async def find_accepted_response(
    session: AsyncSession, organization_id: str, route: str, identifier: str
) -> dict[str, Any] | None:
    """Return ``data`` of the 202 that ``route`` returned for the object with this id, or None."""
    responses = await session.scalars(
        text(
            "SELECT CAST(response_body AS jsonb) -> 'data' FROM idempotency_records"
            " WHERE organization_id = :account AND route = :route AND response_status = 202"
            " AND CAST(response_body AS jsonb) -> 'data' ->> 'id' = :id LIMIT 1"
        ),
        {"account": organization_id, "route": route, "id": identifier},
    )
    data: dict[str, Any] | None = responses.first()
    return data
