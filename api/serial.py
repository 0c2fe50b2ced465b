"""One order at a time per entity: Temporal admits few updates at once on a workflow, and waiting here is free."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary


class Turns:
    """A lock per key that exists as long as somebody holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def of(self, key: str) -> AsyncIterator[None]:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        async with lock:
            yield


ORDERS = Turns()
"""Orders on subscriptions and their instances, by subscription."""
CLOCKS = Turns()
"""Advances of a subscription's clock in the sandbox."""
