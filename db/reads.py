"""Reads that are compiled once and sent as they are: SQLAlchemy's work for each execution costs more than the read.

A query function takes a `RowReader`. `read_alone` gives each read its own transaction, in one round trip;
`SessionReader` reads inside the transaction of a session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import psycopg
from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.util import greenlet_spawn

from db.driver import DIALECT, DriverStatement, driver_connection
from db.session import REUSED, SET_CONTEXT, RlsContext, to_sqlalchemy_error

RowT = TypeVar("RowT", bound=NamedTuple)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedQuery(Generic[RowT]):
    """A query as the driver takes it, made by `prepare`.

    Attributes:
        constants: Values of the placeholders that the query itself sets.
    """

    statement: bytes
    constants: Mapping[str, Any]
    make_row: Callable[[Sequence[Any]], RowT]


@dataclass(frozen=True, slots=True)
class PreparedRead(Generic[RowT]):
    """A prepared query and the values of its ``bindparam``\\ s."""

    query: PreparedQuery[RowT]
    values: Mapping[str, Any]

    def to_driver(self) -> DriverStatement:
        return DriverStatement(self.query.statement.decode(), {**self.query.constants, **self.values})


def prepare(query: Select[*tuple[Any, ...]], row: type[RowT]) -> PreparedQuery[RowT]:
    """Compile a query whose columns are the fields of ``row``, in their order.

    Types that SQLAlchemy converts by itself stay as the driver has them: text, numbers, instants, JSON.

    Raises:
        ValueError: The columns are not the fields, or the text depends on values (``IN``).
    """
    columns = tuple(column.name for column in query.selected_columns)
    if columns != row._fields:
        raise ValueError(f"{row.__name__} has the fields {row._fields}, the query has the columns {columns}")
    compiled = query.compile(dialect=DIALECT)
    if compiled.post_compile_params:
        raise ValueError("IN is written for each execution: use `== any_(array(…))`")
    return PreparedQuery(statement=str(compiled).encode(), constants=compiled.params, make_row=row._make)


class RowReader(Protocol):
    """Executes prepared queries where row-level security admits certain rows."""

    async def fetch(self, query: PreparedQuery[RowT], values: Mapping[str, Any]) -> list[RowT]:
        """Return all rows; ``values`` are those of the query's ``bindparam``\\ s and may have more."""


@dataclass(frozen=True, slots=True)
class SessionReader:
    """Reads in the transaction of ``session``. What the session has to flush is not seen."""

    session: AsyncSession

    async def fetch(self, query: PreparedQuery[RowT], values: Mapping[str, Any]) -> list[RowT]:
        raw = await driver_connection(self.session)
        try:
            cursor = await raw.execute(query.statement, {**query.constants, **values})
            return [query.make_row(row) for row in await cursor.fetchall()]
        except psycopg.Error as error:
            if raw.closed:
                await self.session.invalidate()
            raise to_sqlalchemy_error(query.statement.decode(), error) from error


async def read_alone(
    engine: AsyncEngine, context: RlsContext, query: PreparedQuery[RowT], values: Mapping[str, Any]
) -> list[RowT]:
    """Execute a query in its own transaction and return all rows: one round trip.

    A connection that the server has closed is replaced, and the read is sent again.

    Args:
        engine: Created with ``explicit_begin``.
        context: What row-level security admits.
        query: What to read.
        values: Values of the query's ``bindparam``\\ s; more are ignored.

    Raises:
        DBAPIError: The query failed, or no connection could be opened.
    """
    while True:
        try:
            connection = await engine.raw_connection()
        except psycopg.Error as error:
            raise to_sqlalchemy_error(query.statement.decode(), error) from error
        raw = connection.driver_connection
        assert isinstance(raw, psycopg.AsyncConnection)
        # Replacing closed connections ends at the first one that is new.
        is_reused = REUSED in connection.info
        connection.info[REUSED] = True
        is_clean = False
        try:
            cursor = raw.cursor()
            async with raw.pipeline():
                await raw.execute("BEGIN")
                await raw.execute(SET_CONTEXT, context.parameters())
                await cursor.execute(query.statement, {**query.constants, **values})
                await raw.execute("COMMIT")
            rows = [query.make_row(row) for row in await cursor.fetchall()]
            is_clean = True
        except psycopg.Error as error:
            is_clean = not raw.closed
            if raw.closed and is_reused:
                continue
            raise to_sqlalchemy_error(query.statement.decode(), error) from error
        finally:
            # Interrupted in the middle, the connection holds half a conversation.
            await greenlet_spawn(connection.close if is_clean else connection.invalidate)
        return rows
