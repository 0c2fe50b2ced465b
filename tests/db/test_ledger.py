"""The ledger's constraints and triggers reject invalid rows from every role."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from db.queries import ledger
from db.session import session_factory, set_rls_context
from tests.support.databases import DatabaseFixture
from tests.support.inserts import insert_organization
from workflows.rules import ledger as rules
from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.ids import derive_id
from workflows.rules.ledger import LedgerTransaction
from workflows.rules.money import Money, zero_money

AT = datetime(2027, 1, 31, tzinfo=UTC)


def money(amount: int, currency: str = "USD") -> Money:
    return Money(amount_minor=amount, currency=currency)


async def post(engine: AsyncEngine, organization_id: str, transaction: LedgerTransaction, key: str) -> bool:
    async with session_factory(engine).begin() as session:
        return await ledger.post_transaction(
            session,
            transaction,
            transaction_id=derive_id("tx", key),
            organization_id=organization_id,
            at=AT,
            ref=None,
            description="test",
            idempotency_key=key,
        )


async def wallet(engine: AsyncEngine, organization_id: str, currency: str = "USD") -> int:
    async with session_factory(engine).begin() as session:
        return (await ledger.get_balances(session, organization_id, currency)).wallet.amount_minor


async def assert_balanced(engine: AsyncEngine) -> None:
    async with session_factory(engine).begin() as session:
        assert await ledger.find_balance_mismatches(session) == []
        assert await ledger.count_unbalanced_transactions(session) == 0


async def test_balances_equal_the_sums_of_entries(database: DatabaseFixture) -> None:
    organization = await insert_organization(database.owner)
    assert await post(database.worker, organization, rules.top_up_transaction("stripe", money(5000)), "a")
    assert await post(
        database.worker, organization, rules.hold_transaction(promotional=zero_money("USD"), wallet=money(1500)), "b"
    )
    assert await post(database.worker, organization, rules.invoice_transaction(total=money(1000), tax=money(200)), "c")
    async with session_factory(database.worker).begin() as session:
        balances = await ledger.get_balances(session, organization, "USD", lock=True)
        assert (balances.wallet, balances.promotional, balances.held) == (money(3500), money(0), money(1500))
        receivable = "SELECT balance_minor FROM ledger_accounts WHERE account = 'receivable'"
        assert await session.scalar(text(receivable)) == -1000
        assert (await ledger.get_balances(session, organization, "EUR")).wallet == zero_money("EUR")
    await assert_balanced(database.worker)


async def test_one_key_posts_once_under_concurrency(database: DatabaseFixture) -> None:
    organization = await insert_organization(database.owner)
    posted = await asyncio.gather(
        *(
            post(database.worker, organization, rules.top_up_transaction("stripe", money(1000)), "same")
            for _ in range(5)
        )
    )
    assert sorted(posted) == [False, False, False, False, True]
    assert await wallet(database.worker, organization) == 1000


@pytest.mark.scenario("B29")
async def test_of_two_concurrent_spends_beyond_the_balance_one_is_rejected(database: DatabaseFixture) -> None:
    organization = await insert_organization(database.owner, currency="IDR")
    await post(database.worker, organization, rules.top_up_transaction("midtrans", money(100_000_00, "IDR")), "top-up")
    spend = rules.paid_invoice_transaction(
        promotional=zero_money("IDR"), wallet=money(80_000_00, "IDR"), held=zero_money("IDR"), tax=zero_money("IDR")
    )
    results = await asyncio.gather(
        *(post(database.worker, organization, spend, f"spend-{n}") for n in range(2)), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, RuleViolation)]
    assert [violation.code for violation in refused] == [ErrorCode.INSUFFICIENT_FUNDS]
    assert results.count(True) == 1
    assert await wallet(database.worker, organization, "IDR") == 20_000_00
    await assert_balanced(database.worker)


async def test_a_rejected_transaction_leaves_no_row_and_no_key(database: DatabaseFixture) -> None:
    organization = await insert_organization(database.owner)
    with pytest.raises(RuleViolation) as refused:
        await post(database.worker, organization, rules.adjustment_transaction(money(-1)), "overdraft")
    assert refused.value.code is ErrorCode.INSUFFICIENT_FUNDS
    assert await post(database.worker, organization, rules.adjustment_transaction(money(1)), "overdraft"), (
        "the key is free"
    )
    await assert_balanced(database.worker)


async def test_the_database_refuses_an_unbalanced_transaction(database: DatabaseFixture) -> None:
    organization = await insert_organization(database.owner)
    for statements in ([_TRANSACTION, _ENTRY], [_TRANSACTION]):
        with pytest.raises(IntegrityError, match="does not balance"):
            await _write(database.worker, statements, organization)
    await assert_balanced(database.worker)


async def test_a_transaction_stores_the_balance_after_it_in_the_order_of_its_sequence(
    database: DatabaseFixture,
) -> None:
    organization, other = await insert_organization(database.owner), await insert_organization(database.owner)
    top_up, hold = rules.top_up_transaction("stripe", money(700)), rules.promotional_credit_transaction(money(30))
    await asyncio.gather(
        *(post(database.worker, organization, top_up, f"top-up/{number}") for number in range(12)),
        *(post(database.worker, organization, hold, f"credit/{number}") for number in range(12)),
        *(post(database.worker, organization, top_up, "top-up/0") for _ in range(4)),
        *(post(database.worker, other, top_up, f"other/{number}") for number in range(4)),
    )
    await post(database.worker, organization, rules.adjustment_transaction(money(-50)), "adjustment")
    await post(database.worker, organization, rules.top_up_transaction("midtrans", money(9, "IDR")), "IDR")
    async with database.worker.connect() as connection:
        rows = await connection.execute(
            text(
                "SELECT balance_after_minor, sum(customer_delta_minor) OVER (PARTITION BY organization_id, currency"
                " ORDER BY sequence_number) AS expected FROM ledger_transactions"
            )
        )
        balances = [(row.balance_after_minor, int(row.expected)) for row in rows]
    assert len(balances) == 12 + 12 + 4 + 2
    assert [stored for stored, expected in balances if stored != expected] == []


async def test_an_entry_added_to_an_older_transaction_is_refused(database: DatabaseFixture) -> None:
    organization = await insert_organization(database.owner)
    await post(database.worker, organization, rules.top_up_transaction("stripe", money(1000)), "bad")
    pair = [
        "INSERT INTO ledger_entries (transaction_id, organization_id, account, currency, amount_minor)"
        f" SELECT id, {owner}, '{account}', 'USD', {amount} FROM ledger_transactions"
        for owner, account, amount in (("NULL", "clearing:stripe", -7), ("organization_id", "wallet", 7))
    ]
    with pytest.raises(IntegrityError, match="does not balance"):
        await _write(database.worker, pair, organization)
    assert await wallet(database.worker, organization) == 1000


@pytest.mark.parametrize("table", ["ledger_accounts", "customer_balances"])
@pytest.mark.parametrize(
    "statement", ["UPDATE {} SET balance_minor = 1", "DELETE FROM {}", "INSERT INTO {} (balance_minor) VALUES (1)"]
)
async def test_the_worker_writes_no_balance(database: DatabaseFixture, table: str, statement: str) -> None:
    with pytest.raises(DBAPIError, match="permission denied"):
        await _write(database.worker, [statement.format(table)], "")


@pytest.mark.parametrize("table", ["ledger_entries", "ledger_transactions"])
@pytest.mark.parametrize("statement", ["UPDATE {} SET currency = 'EUR'", "DELETE FROM {}", "TRUNCATE {} CASCADE"])
async def test_posted_rows_are_append_only(database: DatabaseFixture, table: str, statement: str) -> None:
    organization = await insert_organization(database.owner)
    await post(database.worker, organization, rules.top_up_transaction("stripe", money(1000)), "a")
    with pytest.raises(DBAPIError, match=r"append-only|permission denied"):
        await _write(database.owner, [statement.format(table)], organization)


async def test_an_organization_sees_only_its_entries(database: DatabaseFixture) -> None:
    mine, other = await insert_organization(database.owner), await insert_organization(database.owner)
    for organization in (mine, other):
        await post(database.worker, organization, rules.top_up_transaction("stripe", money(1000)), organization)
    async with session_factory(database.api).begin() as session:
        await set_rls_context(session, organization_id=mine, user_id=None, role=None)
        organization_ids = (
            (await session.execute(text("SELECT DISTINCT organization_id FROM ledger_entries"))).scalars().all()
        )
        assert organization_ids == [mine]
        assert (await ledger.get_balances(session, other, "USD")).wallet == zero_money("USD")


_TRANSACTION = (
    "INSERT INTO ledger_transactions (id, organization_id, kind, currency, customer_delta_minor, entry_count,"
    " posted_at,"
    " description, idempotency_key) VALUES ('tx_bad', :organization, 'adjustment', 'USD', 100, 2, now(), '', 'bad')"
)
_ENTRY = (
    "INSERT INTO ledger_entries (transaction_id, organization_id, account, currency, amount_minor)"
    " VALUES ('tx_bad', :organization, 'wallet', 'USD', 100)"
)


async def _write(engine: AsyncEngine, statements: list[str], organization_id: str) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            parameters = {"organization": organization_id} if ":organization" in statement else {}
            await connection.execute(text(statement), parameters)
