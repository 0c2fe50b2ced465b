"""Serve: ``python -m api``. Ends on SIGTERM or SIGINT after the requests that are at work."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from types import FrameType
from typing import NoReturn

import uvicorn

from api import logs
from api.app import create_app
from api.environment import ConfigurationError, report_faults
from api.garbage_collection import tune_garbage_collection
from api.http_protocol import KEEP_ALIVE_SECONDS, HeaderTimeoutProtocol
from api.redaction import mask_text
from api.schema_check import is_schema_usable
from api.settings import load_settings
from workflows.time_zones import use_packaged_time_zones

GRACEFUL_SHUTDOWN_SECONDS = 5


def exit_process(code: int) -> NoReturn:
    """End without the interpreter's teardown, in which the Temporal SDK's threads can crash."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _handle_signal(_: int, __: FrameType | None) -> None:
    raise SystemExit(0)


def main() -> int:
    use_packaged_time_zones()
    try:
        settings = load_settings()
    except ConfigurationError as error:
        report_faults("API", error)
        return 1
    logs.configure_logging(level=settings.log_level, log_format=settings.log_format)
    url = settings.api_database_url.get_secret_value()
    if not is_schema_usable("API", url, timeout_seconds=settings.database_timeout_seconds):
        return 1
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings),
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=list(settings.trusted_proxies),
            backlog=2048,
            loop="uvloop",
            # Not httptools, which is used where it is installed: it reads a header of any length.
            http=HeaderTimeoutProtocol,
        )
    )
    # The server raises the signal again once it has shut down; its default action would be a death by signal.
    signal.signal(signal.SIGTERM, _handle_signal)
    tune_garbage_collection()
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
    except Exception:  # noqa: BLE001 - the process ends here
        # `exit_process` below ends before the interpreter would print the traceback. An error may quote an address with
        # its password.
        sys.stderr.write(mask_text(traceback.format_exc()))
    finally:
        exit_process(code)
