"""Locks per key. Temporal limits the updates in flight per workflow to 10, so concurrent requests queue here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary


class KeyedLocks:
    """A lock per key; it exists as long as a task holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        async with lock:
            yield


SUBSCRIPTION_LOCKS = KeyedLocks()
"""Commands to subscriptions and their instances, by subscription."""
CLOCK_LOCKS = KeyedLocks()
"""Advances of a subscription's clock in the sandbox."""
