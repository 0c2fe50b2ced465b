"""Wait for a condition: poll it until a deadline."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, cast, overload

T = TypeVar("T")

# Longest pause between two polls, in seconds. The first pauses are much shorter.
MAX_POLL_INTERVAL = 0.1
INITIAL_POLL_INTERVAL = 0.005

DEFAULT_TIMEOUT = 60.0
"""Default deadline in seconds: a bound for conditions that never hold, not for how fast they hold."""


def scale_timeout(seconds: float) -> float:
    """Return the limit in seconds for work that takes at most `seconds` on an idle machine.

    Other tests run at the same time, on machines of any speed. A call that hangs still fails.
    """
    return 3 * seconds


class WaitTimeout(AssertionError):
    """The condition did not hold before the deadline."""


def _message(description: str, timeout: float, last: object) -> str:
    outcome = f"raised {last!r}" if isinstance(last, BaseException) else f"was {last!r}"
    return f"{description} not within {timeout:g} s; the last value {outcome}"


@overload
async def wait_until(
    probe: Callable[[], Coroutine[Any, Any, T]], *, timeout: float = ..., description: str = ...
) -> T: ...


@overload
async def wait_until(probe: Callable[[], T], *, timeout: float = ..., description: str = ...) -> T: ...


async def wait_until(
    probe: Callable[[], Awaitable[T] | T],
    *,
    timeout: float = DEFAULT_TIMEOUT,
    description: str = "the awaited condition",
) -> T:
    """Call `probe` until it returns a true value, and return that value.

    `probe` may be synchronous or asynchronous. An `AssertionError` or `LookupError` that it raises counts as "not
    yet"; any other exception is raised at once.

    Raises:
        WaitTimeout: After `timeout` seconds, with the last value or error.
    """
    deadline = time.monotonic() + timeout
    pause = INITIAL_POLL_INTERVAL
    while True:
        last: object
        try:
            value = probe()
            if inspect.isawaitable(value):
                value = await value
            last = value
            if value:
                return cast(T, value)
        except (AssertionError, LookupError) as exc:
            last = exc
        if time.monotonic() >= deadline:
            raise WaitTimeout(_message(description, timeout, last)) from (
                last if isinstance(last, BaseException) else None
            )
        await asyncio.sleep(pause)
        pause = min(pause * 2, MAX_POLL_INTERVAL)


def wait_until_sync(
    probe: Callable[[], T], *, timeout: float = DEFAULT_TIMEOUT, description: str = "the awaited condition"
) -> T:
    """Like `wait_until`, for tests without an event loop."""
    deadline = time.monotonic() + timeout
    pause = INITIAL_POLL_INTERVAL
    while True:
        last: object
        try:
            value = probe()
            last = value
            if value:
                return value
        except (AssertionError, LookupError) as exc:
            last = exc
        if time.monotonic() >= deadline:
            raise WaitTimeout(_message(description, timeout, last)) from (
                last if isinstance(last, BaseException) else None
            )
        time.sleep(pause)
        pause = min(pause * 2, MAX_POLL_INTERVAL)
