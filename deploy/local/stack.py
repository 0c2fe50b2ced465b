"""Which processes make the stack, what each needs, and how to tell that it serves."""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from deploy.controlplane.build import built
from deploy.local import simulations
from deploy.local.home import Home
from deploy.local.ports import LOOPBACK, settle
from deploy.local.postgres import API, OWNER, SUPERUSER, WORKER, Postgres
from deploy.local.process import Process
from deploy.local.temporal import NAMESPACE, TemporalServer

ROOT = Path(__file__).resolve().parents[2]
VERSION = "0.1.0"
BASE_DOMAIN = "apps.berth.localhost"
CLUSTERS = ("simulated", "control-plane", "kubeconfig")

PORTS = [
    "temporal", "temporal_ui", "temporal_http", "temporal_metrics",
    "mailbox", "smtp", "stripe", "cluster", "worker_metrics",
]  # fmt: skip


class Misconfigured(RuntimeError):
    """The environment asks for something that cannot be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One process of the stack. The callables block and may be called from any thread."""

    name: str
    process: Process
    ready: Callable[[], bool]
    needs: tuple[str, ...] = ()
    """Names of components, or of the one-time step `schema`, that come first."""
    prepare: Callable[[], object] | None = None
    """Before every start."""
    settle: Callable[[], object] | None = None
    """Once it is ready, before anything that needs it starts."""
    stage: int = 0
    """Stops with its stage; lower stages stop first. The longest patience of each stage, summed, stays below 15 s."""


def answers(url: str, timeout: float = 3.0, authority: Path | None = None) -> bool:
    """Whether an HTTP server answers there, with anything but an error of its own. `authority` signs for TLS."""
    try:
        trust = ssl.create_default_context(cafile=authority) if authority else None
        with urllib.request.urlopen(url, timeout=timeout, context=trust):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


