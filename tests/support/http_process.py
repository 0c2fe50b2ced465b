"""A server of the stack as a process of a test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx

from tests.support.wait import wait_until_sync


class HttpProcess:
    """`python -m <module>` as the stack starts it. Serves once it is constructed; its output is in ``log``."""

    def __init__(self, module: str, *arguments: str, port: int, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        with log.open("ab") as out:
            self.process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=out, stderr=out)

        def is_serving() -> bool:
            assert self.process.poll() is None, log.read_text()
            try:
                return httpx.get(f"{self.url}/health").status_code == 200
            except httpx.TransportError:
                return False

        try:
            wait_until_sync(is_serving)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def end(self, number: int) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=10)
