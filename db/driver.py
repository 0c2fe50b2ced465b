"""Statements as the driver takes them: compiled once, and sent together in one round trip.

SQLAlchemy's work for each execution costs more than a short statement itself, and it sends one statement at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import DictRow, dict_row
from sqlalchemy import text
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.ext.asyncio import AsyncSession

from db.session import (
    REUSED,
    SET_CONTEXT,
    RlsContext,
    connect_without_begin,
    discard_closed_connections,
    to_sqlalchemy_error,
)

DIALECT = PGDialect_psycopg(paramstyle="pyformat")  # type: ignore[no-untyped-call]


class DriverStatement(NamedTuple):
    """A statement with psycopg's placeholders, and their values."""

    sql: str
    parameters: Mapping[str, Any]


def driver_sql(statement: str) -> str:
    """Return SQL with SQLAlchemy's placeholders (``:name``) as psycopg takes it, without superfluous spaces.

    The statement has no spaces inside of literals that matter.
    """
    return str(text(" ".join(statement.split())).compile(dialect=DIALECT))


async def driver_connection(session: AsyncSession) -> psycopg.AsyncConnection[Any]:
    """Return psycopg's connection of the session's transaction."""
    raw = (await (await session.connection()).get_raw_connection()).driver_connection
    assert isinstance(raw, psycopg.AsyncConnection)
    return raw


async def begin_and_fetch(
    session: AsyncSession, *statements: DriverStatement, commit: bool = False
) -> list[list[DictRow]]:
    """Begin the session's transaction and execute its first statements, in one round trip.

    A connection that the server has closed fails before anything is committed. Outside of ``session.begin()``, whose
    block ends with its connection, it is replaced and all is sent again.

    Args:
        session: A session that has executed nothing since its last transaction.
        statements: At least one; each returns rows.
        commit: Commit in the same round trip. Only for statements whose repetition changes nothing more.

    Returns:
        The rows of each statement.

    Raises:
        DBAPIError: A statement failed, or no connection could be opened.
    """
    can_replace = not session.in_transaction()
    while True:
        connection, raw = await connect_without_begin(session)
        # Replacing closed connections ends at the first one that is new.
        is_reused = REUSED in connection.info
        connection.info[REUSED] = True
        cursors = [raw.cursor(row_factory=dict_row) for _ in statements]
        try:
            async with raw.pipeline():
                await raw.execute("BEGIN")
                for cursor, statement in zip(cursors, statements, strict=True):
                    await cursor.execute(statement.sql.encode(), statement.parameters)
                if commit:
                    await raw.execute("COMMIT")
            return [await cursor.fetchall() for cursor in cursors]
        except psycopg.Error as error:
            if raw.closed:
                await discard_closed_connections(session)
                if is_reused and can_replace:
                    continue
            raise _to_sqlalchemy_error(statements, error) from error


async def begin_and_fetch_one(session: AsyncSession, statement: DriverStatement) -> DictRow | None:
    """Like ``begin_and_fetch``, for one statement.

    Returns:
        The first row; None when there is none.
    """
    (rows,) = await begin_and_fetch(session, statement)
    return rows[0] if rows else None


async def begin_with_rls_context(
    session: AsyncSession, *, organization_id: str | None, user_id: str | None, role: str | None
) -> None:
    """Begin a transaction in which row-level security admits this organization, user and role; one round trip."""
    context = RlsContext(organization_id=organization_id, user_id=user_id, role=role)
    await begin_and_fetch(session, DriverStatement(SET_CONTEXT, context.parameters()))


async def fetch_one_alone(session: AsyncSession, statement: DriverStatement) -> DictRow | None:
    """Execute one statement that commits by itself, in one round trip: no BEGIN, no COMMIT.

    Args:
        session: A session that has executed nothing since its last transaction.
        statement: The statement.

    Returns:
        The first row; None when there is none.

    Raises:
        DBAPIError: The statement failed.
    """
    _, raw = await connect_without_begin(session)
    return await _fetch_one(session, raw, statement)


async def fetch_one(session: AsyncSession, statement: DriverStatement) -> DictRow | None:
    """Execute a query in one round trip. What the session has to flush is flushed first.

    If it is the first of its transaction, the driver sends BEGIN before it and waits for it.

    Returns:
        The first row; None when there is none.

    Raises:
        DBAPIError: The query failed.
    """
    await session.flush()
    return await _fetch_one(session, await driver_connection(session), statement)


async def _fetch_one(
    session: AsyncSession, raw: psycopg.AsyncConnection[Any], statement: DriverStatement
) -> DictRow | None:
    """Execute a statement on the session's connection and return its first row."""
    cursor = raw.cursor(row_factory=dict_row)
    try:
        async with raw.pipeline():
            await cursor.execute(statement.sql.encode(), statement.parameters)
        return await cursor.fetchone()
    except psycopg.Error as error:
        if raw.closed:
            await discard_closed_connections(session)
        raise _to_sqlalchemy_error([statement], error) from error


async def execute_together(session: AsyncSession, *statements: DriverStatement, commit: bool = False) -> None:
    """Execute statements in their order, in one round trip. What the session has to flush is flushed first.

    Args:
        session: A session in a transaction.
        statements: At least one.
        commit: Commit in the same round trip; a later ``session.commit()`` is no round trip.

    Raises:
        DBAPIError: The first statement that failed, or a deferred constraint. The transaction is to be rolled back.
    """
    await session.flush()
    raw = await driver_connection(session)
    try:
        async with raw.pipeline():
            for statement in statements:
                await raw.execute(statement.sql.encode(), statement.parameters)
            if commit:
                await raw.execute("COMMIT")
    except psycopg.Error as error:
        if raw.closed:
            await discard_closed_connections(session)
        raise _to_sqlalchemy_error(statements, error) from error


def _to_sqlalchemy_error(statements: Sequence[DriverStatement], error: psycopg.Error) -> BaseException:
    return to_sqlalchemy_error("; ".join(statement.sql for statement in statements), error)
