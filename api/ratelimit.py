"""How often one may ask: by user where one is known, by address otherwise; sign-in by both and more strictly."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass

import structlog
from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import Storage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError
from limits.storage import storage_from_string

from api.errors import ApiError

log = structlog.get_logger("api.ratelimit")

STORAGE_TIMEOUT_SECONDS = 0.5
"""The storage's client waits without a limit for a server that does not answer."""
RETRY_SECONDS = 5.0
"""How long the storage is not asked after it failed: each request would wait for it."""

AUTH = RateLimitItemPerMinute(5, namespace="auth")
API = RateLimitItemPerMinute(100, namespace="api")
ADMIN = RateLimitItemPerMinute(200, namespace="admin")


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
        """Count one request of ``who``.

        Raises:
            ApiError: 429 ``RATE_LIMITED``, with when to come back.
        """
        if self._limiter is None:
            return None
        if time.monotonic() >= self._retry_at:
            try:
                async with asyncio.timeout(STORAGE_TIMEOUT_SECONDS):
                    allowed, status = await _count(self._limiter, limit, key)
            except (StorageError, OSError) as error:
                self._retry_at = time.monotonic() + RETRY_SECONDS
                log.warning("rate_limits.storage_unavailable", error=type(error).__name__)
                allowed, status = await _count(self._own_limiter, limit, key)
        else:
            allowed, status = await _count(self._own_limiter, limit, key)
        if not allowed:
            raise ApiError(
                429,
                "RATE_LIMITED",
                f"Rate limit exceeded. Retry after {status.reset} s.",
                {"retry_after_seconds": status.reset},
                {**status.headers, "Retry-After": str(status.reset)},
            )
        return status


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
    window = await limiter.get_window_stats(limit, *key)
    reset = max(1, math.ceil(window.reset_time - time.time()))
    return allowed, RateLimitStatus(limit=limit.amount, remaining=max(0, window.remaining), reset=reset)
