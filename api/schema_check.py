"""The checks of the database before a process serves: its schema, and the role that row-level security binds."""

from __future__ import annotations

import sys

import psycopg
import structlog

from db.rls import API_ROLE, OWNER_ROLE, WORKER_ROLE
from db.schema_version import SchemaMismatch, SchemaNewer, require_current_schema

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
            if (user := _unbound_user(connection, ROLES[program])) is not None:
                sys.stderr.write(
                    f"The {program} does not start. Its user of the database is {user}, for whom row-level security"
                    f" does not apply as for {ROLES[program]}. Set an address with the user {ROLES[program]}.\n"
                )
                return False
    except SchemaNewer as error:
        log.warning("schema.newer", reason=str(error))
    except SchemaMismatch as error:
        sys.stderr.write(f"The {program} does not start. {error}\n")
        return False
    except psycopg.OperationalError as error:
        log.warning("schema.not_checked", error=type(error).__name__)
    return True


def _unbound_user(connection: psycopg.Connection, role: str) -> str | None:
    """Return the connection's user unless row-level security binds it as ``role``, and as no other role of ours."""
    row = connection.execute(_ROLES_OF_USER, {"roles": [API_ROLE, WORKER_ROLE, OWNER_ROLE]}).fetchone()
    assert row is not None
    user, is_unbound, roles = row
    return str(user) if is_unbound or roles != [role] else None
