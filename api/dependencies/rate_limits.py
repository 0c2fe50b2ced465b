"""Rate limits of routes, and their response headers."""

from __future__ import annotations

from fastapi import Request
from limits import RateLimitItem

from api import ratelimit
from api.dependencies.context import app_context, client_address


async def consume(request: Request, limit: RateLimitItem, *key: str) -> None:
    """Count one request and set the ``RateLimit-*`` headers of its response.

    Raises:
        ApiError: 429 ``RATE_LIMITED``.
    """
    status = await app_context(request).rate_limits.consume(limit, *key)
    if status is not None:
        request.state.headers = status.headers


def limited_address(request: Request) -> str:
    """Return the client's address as limits count it."""
    return ratelimit.limited_network(client_address(request))


async def rate_limit_by_address(request: Request) -> None:
    """Limit a public route per client address, as often as a signed-in user."""
    await consume(request, ratelimit.API, "address", limited_address(request))


async def rate_limit_sign_in(request: Request) -> None:
    """Limit a route that takes or issues credentials per path and client address."""
    await consume(request, ratelimit.AUTH, request.url.path, limited_address(request))
