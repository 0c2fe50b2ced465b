"""The ledger refuses by itself what must never be in it, whoever writes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from db.queries import ledger
from db.session import act_as
from tests.support.accounts import account, sessions_of
from tests.support.databases import Database
from workflows.rules import ledger as rules
from workflows.rules.errors import Refusal, RuleBroken
from workflows.rules.ids import derived
from workflows.rules.ledger import Posting
from workflows.rules.money import Money, zero

AT = datetime(2027, 1, 31, tzinfo=UTC)


def money(amount: int, currency: str = "USD") -> Money:
    return Money(amount_minor=amount, currency=currency)


async def post(engine: AsyncEngine, organization_id: str, posting: Posting, key: str) -> bool:
    async with sessions_of(engine).begin() as session:
        return await ledger.post(
            session,
            posting,
            transaction_id=derived("tx", key),
            organization_id=organization_id,
            at=AT,
            ref=None,
            description="test",
            idempotency_key=key,
        )


async def wallet(engine: AsyncEngine, organization_id: str, currency: str = "USD") -> int:
    async with sessions_of(engine).begin() as session:
        return (await ledger.balances(session, organization_id, currency)).wallet.amount_minor


async def prove(engine: AsyncEngine) -> None:
    async with sessions_of(engine).begin() as session:
        assert await ledger.drift(session) == []
        assert await ledger.unbalanced(session) == 0


async def test_balances_follow_the_entries(database: Database) -> None:
    organization = await account(database.owner)
    assert await post(database.worker, organization, rules.top_up("stripe", money(5000)), "a")
    assert await post(database.worker, organization, rules.hold(promotional=zero("USD"), wallet=money(1500)), "b")
    assert await post(database.worker, organization, rules.invoiced(total=money(1000), tax=money(200)), "c")
    async with sessions_of(database.worker).begin() as session:
        kept = await ledger.balances(session, organization, "USD", lock=True)
        assert (kept.wallet, kept.promotional, kept.held) == (money(3500), money(0), money(1500))
        assert await ledger.receivable(session, organization, "USD") == money(1000)
        assert (await ledger.balances(session, organization, "EUR")).wallet == zero("EUR")
    await prove(database.worker)


async def test_one_key_posts_once_even_at_the_same_moment(database: Database) -> None:
    organization = await account(database.owner)
    posted = await asyncio.gather(
        *(post(database.worker, organization, rules.top_up("stripe", money(1000)), "same") for _ in range(5))
    )
    assert sorted(posted) == [False, False, False, False, True]
    assert await wallet(database.worker, organization) == 1000


@pytest.mark.scenario("B29")
async def test_of_two_spends_that_the_wallet_cannot_both_pay_one_wins(database: Database) -> None:
    organization = await account(database.owner, currency="IDR")
    await post(database.worker, organization, rules.top_up("midtrans", money(100_000_00, "IDR")), "top-up")
    spend = rules.charge(promotional=zero("IDR"), wallet=money(80_000_00, "IDR"), held=zero("IDR"), tax=zero("IDR"))
    results = await asyncio.gather(
        *(post(database.worker, organization, spend, f"spend-{n}") for n in range(2)), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, RuleBroken)]
    assert [refusal.code for refusal in refused] == [Refusal.INSUFFICIENT_FUNDS]
    assert results.count(True) == 1
    assert await wallet(database.worker, organization, "IDR") == 20_000_00
    await prove(database.worker)


async def test_what_is_refused_leaves_nothing(database: Database) -> None:
    organization = await account(database.owner)
    with pytest.raises(RuleBroken) as refused:
        await post(database.worker, organization, rules.adjustment(money(-1)), "overdraft")
    assert refused.value.code is Refusal.INSUFFICIENT_FUNDS
    assert await post(database.worker, organization, rules.adjustment(money(1)), "overdraft"), "the key is free"
    await prove(database.worker)


async def test_the_database_refuses_an_unbalanced_transaction(database: Database) -> None:
    organization = await account(database.owner)
    for statements in ([_TRANSACTION, _ENTRY], [_TRANSACTION]):
        with pytest.raises(IntegrityError, match="does not balance"):
            await _write(database.worker, statements, organization)
    await prove(database.worker)


@pytest.mark.parametrize("table", ["ledger_entries", "ledger_transactions"])
@pytest.mark.parametrize("deed", ["UPDATE {} SET currency = 'EUR'", "DELETE FROM {}", "TRUNCATE {} CASCADE"])
async def test_what_was_posted_stands(database: Database, table: str, deed: str) -> None:
    organization = await account(database.owner)
    await post(database.worker, organization, rules.top_up("stripe", money(1000)), "a")
    with pytest.raises(DBAPIError, match=r"append-only|permission denied"):
        await _write(database.owner, [deed.format(table)], organization)


async def test_an_account_sees_its_own_entries_only(database: Database) -> None:
    mine, other = await account(database.owner), await account(database.owner)
    for organization in (mine, other):
        await post(database.worker, organization, rules.top_up("stripe", money(1000)), organization)
    async with sessions_of(database.api).begin() as session:
        await act_as(session, organization_id=mine, user_id=None, role=None)
        seen = (await session.execute(text("SELECT DISTINCT organization_id FROM ledger_entries"))).scalars().all()
        assert seen == [mine]
        assert (await ledger.balances(session, other, "USD")).wallet == zero("USD")


_TRANSACTION = (
    "INSERT INTO ledger_transactions (id, organization_id, kind, currency, effect_minor, at, description,"
    " idempotency_key) VALUES ('tx_bad', :organization, 'adjustment', 'USD', 100, now(), '', 'bad')"
)
_ENTRY = (
    "INSERT INTO ledger_entries (transaction_id, organization_id, account, currency, amount_minor)"
    " VALUES ('tx_bad', :organization, 'wallet', 'USD', 100)"
)


async def _write(engine: AsyncEngine, statements: list[str], organization_id: str) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            wanted = {"organization": organization_id} if ":organization" in statement else {}
            await connection.execute(text(statement), wanted)
