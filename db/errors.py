"""The names of constraints whose violation is a refusal, and how an error is asked for them."""

from __future__ import annotations

import re
from typing import NamedTuple

import psycopg
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

NON_NEGATIVE_BALANCE = frozenset(
    {"ck_ledger_accounts_non_negative_balance", "ck_customer_balances_non_negative_balance"}
)
"""Violated when a posting would take an account, or all accounts of the customer together, below zero."""


def violated_constraint(error: BaseException) -> str:
    """Return the name of the constraint that ``error`` reports, or an empty string.

    Args:
        error: An error of psycopg, or SQLAlchemy's error around it.
    """
    cause = error.orig if isinstance(error, DBAPIError) else error
    return getattr(getattr(cause, "diag", None), "constraint_name", None) or ""


def is_overdraft(error: BaseException) -> bool:
    """Return whether ``error`` is the database's refusal of a balance below zero."""
    return violated_constraint(error) in NON_NEGATIVE_BALANCE


def is_database_unavailable(error: BaseException) -> bool:
    """Return whether the database may execute the statement later.

    It cannot be reached, is overloaded or locked, or accepts no writes until a failover has ended.
    """
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, psycopg.errors.ReadOnlySqlTransaction):
        return True
    return isinstance(
        error,
        OperationalError
        | InterfaceError
        | PoolTimeout
        | psycopg.OperationalError
        | psycopg.InterfaceError
        | ConnectionError
        | TimeoutError,
    )


class SchemaRejection(NamedTuple):
    """What of the schema refused a row, without the row's values; empty where PostgreSQL does not say it.

    Attributes:
        constraint: Name of the constraint, or of the trigger's function.
    """

    sqlstate: str
    table: str
    constraint: str


REFUSED_CLASSES = ("22", "23")
"""SQLSTATE classes of rows that the schema refuses: values that no column takes, and violated constraints. Triggers
raise the second class as well."""

_TRIGGER_FUNCTION = re.compile(r"PL/pgSQL function (?:\w+\.)?(\w+)\(")


def find_schema_rejection(error: BaseException) -> SchemaRejection | None:
    """Return what of the schema refused a row, None for any other error.

    The same row is refused again, except one that another transaction has written first: a repeated activity finds it.
    """
    if not isinstance(error, DBAPIError | psycopg.Error):
        return None
    rejection = _diagnose(error)
    return rejection if rejection.sqlstate.startswith(REFUSED_CLASSES) else None


def describe_database_error(error: DBAPIError | psycopg.Error) -> str:
    """Return an error in words without values: its type, SQLSTATE, table and constraint.

    PostgreSQL's own message quotes the row (``Key (email)=(…) already exists``), SQLAlchemy's the statement.
    """
    cause = _diagnose(error)
    parts = {"SQLSTATE": cause.sqlstate, "table": cause.table, "constraint": cause.constraint}
    facts = ", ".join(f"{name} {value}" for name, value in parts.items() if value)
    return f"{type(error).__name__} ({facts})" if facts else type(error).__name__


def _diagnose(error: DBAPIError | psycopg.Error) -> SchemaRejection:
    cause = error.orig if isinstance(error, DBAPIError) else error
    diagnosis = getattr(cause, "diag", None)
    raised_by = _TRIGGER_FUNCTION.search(getattr(diagnosis, "context", None) or "")
    return SchemaRejection(
        sqlstate=getattr(cause, "sqlstate", None) or "",
        table=getattr(diagnosis, "table_name", None) or "",
        constraint=getattr(diagnosis, "constraint_name", None) or (raised_by[1] if raised_by else ""),
    )
