"""``python -m worker``: the worker process."""

from __future__ import annotations

import asyncio

import structlog

from worker import logs
from worker.exit import leave
from worker.main import run
from worker.metrics import Metrics
from worker.settings import WorkerSettings

log = structlog.get_logger(__name__)


def main() -> None:
    settings = WorkerSettings()
    logs.configure(level=settings.log_level, form=settings.log_format)
    metrics = Metrics()
    if settings.metrics_port:
        metrics.serve(settings.metrics_host, settings.metrics_port)
    try:
        asyncio.run(run(settings, metrics))
    except Exception:
        log.exception("worker.failed")
        leave(1)
    leave(0)


if __name__ == "__main__":
    main()
