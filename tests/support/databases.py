"""PostgreSQL for tests: a server per worker process, a fresh migrated database per test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio
from psycopg import sql
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from deploy.local.postgres import API, OWNER, WORKER, Postgres

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = "berth_template"


@dataclass(slots=True)
class Database:
    """One database of one test. URLs are SQLAlchemy's; engines are made when first asked for."""

    server: Postgres
    name: str
    _engines: dict[str, AsyncEngine] = field(default_factory=dict)

    @property
    def owner_url(self) -> str:
        return self.server.url(OWNER, self.name)

    @property
    def api_url(self) -> str:
        return self.server.url(API, self.name)

    @property
    def worker_url(self) -> str:
        return self.server.url(WORKER, self.name)

    @property
    def owner(self) -> AsyncEngine:
        """Owns the schema. Row-level security is FORCEd, so it too sees what the policies say."""
        return self._engine(OWNER, self.owner_url)

    @property
    def api(self) -> AsyncEngine:
        return self._engine(API, self.api_url)

    @property
    def worker(self) -> AsyncEngine:
        return self._engine(WORKER, self.worker_url)

    def superuser_dsn(self) -> str:
        """libpq's form; sees every row. For looking at results, never for the code under test."""
        return self.server.dsn(database=self.name)

    def _engine(self, role: str, url: str) -> AsyncEngine:
        if role not in self._engines:
            self._engines[role] = create_async_engine(url, pool_size=5, max_overflow=15)
        return self._engines[role]

    async def dispose(self) -> None:
        for engine in self._engines.values():
            await engine.dispose()
        self._engines.clear()


def migrate(owner_url: str) -> None:
    """Bring a database to the head of the migrations, in a process of its own as a deployment does."""
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=ROOT,
        env={**os.environ, "BERTH_OWNER_DATABASE_URL": owner_url, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the migrations failed\n{done.stdout}\n{done.stderr}")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A server without crash safety; it and its data end with the session."""
    folder = Path(tempfile.mkdtemp(prefix="berth-test-"))
    try:
        with Postgres(folder / "postgres", durable=False) as server:
            server.ensure_roles(database=None)
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def database_template(postgres_server: Postgres) -> str:
    """Name of a migrated database that nobody is connected to, to clone from."""
    with postgres_server.superuser() as connection:
        postgres_server.ensure_database(TEMPLATE, connection)
    if (ROOT / "alembic.ini").exists():
        migrate(postgres_server.url(OWNER, TEMPLATE))
    with postgres_server.superuser() as connection:
        connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(TEMPLATE)))
    return TEMPLATE


_numbers = count(1)


@pytest_asyncio.fixture
async def database(postgres_server: Postgres, database_template: str) -> AsyncIterator[Database]:
    """A fresh migrated database of this test alone, dropped afterwards."""
    name = f"test_{next(_numbers)}"
    with postgres_server.superuser() as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {}").format(
                sql.Identifier(name), sql.Identifier(database_template), sql.Identifier(OWNER)
            )
        )
    made = Database(postgres_server, name)
    try:
        yield made
    finally:
        await made.dispose()
        with postgres_server.superuser() as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
