"""The migrations, run on an empty PostgreSQL, make exactly what the models describe."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, pool

import db.models
from db.base import Base
from deploy.local.postgres import OWNER, Postgres
from tests.support.databases import migrate

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    assert db.models.__doc__ is not None  # imported for its tables
    heads = ScriptDirectory.from_config(Config(str(ROOT / "alembic.ini"))).get_heads()
    if len(heads) != 1:
        print(f"the migrations have {len(heads)} heads: {', '.join(heads)}")
        return 1
    folder = Path(tempfile.mkdtemp(prefix="berth-check-"))
    try:
        with Postgres(folder / "postgres", durable=False) as server:
            server.ensure_roles("drift")
            url = server.url(OWNER, "drift")
            migrate(url)
            engine = create_engine(url, poolclass=pool.NullPool)
            with engine.connect() as connection:
                context = MigrationContext.configure(connection, opts={"compare_type": True})
                differences = compare_metadata(context, Base.metadata)
            engine.dispose()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for difference in differences:
        print(difference)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
