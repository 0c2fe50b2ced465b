"""The address of the database for commands that run as the owner of the schema."""

from __future__ import annotations

import contextlib
import os

import psycopg

from api.connection_settings import check_database_url, require_database_tls
from api.environment import DEPLOYED_ENVIRONMENTS, read_variable
from api.startup_errors import CannotStart
from db.schema_version import SchemaNewer, require_current_schema
from db.session import connect_arguments

SETTING = "BERTH_OWNER_DATABASE_URL"


def read_owner_database_url() -> str:
    """Return the address in SQLAlchemy's form, of the variable or of the file that ``…_FILE`` names.

    Raises:
        CannotStart: It is missing or malformed, or is another machine's without TLS where customers are real.
        ConfigurationError: The file cannot be read.
    """
    url = read_variable(SETTING, os.environ)
    if not url:
        raise CannotStart(f"{SETTING} is not set: this command runs as the owner of the schema.")
    try:
        url = check_database_url(url)
        is_deployed = os.environ.get("BERTH_ENVIRONMENT", "production") in DEPLOYED_ENVIRONMENTS
        return require_database_tls(url) if is_deployed else url
    except ValueError as error:
        raise CannotStart(f"{SETTING} {error}.") from None


def require_schema(url: str) -> None:
    """Return if a command may write to the database. ``url`` is SQLAlchemy's form.

    A schema that a newer version has extended is accepted, as the API and the worker accept it.

    Raises:
        SchemaMismatch: The schema is missing, outdated, or was made by other migrations.
    """
    with (
        contextlib.suppress(SchemaNewer),
        psycopg.connect(**connect_arguments(url), autocommit=True) as connection,
    ):
        require_current_schema(connection)
