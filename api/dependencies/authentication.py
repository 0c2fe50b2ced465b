"""The caller of a request: from the access token, with the roles that a route requires."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.base import SecurityBase

from api import ratelimit
from api.app_context import AppContext
from api.dependencies import rate_limits
from api.dependencies.context import app_context, client_address
from api.errors import ApiError, forbidden_error, unauthenticated_error
from api.settings import parse_networks
from api.tokens import Caller, InvalidToken

bearer = HTTPBearer(auto_error=False, description="The access token of `POST /api/v1/auth/login`.")
BearerCredentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]


class BearerScheme(SecurityBase):
    """A dependency that is the security scheme of its route as well as what it admits to.

    FastAPI takes longer to solve a dependency of a dependency than it takes to verify an access token. A route has one
    of these at most: a second one would count the request against the rate limit again.
    """

    def __init__(self) -> None:
        self.model = bearer.model
        self.scheme_name = bearer.scheme_name


def authenticate(ctx: AppContext, token: str) -> Caller:
    """Return the authenticated caller.

    Raises:
        ApiError: 401 ``UNAUTHENTICATED`` for an invalid, expired or revoked token.
    """
    try:
        caller = ctx.tokens.verify(token)
    except InvalidToken as error:
        raise unauthenticated_error("The access token is invalid or expired. Refresh it or log in again.") from error
    if caller.session_id in ctx.revocations:
        raise unauthenticated_error("The session was revoked or has expired. Log in again.")
    return caller


async def get_caller(request: Request) -> Caller:
    """Return the caller from the access token and the revocations in memory; no database query.

    Raises:
        ApiError: 401 ``UNAUTHENTICATED``; 429 ``RATE_LIMITED``, also for failed attempts, per address.
    """
    credentials = await bearer(request)
    try:
        if credentials is None:
            raise unauthenticated_error()
        caller = authenticate(app_context(request), credentials.credentials)
    except ApiError:
        await app_context(request).rate_limits.consume(ratelimit.API, "address", rate_limits.limited_address(request))
        raise
    request.state.caller = caller
    await rate_limits.consume(request, ratelimit.ADMIN if caller.is_administrator else ratelimit.API, caller.user_id)
    return caller


class CallerOfRequest(BearerScheme):
    async def __call__(self, request: Request) -> Caller:
        return await get_caller(request)


AuthenticatedCaller = Annotated[Caller, Depends(CallerOfRequest())]


async def get_administrator(request: Request, caller: AuthenticatedCaller) -> Caller:
    """Return the caller if they are an administrator and come from an allowed network.

    Raises:
        ApiError: 403 ``FORBIDDEN``.
    """
    allowed = app_context(request).settings.admin_allowed_networks
    if not caller.is_administrator or not is_address_allowed(client_address(request), allowed):
        raise forbidden_error("Permission denied: this operation requires the role ADMINISTRATOR.")
    return caller


Administrator = Annotated[Caller, Depends(get_administrator)]


def is_address_allowed(host: str, allowed: tuple[str, ...]) -> bool:
    """Return whether ``host`` is in one of the networks; an empty tuple allows every address."""
    if not allowed:
        return True
    try:
        return any(ip_address(host) in network for network in parse_networks(allowed))
    except ValueError:
        return False
