"""``python -m worker``: the worker process."""

from __future__ import annotations

import sys

import structlog
import uvloop

from activities.adapters.kubernetes.errors import InvalidKubeconfig
from api.environment import ConfigurationError, load, report_faults
from api.garbage_collection import tune_garbage_collection
from api.schema_check import is_schema_usable
from api.startup_errors import CannotStart
from worker import logs
from worker.exit import exit_process
from worker.main import run
from worker.metrics import WorkerMetrics
from worker.settings import WorkerSettings
from workflows.time_zones import use_packaged_time_zones

log = structlog.get_logger(__name__)

SCHEMA_CHECK_SECONDS = 5.0


def _serve_metrics(metrics: WorkerMetrics, settings: WorkerSettings) -> None:
    """Serve the metrics. Raises `CannotStart` where the address is taken or not this machine's."""
    try:
        metrics.serve(settings.metrics_host, settings.metrics_port)
    except OSError as error:
        address = f"{settings.metrics_host}:{settings.metrics_port}"
        raise CannotStart(
            f"metrics cannot be served on {address}: {error.strerror}. Choose another BERTH_METRICS_PORT"
        ) from error


def main() -> None:
    use_packaged_time_zones()
    try:
        settings = load(WorkerSettings)
    except ConfigurationError as error:
        report_faults("worker", error)
        exit_process(1)
    logs.configure_logging(level=settings.log_level, log_format=settings.log_format)
    try:
        if not is_schema_usable("worker", settings.worker_database_url, timeout_seconds=SCHEMA_CHECK_SECONDS):
            exit_process(1)
        metrics = WorkerMetrics()
        if settings.metrics_port:
            _serve_metrics(metrics, settings)
        tune_garbage_collection()
        uvloop.run(run(settings, metrics))
    except (CannotStart, InvalidKubeconfig) as error:
        sys.stderr.write(f"The worker does not start: {str(error).rstrip('.')}.\n")
        exit_process(1)
    except Exception:
        log.exception("worker.failed")
        exit_process(1)
    exit_process(0)


if __name__ == "__main__":
    main()
