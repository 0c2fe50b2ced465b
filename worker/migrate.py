"""``berth migrate``: the schema, as ``berth_owner``. Quick when there is nothing to do; safe to run twice at once."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import psycopg

import db

MIGRATION_LOCK_ID = 4_212_026
"""Advisory lock: of two that start together, the second waits and then finds nothing to do."""

MIGRATIONS = Path(str(db.__file__)).parent / "migrations"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "The database is BERTH_OWNER_DATABASE_URL."


def run(_: argparse.Namespace) -> int:
    url = os.environ.get("BERTH_OWNER_DATABASE_URL")
    if not url:
        raise SystemExit("BERTH_OWNER_DATABASE_URL is not set: migrations run as the owner of the schema")
    before, after = migrate(url)
    done = f"the schema is at {after}" if before == after else f"migrated the schema from {before} to {after}"
    sys.stdout.write(f"{done}\n")
    return 0


def migrate(url: str) -> tuple[str | None, str]:
    """Upgrade to the newest revision and return the revisions before and after; None is an empty database.

    ``url`` is SQLAlchemy's. Revisions are named as their files and in their order, so the newest is known without
    loading them: a second start spends its time on one small query.
    """
    newest = max(path.stem for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))
    with psycopg.connect(url.replace("+psycopg", "", 1), autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (MIGRATION_LOCK_ID,))
        current = _current_revision(connection)
        if current != newest:
            _upgrade(url)
    return current, newest


def _current_revision(connection: psycopg.Connection) -> str | None:
    has_version_table = connection.execute("SELECT to_regclass('alembic_version') IS NOT NULL").fetchone()
    if has_version_table is None or not has_version_table[0]:
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])


def _upgrade(url: str) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    # db/migrations/env.py connects by itself, to the address that it finds here.
    os.environ["BERTH_OWNER_DATABASE_URL"] = url
    command.upgrade(config, "head")
