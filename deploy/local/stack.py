"""The processes of the stack, their dependencies and their readiness checks."""

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

from deploy.controlplane.build import find_binaries
from deploy.local import sandbox_commands
from deploy.local.data_directory import Home
from deploy.local.postgres import API_ROLE, OWNER_ROLE, SUPERUSER, WORKER_ROLE, Postgres
from deploy.local.process import ChildProcess
from deploy.local.temporal import NAMESPACE, TemporalServer
from deploy.ports import LOOPBACK, allocate_ports

ROOT = Path(__file__).resolve().parents[2]
VERSION = "0.1.0"
BASE_DOMAIN = "apps.berth.localhost"
CLUSTERS = ("simulated", "control-plane", "kubeconfig")

PORTS = [
    "temporal", "temporal_ui", "temporal_http", "temporal_metrics",
    "mailbox", "smtp", "stripe", "cluster", "cluster_api", "worker_metrics",
]  # fmt: skip


class ConfigurationError(RuntimeError):
    """A setting of the environment is invalid; the message names it and a valid value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StackProcess:
    """One process of the stack. The callables block and may be called from any thread."""

    name: str
    process: ChildProcess
    is_ready: Callable[[], bool]
    depends_on: tuple[str, ...] = ()
    """Names of components, or of the one-time step `schema`, that come first."""
    before_start: Callable[[], object] | None = None
    """Before every start."""
    after_ready: Callable[[], object] | None = None
    """Once it is ready, before anything that needs it starts."""
    stop_stage: int = 0
    """Lower stages stop first. The longest stop timeouts of the stages must sum to less than 15 s."""


def is_http_serving(url: str, timeout: float = 3.0, ca_file: Path | None = None) -> bool:
    """Whether an HTTP server answers with a status below 500. `ca_file`: authority of its TLS certificate."""
    try:
        trust = ssl.create_default_context(cafile=ca_file) if ca_file else None
        with urllib.request.urlopen(url, timeout=timeout, context=trust):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


def port_of(text: str) -> int:
    """Read BERTH_PORT. Raises `ConfigurationError`."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65_535):
        raise ConfigurationError(f"BERTH_PORT is {text!r}; set a number from 1 to 65535")
    return int(text)


def is_demo_enabled(text: str) -> bool:
    """Read BERTH_DEMO. Raises `ConfigurationError`."""
    if text not in ("0", "1"):
        raise ConfigurationError(f"BERTH_DEMO is {text!r}; set 1, or 0 to skip the first order")
    return text == "1"


