"""What the tests of payments share: a till at the card gateway's sandbox."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.support.databases import Database
from tests.support.money import Till, open_till
from tests.support.sandboxes import Stripe


@pytest_asyncio.fixture
async def till(database: Database, stripe: Stripe) -> AsyncIterator[Till]:
    async with open_till(database, stripe) as opened:
        yield opened
