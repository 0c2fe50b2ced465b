"""Runs a simulation as a separate process until a signal ends it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

Server = TypeVar("Server")


def run_server(
    name: str, open_server: Callable[[], AbstractAsyncContextManager[Server]], describe: Callable[[Server], str]
) -> None:
    """Serve until SIGTERM or SIGINT, after printing the line that ``describe`` returns.

    Raises:
        SystemExit: With one line when the server cannot start, most often because its port is taken.
    """
    try:
        asyncio.run(_serve(open_server, describe))
    except OSError as error:
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
