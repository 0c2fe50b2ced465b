"""Transactions and reads of a request, each in a context that row-level security admits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncSession

from api.app_context import AppContext
from api.dependencies.authentication import Administrator, AuthenticatedCaller, BearerScheme, get_caller
from api.dependencies.context import app_context
from api.errors import ApiError, forbidden_error, unavailable_error
from api.tokens import Caller
from db.driver import begin_with_rls_context
from db.queries import identity
from db.reads import PreparedQuery, RowT, read_alone
from db.session import RlsContext

T = TypeVar("T")


async def _within_database_timeout(
    ctx: AppContext, statement: Coroutine[Any, Any, T], session: AsyncSession | None = None
) -> asyncio.Future[T]:
    """Execute ``statement`` and return it once it has ended, with its result or its error.

    If it takes too long, or the request is cancelled, it is left to end by itself, and ``session`` is closed after it.

    Raises:
        ApiError: 503 ``UNAVAILABLE`` if it takes longer than ``database_timeout_seconds``.
    """
    executing = asyncio.ensure_future(statement)
    try:
        await asyncio.wait({executing}, timeout=ctx.settings.database_timeout_seconds)
    finally:
        if not executing.done():
            ctx.detach_hanging_work(executing, session)
    if not executing.done():
        raise unavailable_error("The database")
    return executing


@asynccontextmanager
async def transaction_starting_with(
    ctx: AppContext, first_statement: Callable[[AsyncSession], Coroutine[Any, Any, T]]
) -> AsyncIterator[tuple[AsyncSession, T]]:
    """Open a transaction whose first statement is ``first_statement``, and commit it at the end of the block.

    Raises:
        ApiError: 503 ``UNAVAILABLE`` if ``first_statement`` takes longer than ``database_timeout_seconds``.
    """
    session = ctx.sessions()
    opening = await _within_database_timeout(ctx, first_statement(session), session)
    try:
        yield session, opening.result()
        await session.commit()
    except BaseException:
        await session.rollback()
        raise
    finally:
        await session.close()


@asynccontextmanager
async def transaction(
    ctx: AppContext, acting_as: Caller | None, *, as_administrator: bool = False
) -> AsyncIterator[AsyncSession]:
    """Open a transaction in the context of the caller's organization, and commit it at the end of the block.

    Args:
        acting_as: None for a request without a caller: only public rows are visible.
        as_administrator: Makes the rows of all organizations visible to an administrator.

    Raises:
        ApiError: 503 ``UNAVAILABLE`` if the database does not answer within ``database_timeout_seconds``.
    """

    async def set_context(session: AsyncSession) -> None:
        await begin_with_rls_context(
            session,
            organization_id=acting_as.organization_id if acting_as else None,
            user_id=acting_as.user_id if acting_as else None,
            role=(acting_as.platform_role if as_administrator else "USER") if acting_as else None,
        )

    async with transaction_starting_with(ctx, set_context) as (session, _):
        yield session


@asynccontextmanager
async def gateway_transaction(ctx: AppContext) -> AsyncIterator[AsyncSession]:
    """Open a transaction for a gateway event with a valid signature; it sees the webhook inbox only.

    Raises:
        ApiError: 503 ``UNAVAILABLE``, as ``transaction``.
    """

    async def set_context(session: AsyncSession) -> None:
        await begin_with_rls_context(session, organization_id=None, user_id=None, role="GATEWAY")

    async with transaction_starting_with(ctx, set_context) as (session, _):
        yield session


async def get_session(request: Request, caller: AuthenticatedCaller) -> AsyncIterator[AsyncSession]:
    async with transaction(app_context(request), caller) as session:
        yield session


async def get_admin_session(request: Request, caller: Administrator) -> AsyncIterator[AsyncSession]:
    async with transaction(app_context(request), caller, as_administrator=True) as session:
        yield session


async def get_public_session(request: Request) -> AsyncIterator[AsyncSession]:
    async with transaction(app_context(request), None) as session:
        yield session


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestReader:
    """Reads prepared queries, each in its own transaction and in one round trip.

    It carries what a read needs of the request: FastAPI walks the tree of dependencies once for each parameter.
    """

    ctx: AppContext
    caller: Caller
    rls: RlsContext

    @property
    def organization_id(self) -> str:
        """The caller's organization."""
        return self.caller.organization_id

    async def fetch(self, query: PreparedQuery[RowT], values: Mapping[str, Any]) -> list[RowT]:
        """Return all rows.

        Raises:
            ApiError: 503 ``UNAVAILABLE`` if the database does not answer within ``database_timeout_seconds``.
        """
        reading = await _within_database_timeout(self.ctx, read_alone(self.ctx.engine, self.rls, query, values))
        return reading.result()


class ReadsOfRequest(BearerScheme):
    async def __call__(self, request: Request) -> RequestReader:
        caller = await get_caller(request)
        rls = RlsContext(organization_id=caller.organization_id, user_id=caller.user_id, role="USER")
        return RequestReader(ctx=app_context(request), caller=caller, rls=rls)


async def get_admin_reads(request: Request, caller: Administrator) -> RequestReader:
    rls = RlsContext(organization_id=caller.organization_id, user_id=caller.user_id, role=caller.platform_role)
    return RequestReader(ctx=app_context(request), caller=caller, rls=rls)


Reads = Annotated[RequestReader, Depends(ReadsOfRequest())]
"""For a route that reads once: no transaction is open before or after. It sees the caller's organization."""
AdminReads = Annotated[RequestReader, Depends(get_admin_reads)]
"""The same across all organizations, for administrators."""

# The default scope would commit after the response was sent: a failing commit could not be reported.
Session = Annotated[AsyncSession, Depends(get_session, scope="function")]
"""A transaction in the context of the caller's organization. It commits before the response is sent."""
AdminSession = Annotated[AsyncSession, Depends(get_admin_session, scope="function")]
"""The same across all organizations, for administrators."""
AnonymousSession = Annotated[AsyncSession, Depends(get_public_session, scope="function")]
"""The same without a caller: public rows only."""


async def require_verified_email(ctx: AppContext, caller: Caller) -> Caller:
    """Return the caller if their email address is verified; one query if the token was issued before that.

    Raises:
        ApiError: 403 ``EMAIL_NOT_VERIFIED``.
    """
    if caller.email_verified:
        return caller
    async with transaction(ctx, caller) as session:
        if await identity.is_email_verified(session, caller.user_id):
            return caller
    raise ApiError(
        403,
        "EMAIL_NOT_VERIFIED",
        "Email address not verified. Open the link in the verification email, or request a new one.",
    )


async def get_verified_caller(request: Request, caller: AuthenticatedCaller) -> Caller:
    return await require_verified_email(app_context(request), caller)


VerifiedCaller = Annotated[Caller, Depends(get_verified_caller)]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerTransactions:
    """Opens one transaction after another, for routes that call a workflow in between: none is open meanwhile."""

    ctx: AppContext
    caller: Caller

    def open(self, *, as_administrator: bool = False) -> AbstractAsyncContextManager[AsyncSession]:
        if as_administrator and not self.caller.is_administrator:
            raise forbidden_error()
        return transaction(self.ctx, self.caller, as_administrator=as_administrator)


async def get_transactions(request: Request, caller: AuthenticatedCaller) -> CallerTransactions:
    return CallerTransactions(ctx=app_context(request), caller=caller)


Transactions = Annotated[CallerTransactions, Depends(get_transactions)]
