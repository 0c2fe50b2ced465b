"""What PostgreSQL is asked, recorded at the driver: much of it does not pass through SQLAlchemy's events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

Statement = tuple[str, Any]
"""A statement as the driver gets it, and its parameters."""


@contextmanager
def recorded_statements() -> Iterator[list[Statement]]:
    """Record the statements of this process in their order, ``BEGIN`` and ``COMMIT`` where they are sent as such."""
    statements: list[Statement] = []
    execute = psycopg.AsyncCursor.execute

    async def recording(self: Any, query: Any, params: Any = None, **options: Any) -> Any:
        statements.append((query.decode() if isinstance(query, bytes) else str(query), params))
        return await execute(self, query, params, **options)

    psycopg.AsyncCursor.execute = recording  # type: ignore[method-assign]
    try:
        yield statements
    finally:
        psycopg.AsyncCursor.execute = execute  # type: ignore[method-assign]
