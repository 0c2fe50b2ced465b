"""``Idempotency-Key``: the same order under the same key is done once and answered the same."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Request
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import Response

from api.context import Context
from api.deps import Ctx, RequestId, SignedIn, opened_by, unit_of_work
from api.envelope import Json
from api.errors import ApiError, conflict, response, translated
from api.ids import new_id
from api.tokens import Caller
from db.queries import idempotency
from db.queries.idempotency import Claim

P = TypeVar("P")

LONGEST_KEY = 255
WAIT_SECONDS = 4.0
LOOK_EVERY_SECONDS = 0.05
FINAL = frozenset({402, 403, 404, 409, 410, 422})
"""Refusals that another try would not change. Anything else (401, 429, 5xx) gives the key back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Once:
    """Does an order's work at most once per key.

    ``key`` derives the ids of what is ordered (``workflows.rules.ids.derived``); it is None only where no key was sent
    to a route that does not insist on one, and then every call does the work.

    The work opens its units of work itself (``UnitsOfWork``): what it writes is committed when it returns, and only
    then is the answer kept.
    """

    ctx: Context
    caller: Caller
    key: str | None
    route: str
    body_hash: str
    request_id: str

    async def __call__(self, work: Callable[[], Awaitable[Json]]) -> Response:
        """Return the work's answer, or the one that this key was given before, marked ``Idempotent-Replayed``.

        Raises:
            ApiError: 422 ``IDEMPOTENCY_KEY_REUSED`` for another body; 409 while the first is still at work.
        """

        async def nothing(_: AsyncSession) -> None:
            return None

        async def alone(_: None) -> Json:
            return await work()

        return await self.after(nothing, alone)

    async def after(
        self, prepare: Callable[[AsyncSession], Awaitable[P]], work: Callable[[P], Awaitable[Json]]
    ) -> Response:
        """The same where the work needs to read first: ``prepare`` reads in the transaction that claims the key.

        That transaction speaks for the caller and is over before ``work`` begins; if ``prepare`` refuses, the key stays
        free.
        """
        if self.key is None:
            async with unit_of_work(self.ctx, self.caller) as session:
                prepared = await prepare(session)
            return await work(prepared)
        claim_id = new_id("clm")
        claim, found = await self._claim(self.key, claim_id, prepare)
        if found is None:
            return self._again(claim)
        return await self._do(self.key, claim_id, work, found[0])

    async def _do(self, key: str, claim_id: str, work: Callable[[P], Awaitable[Json]], prepared: P) -> Response:
        try:
            made = await work(prepared)
        except Exception as error:
            told = translated(error)
            if told is None or told.status not in FINAL:
                await asyncio.shield(self._settle(key, claim_id, None, None))
                raise
            made = response(told, self.request_id)
        except asyncio.CancelledError:
            await asyncio.shield(self._settle(key, claim_id, None, None))
            raise
        keep = made.status_code < 500
        await asyncio.shield(
            self._settle(key, claim_id, made.status_code if keep else None, bytes(made.body).decode() if keep else None)
        )
        return made

    async def _claim(
        self, key: str, claim_id: str, prepare: Callable[[AsyncSession], Awaitable[P]]
    ) -> tuple[Claim, tuple[P] | None]:
        deadline = time.monotonic() + WAIT_SECONDS

        async def claim(session: AsyncSession) -> Claim:
            return await idempotency.claim(
                session,
                organization_id=self.caller.organization_id,
                user_id=self.caller.user_id,
                route=self.route,
                key=key,
                body_hash=self.body_hash,
                claim_id=claim_id,
                at=datetime.now(UTC),
            )

        while True:
            async with opened_by(self.ctx, claim) as (session, found):
                if found.mine:
                    return found, (await prepare(session),)
            if not found.same_body:
                raise ApiError(
                    422, "IDEMPOTENCY_KEY_REUSED", "This key was used for another request; take a fresh one."
                )
            if found.status is not None:
                return found, None
            if time.monotonic() >= deadline:
                raise conflict("The first request under this key is still at work.")
            await asyncio.sleep(LOOK_EVERY_SECONDS)

    def _again(self, claim: Claim) -> Response:
        return Response(
            claim.body,
            status_code=claim.status or 200,
            media_type="application/json",
            headers={"Idempotent-Replayed": "true"},
        )

    async def _settle(self, key: str, claim_id: str, status: int | None, body: str | None) -> None:
        async def settle(session: AsyncSession) -> None:
            await idempotency.settle(
                session,
                organization_id=self.caller.organization_id,
                route=self.route,
                key=key,
                claim_id=claim_id,
                status=status,
                body=body,
            )

        async with opened_by(self.ctx, settle):
            pass


def checked_key(key: str | None) -> str | None:
    """Raises 400 for what cannot be a key."""
    if key is None:
        return None
    if not 1 <= len(key) <= LONGEST_KEY or not key.isascii() or not key.isprintable():
        raise ApiError(400, "MALFORMED_REQUEST", f"Idempotency-Key has 1 to {LONGEST_KEY} printable ASCII characters.")
    return key


def canonical_hash(body: bytes) -> str:
    """SHA-256 of the body; of JSON without regard to spaces and the order of keys."""
    try:
        body = json.dumps(json.loads(body), sort_keys=True, separators=(",", ":")).encode()
    except ValueError:
        pass
    return hashlib.sha256(body).hexdigest()


async def once(
    request: Request,
    ctx: Ctx,
    found: SignedIn,
    identifier: RequestId,
    idempotency_key: Annotated[str | None, Header(description="Makes repeating this order harmless.")] = None,
) -> Once:
    return Once(
        ctx=ctx,
        caller=found,
        key=checked_key(idempotency_key),
        route=f"{request.method} {request.url.path}",
        body_hash=canonical_hash(await request.body()),
        request_id=identifier,
    )


MaybeOnce = Annotated[Once, Depends(once)]
"""The key is honoured where one is sent."""


async def once_for_sure(found: MaybeOnce) -> Once:
    if found.key is None:
        raise ApiError(400, "IDEMPOTENCY_KEY_REQUIRED", "Send an Idempotency-Key header with this order.")
    return found


OnlyOnce = Annotated[Once, Depends(once_for_sure)]
"""The key is required."""
