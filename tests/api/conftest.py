"""One application for each test, on the test's database."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.support.api import ApiFixture, serve_api, settings
from tests.support.databases import DatabaseFixture
from tests.support.fake_workflow_client import ApiWithCatalogue, serve_api_with_catalogue


@pytest_asyncio.fixture
async def api(database: DatabaseFixture) -> AsyncIterator[ApiFixture]:
    """An API without rate limits and without Temporal."""
    async with serve_api(settings(database.api_url), database.superuser_dsn()) as fixture:
        yield fixture


@pytest_asyncio.fixture
async def seeded_api(database: DatabaseFixture) -> AsyncIterator[ApiWithCatalogue]:
    """An API with the seeded catalogue, a signed-in customer and a fake workflow client that accepts commands."""
    async with serve_api_with_catalogue(database) as fixture:
        yield fixture
