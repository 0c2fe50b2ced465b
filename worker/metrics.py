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

from api.outages import describe_outage
from db.errors import SchemaRejection
from db.queries import outbox_delivery
from db.session import SessionFactory
from worker import logs
from workflows.rules.notifications import CHANNEL_EMAIL

log = structlog.get_logger(__name__)

DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0)
BACKLOG_INTERVAL = timedelta(seconds=10)
LOOPBACK = "127.0.0.1"


class WorkerMetrics:
    """One registry per process. Labels are names from the code, never personal data."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._activities = Counter(
            "berth_activity_attempts",
            "Activity attempts by outcome: done, refused (rule violation), failed, cancelled",
            ["activity", "outcome"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "berth_activity_duration_seconds",
            "Activity execution latency of one attempt",
            ["activity"],
            buckets=DURATION_BUCKETS,
            registry=self.registry,
        )
        self._schedule_to_start = Histogram(
            "berth_activity_schedule_to_start_seconds",
            "Activity schedule-to-start latency",
            ["queue"],
            buckets=DURATION_BUCKETS,
            registry=self.registry,
        )
        self._refused_rows = Counter(
            "berth_activity_refused_rows",
            "Activity attempts whose row a constraint or trigger of the schema refused",
            ["activity", "sqlstate", "constraint"],
            registry=self.registry,
        )
        self._outbox_pending = Gauge(
            "berth_outbox_pending", "Pending notifications", ["channel"], registry=self.registry
        )
        self._overdue = Gauge(
            "berth_outbox_oldest_due_age_seconds",
            "Age of the oldest due notification",
            ["channel"],
            registry=self.registry,
        )
        self._undelivered_webhooks = Gauge(
            "berth_webhooks_undelivered",
            "Recorded gateway events that no workflow has received",
            registry=self.registry,
        )

    def record_activity(self, name: str, queue: str, outcome: str, seconds: float, waited: float) -> None:
        self._activities.labels(name, outcome).inc()
        self._seconds.labels(name).observe(seconds)
        self._schedule_to_start.labels(queue).observe(max(waited, 0.0))

    def record_refused_row(self, name: str, rejection: SchemaRejection) -> None:
        self._refused_rows.labels(name, rejection.sqlstate, rejection.constraint).inc()

    async def refresh_backlog(self, session: AsyncSession) -> None:
        """Read the backlogs."""
        waiting, overdue = await outbox_delivery.pending_backlog(session, CHANNEL_EMAIL)
        self._outbox_pending.labels(CHANNEL_EMAIL).set(waiting)
        self._overdue.labels(CHANNEL_EMAIL).set(overdue)
        undelivered = text("SELECT count(*) FROM webhook_events WHERE status = 'received'")
        self._undelivered_webhooks.set((await session.execute(undelivered)).scalar_one())

    async def refresh_backlog_forever(self, sessions: SessionFactory) -> None:
        """Keep the backlogs up to date until cancelled; they keep their values while the database is unavailable."""
        while True:
            try:
                async with sessions() as session:
                    await self.refresh_backlog(session)
            except (SQLAlchemyError, OSError) as error:
                log.warning("backlog.refresh_failed", **describe_outage(error))
            await asyncio.sleep(BACKLOG_INTERVAL.total_seconds())

    def serve(self, host: str, port: int) -> None:
        """Serve Prometheus from a separate thread until the process ends."""
        start_http_server(port, addr=host, registry=self.registry)


class SdkMetricsCollector(Collector):
    """What the SDK's own exporter shows, as part of our registry."""

    def __init__(self, port: int) -> None:
        self._url = f"http://{LOOPBACK}:{port}/metrics"

    def describe(self) -> Iterable[Metric]:
        """Nothing is known before it is asked; without this the registry would ask at once."""
        return []

    def collect(self) -> Iterable[Metric]:
        try:
            with urllib.request.urlopen(self._url, timeout=2) as response:
                text_format = response.read().decode()
        except OSError:
            return []
        return list(text_string_to_metric_families(text_format))


def create_sdk_runtime(metrics: WorkerMetrics | None) -> Runtime:
    """Return the SDK's runtime: its log is ours, and with ``metrics`` its figures are shown there."""
    if metrics is None:
        return Runtime(telemetry=TelemetryConfig(logging=logs.sdk_logging_config()))
    with socket.create_server((LOOPBACK, 0)) as probe:
        port: int = probe.getsockname()[1]
    exporter = PrometheusConfig(
        bind_address=f"{LOOPBACK}:{port}", counters_total_suffix=True, unit_suffix=True, durations_as_seconds=True
    )
    runtime = Runtime(telemetry=TelemetryConfig(logging=logs.sdk_logging_config(), metrics=exporter))
    metrics.registry.register(SdkMetricsCollector(port))
    return runtime
