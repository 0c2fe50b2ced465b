"""What counts as an outage of the database, which a later attempt may find over, and what does not."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.exc import InternalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from db.errors import is_database_unavailable
from db.session import create_database_engine
from tests.support.databases import DatabaseFixture


async def test_a_pool_whose_connections_are_all_in_use_is_an_outage(database: DatabaseFixture) -> None:
    engine = create_database_engine(database.worker_url, pool_size=1, timeout_seconds=0.05)
    try:
        # As many connections again are opened under load.
        async with engine.connect(), engine.connect():
            with pytest.raises(PoolTimeout) as raised:
                async with engine.connect():
                    pass
    finally:
        await engine.dispose()
    assert is_database_unavailable(raised.value)


async def test_a_database_that_accepts_no_writes_during_a_failover_is_an_outage(database: DatabaseFixture) -> None:
    engine = create_database_engine(database.worker_url)
    try:
        async with engine.connect() as connection:
            await connection.execute(text("SET default_transaction_read_only = on"))
            await connection.commit()
            with pytest.raises(InternalError, match="read-only transaction") as raised:
                await connection.execute(text("UPDATE instances SET saved_replicas = NULL"))
    finally:
        await engine.dispose()
    assert is_database_unavailable(raised.value)
    # As SQLAlchemy received it.
    assert raised.value.orig is not None
    assert is_database_unavailable(raised.value.orig)


async def test_a_statement_that_the_database_never_executes_is_no_outage(database: DatabaseFixture) -> None:
    engine = create_database_engine(database.worker_url)
    try:
        async with engine.connect() as connection:
            with pytest.raises(ProgrammingError) as raised:
                await connection.execute(text("SELECT missing FROM instances"))
    finally:
        await engine.dispose()
    assert not is_database_unavailable(raised.value)
