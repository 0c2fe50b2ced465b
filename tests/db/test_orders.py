"""Locks of an order's first statement, and the columns of its rows."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from db.queries import orders
from db.queries.orders import OrderFacts
from db.session import session_factory
from tests.support.databases import DatabaseFixture
from tests.support.inserts import NOW, insert_organization, insert_subscription
from tests.support.wait import wait_until

LOCK_SECONDS = 20
WAITERS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


async def test_an_order_waits_for_the_customers_balance(database: DatabaseFixture) -> None:
    organization = await _insert_customer(database)
    with psycopg.connect(database.superuser_dsn()) as holder, psycopg.connect(database.superuser_dsn()) as observer:
        observer.autocommit = True
        holder.execute("SELECT FROM customer_balances FOR NO KEY UPDATE")
        beginning = asyncio.create_task(_begin(database.worker, organization, "sub_new"))

        def waits() -> bool:
            return observer.execute(WAITERS).fetchone() == (1,)

        await wait_until(waits, description="the order waits for the balance")
        holder.execute("UPDATE ledger_accounts SET balance_minor = 700 WHERE account = 'wallet'")
        holder.commit()
        facts = await beginning
    assert facts is not None
    assert (facts.is_recorded, facts.funds.wallet.amount_minor) == (False, 700)


async def test_a_recorded_order_waits_for_no_balance(database: DatabaseFixture) -> None:
    """Its subscription is locked next, and everything else locks a subscription before the balances."""
    organization = await _insert_customer(database)
    subscription = await insert_subscription(database.owner, organization)
    with psycopg.connect(database.superuser_dsn()) as holder:
        holder.execute("SELECT FROM customer_balances FOR UPDATE")
        holder.execute("SELECT FROM ledger_accounts FOR UPDATE")
        async with asyncio.timeout(LOCK_SECONDS):
            facts = await _begin(database.worker, organization, subscription)
    assert facts is not None
    assert facts.is_recorded


async def test_an_order_of_an_unknown_organization_has_no_facts(database: DatabaseFixture) -> None:
    assert await _begin(database.worker, "org_none", "sub_new") is None


def test_a_column_that_the_statement_does_not_write_is_refused() -> None:
    with pytest.raises(ValueError, match="instances has no column conditions"):
        orders.order_insert({"id": "sub_1"}, {"id": "ins_1", "conditions": []})


async def _insert_customer(database: DatabaseFixture) -> str:
    """Insert an organization with 500 in its wallet."""
    organization = await insert_organization(database.owner)
    with psycopg.connect(database.superuser_dsn()) as superuser:
        superuser.execute(
            "INSERT INTO customer_balances (organization_id, currency, balance_minor) VALUES (%s, 'USD', 500)",
            (organization,),
        )
        superuser.execute(
            "INSERT INTO ledger_accounts (id, organization_id, account, currency, balance_minor)"
            " VALUES (%(id)s || '/wallet/USD', %(id)s, 'wallet', 'USD', 500)",
            {"id": organization},
        )
    return organization


async def _begin(engine: AsyncEngine, organization_id: str, subscription_id: str) -> OrderFacts | None:
    async with session_factory(engine)() as session:
        return await orders.begin_order(
            session, organization_id=organization_id, subscription_id=subscription_id, plan_id="pln_none", now=NOW
        )
