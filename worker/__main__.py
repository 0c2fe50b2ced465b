"""``python -m worker``: the worker process."""

from __future__ import annotations

import asyncio

from prometheus_client import start_http_server

from api.logs import configure
from worker.exit import leave
from worker.main import run
from worker.settings import WorkerSettings


def main() -> None:
    settings = WorkerSettings()
    configure(form=settings.log_format)
    if settings.metrics_port:
        start_http_server(settings.metrics_port, addr=settings.metrics_host)
    asyncio.run(run(settings))
    leave(0)


if __name__ == "__main__":
    main()
