"""PostgreSQL for tests: a server per worker process, a fresh migrated database per test."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import pytest_asyncio
from filelock import FileLock
from psycopg import sql

from deploy.local.postgres import API_ROLE, OWNER_ROLE, WORKER_ROLE, Postgres
from tests.support.scratch import scratch_directory

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE_DATABASE = "berth_template"
MAX_CACHED_TEMPLATES = 2


@dataclass(slots=True)
class DatabaseFixture:
    """The database of one test. URLs are SQLAlchemy's; engines are created on first use."""

    server: Postgres
    name: str
    _engines: dict[str, AsyncEngine] = field(default_factory=dict)

    @property
    def owner_url(self) -> str:
        return self.server.url(OWNER_ROLE, self.name)

    @property
    def api_url(self) -> str:
        return self.server.url(API_ROLE, self.name)

    @property
    def worker_url(self) -> str:
        return self.server.url(WORKER_ROLE, self.name)

    @property
    def owner(self) -> AsyncEngine:
        """Owner of the schema. Row-level security is FORCEd, so the policies apply to it as well."""
        return self._engine(OWNER_ROLE, self.owner_url)

    @property
    def api(self) -> AsyncEngine:
        return self._engine(API_ROLE, self.api_url)

    @property
    def worker(self) -> AsyncEngine:
        return self._engine(WORKER_ROLE, self.worker_url)

    def superuser_dsn(self) -> str:
        """Return libpq's form for a role that sees every row: for checking results, never for the code under test."""
        return self.server.dsn(database=self.name)

    def _engine(self, role: str, url: str) -> AsyncEngine:
        from sqlalchemy.ext.asyncio import create_async_engine

        if role not in self._engines:
            self._engines[role] = create_async_engine(url, pool_size=5, max_overflow=15)
        return self._engines[role]

    async def dispose(self) -> None:
        for engine in self._engines.values():
            await engine.dispose()
        self._engines.clear()


def migrate(owner_url: str) -> None:
    """Upgrade a database to the newest revision in a separate process, as a deployment does."""
    completed = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=ROOT,
        env={**os.environ, "BERTH_OWNER_DATABASE_URL": owner_url, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if completed.returncode != 0:
        raise RuntimeError(f"the migrations failed\n{completed.stdout}\n{completed.stderr}")


def schema_fingerprint() -> str:
    """Return a fingerprint that changes with the schema of the template database."""
    digest = hashlib.sha256()
    files = [ROOT / "alembic.ini", *(ROOT / "db").rglob("*.py"), *(ROOT / "deploy" / "local").glob("postgres*.py")]
    for path in sorted(path for path in files if path.exists()):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:24]


def create_template(data: Path) -> None:
    """Create the data directory of a stopped server with the roles and a migrated database without connections."""
    with Postgres(data, durable=False) as server:
        server.ensure_roles(database=None)
        with server.superuser() as connection:
            server.ensure_database(TEMPLATE_DATABASE, connection)
            migrate(server.url(OWNER_ROLE, TEMPLATE_DATABASE))
            connection.execute(
                sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(TEMPLATE_DATABASE))
            )


def copy_cached_template(data: Path, cache: Path) -> None:
    """Copy the cached template. Migrating takes seconds and copying a fraction of one; the cache follows the schema."""
    with FileLock(cache / "lock"):
        cached = cache / schema_fingerprint()
        if not cached.exists():
            for old in sorted(cache.glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime)[:-MAX_CACHED_TEMPLATES]:
                shutil.rmtree(old, ignore_errors=True)
            partial = Path(tempfile.mkdtemp(prefix=".making-", dir=cache))
            try:
                create_template(partial / "postgres")
                (partial / "postgres").rename(cached)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(cached, data)


@pytest.fixture(scope="session")
def template_cache(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The folder of cached templates: pytest's cache, or one of this session under ``-p no:cacheprovider``."""
    if request.config.pluginmanager.has_plugin("cacheprovider"):
        yield request.config.cache.mkdir("postgres")
        return
    with tempfile.TemporaryDirectory(prefix="berth-templates-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def postgres_server(template_cache: Path) -> Iterator[Postgres]:
    """A server without crash safety, removed with its data at the end of the session."""
    folder = scratch_directory("berth-test-")
    try:
        copy_cached_template(folder / "postgres", template_cache)
        with Postgres(folder / "postgres", durable=False) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_numbers = count(1)


@pytest_asyncio.fixture
async def database(postgres_server: Postgres) -> AsyncIterator[DatabaseFixture]:
    """A fresh migrated database for one test, dropped afterwards."""
    async with fresh_database(postgres_server) as database:
        yield database


@asynccontextmanager
async def fresh_database(postgres_server: Postgres) -> AsyncIterator[DatabaseFixture]:
    """Create a migrated database, dropped afterwards. Every copy of the template has the same installation id."""
    name = f"test_{next(_numbers)}"
    with postgres_server.superuser() as connection:
        connection.execute(
            # Half the time of the default, which also writes every page to the write-ahead log.
            sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {} STRATEGY FILE_COPY").format(
                sql.Identifier(name), sql.Identifier(TEMPLATE_DATABASE), sql.Identifier(OWNER_ROLE)
            )
        )
    database = DatabaseFixture(postgres_server, name)
    try:
        yield database
    finally:
        await database.dispose()
        # A session that does not end within five seconds keeps its database until the server's folder is deleted.
        with contextlib.suppress(psycopg.errors.ObjectInUse), postgres_server.superuser() as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
