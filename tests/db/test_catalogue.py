"""The catalogue: seeded again without a change, prices that never change, and who may write it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from db.queries import catalogue
from db.session import act_as, session_factory
from tests.support.databases import Database
from worker.catalogue import FROM_THE_BEGINNING, Offer, offers, write
from workflows.rules.money import Money

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def dearer(offered: list[Offer], by: int) -> list[Offer]:
    """The same offers with the first plan's first price raised."""
    first = offered[0].plans[0]
    price = first.prices[0]
    raised = Money(amount_minor=price.amount_minor + by, currency=price.currency)
    plan = replace(first, prices=(raised, *first.prices[1:]))
    return [replace(offered[0], plans=(plan, *offered[0].plans[1:])), *offered[1:]]


async def rows(engine: AsyncEngine, table: str) -> list[tuple[object, ...]]:
    async with engine.connect() as connection:
        found = await connection.execute(text(f"SELECT * FROM {table} ORDER BY 1"))
        return [tuple(row) for row in found]


async def seed(database: Database, offered: list[Offer], at: datetime = NOW) -> int:
    async with session_factory(database.owner).begin() as session:
        return (await write(session, offered, at)).prices


async def test_seeding_again_changes_nothing(database: Database) -> None:
    assert await seed(database, offers()) > 0
    tables = ("services", "plans", "prices", "coupons")
    before = [await rows(database.owner, table) for table in tables]
    assert await seed(database, offers(), NOW + timedelta(days=1)) == 0
    assert [await rows(database.owner, table) for table in tables] == before


async def test_a_changed_amount_is_a_new_price_from_then_on(database: Database) -> None:
    offered = offers()
    await seed(database, offered)
    assert await seed(database, dearer(offered, 100), NOW) == 1
    old = offered[0].plans[0].prices[0]
    async with session_factory(database.api).begin() as session:
        plan = await catalogue.plan(session, offered[0].plans[0].facts.code)
        assert plan is not None
        before = catalogue.price_in(plan, old.currency, NOW - timedelta(seconds=1))
        after = catalogue.price_in(plan, old.currency, NOW)
    assert before is not None
    assert after is not None
    assert (before.amount_minor, before.effective_from) == (old.amount_minor, FROM_THE_BEGINNING)
    assert after.amount_minor == old.amount_minor + 100


async def test_what_administrators_decided_survives_the_next_seed(database: Database) -> None:
    offered = offers()
    await seed(database, offered)
    async with database.owner.begin() as connection:
        await connection.execute(text("UPDATE services SET published = false"))
        await connection.execute(text("UPDATE plans SET retired = true, name = 'edited'"))
    await seed(database, offered)
    async with session_factory(database.api).begin() as session:
        assert await catalogue.services(session, limit=10) == []
        plan = await catalogue.plan(session, offered[0].plans[0].facts.code)
    assert plan is not None
    assert (plan.retired, plan.name) == (True, offered[0].plans[0].facts.name)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE prices SET amount_minor = 1",
        "UPDATE prices SET currency = 'JPY'",
        "UPDATE prices SET effective_from = effective_from - interval '1 day'",
        "DELETE FROM prices",
        "TRUNCATE prices CASCADE",
    ],
)
async def test_a_price_never_changes(database: Database, statement: str) -> None:
    await seed(database, offers())
    before = await rows(database.owner, "prices")
    with pytest.raises(DBAPIError, match="a price never changes"):
        async with database.owner.begin() as connection:
            await connection.execute(text(statement))
    assert await rows(database.owner, "prices") == before


async def test_only_administrators_write_through_the_api(database: Database) -> None:
    offered = offers()
    await seed(database, offered)
    plan = catalogue.plan_id(offered[0].plans[0].facts.code)
    amount = Money(amount_minor=1, currency="JPY")
    sessions = session_factory(database.api)
    async with sessions() as session:
        await act_as(session, organization_id="org_1", user_id="usr_1", role="USER")
        with pytest.raises(DBAPIError, match="row-level security"):
            await catalogue.put_price(session, plan, amount, NOW)
    async with sessions.begin() as session:
        await act_as(session, organization_id="org_1", user_id="usr_1", role="ADMINISTRATOR")
        assert await catalogue.put_price(session, plan, amount, NOW) is not None
        assert await catalogue.put_price(session, plan, amount, NOW) is None


async def test_ids_are_stable_and_read_by_code_too(database: Database) -> None:
    offered = offers()
    await seed(database, offered)
    code = offered[0].plans[0].facts.code
    async with session_factory(database.api).begin() as session:
        by_code = await catalogue.plan(session, code)
        by_id = await catalogue.plan(session, catalogue.plan_id(code))
    assert by_code is not None
    assert by_id is not None
    assert by_code.id == by_id.id == catalogue.plan_id(code)
    assert catalogue.on_sale(by_code)


@pytest.mark.parametrize(
    "values",
    [
        "('A', 'percent', NULL, NULL, NULL, 'once', NULL)",
        "('A', 'percent', 101, NULL, NULL, 'once', NULL)",
        "('A', 'fixed', NULL, NULL, 'USD', 'once', NULL)",
        "('A', 'fixed', NULL, 500, NULL, 'once', NULL)",
        "('A', 'percent', 10, NULL, NULL, 'periods', NULL)",
        "('A', 'percent', 10, NULL, NULL, 'forever', 3)",
    ],
)
async def test_a_coupon_says_what_it_reduces(database: Database, values: str) -> None:
    columns = "code, kind, percent, amount_minor, currency, duration, periods"
    with pytest.raises(DBAPIError, match="ck_coupons"):
        async with database.owner.begin() as connection:
            await connection.execute(text(f"INSERT INTO coupons ({columns}) VALUES {values}"))
