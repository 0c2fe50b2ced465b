"""PostgreSQL stopped, frozen or read-only: requests get 503 with `Retry-After` in time, and work when it is back."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator

import httpx
import psutil
import psycopg
import pytest

from deploy.local.postgres import API_ROLE, OWNER_ROLE, Postgres
from tests.support.api import ApiFixture, parse_error, serve_api, settings
from tests.support.databases import DatabaseFixture, migrate
from tests.support.scratch import scratch_directory
from tests.support.wait import scale_timeout, wait_until


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    """A PostgreSQL server that only this test uses and may stop or freeze."""
    folder = scratch_directory("berth-outage-")
    server = Postgres(folder / "postgres", durable=False)
    try:
        server.start()
        server.ensure_roles()
        migrate(server.url(OWNER_ROLE))
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def assert_503(client: httpx.AsyncClient, method: str, path: str, **options: object) -> None:
    began = time.monotonic()
    response = await client.request(method, path, **options)  # type: ignore[arg-type] # json= only
    assert (response.status_code, parse_error(response)["code"]) == (503, "UNAVAILABLE"), path
    assert int(response.headers["Retry-After"]) >= 1
    assert time.monotonic() - began < scale_timeout(5), path


async def assert_unavailable(api: ApiFixture, ada: httpx.AsyncClient, login: dict[str, str]) -> None:
    await asyncio.gather(
        assert_503(ada, "GET", "/users/me"),
        assert_503(ada, "GET", "/users/me/sessions"),
        assert_503(ada, "GET", "/billing/wallet"),
        assert_503(api.http, "POST", "/auth/login", json=login),
        assert_503(api.http, "POST", "/auth/register", json=login | {"name": "Ada"}),
    )
    assert (await api.http.get("http://api/health")).status_code == 200
    status = await api.http.get("http://api/status")
    assert status.status_code == 503
    assert status.json()["data"]["dependencies"]["database"]["status"] == "unavailable"
    # A token is still checked; a bad one is refused without the database.
    bad = await api.http.get("/users/me", headers={"Authorization": "Bearer x.y.z"})
    assert bad.status_code == 401


async def assert_available_again(api: ApiFixture, ada: httpx.AsyncClient, login: dict[str, str]) -> None:
    async def well() -> bool:
        return (await ada.get("/users/me")).status_code == 200

    await wait_until(well, description="reads work again")
    assert (await api.http.post("/auth/login", json=login)).status_code == 200
    assert (await api.http.get("http://api/status")).json()["data"]["dependencies"]["database"]["status"] == "ok"


async def test_a_stopped_postgresql_gives_503_until_it_is_back(own_server: Postgres) -> None:
    async with serve_api(settings(own_server.url(API_ROLE)), own_server.dsn(database="berth")) as api:
        ada = await api.register_verified_user()
        login = {"email": ada.email, "password": ada.password}
        own_server.stop()
        await assert_unavailable(api, ada.http, login)
        own_server.start()
        await assert_available_again(api, ada.http, login)


async def test_a_frozen_postgresql_gives_503_in_time(own_server: Postgres) -> None:
    api_settings = settings(own_server.url(API_ROLE), database_timeout_seconds=1.0, request_timeout_seconds=3.0)
    async with serve_api(api_settings, own_server.dsn(database="berth")) as api:
        ada = await api.register_verified_user()
        login = {"email": ada.email, "password": ada.password}
        pid = own_server.process.pid
        assert pid is not None
        frozen = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
        for each in frozen:
            os.kill(each, signal.SIGSTOP)
        try:
            await assert_unavailable(api, ada.http, login)
        finally:
            for each in frozen:
                os.kill(each, signal.SIGCONT)
        await assert_available_again(api, ada.http, login)


async def test_a_database_that_accepts_no_writes_during_a_failover_gives_503(own_server: Postgres) -> None:
    superuser = own_server.dsn(database="berth")
    async with serve_api(settings(own_server.url(API_ROLE)), superuser) as api:
        ada = await api.register_verified_user()
        login = {"email": ada.email, "password": ada.password}
        with psycopg.connect(superuser, autocommit=True) as connection:
            connection.execute(f"ALTER ROLE {API_ROLE} SET default_transaction_read_only = on")
        async with serve_api(settings(own_server.url(API_ROLE)), superuser) as read_only:
            await assert_503(read_only.http, "POST", "/auth/login", json=login)
            await assert_503(read_only.http, "POST", "/auth/register", json=login | {"name": "Ada"})
        assert (await api.http.post("/auth/login", json=login)).status_code == 200


async def test_the_api_starts_while_its_dependencies_are_unavailable() -> None:
    with tempfile.TemporaryDirectory() as folder:
        nowhere = f"postgresql+psycopg://berth_api@/berth?host={folder}"
        async with serve_api(settings(nowhere), "") as api:
            assert (await api.http.get("http://api/health")).status_code == 200
            await assert_503(api.http, "POST", "/auth/login", json={"email": "a@b.c", "password": "x"})
            status = await api.http.get("http://api/status")
            assert status.status_code == 503
            assert status.json()["status"] == "unavailable"


async def test_limits_hold_in_time_while_their_storage_does_not_answer(database: DatabaseFixture) -> None:
    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1024):
            pass
        writer.close()

    server = await asyncio.start_server(never_answer, "127.0.0.1", 0)
    storage = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    api_settings = settings(
        database.api_url, rate_limit="on", rate_limit_storage=storage, request_timeout_seconds=scale_timeout(2)
    )
    try:
        async with serve_api(api_settings, database.superuser_dsn()) as api:
            login = {"email": "a@b.c", "password": "x"}
            statuses = [(await api.http.post("/auth/login", json=login)).status_code for _ in range(6)]
            assert statuses == [401] * 5 + [429]
    finally:
        server.close()
