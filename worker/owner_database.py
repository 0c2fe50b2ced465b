"""The address of the database for commands that run as the owner of the schema."""

from __future__ import annotations

import os

from api.environment import check_database_url
from api.startup_errors import CannotStart

SETTING = "BERTH_OWNER_DATABASE_URL"


def read_owner_database_url() -> str:
    """Return the address in SQLAlchemy's form. Raises `CannotStart` where it is missing or malformed."""
    url = os.environ.get(SETTING)
    if not url:
        raise CannotStart(f"{SETTING} is not set: this command runs as the owner of the schema.")
    try:
        return check_database_url(url)
    except ValueError as error:
        raise CannotStart(f"{SETTING} {error}.") from None
