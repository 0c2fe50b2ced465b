"""Rate, errors and duration of requests per route template, in one registry per application."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class ApiMetrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._requests = Counter(
            "berth_http_requests", "Requests answered", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "berth_http_request_duration_seconds",
            "Request duration in seconds",
            ["method", "route"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._webhooks = Counter(
            "berth_webhooks_received",
            "Gateway webhooks by outcome: delivered, known, ignored, refused (signature invalid), malformed",
            ["gateway", "outcome"],
            registry=self.registry,
        )
        self._of_request: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self.in_flight = Gauge("berth_http_requests_in_flight", "Requests in flight", registry=self.registry)

    def record_request(self, method: str, route: str, status: int, seconds: float) -> None:
        # Any word can stand where the method stands: only known ones become a label.
        named = method if method in METHODS else "OTHER"
        labels = (named, route, status)
        if labels not in self._of_request:
            # To look a metric up by its labels takes longer than to add to it.
            self._of_request[labels] = (
                self._requests.labels(named, route, str(status)),
                self._seconds.labels(named, route),
            )
        requests, durations = self._of_request[labels]
        requests.inc()
        durations.observe(seconds)

    def record_webhook(self, gateway: str, outcome: str) -> None:
        self._webhooks.labels(gateway, outcome).inc()

    def render(self) -> bytes:
        return generate_latest(self.registry)


METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
