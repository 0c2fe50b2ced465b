"""The checks of the database before a process uses it: its schema, and the role that row-level security binds."""

from __future__ import annotations

import sys
from typing import Any

import psycopg
import structlog
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from api.outages import describe_outage
from db.errors import describe_database_error
from db.rls import API_ROLE, OWNER_ROLE, WORKER_ROLE
from db.schema_version import DatabaseConnection, SchemaMismatch, SchemaNewer, fetch_rows, require_current_schema
from db.session import connect_arguments

log = structlog.get_logger(__name__)

ROLES = {"API": API_ROLE, "worker": WORKER_ROLE}
"""The role of each program. A user that is a member of it, as of short-lived credentials, acts as it."""

_ROLES_OF_USER = """
SELECT current_user, rolsuper OR rolbypassrls, ARRAY(
    SELECT named.rolname::text FROM pg_roles AS named
    WHERE named.rolname = ANY(%(roles)s) AND pg_has_role(current_user, named.oid, 'MEMBER')
)
FROM pg_roles WHERE rolname = current_user
"""


class UnusableDatabase(psycopg.OperationalError):
    """The process may not use the database. The message says why and what to do, without a secret.

    It is handled as an unavailable database: requests answer 503, activities are repeated.
    """


def is_schema_usable(program: str, url: str, *, timeout_seconds: float) -> bool:
    """Return whether ``program`` may start on the database, and say in one line on stderr why not.

    A schema that a newer version has extended is usable: a release is rolled back before its migrations are. Nothing is
    known of a database that cannot be reached: the process starts, as while any other dependency is unavailable, and
    `DatabaseCheck` checks the first connection.

    Args:
        url: SQLAlchemy's form.
    """
    try:
        with psycopg.connect(
            **connect_arguments(url) | {"connect_timeout": max(1, int(timeout_seconds))}, autocommit=True
        ) as connection:
            require_usable(program, connection)
    except UnusableDatabase as error:
        sys.stderr.write(f"The {program} does not start. {error}\n")
        return False
    except psycopg.OperationalError as error:
        log.warning("schema.not_checked", **describe_outage(error))
    return True


class DatabaseCheck:
    """Checks each new connection of its engines until one has passed; before that none is used.

    A process may start while the database is unavailable, and its first connection is as little known as at the start.
    """

    def __init__(self, program: str) -> None:
        self._program = program
        self._has_passed = False
        self._logged = ""

    def attach(self, engine: AsyncEngine) -> AsyncEngine:
        """Return the engine. Its connections fail with `UnusableDatabase` while the database may not be used."""
        event.listen(engine.sync_engine, "connect", self._check)
        return engine

    def _check(self, connection: Any, _: object) -> None:
        if self._has_passed:
            return
        try:
            require_usable(self._program, connection)
        except UnusableDatabase as error:
            if self._logged != str(error):
                self._logged = str(error)
                log.error("database.unusable", reason=self._logged)
            raise
        # The queries began a transaction, unless each commits by itself.
        connection.rollback()
        self._has_passed = True


def require_usable(program: str, connection: DatabaseConnection) -> None:
    """Return if the schema is this version's, or a newer one's, and row-level security binds the connection's user.

    Raises:
        UnusableDatabase: It is not, or the user cannot read that.
        psycopg.OperationalError: The database became unavailable.
    """
    try:
        if (user := _unbound_user(connection, ROLES[program])) is not None:
            raise UnusableDatabase(
                f"The {program}'s user of the database is {user}, for whom row-level security does not apply as for"
                f" {ROLES[program]}. Set an address with the user {ROLES[program]}."
            )
        require_current_schema(connection)
    except SchemaNewer as error:
        log.warning("schema.newer", reason=str(error))
    except SchemaMismatch as error:
        raise UnusableDatabase(str(error)) from error
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        raise UnusableDatabase(
            f"The {program} cannot read the schema of the database: {describe_database_error(error)}."
        ) from error


def _unbound_user(connection: DatabaseConnection, role: str) -> str | None:
    """Return the connection's user unless row-level security binds it as ``role``, and as no other role of ours."""
    ((user, is_unbound, roles),) = fetch_rows(
        connection, _ROLES_OF_USER, {"roles": [API_ROLE, WORKER_ROLE, OWNER_ROLE]}
    )
    return str(user) if is_unbound or roles != [role] else None
