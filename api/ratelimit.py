"""How often one may ask: by user where one is known, by address otherwise; sign-in by both and more strictly.

What reaches others is limited as well: mails to one recipient, and the declined cards of one organization.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import TypeVar

import structlog
from limits import RateLimitItem, RateLimitItemPerHour, RateLimitItemPerMinute
from limits.aio.storage import Storage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError
from limits.storage import storage_from_string

from api.errors import ApiError
from api.outages import describe_outage

T = TypeVar("T")

log = structlog.get_logger("api.ratelimit")

STORAGE_TIMEOUT_SECONDS = 0.5
"""The storage's client waits without a limit for a server that does not answer."""
RETRY_SECONDS = 5.0
"""How long the storage is not asked after it failed: each request would wait for it."""

AUTH = RateLimitItemPerMinute(5, namespace="auth")
API = RateLimitItemPerMinute(100, namespace="api")
ADMIN = RateLimitItemPerMinute(200, namespace="admin")

SIGN_IN_OF_NEW_ADDRESS = RateLimitItemPerHour(3, namespace="sign-in-of-new-address")
SIGN_IN_OF_NEW_ADDRESSES = RateLimitItemPerHour(60, namespace="sign-in-of-new-addresses")
"""Tries that one address, and all together, have for one account while the tries of others use up its `AUTH` limit."""
KNOWN_ADDRESS = RateLimitItemPerHour(1, 90 * 24, namespace="known-address")
"""Not a limit but a mark: an address from which the owner of an account came, remembered for 90 days."""

RESET_MAILS = RateLimitItemPerHour(3, namespace="reset-mails")
VERIFICATION_MAILS = RateLimitItemPerHour(5, namespace="verification-mails")
"""Mails to one recipient that others can cause."""

COUNTED_DECLINE = RateLimitItemPerHour(1, 2, namespace="counted-decline")
"""Not a limit but a mark: a declined payment that was counted, remembered for longer than it counts."""

DECLINED_CARDS = RateLimitItemPerHour(20, namespace="declined-cards")
DECLINED_CARDS_UNVERIFIED = RateLimitItemPerHour(5, namespace="declined-cards-unverified")
DECLINED_CARDS_OF_ADDRESS = RateLimitItemPerHour(20, namespace="declined-cards-of-address")
DECLINED_CARDS_OF_ALL_AT_ADDRESS = RateLimitItemPerHour(100, namespace="declined-cards-of-all-at-address")
CARDS = RateLimitItemPerMinute(20, namespace="cards")
"""Cards of one organization: declined ones, while its user's mail address is unverified fewer; declined ones of all
organizations at one address, of those without a verified one fewer; and tries at the same time, none of which is
declined yet."""

TRIAL_ORDERS = RateLimitItemPerHour(10, namespace="trial-orders")
"""Orders of one organization that cost nothing: a trial that did not start can be ordered again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitStatus:
    """What is left; ``reset`` in seconds from now."""

    limit: int
    remaining: int
    reset: int

    @property
    def headers(self) -> dict[str, str]:
        return {
            "RateLimit-Limit": str(self.limit),
            "RateLimit-Remaining": str(self.remaining),
            "RateLimit-Reset": str(self.reset),
        }


class RateLimiter:
    """``storage`` is ``memory://`` for one process, ``redis://…`` for several. None means that nothing is limited.

    While the storage is unavailable, each process counts for itself: neither the API nor the limits end with it.
    """

    def __init__(self, storage: str | None) -> None:
        self._limiter = _limiter(storage) if storage is not None else None
        self._own_limiter = _limiter("memory://")
        self._retry_at = 0.0

    async def consume(self, limit: RateLimitItem, *key: str) -> RateLimitStatus | None:
        """Count one request of ``key``.

        Raises:
            ApiError: 429 ``RATE_LIMITED``, with when to come back.
        """
        if self._limiter is None:
            return None
        allowed, status = await self._ask(self._limiter, lambda limiter: _count(limiter, limit, key))
        if not allowed:
            raise _rate_limited_error(status)
        return status

    async def require_left(self, limit: RateLimitItem, *key: str) -> None:
        """Refuse if the limit is used up, without counting.

        Raises:
            ApiError: 429 ``RATE_LIMITED``, with when to come back.
        """
        if self._limiter is None:
            return
        status = await self._ask(self._limiter, lambda limiter: _status(limiter, limit, key))
        if status.remaining == 0:
            raise _rate_limited_error(status)

    async def count(self, limit: RateLimitItem, *key: str) -> bool:
        """Count one event, and return whether it is within the limit."""
        if self._limiter is None:
            return True
        return await self._ask(self._limiter, lambda limiter: limiter.hit(limit, *key))

    async def reset(self, limit: RateLimitItem, *key: str) -> None:
        """Forget what was counted."""
        if self._limiter is not None:
            await self._ask(self._limiter, lambda limiter: limiter.clear(limit, *key))

    async def mark(self, limit: RateLimitItem, *key: str) -> None:
        """Remember ``key`` for the window of ``limit`` from now on."""
        await self.reset(limit, *key)
        await self.count(limit, *key)

    async def is_marked(self, limit: RateLimitItem, *key: str) -> bool:
        """Return whether `mark` was called within the window of ``limit``."""
        if self._limiter is None:
            return False
        return not await self._ask(self._limiter, lambda limiter: limiter.test(limit, *key))

    async def _ask(
        self, shared: MovingWindowRateLimiter, question: Callable[[MovingWindowRateLimiter], Awaitable[T]]
    ) -> T:
        """Ask the shared storage, or the one of this process while that is unavailable."""
        if time.monotonic() >= self._retry_at:
            try:
                async with asyncio.timeout(STORAGE_TIMEOUT_SECONDS):
                    return await question(shared)
            except (StorageError, OSError) as error:
                self._retry_at = time.monotonic() + RETRY_SECONDS
                log.warning("rate_limits.storage_unavailable", **describe_outage(error))
        return await question(self._own_limiter)


def limited_network(host: str) -> str:
    """Return an address as limits count it: of IPv6 the /64, all of which one client may use."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if not isinstance(address, IPv6Address):
        return str(address)
    return str(address.ipv4_mapped or IPv6Network((int(address), 64), strict=False))


def _rate_limited_error(status: RateLimitStatus) -> ApiError:
    return ApiError(
        429,
        "RATE_LIMITED",
        f"Rate limit exceeded. Retry after {status.reset} s.",
        {"retry_after_seconds": status.reset},
        {**status.headers, "Retry-After": str(status.reset)},
    )


def _limiter(storage: str) -> MovingWindowRateLimiter:
    url = storage if storage.startswith("async+") else f"async+{storage}"
    storage_client = storage_from_string(url, wrap_exceptions=True)
    assert isinstance(storage_client, Storage)
    return MovingWindowRateLimiter(storage_client)


async def _count(
    limiter: MovingWindowRateLimiter, limit: RateLimitItem, key: tuple[str, ...]
) -> tuple[bool, RateLimitStatus]:
    """Count one request; return whether it is within the limit, and what is left of it."""
    allowed = await limiter.hit(limit, *key)
    return allowed, await _status(limiter, limit, key)


async def _status(limiter: MovingWindowRateLimiter, limit: RateLimitItem, key: tuple[str, ...]) -> RateLimitStatus:
    window = await limiter.get_window_stats(limit, *key)
    reset = max(1, math.ceil(window.reset_time - time.time()))
    return RateLimitStatus(limit=limit.amount, remaining=max(0, window.remaining), reset=reset)
