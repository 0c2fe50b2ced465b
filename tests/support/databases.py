"""PostgreSQL for tests: a server per worker process, a fresh migrated database per test."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from filelock import FileLock
from psycopg import sql

from deploy.local.postgres import API, OWNER, WORKER, Postgres

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = "berth_template"
KEPT_TEMPLATES = 2


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
        from sqlalchemy.ext.asyncio import create_async_engine

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


def fingerprint() -> str:
    """Changes when the migrated template would."""
    sum_ = hashlib.sha256()
    files = [ROOT / "alembic.ini", *(ROOT / "db").rglob("*.py"), *(ROOT / "deploy" / "local").glob("postgres*.py")]
    for path in sorted(path for path in files if path.exists()):
        sum_.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return sum_.hexdigest()[:24]


def make_template(data: Path) -> None:
    """A stopped server's folder with the roles and one migrated database that nobody can connect to."""
    with Postgres(data, durable=False) as server:
        server.ensure_roles(database=None)
        with server.superuser() as connection:
            server.ensure_database(TEMPLATE, connection)
            migrate(server.url(OWNER, TEMPLATE))
            connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(TEMPLATE)))


def copy_of_template(data: Path, cache: Path) -> None:
    """Migrating takes seconds, copying the result a fraction of one: it is kept until the schema changes."""
    with FileLock(cache / "lock"):
        kept = cache / fingerprint()
        if not kept.exists():
            for old in sorted(cache.glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime)[:-KEPT_TEMPLATES]:
                shutil.rmtree(old, ignore_errors=True)
            partial = Path(tempfile.mkdtemp(prefix=".making-", dir=cache))
            try:
                make_template(partial / "postgres")
                (partial / "postgres").rename(kept)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(kept, data)


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """A server without crash safety; it and its data end with the session."""
    folder = Path(tempfile.mkdtemp(prefix="berth-test-"))
    try:
        copy_of_template(folder / "postgres", request.config.cache.mkdir("postgres"))
        with Postgres(folder / "postgres", durable=False) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_numbers = count(1)


@pytest_asyncio.fixture
async def database(postgres_server: Postgres) -> AsyncIterator[Database]:
    """A fresh migrated database of this test alone, dropped afterwards."""
    name = f"test_{next(_numbers)}"
    with postgres_server.superuser() as connection:
        connection.execute(
            # Half the time of the default, which writes every page to a log that nobody will read.
            sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {} STRATEGY FILE_COPY").format(
                sql.Identifier(name), sql.Identifier(TEMPLATE), sql.Identifier(OWNER)
            )
        )
    made = Database(postgres_server, name)
    try:
        yield made
    finally:
        await made.dispose()
        with postgres_server.superuser() as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
