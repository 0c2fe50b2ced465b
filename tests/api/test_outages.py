"""PostgreSQL stopped, frozen and back: 503 with `Retry-After` in time, never a hang, and everything works again."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from deploy.local.postgres import API, OWNER, Postgres
from tests.support.api import Api, error_of, serving, settings
from tests.support.databases import migrate
from tests.support.wait import eventually, in_time


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    """A server of this test alone, to be stopped and frozen."""
    folder = Path(tempfile.mkdtemp(prefix="berth-outage-"))
    server = Postgres(folder / "postgres", durable=False)
    try:
        server.start()
        server.ensure_roles()
        migrate(server.url(OWNER))
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def unavailable(client: httpx.AsyncClient, method: str, path: str, **options: object) -> None:
    began = time.monotonic()
    answer = await client.request(method, path, **options)  # type: ignore[arg-type] # json= only
    assert (answer.status_code, error_of(answer)["code"]) == (503, "UNAVAILABLE"), path
    assert int(answer.headers["Retry-After"]) >= 1
    assert time.monotonic() - began < in_time(5), path


async def away(api: Api, ada: httpx.AsyncClient, login: dict[str, str]) -> None:
    await asyncio.gather(
        unavailable(ada, "GET", "/users/me"),
        unavailable(ada, "GET", "/users/me/sessions"),
        unavailable(api.http, "POST", "/auth/login", json=login),
        unavailable(api.http, "POST", "/auth/register", json=login | {"name": "Ada"}),
    )
    assert (await api.http.get("http://api/health")).status_code == 200
    status = await api.http.get("http://api/status")
    assert status.status_code == 503
    assert status.json()["data"]["dependencies"]["database"]["status"] == "unavailable"
    # A token is still checked; a bad one is refused without the database.
    bad = await api.http.get("/users/me", headers={"Authorization": "Bearer x.y.z"})
    assert bad.status_code == 401


async def back(api: Api, ada: httpx.AsyncClient, login: dict[str, str]) -> None:
    async def well() -> bool:
        return (await ada.get("/users/me")).status_code == 200

    await eventually(well, what="reads work again")
    assert (await api.http.post("/auth/login", json=login)).status_code == 200
    assert (await api.http.get("http://api/status")).json()["data"]["dependencies"]["database"]["status"] == "ok"


async def test_a_stopped_postgresql_is_answered_with_503_and_then_forgotten(own_server: Postgres) -> None:
    async with serving(settings(own_server.url(API)), own_server.dsn(database="berth")) as api:
        ada = await api.customer()
        login = {"email": ada.email, "password": ada.password}
        own_server.stop()
        await away(api, ada.http, login)
        own_server.start()
        await back(api, ada.http, login)


async def test_a_frozen_postgresql_is_answered_in_time(own_server: Postgres) -> None:
    told = settings(own_server.url(API), database_seconds=1.0, request_seconds=3.0)
    async with serving(told, own_server.dsn(database="berth")) as api:
        ada = await api.customer()
        login = {"email": ada.email, "password": ada.password}
        pid = own_server.process.pid
        assert pid is not None
        frozen = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
        for each in frozen:
            os.kill(each, signal.SIGSTOP)
        try:
            await away(api, ada.http, login)
        finally:
            for each in frozen:
                os.kill(each, signal.SIGCONT)
        await back(api, ada.http, login)


async def test_it_starts_while_everything_is_away() -> None:
    with tempfile.TemporaryDirectory() as folder:
        nowhere = f"postgresql+psycopg://berth_api@/berth?host={folder}"
        async with serving(settings(nowhere), "") as api:
            assert (await api.http.get("http://api/health")).status_code == 200
            await unavailable(api.http, "POST", "/auth/login", json={"email": "a@b.c", "password": "x"})
            status = await api.http.get("http://api/status")
            assert status.status_code == 503
            assert status.json()["status"] == "unavailable"
