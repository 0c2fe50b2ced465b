"""What PostgreSQL is asked, recorded at the driver: much of it does not pass through SQLAlchemy's events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

Statement = tuple[str, Any]
"""A statement as the driver gets it, and its parameters."""


@contextmanager
def recorded_statements() -> Iterator[list[Statement]]:
    """Record the statements of this process in their order, ``BEGIN`` and ``COMMIT`` where they are sent as such."""
    statements: list[Statement] = []
    with each_statement(lambda statement, parameters: statements.append((statement, parameters))):
        yield statements


@contextmanager
def each_statement(on_statement: Callable[[str, Any], None]) -> Iterator[None]:
    """Call ``on_statement`` with each statement of this process and its parameters, in the executing task's context."""
    execute = psycopg.AsyncCursor.execute

    async def recording(self: Any, query: Any, params: Any = None, **options: Any) -> Any:
        on_statement(query.decode() if isinstance(query, bytes) else str(query), params)
        return await execute(self, query, params, **options)

    psycopg.AsyncCursor.execute = recording  # type: ignore[method-assign]
    try:
        yield
    finally:
        psycopg.AsyncCursor.execute = execute  # type: ignore[method-assign]
