"""The worker's figures on one port: ours, and the SDK's beside them."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from collections.abc import Iterable
from datetime import timedelta

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig

from db.queries import delivery
from db.session import Sessions
from worker import logs
from workflows.rules.notices import CHANNEL_EMAIL

log = structlog.get_logger(__name__)

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0)
LOOK_AT_BACKLOG = timedelta(seconds=10)
LOOPBACK = "127.0.0.1"


class Metrics:
    """A registry of its own per process; labels are names from the code, never anybody's data."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._activities = Counter(
            "berth_activities",
            "Attempts of activities that ended: done, refused (a rule's no), failed, cancelled",
            ["activity", "outcome"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "berth_activity_seconds",
            "Time one attempt of an activity took",
            ["activity"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._waited = Histogram(
            "berth_activity_wait_seconds",
            "Time from an attempt's schedule until a worker began with it",
            ["queue"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._waiting = Gauge(
            "berth_outbox_waiting", "Notices that are to be sent", ["channel"], registry=self.registry
        )
        self._overdue = Gauge(
            "berth_outbox_overdue_seconds",
            "How long the oldest notice that is due waits",
            ["channel"],
            registry=self.registry,
        )
        self._untold = Gauge(
            "berth_webhooks_untold", "Webhooks that were recorded and not handed on", registry=self.registry
        )

    def activity(self, name: str, queue: str, outcome: str, seconds: float, waited: float) -> None:
        self._activities.labels(name, outcome).inc()
        self._seconds.labels(name).observe(seconds)
        self._waited.labels(queue).observe(max(waited, 0.0))

    async def look(self, session: AsyncSession) -> None:
        """Read the backlogs."""
        waiting, overdue = await delivery.backlog(session, CHANNEL_EMAIL)
        self._waiting.labels(CHANNEL_EMAIL).set(waiting)
        self._overdue.labels(CHANNEL_EMAIL).set(overdue)
        untold = text("SELECT count(*) FROM webhook_events WHERE status = 'received'")
        self._untold.set((await session.execute(untold)).scalar_one())

    async def watch(self, sessions: Sessions) -> None:
        """Keep the backlogs up to date until cancelled; while the database is away they stay as they were."""
        while True:
            try:
                async with sessions() as session:
                    await self.look(session)
            except (SQLAlchemyError, OSError) as error:
                log.warning("backlog.unseen", error=type(error).__name__)
            await asyncio.sleep(LOOK_AT_BACKLOG.total_seconds())

    def serve(self, host: str, port: int) -> None:
        """Answer Prometheus from a thread of its own until the process ends."""
        start_http_server(port, addr=host, registry=self.registry)


class _Sdk(Collector):
    """What the SDK's own exporter shows, as part of our registry."""

    def __init__(self, port: int) -> None:
        self._url = f"http://{LOOPBACK}:{port}/metrics"

    def describe(self) -> Iterable[Metric]:
        """Nothing is known before it is asked; without this the registry would ask at once."""
        return []

    def collect(self) -> Iterable[Metric]:
        try:
            with urllib.request.urlopen(self._url, timeout=2) as answer:
                shown = answer.read().decode()
        except OSError:
            return []
        return list(text_string_to_metric_families(shown))


def runtime(metrics: Metrics | None) -> Runtime:
    """Return the SDK's runtime: its log is ours, and with ``metrics`` its figures are shown there."""
    if metrics is None:
        return Runtime(telemetry=TelemetryConfig(logging=logs.of_the_core()))
    with socket.create_server((LOOPBACK, 0)) as probe:
        port: int = probe.getsockname()[1]
    exporter = PrometheusConfig(
        bind_address=f"{LOOPBACK}:{port}", counters_total_suffix=True, unit_suffix=True, durations_as_seconds=True
    )
    made = Runtime(telemetry=TelemetryConfig(logging=logs.of_the_core(), metrics=exporter))
    metrics.registry.register(_Sdk(port))
    return made
