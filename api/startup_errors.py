"""Errors whose cause lies outside of the program, as one line for the person who started it."""

from __future__ import annotations

import psycopg
from sqlalchemy.exc import DBAPIError

from api.environment import ConfigurationError
from api.redaction import mask_text
from db.schema_version import SchemaMismatch


class CannotStart(Exception):
    """A process or command cannot start. The first line of the message says what is wrong and what to do."""


def describe_startup_error(error: BaseException) -> str | None:
    """Return one line about an unavailable database, a file or an address; None for an error of the program itself."""
    if isinstance(error, DBAPIError) and isinstance(error.orig, psycopg.Error):
        error = error.orig
    match error:
        case CannotStart() | ConfigurationError() | SchemaMismatch():
            line = str(error)
        case psycopg.errors.InsufficientPrivilege():
            line = f"The database's role may not do this ({_first_line(error)}). Use the owner of the schema."
        case psycopg.OperationalError():
            line = f"The database is unavailable: {_first_line(error)}."
        case OSError(filename=str() | bytes() as path, strerror=str() as reason):
            line = f"{path!r} cannot be used: {reason}."
        case OSError(strerror=str() as reason):
            line = f"{reason}."
        case _:
            return None
    # An error may quote an address with its password.
    return mask_text(line)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
