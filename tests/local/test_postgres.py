"""The embedded PostgreSQL keeps acknowledged writes for every user that runs it and however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psycopg
import pytest

from deploy.local.postgres import ROLES, SOCKET_NAME, Postgres
from deploy.local.process import ProcessIdentity
from tests.support.databases import DatabaseFixture
from tests.support.wait import wait_until_sync


def is_gone(pid: int) -> bool:
    """Return whether the process ended. A zombie counts as ended."""
    identity = ProcessIdentity.of(pid)
    return identity is None or identity.get_process() is None


@pytest.fixture
def private_home(tmp_path: Path) -> Path:
    """A folder that only its owner may enter, so that root's stand-in cannot get there by permissions."""
    home = tmp_path / "private" / "home"
    home.mkdir(parents=True)
    home.parent.chmod(0o700)
    return home


def test_kill_9_of_postgres_loses_nothing_committed(private_home: Path) -> None:
    server = Postgres(private_home / "postgres")
    server.start()
    server.ensure_roles()
    with psycopg.connect(server.dsn("berth_owner", "berth"), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept (n int)")
        connection.execute("INSERT INTO kept SELECT generate_series(1, 100)")
        assert server.process.pid is not None
        os.kill(server.process.pid, signal.SIGKILL)
        wait_until_sync(lambda: not server.process.is_alive, description="the server's end")
        server.start()
    with psycopg.connect(server.dsn("berth_owner", "berth")) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (100,)
    server.stop()


def test_a_busy_orphan_does_not_keep_the_new_server_from_starting(private_home: Path) -> None:
    server = Postgres(private_home / "postgres", durable=False)
    server.start()
    busy = psycopg.connect(server.dsn(), autocommit=True)
    backend = busy.info.backend_pid
    busy.execute("SET statement_timeout = 0")
    pipeline = busy.pgconn
    pipeline.send_query(b"SELECT count(*) FROM generate_series(1, 100000000000)")
    pipeline.flush()
    assert server.process.pid is not None
    os.kill(server.process.pid, signal.SIGKILL)
    wait_until_sync(lambda: not server.process.is_alive, description="the server's end")
    server.start()
    wait_until_sync(lambda: is_gone(backend))
    busy.close()
    server.stop()


def test_a_lock_file_that_names_another_process_is_ignored(private_home: Path) -> None:
    server = Postgres(private_home / "postgres", durable=False)
    server.initialize()
    (server.data / "postmaster.pid").write_text(f"{os.getpid()}\n{server.data}\n")
    (server.sockets / f"{SOCKET_NAME}.lock").write_text(f"{os.getpid()}\n")
    server.start()
    server.stop()


def test_two_starts_in_a_row_on_one_folder_take_over(private_home: Path) -> None:
    first = Postgres(private_home / "postgres", durable=False)
    first.start()
    second = Postgres(private_home / "postgres", durable=False)
    second.start()
    assert not first.process.is_alive
    assert second.ready()
    second.stop()


def test_a_long_home_gets_a_short_socket(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 20) / ("longer" * 10)
    home.mkdir(parents=True)
    with Postgres(home / "postgres", durable=False) as server:
        assert len(str(server.sockets / SOCKET_NAME)) < 108
        assert server.ready()
        assert server.sockets.stat().st_mode & 0o077 == 0
    assert not server.sockets.exists()


def test_postgres_stops_with_its_parent(private_home: Path) -> None:
    program = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from deploy.local.postgres import Postgres
        server = Postgres(Path({str(private_home)!r}) / "postgres", durable=False)
        server.start()
        print(server.process.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path.cwd(), timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout)
    wait_until_sync(lambda: is_gone(pid))


async def test_roles_are_bound_by_row_security_and_only_the_owner_makes_tables(database: DatabaseFixture) -> None:
    with psycopg.connect(database.superuser_dsn()) as connection:
        rows = connection.execute(
            "SELECT rolname, rolsuper, rolbypassrls, rolcanlogin, rolcreatedb FROM pg_roles WHERE rolname = ANY(%s)",
            [list(ROLES)],
        ).fetchall()
        assert sorted(rows) == sorted((role, False, False, True, False) for role in ROLES)
    async with database.owner.begin() as connection_of_owner:
        await connection_of_owner.exec_driver_sql("CREATE TABLE by_owner (n int)")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        with psycopg.connect(database.server.dsn("berth_api", database.name)) as connection:
            connection.execute("CREATE TABLE by_api (n int)")


@pytest.mark.parametrize("turn", [1, 2])
async def test_databases_are_fresh(database: DatabaseFixture, turn: int) -> None:
    async with database.owner.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE only_here (n int)")
