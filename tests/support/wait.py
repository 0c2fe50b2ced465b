"""Waiting for something that happens elsewhere: poll under a deadline, never sleep and hope."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, cast, overload

T = TypeVar("T")

# Longest pause between two looks, in seconds. The first looks come much faster.
LONGEST_PAUSE = 0.1
FIRST_PAUSE = 0.005

PATIENCE = 60.0
"""How long anything is waited for, in seconds: a bound for what never comes, not for how fast it comes."""


def in_time(seconds: float) -> float:
    """Return how long something may take here that takes at most `seconds` on a machine of its own.

    Other tests run beside this one, on machines of any speed; what hangs still fails.
    """
    return 3 * seconds


class NotInTime(AssertionError):
    """The awaited thing did not happen before the deadline."""


def _message(what: str, timeout: float, last: object) -> str:
    seen = f"raised {last!r}" if isinstance(last, BaseException) else f"was {last!r}"
    return f"{what} not within {timeout:g} s; the last look {seen}"


@overload
async def eventually(look: Callable[[], Coroutine[Any, Any, T]], *, timeout: float = ..., what: str = ...) -> T: ...


@overload
async def eventually(look: Callable[[], T], *, timeout: float = ..., what: str = ...) -> T: ...


async def eventually(
    look: Callable[[], Awaitable[T] | T], *, timeout: float = PATIENCE, what: str = "the awaited condition"
) -> T:
    """Call `look` until it returns something true and return that.

    `look` may be plain or asynchronous. An `AssertionError` or `LookupError` that it raises counts as "not yet"; any
    other exception is passed on at once. Raises `NotInTime` after `timeout` seconds with the last thing seen.
    """
    deadline = time.monotonic() + timeout
    pause = FIRST_PAUSE
    while True:
        last: object
        try:
            value = look()
            if inspect.isawaitable(value):
                value = await value
            last = value
            if value:
                return cast(T, value)
        except (AssertionError, LookupError) as exc:
            last = exc
        if time.monotonic() >= deadline:
            raise NotInTime(_message(what, timeout, last)) from (last if isinstance(last, BaseException) else None)
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)


def eventually_sync(look: Callable[[], T], *, timeout: float = PATIENCE, what: str = "the awaited condition") -> T:
    """The same for tests without an event loop."""
    deadline = time.monotonic() + timeout
    pause = FIRST_PAUSE
    while True:
        last: object
        try:
            value = look()
            last = value
            if value:
                return value
        except (AssertionError, LookupError) as exc:
            last = exc
        if time.monotonic() >= deadline:
            raise NotInTime(_message(what, timeout, last)) from (last if isinstance(last, BaseException) else None)
        time.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)
