"""Whether the schema of a database is the one that this program's migrations make.

Each migration records the checksum of its script in the transaction that applies it, so that a database whose schema
was made by other scripts under the same names is recognized before the first statement fails on it.
"""

from __future__ import annotations

import hashlib
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, Protocol

_DIRECTORY = Path(__file__).parent
_VERSIONS = _DIRECTORY / "migrations" / "versions"
_SHARED = _DIRECTORY / "rls.py"
"""Imported by the migrations: what it returns is part of what they do."""

_TABLES = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"


class DatabaseConnection(Protocol):
    """psycopg's connection, or SQLAlchemy's adapter of one that is asynchronous."""

    def cursor(self) -> Any: ...


class SchemaMismatch(Exception):
    """The schema was made by other migrations. The message is one line for an operator."""


class SchemaOutdated(SchemaMismatch):
    """Migrations are missing."""


class SchemaNewer(SchemaMismatch):
    """The schema has migrations of a newer version on top of all of this version's."""


@cache
def migration_checksums() -> dict[str, str]:
    """Return the checksum of each migration of this program by revision, in the order in which they are applied.

    Revisions are named as their files and in their order.
    """
    shared = _SHARED.read_bytes()
    return {
        path.stem: hashlib.sha256(path.read_bytes() + shared).hexdigest()
        for path in sorted(_VERSIONS.glob("[0-9]*.py"))
    }


def newest_revision() -> str:
    return next(reversed(migration_checksums()))


def fetch_rows(connection: DatabaseConnection, query: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    """Return all rows of a query with psycopg's placeholders."""
    with closing(connection.cursor()) as cursor:
        cursor.execute(query, parameters)
        return [tuple(row) for row in cursor.fetchall()]


def read_revision(connection: DatabaseConnection) -> str | None:
    """Return the revision of the schema, None if the database is empty.

    Raises:
        SchemaMismatch: other migrations made the schema.
        SchemaNewer: a newer version migrated it.
    """
    tables = {name for (name,) in fetch_rows(connection, _TABLES)} - {"alembic_version"}
    if not tables:
        return None
    if "schema_migrations" not in tables:
        raise SchemaMismatch(_describe("it does not record its migrations"))
    rows = fetch_rows(connection, "SELECT revision, checksum FROM schema_migrations ORDER BY revision")
    applied, expected = {str(revision): str(checksum) for revision, checksum in rows}, migration_checksums()
    changed = [revision for revision in expected if applied.get(revision, expected[revision]) != expected[revision]]
    if changed:
        raise SchemaMismatch(_describe(f"the migration {changed[0]} is another one"))
    newest = max(applied, default=None)
    if unknown := applied.keys() - expected.keys():
        if expected.keys() - applied.keys() or min(unknown) < newest_revision():
            raise SchemaMismatch(_describe(f"the migration {min(unknown)} is unknown"))
        raise SchemaNewer(
            f"The database's schema is at {newest}; this version of Berth knows it up to {newest_revision()}."
            " Use the version of Berth that migrated it, or a newer one."
        )
    return newest


def require_current_schema(connection: DatabaseConnection) -> None:
    """Return if the schema is the newest that this program knows.

    Raises:
        SchemaMismatch, SchemaNewer: as ``read_revision``.
        SchemaOutdated: migrations are missing.
    """
    revision = read_revision(connection)
    if revision != newest_revision():
        state = "is empty" if revision is None else f"has a schema at {revision}"
        raise SchemaOutdated(f"The database {state}; this version needs {newest_revision()}. Run `berth migrate`.")


def _describe(difference: str) -> str:
    return (
        f"The database's schema was made by another version of Berth's migrations ({difference})."
        " Use the version of Berth that made it, or an empty database."
    )
