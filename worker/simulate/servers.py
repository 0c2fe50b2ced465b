"""The servers of one simulation: PostgreSQL, Temporal, the cluster and (where a card is used) the card gateway.

They start in parallel while the caller continues importing. All files are in one temporary folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from deploy.local import sandbox_commands
from deploy.local.postgres import OWNER_ROLE, WORKER_ROLE, Postgres
from deploy.local.process import ChildProcess
from deploy.local.temporal import NAMESPACE, TemporalServer
from deploy.ports import LOOPBACK, free_ports

CLUSTER_TIME_SCALE = 20.0
"""Simulated waits of the cluster are shortened by this factor."""

STRIPE_KEY = "sk_test_simulation"
ROOT = Path(__file__).resolve().parents[2]


class ServerFailed(RuntimeError):
    """A server did not start; the message ends with the end of its log."""


class SimulationServers:
    """A context manager. The servers start in the background; each address waits until its server is ready."""

    def __init__(self, *, with_cards: bool) -> None:
        self._with_cards = with_cards

    def __enter__(self) -> SimulationServers:
        self._folder = Path(tempfile.mkdtemp(prefix="berth-simulate-"))
        # The process exits without running the cleanup of libraries, so their temporary files belong in this folder.
        tempfile.tempdir = str(self._folder)
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    # ------------------------------------------------------------ addresses; each waits for its server

    def database_url(self) -> str:
        """Return the worker role's URL of a migrated, empty database."""
        self._schema.result()
        return self._postgres.url(WORKER_ROLE)

    def owner_url(self) -> str:
        self._schema.result()
        return self._postgres.url(OWNER_ROLE)

    def temporal(self) -> tuple[str, str]:
        """Address and namespace."""
        self._temporal_ready.result()
        return self._temporal.address, NAMESPACE

    def kubeconfig(self) -> Path:
        self._cluster_ready.result()
        return self._folder / "kubeconfig"

    def stripe_url(self) -> str | None:
        if self._stripe_ready is None:
            return None
        self._stripe_ready.result()
        return self._stripe_at

    # ------------------------------------------------------------ life

    def _start(self) -> None:
        folder = self._folder
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="server")
        self._processes: list[ChildProcess] = []
        self._stripe_ready: Future[None] | None = None
        self._postgres = Postgres(folder / "postgres", log=folder / "postgres.log", durable=False)
        # Immediate shutdown: no checkpoint, no wait for clients.
        self._postgres.process.stop_signal = signal.SIGQUIT
        self._schema = self._threads.submit(self._start_postgres)
        self._temporal = TemporalServer(log=folder / "temporal.log")
        self._temporal_ready = self._threads.submit(self._temporal.start)
        cluster_port, stripe_port = free_ports(2)
        command = sandbox_commands.cluster_command(
            port=cluster_port, state=None, kubeconfig=folder / "kubeconfig", time_scale=CLUSTER_TIME_SCALE
        )
        self._cluster_ready = self._start_simulation("cluster", command, f"http://{LOOPBACK}:{cluster_port}/version")
        if self._with_cards:
            self._stripe_at = f"http://{LOOPBACK}:{stripe_port}"
            command = sandbox_commands.stripe_command(
                port=stripe_port,
                state=folder / "stripe",
                webhook_url=None,
                webhook_secret=STRIPE_KEY,
                api_key=STRIPE_KEY,
            )
            self._stripe_ready = self._start_simulation("stripe", command, f"{self._stripe_at}/sandbox/charges")

    def _start_postgres(self) -> None:
        from worker.migrate import migrate

        self._postgres.start()
        self._postgres.ensure_roles()
        migrate(self._postgres.url(OWNER_ROLE))

    def _start_simulation(self, name: str, command: list[str], url: str) -> Future[None]:
        # Its temporary files belong in the same folder: it is killed at the end and cannot remove them.
        environment = {**os.environ, "TMPDIR": str(self._folder)}
        process = ChildProcess(name, command, log=self._folder / f"{name}.log", env=environment, cwd=ROOT)
        process.start()
        self._processes.append(process)
        return self._threads.submit(_wait_until_serving, process, url)

    def _stop(self) -> None:
        for process in self._processes:
            process.kill()
        self._temporal.stop()
        self._postgres.stop()
        self._threads.shutdown(wait=True, cancel_futures=True)
        # What was just about to start when the others were stopped.
        self._temporal.stop()
        self._postgres.stop()
        tempfile.tempdir = None
        shutil.rmtree(self._folder, ignore_errors=True)


def _wait_until_serving(process: ChildProcess, url: str, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            if not process.is_alive or time.monotonic() > deadline:
                raise ServerFailed(f"{process.name} did not start\n{process.log_tail()}") from None
            time.sleep(0.02)