class Stack:
    """The components of one home, wired together."""

    def __init__(self, home: Home, environ: Mapping[str, str] | None = None) -> None:
        self.environ = dict(os.environ if environ is None else environ)
        self.home = home
        self.port = int(self.environ.get("BERTH_PORT") or 8000)
        self.cluster_kind = self.environ.get("BERTH_CLUSTER") or "simulated"
        if self.cluster_kind not in CLUSTERS:
            raise Misconfigured(f"BERTH_CLUSTER is one of {', '.join(CLUSTERS)}")
        if self.cluster_kind == "control-plane" and built() is None:
            raise Misconfigured("BERTH_CLUSTER=control-plane needs its binaries: `make control-plane` builds them")
        self.secrets: dict[str, Any] = home.secrets()
        self.ports = settle(PORTS, home.state.get("ports", {}))
        home.remember(ports=self.ports)
        self.had_database = (home.path / "postgres" / "PG_VERSION").exists()
        self.postgres = Postgres(home.path / "postgres", log=home.logs / "postgres.log")
        self.temporal = TemporalServer(
            log=home.logs / "temporal.log", database=home.path / "temporal" / "temporal.db", ports=self.ports, ui=True
        )
        self.kubeconfig = self._kubeconfig()
        self.environment = self._environment()
        self.components = self._components()

    # ------------------------------------------------------------ addresses

    def _at(self, port: str) -> str:
        return f"http://{LOOPBACK}:{self.ports[port]}"

    @property
    def _cluster_url(self) -> str:
        at = self._at("cluster")
        return at.replace("http:", "https:") if self.cluster_kind == "control-plane" else at

    @property
    def api_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def card(self, processes: Mapping[str, int]) -> dict[str, object]:
        """The content of `card.json`: what programs outside may rely on."""
        urls = {
            "api": self.api_url,
            "docs": f"{self.api_url}/docs",
            "temporal_ui": self.temporal.ui_url,
            "mailbox": self._at("mailbox"),
            "stripe": self._at("stripe"),
            "metrics": f"{self.api_url}/metrics",
            "worker_metrics": f"{self._at('worker_metrics')}/metrics",
        }
        if self.cluster_kind != "kubeconfig":
            urls["cluster"] = self._cluster_url
        return {
            "ready": True,
            "version": VERSION,
            "urls": urls,
            "temporal": {"address": self.temporal.address, "namespace": NAMESPACE},
            # Of this local stack only: sees every row, as somebody who looks into the matter must.
            "database": {"url": self.postgres.dsn(SUPERUSER, "berth")},
            "cluster": {"kubeconfig": str(self.kubeconfig)},
            "accounts": {name: self.secrets[name] for name in ("administrator", "customer")},
            "processes": dict(processes),
        }

    # ------------------------------------------------------------ wiring

    def _kubeconfig(self) -> Path:
        if self.cluster_kind != "kubeconfig":
            (self.home.path / "cluster").mkdir(exist_ok=True)
            return self.home.path / "cluster" / "kubeconfig"
        given = self.environ.get("KUBECONFIG", "")
        if not given or not Path(given).is_file():
            raise Misconfigured("BERTH_CLUSTER=kubeconfig needs KUBECONFIG to name a file")
        return Path(given).absolute()

    def _environment(self) -> dict[str, str]:
        """What the product's processes are told. Everything else of the caller's environment passes through."""
        return {
            **self.environ,
            "BERTH_ENVIRONMENT": "sandbox",
            "BERTH_HOME": str(self.home.path),
            "BERTH_HOST": LOOPBACK,
            "BERTH_PORT": str(self.port),
            "BERTH_PUBLIC_URL": self.environ.get("BERTH_PUBLIC_URL") or self.api_url,
            "BERTH_BASE_DOMAIN": self.environ.get("BERTH_BASE_DOMAIN") or BASE_DOMAIN,
            "BERTH_OWNER_DATABASE_URL": self.postgres.url(OWNER),
            "BERTH_API_DATABASE_URL": self.postgres.url(API),
            "BERTH_WORKER_DATABASE_URL": self.postgres.url(WORKER),
            "BERTH_TEMPORAL_ADDRESS": self.temporal.address,
            "BERTH_TEMPORAL_NAMESPACE": NAMESPACE,
            "BERTH_STRIPE_URL": self._at("stripe"),
            "BERTH_STRIPE_API_KEY": self.secrets["stripe_api_key"],
            "BERTH_STRIPE_WEBHOOK_SECRET": self.secrets["stripe_webhook_secret"],
            "BERTH_SMTP_HOST": LOOPBACK,
            "BERTH_SMTP_PORT": str(self.ports["smtp"]),
            "BERTH_MAILBOX_URL": self._at("mailbox"),
            "BERTH_CLUSTER": self.cluster_kind,
            "BERTH_KUBECONFIG": str(self.kubeconfig),
            "BERTH_JWT_SECRET": self.secrets["jwt_secret"],
            "BERTH_ENCRYPTION_KEY": self.secrets["encryption_key"],
            "BERTH_METRICS_PORT": str(self.ports["worker_metrics"]),
            "BERTH_RATE_LIMIT": self.environ.get("BERTH_RATE_LIMIT") or "on",
            "BERTH_ADMIN_EMAIL": self.secrets["administrator"]["email"],
            "BERTH_ADMIN_PASSWORD": self.secrets["administrator"]["password"],
            "BERTH_CUSTOMER_EMAIL": self.secrets["customer"]["email"],
            "BERTH_CUSTOMER_PASSWORD": self.secrets["customer"]["password"],
            "BERTH_LOG_FORMAT": self.environ.get("BERTH_LOG_FORMAT") or "json",
            "PYTHONUNBUFFERED": "1",
        }

    def program(self, name: str, argv: list[str], *, patience: float = 3.0) -> Process:
        """A Python process of the product, with its log in the home."""
        log = self.home.logs / f"{name}.log"
        return Process(name, argv, log=log, env=self.environment, cwd=ROOT, patience=patience)

    def schema_steps(self) -> list[Process]:
        """What brings the database up to date, one after the other. Each is idempotent.

        None when the last run on this very database did the same: that saves seconds of every start.
        """
        if self.had_database and self.home.state.get("schema") == self._schema_sources():
            return []
        return [self.program(step, [sys.executable, "-m", "worker.cli", step]) for step in ("migrate", "seed")]

    def schema_done(self) -> None:
        self.home.remember(schema=self._schema_sources())

    def _schema_sources(self) -> str:
        """Changes with everything that migrations and seed are made from."""
        sum_ = hashlib.sha256(json.dumps(self.secrets, sort_keys=True).encode())
        folders = ("db", "worker", "templates/services", "workflows/rules")
        for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()):
            if path.suffix != ".pyc":
                sum_.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
        return sum_.hexdigest()

    def _components(self) -> dict[str, Component]:
        python = sys.executable
        found = [
            Component(
                name="postgres",
                process=self.postgres.process,
                prepare=self.postgres.prepare,
                ready=self.postgres.ready,
                settle=self.postgres.ensure_roles,
                stage=2,
            ),
            Component(
                name="temporal",
                process=self.temporal.process,
                prepare=self.temporal.prepare,
                ready=self.temporal.ready,
                settle=self.temporal.register,
                stage=2,
            ),
            self.simulation(
                "mailbox",
                "/messages",
                simulations.mailbox_command(
                    http_port=self.ports["mailbox"], smtp_port=self.ports["smtp"], state=self.home.path / "mailbox"
                ),
            ),
            self.simulation(
                "stripe",
                "/sandbox/charges",
                simulations.stripe_command(
                    port=self.ports["stripe"],
                    state=self.home.path / "stripe",
                    webhook_url=f"{self.api_url}/api/v1/webhooks/stripe",
                    webhook_secret=self.secrets["stripe_webhook_secret"],
                    api_key=self.secrets["stripe_api_key"],
                ),
            ),
            *self._clusters(),
            Component(
                name="api",
                process=self.program("api", [python, "-m", "api"], patience=3.0),
                ready=lambda: answers(f"{self.api_url}/health"),
                needs=("schema",),
                stage=0,
            ),
            Component(
                name="worker",
                process=self.program("worker", [python, "-m", "worker"], patience=7.0),
                ready=lambda: answers(f"{self._at('worker_metrics')}/metrics"),
                # It meets the cluster at its first order; to load the kubeconfig it must exist.
                needs=("schema", "temporal", *(() if self.kubeconfig.exists() else (c.name for c in self._clusters()))),
                stage=1,
            ),
        ]
        return {component.name: component for component in found}

    def simulation(self, name: str, path: str, argv: list[str]) -> Component:
        (self.home.path / name).mkdir(parents=True, exist_ok=True)
        process = Process(name, argv, log=self.home.logs / f"{name}.log", cwd=ROOT, patience=3.0)
        return Component(name=name, process=process, ready=lambda: answers(self._at(name) + path), stage=2)

    def _clusters(self) -> list[Component]:
        if self.cluster_kind == "kubeconfig":
            return []
        if self.cluster_kind == "control-plane":
            state = self.home.path / "control-plane"
            argv = simulations.control_plane_command(
                port=self.ports["cluster"], state=state, kubeconfig=self.kubeconfig
            )
            process = Process("cluster", argv, log=self.home.logs / "cluster.log", cwd=ROOT, patience=4.0)
            ready = partial(answers, f"{self._cluster_url}/readyz", authority=state / "server.crt")
            return [Component(name="cluster", process=process, ready=ready, stage=2)]
        argv = simulations.cluster_command(
            port=self.ports["cluster"], state=self.home.path / "cluster", kubeconfig=self.kubeconfig
        )
        return [self.simulation("cluster", "/version", argv)]
