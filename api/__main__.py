"""Serve: ``python -m api``. Ends on SIGTERM or SIGINT after the requests that are at work."""

from __future__ import annotations

import logging
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import uvicorn

from api import logs
from api.app import create_app
from api.settings import load

STOP_SECONDS = 5


def leave(code: int) -> NoReturn:
    """End without the interpreter's teardown, in which the Temporal SDK's threads can crash."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end(_: int, __: FrameType | None) -> None:
    raise SystemExit(0)


def main() -> int:
    settings = load()
    logs.configure(level=settings.log_level, form=settings.log_format)
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings),
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=STOP_SECONDS,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=settings.trusted_proxies or None,
            backlog=2048,
        )
    )
    # The server raises the signal again once it has shut down; its default action would be a death by signal.
    signal.signal(signal.SIGTERM, _end)
    server.run()
    return 0 if server.started else 1


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except KeyboardInterrupt:
        code = 0
    finally:
        leave(code)
