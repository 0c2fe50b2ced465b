"""``Idempotency-Key``: the work of a request is done once per key, and a retry returns the first response."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeVar

import structlog
from fastapi import Depends, Header, Request
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import Response

from api.app_context import AppContext
from api.dependencies.authentication import AuthenticatedCaller
from api.dependencies.context import app_context
from api.dependencies.transactions import transaction, transaction_starting_with
from api.errors import ApiError, conflict_error, error_response, forbidden_error, to_api_error
from api.ids import generate_id
from api.response_envelope import JsonResponse
from api.tokens import Caller
from db.queries import idempotency
from db.queries.idempotency import KeyClaim, StoredResponse
from db.reads import PreparedRead, SessionReader
from workflows.rules.errors import RuleViolation
from workflows.rules.ids import derive_id

log = structlog.get_logger("api.idempotency")

P = TypeVar("P")
R = TypeVar("R")

MAX_KEY_LENGTH = 255
WAIT_SECONDS = 4.0
POLL_INTERVAL_SECONDS = 0.05
CACHEABLE_ERROR_STATUSES = frozenset({402, 403, 404, 409, 410, 422})
"""Errors that a retry would not change, if they are final. After any other (401, 429, 5xx) a retry does the work."""


Preparation = Callable[[AsyncSession], Awaitable[P]]
"""What is read before the work, in the transaction that claims the key. If it raises, the key stays as it was."""


@dataclass(frozen=True, slots=True)
class _PreparedWork(Generic[P]):
    """What the preparation of the work returned, which may be None."""

    prepared: P


@dataclass(slots=True, kw_only=True)
class IdempotentRequest:
    """Does the work of a request at most once per organization, route and key.

    Routes call ``run`` if the work builds its response, and ``run_and_present`` if the response is read after the work.
    Both claim the key, prepare, do the work and store the response; ``_claim_and_respond`` is what they share.

    The claim is committed beside the work. Until then other requests under the key wait for its lock, and a claim that
    cannot be committed is as one that a power failure took (``db.queries.idempotency.claim_key``).

    ``key`` is None only on a route that does not require one; then every request does the work.

    Attributes:
        attempt, is_retry: Known once the key is claimed, as in ``KeyClaim``. What was valid when the first request of
            an attempt began is not judged again by the state of a later day: its work may be done.
        rows: What the ``read`` of ``run_and_present`` returned, for its ``prepare``.
    """

    ctx: AppContext
    caller: Caller
    key: str | None
    route: str
    body_hash: str
    request_id: str
    attempt: int = field(default=1, init=False)
    is_retry: bool = field(default=False, init=False)
    rows: Sequence[Any] = field(default=(), init=False)
    _committing: asyncio.Task[None] | None = field(default=None, init=False)

    def derive_id(self, prefix: str) -> str:
        """Return an id with this prefix: the same for each retry under the key, a fresh one without a key."""
        if self.key is None:
            return generate_id(prefix)
        return derive_id(prefix, self.caller.organization_id, self.route, self.key)

    def derive_update_id(self) -> str:
        """Return the id of the workflow update that the claimed key sends.

        It differs for each attempt: the server answers a repeated id with the outcome of the first update, also with a
        refusal that has passed.
        """
        if self.key is None or self.attempt == 1:
            return self.derive_id("ord")
        return derive_id("ord", self.caller.organization_id, self.route, self.key, str(self.attempt))

    async def run(
        self,
        prepare: Preparation[P],
        work: Callable[[P], Awaitable[JsonResponse]],
        *,
        as_administrator: bool = False,
    ) -> Response:
        """Return the response of ``work``, or the final one stored under the key, marked ``Idempotent-Replayed``.

        The client does not wait until the response is stored: a retry that comes before waits for it, and after a
        failure there the work is found by the ids that derive from the key.

        Args:
            prepare: What the work needs to read first. Its transaction ends before ``work`` begins. On a retry it must
                not refuse by the present state.
            work: What is done once.
            as_administrator: Refuse other users, and read the rows of every organization.

        Raises:
            ApiError: 422 ``IDEMPOTENCY_KEY_REUSED`` for another body; 409 while another request does the work.
        """

        async def respond(prepared: P, claimed_key: StoredResponse | None) -> JsonResponse:
            response = await work(prepared)
            self._store_after_response(claimed_key, response)
            return response

        return await self._claim_and_respond(prepare, respond, as_administrator=as_administrator)

    async def run_and_present(
        self,
        prepare: Preparation[P],
        work: Callable[[P], Awaitable[JsonResponse | R]],
        present: Callable[[AsyncSession, P, R], Awaitable[JsonResponse]],
        *,
        as_administrator: bool = False,
        read: PreparedRead[Any] | None = None,
    ) -> Response:
        """Like ``run``, for a response that is read after the work.

        Args:
            prepare: As in ``run``.
            work: What is done once.
            present: Builds the response from the result of ``work``; it reads in the transaction that stores the
                response: two transactions in all. It is not called if ``work`` returns the response itself.
            as_administrator: Refuse other users, and read the rows of every organization.
            read: Shares a round trip with the claim of the key; ``prepare`` finds its rows in ``rows``.
        """

        async def respond(prepared: P, claimed_key: StoredResponse | None) -> JsonResponse:
            result = await work(prepared)
            if isinstance(result, JsonResponse):
                self._store_after_response(claimed_key, result)
                return result
            await self._wait_for_claim()
            async with transaction(self.ctx, self.caller, as_administrator=as_administrator) as session:
                response = await present(session, prepared, result)
                if claimed_key is not None:
                    await idempotency.store_and_commit(session, _with_response(claimed_key, response))
            return response

        return await self._claim_and_respond(prepare, respond, as_administrator=as_administrator, read=read)

    def _store_after_response(self, claimed_key: StoredResponse | None, response: JsonResponse) -> None:
        if claimed_key is not None:
            self.ctx.run_after_response(self._store(_with_response(claimed_key, response)))

    async def _claim_and_respond(
        self,
        prepare: Preparation[P],
        respond: Callable[[P, StoredResponse | None], Awaitable[JsonResponse]],
        *,
        as_administrator: bool,
        read: PreparedRead[Any] | None = None,
    ) -> Response:
        """Claim the key, prepare, and return what ``respond`` returns after it has stored it under the key."""
        if as_administrator and not self.caller.is_administrator:
            raise forbidden_error()
        if self.key is None:
            async with transaction(self.ctx, self.caller, as_administrator=as_administrator) as session:
                if read is not None:
                    self.rows = await SessionReader(session).fetch(read.query, read.values)
                prepared = await prepare(session)
            return await respond(prepared, None)
        claimed_key = StoredResponse(
            organization_id=self.caller.organization_id,
            route=self.route,
            key=self.key,
            claim_id=generate_id("clm"),
            status=None,
            body=None,
        )
        claimed = await self._claim(claimed_key, prepare, as_administrator, read)
        if isinstance(claimed, Response):
            return claimed
        try:
            return await respond(claimed.prepared, claimed_key)
        except Exception as error:
            rejection = await self._end_failed_work(claimed_key, error)
            if rejection is None:
                raise
            return rejection
        except asyncio.CancelledError:
            await asyncio.shield(self._store(claimed_key))
            raise

    async def _end_failed_work(self, claimed_key: StoredResponse, error: Exception) -> JsonResponse | None:
        """Store and return the rejection if a retry would be rejected as well; otherwise release the key."""
        refused = to_api_error(error)
        if refused is None or not refused.is_final or refused.status not in CACHEABLE_ERROR_STATUSES:
            ends_attempt = isinstance(error, RuleViolation) and error.is_retryable
            await asyncio.shield(self._store(replace(claimed_key, ends_attempt=ends_attempt)))
            return None
        response = error_response(refused, self.request_id)
        await asyncio.shield(self._store(replace(_with_response(claimed_key, response), waits_for_disk=True)))
        return response

    async def _claim(
        self,
        claimed_key: StoredResponse,
        prepare: Preparation[P],
        as_administrator: bool,
        read: PreparedRead[Any] | None,
    ) -> _PreparedWork[P] | Response:
        """Claim the key once no other request holds it, and prepare the work; or return the response that is stored."""
        deadline = time.monotonic() + WAIT_SECONDS

        async def claim(session: AsyncSession) -> tuple[KeyClaim, list[Any]]:
            return await idempotency.claim_key(
                session,
                organization_id=claimed_key.organization_id,
                user_id=self.caller.user_id,
                role=self.caller.platform_role if as_administrator else "USER",
                route=claimed_key.route,
                key=claimed_key.key,
                request_hash=self.body_hash,
                claim_id=claimed_key.claim_id,
                at=datetime.now(UTC),
                read=read,
            )

        while True:
            async with AsyncExitStack() as transaction_stack:
                session, (state, rows) = await transaction_stack.enter_async_context(
                    transaction_starting_with(self.ctx, claim)
                )
                if state.acquired:
                    self.attempt, self.is_retry, self.rows = state.attempt, state.is_retry, rows
                    prepared = await prepare(session)
                    self._committing = asyncio.create_task(transaction_stack.pop_all().aclose())
                    return _PreparedWork(prepared)
            if not state.is_same_request:
                raise ApiError(
                    422,
                    "IDEMPOTENCY_KEY_REUSED",
                    "This Idempotency-Key was used with a different request. Send a new key.",
                )
            if state.status is not None:
                return _replay(state)
            if time.monotonic() >= deadline:
                raise conflict_error("A request with this Idempotency-Key is still in progress. Retry later.")
            await asyncio.sleep(POLL_INTERVAL_SECONDS)

    async def _wait_for_claim(self) -> None:
        """Wait until the claim is committed, or could not be; that is logged."""
        if self._committing is not None:
            await asyncio.wait({self._committing})
            if not self._committing.cancelled() and (error := self._committing.exception()) is not None:
                log.warning("idempotency.claim_not_committed", error=type(error).__name__)
            self._committing = None

    async def _store(self, response: StoredResponse) -> None:
        await self._wait_for_claim()

        async def store(session: AsyncSession) -> None:
            await idempotency.store_alone(session, response)

        async with transaction_starting_with(self.ctx, store):
            pass


def _replay(claim: KeyClaim) -> Response:
    return Response(
        claim.body,
        status_code=claim.status or 200,
        media_type="application/json",
        headers={"Idempotent-Replayed": "true"},
    )


def _with_response(claimed_key: StoredResponse, response: JsonResponse) -> StoredResponse:
    if response.status_code >= 500:
        return claimed_key
    return replace(
        claimed_key,
        status=response.status_code,
        body=bytes(response.body).decode(),
        is_final=response.is_final,
        waits_for_disk=False,
    )


def validate_key(key: str | None) -> str | None:
    """Return the key. Raises 400 unless it is 1 to 255 printable ASCII characters."""
    if key is None:
        return None
    if not 1 <= len(key) <= MAX_KEY_LENGTH or not key.isascii() or not key.isprintable():
        raise ApiError(
            400, "MALFORMED_REQUEST", f"Idempotency-Key must be 1 to {MAX_KEY_LENGTH} printable ASCII characters."
        )
    return key


def canonical_body_hash(body: bytes) -> str:
    """Return the SHA-256 of the body; JSON that differs only in spaces or the order of keys has the same hash."""
    try:
        body = json.dumps(json.loads(body), sort_keys=True, separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        # Not JSON, or nested deeper than any route accepts: the hash of the bytes is as good.
        pass
    return hashlib.sha256(body).hexdigest()


IdempotencyKey = Annotated[
    str | None, Header(description="Idempotency key: a retry with the same key returns the first result.")
]


# Neither has more dependencies than it must: FastAPI takes longer to solve one than to verify an access token.
async def get_idempotent_request(
    request: Request, caller: AuthenticatedCaller, idempotency_key: IdempotencyKey = None
) -> IdempotentRequest:
    return IdempotentRequest(
        ctx=app_context(request),
        caller=caller,
        key=validate_key(idempotency_key),
        route=f"{request.method} {request.url.path}",
        body_hash=canonical_body_hash(await request.body()),
        request_id=str(request.state.request_id),
    )


OptionalIdempotency = Annotated[IdempotentRequest, Depends(get_idempotent_request)]
"""The key is optional."""


async def require_idempotency_key(
    request: Request, caller: AuthenticatedCaller, idempotency_key: IdempotencyKey = None
) -> IdempotentRequest:
    once = await get_idempotent_request(request, caller, idempotency_key)
    if once.key is None:
        raise ApiError(400, "IDEMPOTENCY_KEY_REQUIRED", "The Idempotency-Key header is required.")
    return once


RequiredIdempotency = Annotated[IdempotentRequest, Depends(require_idempotency_key)]
"""The key is required."""
