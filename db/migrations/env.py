"""How migrations reach the database: as ``berth_owner``, giving up early rather than blocking the traffic."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo
from sqlalchemy import create_engine, delete, inspect, pool
from sqlalchemy.dialects.postgresql import insert

import db.models
from db.base import Base
from db.models.schema import SchemaMigration
from db.schema_version import migration_checksums

# A migration that waits for a lock makes every later query wait behind it.
LIMITS = "-c lock_timeout=5s -c statement_timeout=120s -c timezone=UTC"

assert db.models.__doc__ is not None  # imported for its tables


def record_migration(
    ctx: MigrationContext, step: MigrationInfo, heads: Collection[Any], run_args: Mapping[str, Any]
) -> None:
    """Record the checksum of an applied script, in the transaction that applies it."""
    connection, revision = ctx.connection, step.up_revision_id
    assert connection is not None
    assert revision is not None
    if step.is_upgrade:
        row = {"revision": revision, "checksum": migration_checksums()[revision]}
        connection.execute(insert(SchemaMigration).values(row))
    elif inspect(connection).has_table(SchemaMigration.__tablename__):
        connection.execute(delete(SchemaMigration).where(SchemaMigration.revision == revision))


def run() -> None:
    url = os.environ.get("BERTH_OWNER_DATABASE_URL")
    if not url:
        raise SystemExit("BERTH_OWNER_DATABASE_URL is not set: migrations run as the owner of the schema")
    engine = create_engine(url, poolclass=pool.NullPool, connect_args={"options": LIMITS}, hide_parameters=True)
    with engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            compare_type=True,
            transaction_per_migration=True,
            on_version_apply=record_migration,
        )
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


if context.is_offline_mode():
    raise SystemExit("offline migrations are not supported: policies and grants want a live database")
run()
