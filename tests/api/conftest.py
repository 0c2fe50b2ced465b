"""An application per test, on the test's own database."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.support.api import Api, serving, settings
from tests.support.databases import Database
from tests.support.desk import Shop
from tests.support.desk import shop as open_shop


@pytest_asyncio.fixture
async def api(database: Database) -> AsyncIterator[Api]:
    """Limits are off, Temporal is away."""
    async with serving(settings(database.api_url), database.superuser_dsn()) as made:
        yield made


@pytest_asyncio.fixture
async def shop(database: Database) -> AsyncIterator[Shop]:
    """The seeded catalogue, somebody signed in, and a desk that takes orders in place of the workflows."""
    async with open_shop(database) as made:
        yield made
