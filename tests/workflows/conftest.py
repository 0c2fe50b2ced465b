"""What the tests of subscriptions share: a life of their own, whose books are right when it ends."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.support.databases import Database
from tests.support.life import World, world
from tests.support.temporal import Temporal


@pytest_asyncio.fixture
async def life(temporal: Temporal, database: Database) -> AsyncIterator[World]:
    async with world(temporal, database) as made:
        yield made
        await made.ledger_is_sound()
