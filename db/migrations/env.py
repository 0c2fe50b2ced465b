"""How migrations reach the database: as ``berth_owner``, giving up early rather than blocking the traffic."""

from __future__ import annotations

import os

from alembic import context
from sqlalchemy import create_engine, pool

import db.models
from db.base import Base

# A migration that waits for a lock makes every later query wait behind it.
LIMITS = "-c lock_timeout=5s -c statement_timeout=120s -c timezone=UTC"

assert db.models.__doc__ is not None  # imported for its tables


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
        )
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


if context.is_offline_mode():
    raise SystemExit("offline migrations are not supported: policies and grants want a live database")
run()
