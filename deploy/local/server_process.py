"""Runs a simulation as a separate process until a signal ends it."""

from __future__ import annotations

import asyncio
import errno
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

Server = TypeVar("Server")

EXPECTED_ERRORS = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM})
"""What the caller has to change: the address, or who runs the server. Any other error keeps its traceback."""


def run_server(
    name: str, open_server: Callable[[], AbstractAsyncContextManager[Server]], describe: Callable[[Server], str]
) -> None:
    """Serve until SIGTERM or SIGINT, after printing the line that ``describe`` returns.

    Raises:
        SystemExit: With one line when its port is taken, or the system refuses the port or a file.
    """
    try:
        asyncio.run(_serve(open_server, describe))
    except OSError as error:
        if error.errno not in EXPECTED_ERRORS:
            raise
        raise SystemExit(f"{name}: {error}") from error


async def _serve(
    open_server: Callable[[], AbstractAsyncContextManager[Server]], describe: Callable[[Server], str]
) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    async with open_server() as server:
        print(describe(server), flush=True)
        await ended.wait()
