"""What routes ask for: who is calling, a unit of work that speaks for them, and the way into the workflows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.ext.asyncio import AsyncSession

from api import ratelimit
from api.context import Context, context
from api.errors import ApiError, forbidden, unauthenticated, unavailable
from api.settings import networks
from api.tokens import BadToken, Caller
from db.queries import identity
from db.session import Sessions, act_as
from workflows.client import Orchestrator

_bearer = HTTPBearer(auto_error=False, description="The access token of `POST /api/v1/auth/login`.")

Ctx = Annotated[Context, Depends(context)]
T = TypeVar("T")


def request_id(request: Request) -> str:
    return str(request.state.request_id)


RequestId = Annotated[str, Depends(request_id)]


def address(request: Request) -> str:
    """Where the request comes from; behind a proxy only as far as ``BERTH_TRUSTED_PROXIES`` vouches for it."""
    return request.client.host if request.client else "unknown"


Address = Annotated[str, Depends(address)]

# ---------------------------------------------------------------- who


def signed_in(ctx: Context, token: str) -> Caller:
    """Return who presents this access token.

    Raises:
        ApiError: 401 ``UNAUTHENTICATED``.
    """
    try:
        found = ctx.tokens.read(token)
    except BadToken as error:
        raise unauthenticated("The access token is not valid, or no longer.") from error
    if found.session_id in ctx.revocations:
        raise unauthenticated("The session has ended.")
    return found


async def caller(
    request: Request, ctx: Ctx, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Caller:
    """Whoever is signed in. No database: the token says it, the set of revocations may contradict it."""
    try:
        if credentials is None:
            raise unauthenticated()
        found = signed_in(ctx, credentials.credentials)
    except ApiError:
        # Guessing is limited as well.
        await ctx.rate_limits.take(ratelimit.API, "address", address(request))
        raise
    request.state.caller = found
    limit = ratelimit.ADMIN if found.is_administrator else ratelimit.API
    left = await ctx.rate_limits.take(limit, found.user_id)
    if left is not None:
        request.state.headers = left.headers
    return found


SignedIn = Annotated[Caller, Depends(caller)]


async def verified_caller(ctx: Ctx, found: SignedIn) -> Caller:
    """Whoever is signed in with a verified address; one look into the database where the token is older than that.

    Raises:
        ApiError: 403 ``EMAIL_NOT_VERIFIED``.
    """
    if found.email_verified:
        return found
    async with unit_of_work(ctx, found) as session:
        if await identity.is_verified(session, found.user_id):
            return found
    raise ApiError(403, "EMAIL_NOT_VERIFIED", "Please follow the link in the mail that we sent you first.")


Verified = Annotated[Caller, Depends(verified_caller)]


async def administrator(request: Request, ctx: Ctx, found: SignedIn) -> Caller:
    """An administrator, from a network that administrators may come from.

    Raises:
        ApiError: 403 ``FORBIDDEN``.
    """
    if not found.is_administrator or not within(address(request), ctx.settings.admin_allow):
        raise forbidden()
    return found


Administrator = Annotated[Caller, Depends(administrator)]


def within(host: str, allowed: tuple[str, ...]) -> bool:
    if not allowed:
        return True
    try:
        return any(ip_address(host) in network for network in networks(allowed))
    except ValueError:
        return False


async def limit_by_address(request: Request, ctx: Ctx, host: Address) -> None:
    """For public routes outside of sign-in: as often as a signed-in user, by address."""
    left = await ctx.rate_limits.take(ratelimit.API, "address", host)
    if left is not None:
        request.state.headers = left.headers


async def limit_sign_in(request: Request, ctx: Ctx, host: Address) -> None:
    """For routes that take or give credentials: a few a minute, by address and route."""
    left = await ctx.rate_limits.take(ratelimit.AUTH, request.url.path, host)
    if left is not None:
        request.state.headers = left.headers


# ---------------------------------------------------------------- units of work


@asynccontextmanager
async def opened_by(
    ctx: Context, first: Callable[[AsyncSession], Awaitable[T]]
) -> AsyncIterator[tuple[AsyncSession, T]]:
    """One transaction that begins with ``first``; it commits at its end or not at all.

    Raises:
        ApiError: 503 ``UNAVAILABLE`` when ``first`` has no answer within ``database_seconds``, whatever hangs.
    """
    session = ctx.sessions()
    opening = asyncio.ensure_future(first(session))
    try:
        await asyncio.wait({opening}, timeout=ctx.settings.database_seconds)
    finally:
        if not opening.done():
            ctx.abandon(opening, session)
    if not opening.done():
        raise unavailable("The database")
    try:
        found = opening.result()
        yield session, found
        await session.commit()
    except BaseException:
        await session.rollback()
        raise
    finally:
        await session.close()


@asynccontextmanager
async def unit_of_work(
    ctx: Context, speaks_for: Caller | None, *, as_administrator: bool = False
) -> AsyncIterator[AsyncSession]:
    """One transaction that speaks for the caller's organisation; it commits at its end or not at all.

    An administrator sees their own organisation only, like everybody, unless ``as_administrator``.

    Raises:
        ApiError: 503 ``UNAVAILABLE`` when the database gives no connection within ``database_seconds``.
    """

    async def speak(session: AsyncSession) -> None:
        await act_as(
            session,
            organization_id=speaks_for.organization_id if speaks_for else None,
            user_id=speaks_for.user_id if speaks_for else None,
            role=(speaks_for.role if as_administrator else "USER") if speaks_for else None,
        )

    async with opened_by(ctx, speak) as (session, _):
        yield session


@asynccontextmanager
async def gateway_work(ctx: Context) -> AsyncIterator[AsyncSession]:
    """One transaction that speaks for a gateway whose signature holds: it sees the gateways' inbox, no account's rows.

    Raises:
        ApiError: 503 as ``unit_of_work`` does.
    """

    async def speak(session: AsyncSession) -> None:
        await act_as(session, organization_id=None, user_id=None, role="GATEWAY")

    async with opened_by(ctx, speak) as (session, _):
        yield session


async def session(ctx: Ctx, found: SignedIn) -> AsyncIterator[AsyncSession]:
    async with unit_of_work(ctx, found) as work:
        yield work


async def admin_session(ctx: Ctx, found: Administrator) -> AsyncIterator[AsyncSession]:
    async with unit_of_work(ctx, found, as_administrator=True) as work:
        yield work


async def public_session(ctx: Ctx) -> AsyncIterator[AsyncSession]:
    async with unit_of_work(ctx, None) as work:
        yield work


# With the default scope the commit would come after the answer, and its failure too late.
Work = Annotated[AsyncSession, Depends(session, scope="function")]
"""A unit of work for the caller: reads and what no workflow owns. It commits before the answer leaves."""
AdminWork = Annotated[AsyncSession, Depends(admin_session, scope="function")]
"""The same across all organisations, for administrators."""
PublicWork = Annotated[AsyncSession, Depends(public_session, scope="function")]
"""The same for nobody: what everybody may read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """Units of work one after the other, for routes that call a workflow in between: no transaction waits for it.

    ``async with units.begin() as session: ...``
    """

    ctx: Context
    caller: Caller

    def begin(self, *, as_administrator: bool = False) -> AbstractAsyncContextManager[AsyncSession]:
        if as_administrator and not self.caller.is_administrator:
            raise forbidden()
        return unit_of_work(self.ctx, self.caller, as_administrator=as_administrator)


async def units(ctx: Ctx, found: SignedIn) -> Units:
    return Units(ctx=ctx, caller=found)


UnitsOfWork = Annotated[Units, Depends(units)]


async def orchestrator(ctx: Ctx) -> Orchestrator:
    return ctx.orchestrator


Orders = Annotated[Orchestrator, Depends(orchestrator)]


async def sessions(ctx: Ctx) -> Sessions:
    """Units of work that act for nobody yet: signing in, webhooks. Call ``act_as`` first where it matters."""
    return ctx.sessions


AllSessions = Annotated[Sessions, Depends(sessions)]
