"""Check that the migrations, run on an empty PostgreSQL, create exactly what the models describe.

Alembic compares tables, columns and keys. What it does not compare is read from PostgreSQL's catalog, in a database
that the migrations made and in one that the models made: conditions of CHECKs, of partial indexes and of foreign keys.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, pool, text

import db.models
from db.base import Base
from deploy.local.postgres import OWNER_ROLE, Postgres
from tests.support.databases import migrate

ROOT = Path(__file__).resolve().parents[2]

DEFINITIONS = """
SELECT conrelid::regclass::text, conname::text, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace AND contype IN ('c', 'f', 'p', 'u')
    AND conrelid IS DISTINCT FROM to_regclass('alembic_version')
UNION ALL
SELECT tablename::text, indexname::text, indexdef FROM pg_indexes
    WHERE schemaname = 'public' AND tablename <> 'alembic_version'
"""


def read_definitions(connection: Connection) -> set[tuple[str, str, str]]:
    """Return the constraints and indexes of a database, each as table, name and definition."""
    return {(table, name, definition) for table, name, definition in connection.execute(text(DEFINITIONS))}


def describe_drift(migrated: set[tuple[str, str, str]], declared: set[tuple[str, str, str]]) -> list[str]:
    """Return one line per constraint or index that only one side has, or that differs."""
    return [
        *(f"only in the migrations: {table}: {name}: {definition}" for table, name, definition in migrated - declared),
        *(f"only in the models: {table}: {name}: {definition}" for table, name, definition in declared - migrated),
    ]


def main() -> int:
    assert db.models.__doc__ is not None  # imported for its tables
    heads = ScriptDirectory.from_config(Config(str(ROOT / "alembic.ini"))).get_heads()
    if len(heads) != 1:
        print(f"the migrations have {len(heads)} heads: {', '.join(heads)}")
        return 1
    folder = Path(tempfile.mkdtemp(prefix="berth-check-"))
    try:
        with Postgres(folder / "postgres", durable=False) as server:
            server.ensure_roles("drift")
            url = server.url(OWNER_ROLE, "drift")
            migrate(url)
            engine = create_engine(url, poolclass=pool.NullPool)
            with engine.connect() as connection:
                context = MigrationContext.configure(connection, opts={"compare_type": True})
                differences = compare_metadata(context, Base.metadata)
                migrated = read_definitions(connection)
            engine.dispose()
            server.ensure_roles("declared")
            engine = create_engine(server.url(OWNER_ROLE, "declared"), poolclass=pool.NullPool)
            with engine.begin() as connection:
                Base.metadata.create_all(connection)
                differences += describe_drift(migrated, read_definitions(connection))
            engine.dispose()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for difference in differences:
        print(difference)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
