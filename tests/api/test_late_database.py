"""A database that responds only after the process has started is checked before the process uses it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from api import logs
from deploy.local.postgres import API_ROLE, OWNER_ROLE, SUPERUSER, WORKER_ROLE
from tests.local.test_production_settings import COMPLETE, KUBECONFIG, ROOT, clean_environment
from tests.support.api import parse_error, serve_api, settings
from tests.support.databases import DatabaseFixture
from tests.support.log_capture import capture_log
from tests.support.wait import wait_until, wait_until_sync

BEHIND = "UPDATE schema_migrations SET revision = '0000_' || revision WHERE revision = '0005_invoices'"
AGAIN = "UPDATE schema_migrations SET revision = '0005_invoices' WHERE revision = '0000_0005_invoices'"
LOGIN = {"email": "a@b.c", "password": "x"}


class LateSocket:
    """A folder of sockets that leads nowhere until ``open`` is called."""

    def __init__(self, folder: Path, database: DatabaseFixture) -> None:
        self._link, self._database = folder / "sockets", database

    def url(self, role: str) -> str:
        return f"postgresql+psycopg://{role}@/{self._database.name}?host={quote(str(self._link))}"

    def open(self) -> None:
        self._link.symlink_to(self._database.server.sockets)


@pytest.fixture
def late(database: DatabaseFixture) -> Iterator[LateSocket]:
    with tempfile.TemporaryDirectory() as folder:
        yield LateSocket(Path(folder), database)


def change(database: DatabaseFixture, statement: str) -> None:
    with psycopg.connect(database.superuser_dsn()) as connection:
        connection.execute(statement.encode())


@pytest.mark.parametrize("role", [SUPERUSER, OWNER_ROLE, WORKER_ROLE])
async def test_the_api_serves_nothing_as_a_user_whom_row_level_security_does_not_bind(
    database: DatabaseFixture, late: LateSocket, role: str
) -> None:
    async with serve_api(settings(database.api_url), database.superuser_dsn()) as right:
        ada = await right.register_verified_user()
    with capture_log(logs.configure_logging, level="INFO") as log:
        async with serve_api(settings(late.url(role)), database.superuser_dsn()) as api:
            late.open()
            client = api.client(Authorization=f"Bearer {ada.tokens['access_token']}")
            for _ in range(3):
                for response in (await client.get("/users/me"), await api.http.post("/auth/login", json=LOGIN)):
                    assert (response.status_code, parse_error(response)["code"]) == (503, "UNAVAILABLE")
            status = await api.http.get("http://api/status")
            assert (status.status_code, status.json()["status"]) == (503, "unavailable")
        lines = [json.loads(line) for line in log.getvalue().splitlines()]
    (line,) = (line for line in lines if line["event"] == "database.unusable")
    assert line["level"] == "error"
    assert line["reason"].startswith(f"The API's user of the database is {role}, for whom row-level security does not")


async def test_the_api_serves_once_the_schema_is_the_one_that_it_needs(
    database: DatabaseFixture, late: LateSocket
) -> None:
    change(database, BEHIND)
    async with serve_api(settings(late.url(API_ROLE)), database.superuser_dsn()) as api:
        late.open()
        assert (await api.http.post("/auth/login", json=LOGIN)).status_code == 503
        assert (await api.http.get("http://api/status")).status_code == 503
        change(database, AGAIN)

        async def serves() -> bool:
            return (await api.http.post("/auth/login", json=LOGIN)).status_code == 401

        await wait_until(serves, description="the API serves")
        assert (await api.http.get("http://api/status")).status_code == 200


def test_the_worker_ends_as_a_user_whom_row_level_security_does_not_bind(late: LateSocket, tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    values = COMPLETE["worker"] | {
        "BERTH_WORKER_DATABASE_URL": late.url(SUPERUSER),
        "BERTH_KUBECONFIG": str(tmp_path / "kubeconfig"),
    }
    output = tmp_path / "output"
    with output.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker"], cwd=ROOT, env=clean_environment(**values), stdout=out, stderr=out
        )
    try:
        wait_until_sync(lambda: "temporal.unavailable" in output.read_text(), description="it runs", timeout=60)
        late.open()
        assert process.wait(timeout=60) == 1
    finally:
        process.kill()
        process.wait()
    line = output.read_text().splitlines()[-1]
    assert line.startswith("The worker does not start: The worker's user of the database is postgres, for whom row-")