class Stack:
    """The components of one home, wired together."""

    def __init__(self, home: Home, environ: Mapping[str, str] | None = None) -> None:
        self.environ = dict(os.environ if environ is None else environ)
        self.home = home
        self.port = port_of(self.environ.get("BERTH_PORT") or "8000")
        self.cluster_kind = self.environ.get("BERTH_CLUSTER") or "simulated"
        if self.cluster_kind not in CLUSTERS:
            raise ConfigurationError(f"BERTH_CLUSTER is {self.cluster_kind!r}; set one of {', '.join(CLUSTERS)}")
        self.places_first_order = is_demo_enabled(self.environ.get("BERTH_DEMO") or "1")
        if self.cluster_kind == "control-plane" and find_binaries() is None:
            raise ConfigurationError("BERTH_CLUSTER=control-plane needs its binaries: `make control-plane` builds them")
        self.secrets: dict[str, Any] = home.secrets()
        self.ports = allocate_ports(PORTS, home.state.get("ports", {}))
        home.save_state(ports=self.ports)
        self.database_existed = (home.path / "postgres" / "PG_VERSION").exists()
        self.postgres = Postgres(home.path / "postgres", log=home.logs / "postgres.log")
        self.temporal = TemporalServer(
            log=home.logs / "temporal.log", database=home.path / "temporal" / "temporal.db", ports=self.ports, ui=True
        )
        self.kubeconfig = self._kubeconfig()
        self.environment = self._environment()
        self.components = self._components()

    # ------------------------------------------------------------ addresses

    def _local_url(self, port: str) -> str:
        return f"http://{LOOPBACK}:{self.ports[port]}"

    @property
    def api_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def card(self, processes: Mapping[str, int]) -> dict[str, object]:
        """The content of `card.json`: what programs outside may rely on."""
        urls = {
            "api": self.api_url,
            "docs": f"{self.api_url}/docs",
            "temporal_ui": self.temporal.ui_url,
            "mailbox": self._local_url("mailbox"),
            "stripe": self._local_url("stripe"),
            "metrics": f"{self.api_url}/metrics",
            "worker_metrics": f"{self._local_url('worker_metrics')}/metrics",
        }
        if self.cluster_kind != "kubeconfig":
            urls["cluster"] = self._local_url("cluster")
        return {
            "ready": True,
            "version": VERSION,
            "urls": urls,
            "temporal": {"address": self.temporal.address, "namespace": NAMESPACE},
            # The superuser of this local stack: sees every row, for inspection.
            "database": {"url": self.postgres.dsn(SUPERUSER, "berth")},
            "cluster": {"kubeconfig": str(self.kubeconfig)},
            "accounts": {name: self.secrets[name] for name in ("administrator", "customer")},
            "processes": dict(processes),
        }

    # ------------------------------------------------------------ wiring

    def _kubeconfig(self) -> Path:
        if self.cluster_kind != "kubeconfig":
            (self.home.path / "cluster-proxy").mkdir(exist_ok=True)
            return self.home.path / "cluster-proxy" / "kubeconfig"
        path = self.environ.get("KUBECONFIG", "")
        if not path or not Path(path).is_file():
            raise ConfigurationError("BERTH_CLUSTER=kubeconfig needs KUBECONFIG to name a file")
        return Path(path).absolute()

    def _environment(self) -> dict[str, str]:
        """Return the environment of the product's processes: the caller's, overridden by the settings of this stack."""
        return {
            **self.environ,
            "BERTH_ENVIRONMENT": "sandbox",
            "BERTH_HOME": str(self.home.path),
            "BERTH_HOST": LOOPBACK,
            "BERTH_PORT": str(self.port),
            "BERTH_PUBLIC_URL": self.environ.get("BERTH_PUBLIC_URL") or self.api_url,
            "BERTH_BASE_DOMAIN": self.environ.get("BERTH_BASE_DOMAIN") or BASE_DOMAIN,
            "BERTH_OWNER_DATABASE_URL": self.postgres.url(OWNER_ROLE),
            "BERTH_API_DATABASE_URL": self.postgres.url(API_ROLE),
            "BERTH_WORKER_DATABASE_URL": self.postgres.url(WORKER_ROLE),
            "BERTH_TEMPORAL_ADDRESS": self.temporal.address,
            "BERTH_TEMPORAL_NAMESPACE": NAMESPACE,
            "BERTH_STRIPE_URL": self._local_url("stripe"),
            "BERTH_STRIPE_API_KEY": self.secrets["stripe_api_key"],
            "BERTH_STRIPE_WEBHOOK_SECRET": self.secrets["stripe_webhook_secret"],
            "BERTH_SMTP_HOST": LOOPBACK,
            "BERTH_SMTP_PORT": str(self.ports["smtp"]),
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
            # Time zones of the pinned tzdata package, never the machine's.
            "PYTHONTZPATH": "",
        }

    def product_process(self, name: str, argv: list[str], *, stop_timeout: float = 3.0) -> ChildProcess:
        """A Python process of the product, with its log in the home."""
        log = self.home.logs / f"{name}.log"
        return ChildProcess(name, argv, log=log, env=self.environment, cwd=ROOT, stop_timeout=stop_timeout)

    def pending_schema_steps(self) -> list[ChildProcess]:
        """Return the steps that migrate and seed the database, in order. Each is idempotent.

        Empty when the last run already applied the same migrations and seed to this database.
        """
        if self.database_existed and self.home.state.get("schema") == self._schema_fingerprint():
            return []
        return [self.product_process(step, [sys.executable, "-m", "worker.cli", step]) for step in ("migrate", "seed")]

    def mark_schema_current(self) -> None:
        self.home.save_state(schema=self._schema_fingerprint())

    def _schema_fingerprint(self) -> str:
        """Return a hash of the files and secrets that migrations and seed depend on."""
        sum_ = hashlib.sha256(json.dumps(self.secrets, sort_keys=True).encode())
        folders = ("db", "worker", "templates/services", "workflows/rules")
        for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()):
            if path.suffix != ".pyc":
                sum_.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
        return sum_.hexdigest()

    def _components(self) -> dict[str, StackProcess]:
        python = sys.executable
        components = [
            StackProcess(
                name="postgres",
                process=self.postgres.process,
                before_start=self.postgres.initialize,
                is_ready=self.postgres.ready,
                after_ready=self.postgres.ensure_roles,
                stop_stage=2,
            ),
            StackProcess(
                name="temporal",
                process=self.temporal.process,
                before_start=self.temporal.create_database_directory,
                is_ready=self.temporal.is_ready,
                after_ready=self.temporal.register_search_attributes,
                stop_stage=2,
            ),
            self.simulation_process(
                "mailbox",
                "/messages",
                sandbox_commands.mailbox_command(
                    http_port=self.ports["mailbox"], smtp_port=self.ports["smtp"], state=self.home.path / "mailbox"
                ),
            ),
            self.simulation_process(
                "stripe",
                "/sandbox/charges",
                sandbox_commands.stripe_command(
                    port=self.ports["stripe"],
                    state=self.home.path / "stripe",
                    webhook_url=f"{self.api_url}/api/v1/webhooks/stripe",
                    webhook_secret=self.secrets["stripe_webhook_secret"],
                    api_key=self.secrets["stripe_api_key"],
                ),
            ),
            *self._clusters(),
            StackProcess(
                name="api",
                process=self.product_process("api", [python, "-m", "api"], stop_timeout=3.0),
                is_ready=lambda: is_http_serving(f"{self.api_url}/health"),
                depends_on=("schema",),
                stop_stage=0,
            ),
            StackProcess(
                name="worker",
                process=self.product_process("worker", [python, "-m", "worker"], stop_timeout=7.0),
                is_ready=lambda: is_http_serving(f"{self._local_url('worker_metrics')}/metrics"),
                # The worker reads the kubeconfig at its start and calls the cluster at the first order.
                depends_on=(
                    "schema",
                    "temporal",
                    *(() if self.kubeconfig.exists() else (c.name for c in self._clusters())),
                ),
                stop_stage=1,
            ),
        ]
        return {component.name: component for component in components}

    def simulation_process(self, name: str, path: str, argv: list[str]) -> StackProcess:
        (self.home.path / name).mkdir(parents=True, exist_ok=True)
        process = ChildProcess(name, argv, log=self.home.logs / f"{name}.log", cwd=ROOT, stop_timeout=3.0)
        return StackProcess(
            name=name, process=process, is_ready=lambda: is_http_serving(self._local_url(name) + path), stop_stage=2
        )

    def _clusters(self) -> list[StackProcess]:
        """The simulated cluster or the control plane, and the proxy before it, which clients talk to."""
        if self.cluster_kind == "kubeconfig":
            return []
        port, real = self.ports["cluster_api"], self.cluster_kind == "control-plane"
        state = self.home.path / ("control-plane" if real else "cluster")
        state.mkdir(exist_ok=True)
        upstream = state / "kubeconfig"
        if real:
            url = self._local_url("cluster_api").replace("http:", "https:")
            ready = partial(is_http_serving, f"{url}/readyz", ca_file=state / "server.crt")
            command = sandbox_commands.control_plane_command(port=port, state=state, kubeconfig=upstream)
        else:
            ready = partial(is_http_serving, f"{self._local_url('cluster_api')}/version")
            command = sandbox_commands.cluster_command(port=port, state=state, kubeconfig=upstream)
        process = ChildProcess("cluster", command, log=self.home.logs / "cluster.log", cwd=ROOT, stop_timeout=4.0)
        proxy = ChildProcess(
            "cluster_proxy",
            sandbox_commands.cluster_proxy_command(
                port=self.ports["cluster"],
                upstream=upstream,
                state=self.home.path / "cluster-proxy",
                kubeconfig=self.kubeconfig,
                kwok=real,
            ),
            log=self.home.logs / "cluster_proxy.log",
            cwd=ROOT,
            stop_timeout=3.0,
        )
        serves = partial(is_http_serving, f"{self._local_url('cluster')}/sandbox/healthz")
        return [
            StackProcess(name="cluster", process=process, is_ready=ready, stop_stage=2),
            StackProcess(name="cluster_proxy", process=proxy, is_ready=serves, depends_on=("cluster",), stop_stage=2),
        ]
