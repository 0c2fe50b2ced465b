"""``berth migrate``: upgrade the schema, as ``berth_owner``. Quick when it is current; safe to run twice at once."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import psycopg

import db
from db.schema_version import SchemaMismatch, newest_revision, read_revision
from worker.exit import SCHEMA_MISMATCH_EXIT_CODE
from worker.owner_database import SETTING, read_owner_database_url

MIGRATION_LOCK_ID = 4_212_026
"""Advisory lock: of two that start together, the second waits and then finds nothing to do."""

MIGRATIONS = Path(str(db.__file__)).parent / "migrations"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "The database is BERTH_OWNER_DATABASE_URL."


def run(_: argparse.Namespace) -> int:
    try:
        before, after = migrate(read_owner_database_url())
    except SchemaMismatch as error:
        sys.stderr.write(f"{error}\n")
        return SCHEMA_MISMATCH_EXIT_CODE
    done = f"schema up to date: {after}" if before == after else f"schema upgraded: {before or 'empty'} to {after}"
    sys.stdout.write(f"{done}\n")
    return 0


def migrate(url: str) -> tuple[str | None, str]:
    """Upgrade to the newest revision and return the revisions before and after; None is an empty database.

    ``url`` is SQLAlchemy's. The newest revision is known without loading the migrations: a second start spends its time
    on small queries.

    Raises:
        SchemaMismatch: other migrations, or newer ones, made the schema. Nothing is changed.
    """
    newest = newest_revision()
    with psycopg.connect(url.replace("+psycopg", "", 1), autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (MIGRATION_LOCK_ID,))
        current = read_revision(connection)
        if current != newest:
            _upgrade(url)
    return current, newest


def _upgrade(url: str) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    # db/migrations/env.py connects by itself, to the address that it finds here.
    os.environ[SETTING] = url
    command.upgrade(config, "head")
