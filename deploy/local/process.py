"""One child process of the stack: started so that it dies with its parent, logs to a file, stops within a bound."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

LAUNCHER = Path(__file__).with_name("exec_child.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAs:
    """Another user to run a process as (only root can)."""

    uid: int
    gid: int
    dac_override: bool = False
    """Keep the right to pass through folders closed to that user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """A process, identified by pid and start time because pids are reused."""

    pid: int
    started_at: float

    @staticmethod
    def of(pid: int) -> ProcessIdentity | None:
        try:
            return ProcessIdentity(pid=pid, started_at=psutil.Process(pid).create_time())
        except psutil.Error:
            return None

    def get_process(self) -> psutil.Process | None:
        """Return the process if it is running (a zombie is not)."""
        try:
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.started_at) > 0.05 or process.status() == psutil.STATUS_ZOMBIE:
                return None
        except psutil.Error:
            return None
        return process


class ChildProcess:
    """A child process. Not started until `start`; may be started again after it ended."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        run_as: RunAs | None = None,
        stop_signal: int = signal.SIGTERM,
        stop_timeout: float = 5.0,
    ) -> None:
        """Describe the process.

        Args:
            stop_timeout: Seconds that `stop` waits after `stop_signal` before it sends SIGKILL.
        """
        self.name = name
        self.argv = list(argv)
        self.log = log
        self.env = None if env is None else dict(env)
        self.cwd = cwd
        self.run_as = run_as
        self.stop_signal = stop_signal
        self.stop_timeout = stop_timeout
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.is_alive:
            raise RuntimeError(f"{self.name} runs already")
        program = shutil.which(self.argv[0])
        if program is None:
            raise FileNotFoundError(self.argv[0])
        settings: dict[str, object] = {"parent": os.getpid(), "death": int(self.stop_signal)}
        if self.run_as is not None:
            settings |= {"uid": self.run_as.uid, "gid": self.run_as.gid, "reach": self.run_as.dac_override}
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-S", str(LAUNCHER), json.dumps(settings), program, *self.argv[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.env,
                cwd=self.cwd,
                # Ctrl-C in a terminal goes to the whole group: only the parent receives it and stops the rest in order.
                start_new_session=True,
            )

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    @property
    def is_alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def exit_code(self) -> int | None:
        return None if self._child is None else self._child.poll()

    def signal(self, number: int) -> None:
        if self._child is not None and self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                self._child.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self._child is not None:
            self._child.wait()

    def stop(self) -> None:
        """Send the stop signal, wait `stop_timeout` seconds, then kill. Blocks."""
        if self._child is None:
            return
        self.signal(self.stop_signal)
        try:
            self._child.wait(self.stop_timeout)
        except subprocess.TimeoutExpired:
            self.kill()

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines of the log, for error messages."""
        try:
            with self.log.open("rb") as log:
                log.seek(0, os.SEEK_END)
                log.seek(max(0, log.tell() - 16_384))
                tail = log.read()
        except OSError:
            return ""
        return "\n".join(tail.decode(errors="replace").splitlines()[-lines:])


def terminate_process(identity: ProcessIdentity, *, signal: int | None = signal.SIGTERM, timeout: float = 5.0) -> None:
    """End a process that is not our child, e.g. one that a killed supervisor left behind."""
    process = identity.get_process()
    if process is None:
        return
    with contextlib.suppress(psutil.Error):
        if signal is not None:
            process.send_signal(signal)
            deadline = time.monotonic() + timeout
            while time.monotonic() < deadline:
                if identity.get_process() is None:
                    return
                time.sleep(0.02)
        process.kill()
        deadline = time.monotonic() + timeout
        while identity.get_process() is not None and time.monotonic() < deadline:
            time.sleep(0.02)
