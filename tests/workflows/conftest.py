"""The subscription fixture, whose ledger must balance after each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.support.databases import DatabaseFixture
from tests.support.lost_payments import LostPayments, lost_payments
from tests.support.sandboxes import StripeEndpoint
from tests.support.subscription_fixture import SubscriptionFixture, run_subscription_fixture
from tests.support.temporal import TemporalFixture


@pytest_asyncio.fixture
async def subscriptions(temporal: TemporalFixture, database: DatabaseFixture) -> AsyncIterator[SubscriptionFixture]:
    async with run_subscription_fixture(temporal, database) as fixture:
        yield fixture
        await fixture.assert_ledger_balanced()


@pytest_asyncio.fixture
async def lost(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> AsyncIterator[LostPayments]:
    async with lost_payments(temporal, database, stripe) as fixture:
        yield fixture
