"""The localstripe process behind the front: started, watched, restarted and ended; never imported.

localstripe is GPL-licensed and keeps its store in one fixed file under `/tmp`, listening on every interface. It is
run as the program it is (`python -m localstripe`), in an interpreter whose `sitecustomize` (the `shim` folder) moves
that file into this stack's state folder and that socket to loopback, and ties the process's life to ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

_SHIM = Path(__file__).parent / "shim"
_START_SECONDS = 15.0

log = logging.getLogger("berth.sandbox.stripe")


class LocalStripe:
    """`await url()` gives the address once it answers. State: `localstripe.pickle`, `.pid` and `.log` in `state`."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._pidfile = state / "localstripe.pid"
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._port = 0
        self._up = asyncio.Event()

    @staticmethod
    def installed() -> bool:
        return importlib.util.find_spec("localstripe") is not None

    @property
    def status(self) -> str:
        return "up" if self._up.is_set() else "starting"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Begin in the background: the front does not need it to serve payments."""
        await asyncio.to_thread(self._end_leftover)
        self._task = asyncio.create_task(self._keep_running(), name="localstripe")

    async def url(self) -> str:
        """TimeoutError when it does not come up in time."""
        async with asyncio.timeout(_START_SECONDS):
            await self._up.wait()
        return f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(1.0):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        self._pidfile.unlink(missing_ok=True)

    async def _keep_running(self) -> None:
        pause = 0.5
        while True:
            self._port = _free_port()
            with (self._state / "localstripe.log").open("ab") as output:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "localstripe",
                    "--port",
                    str(self._port),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=self._state,
                    env=self._environment(),
                )
            self._pidfile.write_text(f"{self._process.pid} {self._port}\n")
            watcher = asyncio.create_task(self._wait_until_up())
            try:
                code = await self._process.wait()
            finally:
                watcher.cancel()
                self._up.clear()
            log.warning("localstripe ended with %s, starting it again in %.1f s", code, pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 10.0)

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(_SHIM),
            "BERTH_LOCALSTRIPE_STORE": str(self._state / "localstripe.pickle"),
            "BERTH_LOCALSTRIPE_PARENT": str(os.getpid()),
        }

    async def _wait_until_up(self) -> None:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            self._up.set()
            return

    def _end_leftover(self) -> None:
        """End a localstripe that outlived a killed front: two on one store would overwrite each other."""
        try:
            pid, port = (int(word) for word in self._pidfile.read_text().split())
        except (FileNotFoundError, ValueError):
            return
        if f"-m localstripe --port {port}" in _command_of(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._pidfile.unlink(missing_ok=True)


def _command_of(pid: int) -> str:
    """The command line of a process; empty when there is none."""
    listed = Path(f"/proc/{pid}/cmdline")
    if listed.parent.parent.joinpath("self").exists():
        try:
            return listed.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    asked = ["ps", "-o", "command=", "-p", str(pid)]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
