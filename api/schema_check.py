"""The check of the database's schema before a process serves."""

from __future__ import annotations

import sys

import psycopg
import structlog

from db.schema_version import SchemaMismatch, SchemaNewer, require_current_schema

log = structlog.get_logger(__name__)


def is_schema_usable(program: str, url: str, *, timeout_seconds: float) -> bool:
    """Return whether ``program`` may start on the database, and say in one line on stderr why not.

    A schema that a newer version has extended is usable: a release is rolled back before its migrations are. Nothing is
    known of a database that cannot be reached: the process starts, as while any other dependency is unavailable.

    Args:
        url: SQLAlchemy's form.
    """
    try:
        with psycopg.connect(
            url.replace("+psycopg", "", 1), autocommit=True, connect_timeout=max(1, int(timeout_seconds))
        ) as connection:
            require_current_schema(connection)
    except SchemaNewer as error:
        log.warning("schema.newer", reason=str(error))
    except SchemaMismatch as error:
        sys.stderr.write(f"The {program} does not start. {error}\n")
        return False
    except psycopg.OperationalError as error:
        log.warning("schema.not_checked", error=type(error).__name__)
    return True
