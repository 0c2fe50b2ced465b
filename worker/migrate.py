"""``berth migrate``: upgrade the schema, as ``berth_owner``. Quick when it is current; safe to run twice at once."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path

import psycopg
from sqlalchemy.exc import DBAPIError

import db
from db.schema_version import SchemaMismatch, migration_checksums, newest_revision, read_revision
from db.session import connect_arguments
from worker.exit import SCHEMA_MISMATCH_EXIT_CODE
from worker.owner_database import SETTING, read_owner_database_url

MIGRATION_LOCK_ID = 4_212_026
"""Advisory lock: of two that start together, the second waits and then finds nothing to do."""

MIGRATIONS = Path(str(db.__file__)).parent / "migrations"


class MigrationFailed(Exception):
    """A migration raised an error, which is the cause; its transaction was rolled back. The message names both."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "The database is BERTH_OWNER_DATABASE_URL, or in the file that BERTH_OWNER_DATABASE_URL_FILE names."


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
        MigrationFailed: a migration raised an error. The migrations before it are applied.
    """
    newest = newest_revision()
    with psycopg.connect(**connect_arguments(url), autocommit=True) as connection:
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
    try:
        command.upgrade(config, "head")
    except Exception as error:
        revision = _failed_revision(error)
        if revision is None:
            raise
        # Without the statement, which the traceback has.
        reason = error.orig if isinstance(error, DBAPIError) else error
        raise MigrationFailed(f"The migration {revision} failed and was rolled back: {reason}") from error


def _failed_revision(error: Exception) -> str | None:
    """Return the revision whose script raised ``error``; None if no script did, e.g. without a connection."""
    scripts = {str(MIGRATIONS / "versions" / f"{revision}.py"): revision for revision in migration_checksums()}
    frames = traceback.extract_tb(error.__traceback__)
    return next((scripts[frame.filename] for frame in frames if frame.filename in scripts), None)
