"""The indexes by which the allocations of invoices are looked up."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.support.databases import DatabaseFixture


async def test_what_reverses_an_allocation_is_found_by_an_index(database: DatabaseFixture) -> None:
    async with AsyncSession(database.worker) as session:
        await session.execute(text("SET LOCAL enable_seqscan = off"))
        for column in ("reverses_id", "ledger_transaction_id"):
            plan = await session.scalars(text(f"EXPLAIN SELECT FROM invoice_allocations WHERE {column} = 'x'"))
            assert f"ix_invoice_allocations_{column}" in "\n".join(plan)
