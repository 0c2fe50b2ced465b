"""The catalogue: repeated seeding, immutable prices, and the roles that may write it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from db.queries import catalogue
from db.queries.locked_subscriptions import get_plan_with_price
from db.session import session_factory, set_rls_context
from tests.support.databases import DatabaseFixture
from worker.seed_catalogue import FIRST_PRICE_EFFECTIVE_FROM, CatalogueEntry, load_catalogue, upsert_catalogue
from workflows.rules.money import Money

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def raise_first_price(entries: list[CatalogueEntry], by: int) -> list[CatalogueEntry]:
    """Return the entries with the first price of the first plan raised."""
    first = entries[0].plans[0]
    price = first.prices[0]
    raised = Money(amount_minor=price.amount_minor + by, currency=price.currency)
    plan = replace(first, prices=(raised, *first.prices[1:]))
    return [replace(entries[0], plans=(plan, *entries[0].plans[1:])), *entries[1:]]


async def rows(engine: AsyncEngine, table: str) -> list[tuple[object, ...]]:
    async with engine.connect() as connection:
        selected = await connection.execute(text(f"SELECT * FROM {table} ORDER BY 1"))
        return [tuple(row) for row in selected]


async def seed(database: DatabaseFixture, entries: list[CatalogueEntry], at: datetime = NOW) -> int:
    async with session_factory(database.owner).begin() as session:
        return (await upsert_catalogue(session, entries, at)).prices


async def test_seeding_again_changes_nothing(database: DatabaseFixture) -> None:
    assert await seed(database, load_catalogue()) > 0
    tables = ("services", "plans", "prices", "coupons")
    before = [await rows(database.owner, table) for table in tables]
    assert await seed(database, load_catalogue(), NOW + timedelta(days=1)) == 0
    assert [await rows(database.owner, table) for table in tables] == before


async def test_a_changed_amount_is_a_new_price_from_then_on(database: DatabaseFixture) -> None:
    entries = load_catalogue()
    await seed(database, entries)
    assert await seed(database, raise_first_price(entries, 100), NOW) == 1
    old = entries[0].plans[0].prices[0]
    async with session_factory(database.api).begin() as session:
        plan = await catalogue.get_plan(session, entries[0].plans[0].definition.code)
        assert plan is not None
        before = catalogue.current_price(plan, old.currency, NOW - timedelta(seconds=1))
        after = catalogue.current_price(plan, old.currency, NOW)
    assert before is not None
    assert after is not None
    assert (before.amount_minor, before.effective_from) == (old.amount_minor, FIRST_PRICE_EFFECTIVE_FROM)
    assert after.amount_minor == old.amount_minor + 100


async def test_changes_by_administrators_survive_the_next_seed(database: DatabaseFixture) -> None:
    entries = load_catalogue()
    await seed(database, entries)
    async with database.owner.begin() as connection:
        await connection.execute(text("UPDATE services SET is_published = false"))
        await connection.execute(text("UPDATE plans SET is_retired = true, name = 'edited'"))
    await seed(database, entries)
    async with session_factory(database.api).begin() as session:
        assert await catalogue.list_services(session, limit=10) == []
        plan = await catalogue.get_plan(session, entries[0].plans[0].definition.code)
    assert plan is not None
    assert (plan.is_retired, plan.name) == (True, entries[0].plans[0].definition.name)


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
async def test_a_price_never_changes(database: DatabaseFixture, statement: str) -> None:
    await seed(database, load_catalogue())
    before = await rows(database.owner, "prices")
    with pytest.raises(DBAPIError, match="a price never changes"):
        async with database.owner.begin() as connection:
            await connection.execute(text(statement))
    assert await rows(database.owner, "prices") == before


async def test_only_administrators_write_through_the_api(database: DatabaseFixture) -> None:
    entries = load_catalogue()
    await seed(database, entries)
    plan = catalogue.plan_id(entries[0].plans[0].definition.code)
    amount = Money(amount_minor=1, currency="JPY")
    sessions = session_factory(database.api)
    async with sessions() as session:
        await set_rls_context(session, organization_id="org_1", user_id="usr_1", role="USER")
        with pytest.raises(DBAPIError, match="row-level security"):
            await catalogue.insert_price(session, plan, amount, NOW)
    async with sessions.begin() as session:
        await set_rls_context(session, organization_id="org_1", user_id="usr_1", role="ADMINISTRATOR")
        assert await catalogue.insert_price(session, plan, amount, NOW) is not None
        assert await catalogue.insert_price(session, plan, amount, NOW) is None


async def test_ids_are_stable_and_read_by_code_too(database: DatabaseFixture) -> None:
    entries = load_catalogue()
    await seed(database, entries)
    code = entries[0].plans[0].definition.code
    async with session_factory(database.api).begin() as session:
        by_code = await catalogue.get_plan(session, code)
        by_id = await catalogue.get_plan(session, catalogue.plan_id(code))
    assert by_code is not None
    assert by_id is not None
    assert by_code.id == by_id.id == catalogue.plan_id(code)
    assert catalogue.is_orderable(by_code)


@pytest.mark.parametrize("is_published", [True, False])
@pytest.mark.parametrize("is_retired", [True, False])
@pytest.mark.parametrize("is_public", [True, False])
async def test_the_list_the_page_and_the_order_of_a_plan_agree_on_whether_it_can_be_ordered(
    database: DatabaseFixture, is_public: bool, is_retired: bool, is_published: bool
) -> None:
    entries = load_catalogue()
    await seed(database, entries)
    definition = entries[0].plans[0].definition
    async with session_factory(database.owner).begin() as session:
        plan = await catalogue.get_plan(session, definition.code)
        assert plan is not None
        plan.is_public, plan.is_retired, plan.service.is_published = is_public, is_retired, is_published
        await session.flush()
        listed = await catalogue.list_plans(session, limit=1, ids=[plan.id])
        ordered = await get_plan_with_price(session, plan.id, plan.prices[0].currency, datetime.now(UTC))
        assert ordered is not None
        expected = is_public and not is_retired and is_published
        assert (bool(listed), catalogue.is_orderable(plan), ordered.is_orderable) == (expected,) * 3


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
async def test_a_coupon_without_a_consistent_discount_is_rejected(database: DatabaseFixture, values: str) -> None:
    columns = "code, discount_type, percent, amount_minor, currency, duration, duration_periods"
    with pytest.raises(DBAPIError, match="ck_coupons"):
        async with database.owner.begin() as connection:
            await connection.execute(text(f"INSERT INTO coupons ({columns}) VALUES {values}"))
