"""The log says why a dependency is unavailable, without passwords and without values of rows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from io import StringIO
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from api import logs
from api.outages import describe_outage
from api.schema_check import is_schema_usable
from db.session import create_database_engine
from deploy.ports import LOOPBACK, free_ports
from tests.support.api import serve_api, settings
from tests.support.databases import DatabaseFixture
from tests.support.log_capture import capture_log
from tests.support.wait import wait_until
from worker.main import retry_until_connected
from workflows.connection import connect
from workflows.settings import TemporalSettings


@pytest.fixture
def log() -> Iterator[StringIO]:
    with capture_log(logs.configure_logging, level="INFO") as written:
        yield written


def events(log: StringIO, name: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, log.getvalue().splitlines()) if line["event"] == name]


def faulty_urls(database: DatabaseFixture) -> dict[str, str]:
    """Return addresses by the reason why they cannot be used."""
    url = database.api_url.replace("berth_api@", "berth_api:hunter2@")
    return {
        'database "nowhere" does not exist': url.replace(f"/{database.name}", "/nowhere"),
        'role "stranger" does not exist': url.replace("berth_api:", "stranger:"),
        "No such file or directory": f"postgresql+psycopg://berth_api:hunter2@/{database.name}?host=/no/such/folder",
        "Connection refused": f"postgresql+psycopg://berth_api:hunter2@{LOOPBACK}:{free_ports(1)[0]}/berth",
    }


async def test_the_api_says_why_the_database_is_unavailable(database: DatabaseFixture, log: StringIO) -> None:
    for reason, url in faulty_urls(database).items():
        log.truncate(0)
        log.seek(0)
        assert is_schema_usable("API", url, timeout_seconds=5)
        async with serve_api(settings(url), "") as api:
            response = await api.http.post("/auth/login", json={"email": "a@b.c", "password": "x"})
            assert response.status_code == 503
            await wait_until(lambda: events(log, "revocations.refresh_failed"), description="the failed refresh")
        for name in ("schema.not_checked", "revocations.refresh_failed", "request.dependency_unavailable"):
            line = events(log, name)[0]
            assert (line["error"], reason in line["reason"]) == ("OperationalError", True), line
        assert "hunter2" not in log.getvalue()


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT 'hunter2'::integer", {"error": "DataError", "sqlstate": "22P02"}),
        (
            "SELECT pg_terminate_backend(pg_backend_pid()), 'hunter2'",
            {
                "error": "OperationalError",
                "sqlstate": "57P01",
                "reason": "terminating connection due to administrator command",
            },
        ),
    ],
)
async def test_only_what_quotes_no_row_is_a_reason(
    database: DatabaseFixture, statement: str, expected: dict[str, str]
) -> None:
    engine = create_database_engine(database.api_url, pool_size=1)
    try:
        async with engine.connect() as connection:
            with pytest.raises(DBAPIError) as failed:
                await connection.execute(text(statement))
    finally:
        await engine.dispose()
    fields = describe_outage(failed.value)
    assert fields.keys() == expected.keys()
    assert all(fields[name].startswith(value) for name, value in expected.items())


async def test_the_worker_says_why_temporal_is_unavailable(log: StringIO) -> None:
    (port,) = free_ports(1)
    address = TemporalSettings(address=f"{LOOPBACK}:{port}", api_key=None)
    connecting = asyncio.create_task(retry_until_connected("connect", lambda: connect(address)))
    try:
        await wait_until(lambda: events(log, "temporal.unavailable"), description="the failed attempt")
    finally:
        connecting.cancel()
        with suppress(asyncio.CancelledError):
            await connecting
    line = events(log, "temporal.unavailable")[0]
    assert line["error"] == "RuntimeError"
    assert line["reason"].startswith("Failed client connect: ")
