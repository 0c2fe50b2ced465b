"""Why a dependency is unavailable, as fields of a log event."""

from __future__ import annotations

import psycopg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from api.redaction import mask_text

MAX_REASON_LENGTH = 300
CLASSES_WITHOUT_VALUES = ("", "08", "25", "28", "3D", "53", "57")
"""Classes of SQLSTATE about connections, resources and operators, and none: an error of libpq."""


def describe_outage(error: BaseException) -> dict[str, str]:
    """Return the type of an error, its SQLSTATE and the reason in words, without passwords and values of rows.

    Returns:
        ``error``; ``sqlstate`` where PostgreSQL sent one; ``reason`` where the message cannot quote a row.
    """
    fields = {"error": type(error).__name__}
    cause: BaseException = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    if isinstance(cause, psycopg.Error):
        if cause.sqlstate:
            fields["sqlstate"] = cause.sqlstate
    elif isinstance(error, DBAPIError):
        # The statement of an error that is not the driver's is unknown, and so is what its message quotes.
        return fields
    if not str(cause) and cause.__cause__ is not None:
        cause = cause.__cause__
    reason = mask_text(" ".join(str(cause).split()))[:MAX_REASON_LENGTH]
    if reason and not _may_quote_row(cause):
        fields["reason"] = reason
    return fields


def _may_quote_row(error: BaseException) -> bool:
    """Return whether the message may quote values: PostgreSQL's about a statement, and SQLAlchemy's."""
    if isinstance(error, psycopg.Error):
        return (error.sqlstate or "")[:2] not in CLASSES_WITHOUT_VALUES
    return isinstance(error, SQLAlchemyError) and not isinstance(error, PoolTimeout)
