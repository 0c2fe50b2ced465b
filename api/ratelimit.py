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
class Allowance:
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


class RateLimits:
    """``storage`` is ``memory://`` for one process, ``redis://…`` for several. None means that nothing is limited."""

    def __init__(self, storage: str | None) -> None:
        self._limiter: MovingWindowRateLimiter | None = None
        if storage is not None:
            url = storage if storage.startswith("async+") else f"async+{storage}"
            made = storage_from_string(url, wrap_exceptions=True)
            assert isinstance(made, Storage)
            self._limiter = MovingWindowRateLimiter(made)

    async def take(self, limit: RateLimitItem, *who: str) -> Allowance | None:
        """Count one request of ``who``.

        Raises:
            ApiError: 429 ``RATE_LIMITED``, with when to come back.
        """
        if self._limiter is None:
            return None
        try:
            allowed = await self._limiter.hit(limit, *who)
            window = await self._limiter.get_window_stats(limit, *who)
        except StorageError:
            # A limiter that is away must not take the API with it.
            return None
        reset = max(1, math.ceil(window.reset_time - time.time()))
        left = Allowance(limit=limit.amount, remaining=max(0, window.remaining), reset=reset)
        if not allowed:
            raise ApiError(
                429,
                "RATE_LIMITED",
                "Too many requests. Please wait.",
                {"retry_after_seconds": reset},
                {**left.headers, "Retry-After": str(reset)},
            )
        return left
