"""The subscription fixture, whose ledger must balance after each test, and instances on the simulated cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest_asyncio

from tests.support.databases import DatabaseFixture
from tests.support.instance_fixture import InstanceFixture, create_instance_fixture
from tests.support.lost_payments import LostPayments, lost_payments
from tests.support.sandboxes import ClusterEndpoint, StripeEndpoint
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


@pytest_asyncio.fixture
async def instances(database: DatabaseFixture, cluster: ClusterEndpoint) -> AsyncIterator[InstanceFixture]:
    async with create_instance_fixture(
        database, cluster, failure_threshold=timedelta(seconds=4), deletion_timeout=timedelta(seconds=5)
    ) as fixture:
        yield fixture
