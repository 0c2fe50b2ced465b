"""What an order sends to the database together succeeds or fails together."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from temporalio.exceptions import ApplicationError

from activities.subscriptions import PostgresSubscriptionActivities
from db.session import create_database_engine, session_factory
from tests.support.billing_commands import top_up
from tests.support.billing_fixture import BillingFixture
from tests.support.databases import DatabaseFixture
from workflows.rules.errors import ErrorCode
from workflows.rules.funding import GatewayTerms

GATEWAYS = {"stripe": GatewayTerms(name="stripe")}


async def test_an_order_whose_host_name_is_taken_writes_nothing(billing: BillingFixture) -> None:
    await top_up(billing, 1200)
    named: dict[str, Any] = {"parameters": {"subdomain": "shop"}}
    await billing.subscription_activities.record_order(billing.create_command(**named))
    before = await billing.dump_tables()
    with pytest.raises(ApplicationError, match="host name") as refused:
        await billing.subscription_activities.record_order(billing.create_command(**named))
    assert (refused.value.type, refused.value.non_retryable) == (ErrorCode.CONFLICT, True)
    assert await billing.dump_tables() == before


async def test_an_order_for_a_name_of_the_platform_writes_nothing(billing: BillingFixture) -> None:
    """The rule holds in the worker as well: services of an administrator may have a schema that allows the name."""
    await top_up(billing, 600)
    before = await billing.dump_tables()
    for name in ("www", "shop.www"):
        with pytest.raises(ApplicationError, match="Invalid subdomain") as refused:
            await billing.subscription_activities.record_order(billing.create_command(parameters={"subdomain": name}))
        assert (refused.value.type, refused.value.non_retryable) == (ErrorCode.VALIDATION_ERROR, True)
    assert await billing.dump_tables() == before


async def test_an_order_replaces_a_connection_that_the_server_has_closed(
    billing: BillingFixture, database: DatabaseFixture
) -> None:
    await top_up(billing, 600)
    engine = create_database_engine(database.worker_url, pool_size=1, pre_ping=False)
    activities = PostgresSubscriptionActivities(session_factory(engine), "apps.test", GATEWAYS)
    command = billing.create_command()
    try:
        opened = await activities.record_order(command)
        async with engine.connect() as connection:
            raw = (await connection.get_raw_connection()).driver_connection
            assert isinstance(raw, psycopg.AsyncConnection)
            backend = raw.info.backend_pid
        with psycopg.connect(database.superuser_dsn(), autocommit=True) as superuser:
            superuser.execute("SELECT pg_terminate_backend(%s, 10000)", (backend,))
        assert await activities.record_order(command) == opened
    finally:
        await engine.dispose()
