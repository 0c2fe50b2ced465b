"""How often one may ask: by user where one is known, by address otherwise; sign-in by both and more strictly."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import Storage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError
from limits.storage import storage_from_string

from api.errors import ApiError

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
    """``storage`` is ``memory://`` for one process, ``redis://…`` for several. None means that nothing is limited."""

    def __init__(self, storage: str | None) -> None:
        self._limiter: MovingWindowRateLimiter | None = None
        if storage is not None:
            url = storage if storage.startswith("async+") else f"async+{storage}"
            storage_client = storage_from_string(url, wrap_exceptions=True)
            assert isinstance(storage_client, Storage)
            self._limiter = MovingWindowRateLimiter(storage_client)

    async def consume(self, limit: RateLimitItem, *key: str) -> RateLimitStatus | None:
        """Count one request of ``who``.

        Raises:
            ApiError: 429 ``RATE_LIMITED``, with when to come back.
        """
        if self._limiter is None:
            return None
        try:
            allowed = await self._limiter.hit(limit, *key)
            window = await self._limiter.get_window_stats(limit, *key)
        except StorageError:
            # An unavailable limiter must not make the API unavailable.
            return None
        reset = max(1, math.ceil(window.reset_time - time.time()))
        status = RateLimitStatus(limit=limit.amount, remaining=max(0, window.remaining), reset=reset)
        if not allowed:
            raise ApiError(
                429,
                "RATE_LIMITED",
                f"Rate limit exceeded. Retry after {reset} s.",
                {"retry_after_seconds": reset},
                {**status.headers, "Retry-After": str(reset)},
            )
        return status
