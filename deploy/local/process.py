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

LAUNCHER = Path(__file__).with_name("launch.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAs:
    """Another user to run a process as (only root can)."""

    uid: int
    gid: int
    reach: bool = False
    """Keep the right to pass through folders closed to that user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A process for sure: pids are reused, a pid with its moment of birth is not."""

    pid: int
    born: float

    @staticmethod
    def of(pid: int) -> Identity | None:
        try:
            return Identity(pid=pid, born=psutil.Process(pid).create_time())
        except psutil.Error:
            return None

    def find(self) -> psutil.Process | None:
        """The process if it still lives (a zombie does not)."""
        try:
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.born) > 0.05 or process.status() == psutil.STATUS_ZOMBIE:
                return None
        except psutil.Error:
            return None
        return process


class Process:
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
        patience: float = 5.0,
    ) -> None:
        """`patience` is how many seconds `stop` waits after `stop_signal` before it kills."""
        self.name = name
        self.argv = list(argv)
        self.log = log
        self.env = None if env is None else dict(env)
        self.cwd = cwd
        self.run_as = run_as
        self.stop_signal = stop_signal
        self.patience = patience
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.alive:
            raise RuntimeError(f"{self.name} runs already")
        program = shutil.which(self.argv[0])
        if program is None:
            raise FileNotFoundError(self.argv[0])
        settings: dict[str, object] = {"parent": os.getpid(), "death": int(self.stop_signal)}
        if self.run_as is not None:
            settings |= {"uid": self.run_as.uid, "gid": self.run_as.gid, "reach": self.run_as.reach}
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-S", str(LAUNCHER), json.dumps(settings), program, *self.argv[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.env,
                cwd=self.cwd,
                # Ctrl-C in a terminal goes to the whole group: only the parent is to hear it, and to stop in order.
                start_new_session=True,
            )

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def exit_code(self) -> int | None:
        return None if self._child is None else self._child.poll()

    def signal(self, number: int) -> None:
        if self._child is not None and self.alive:
            with contextlib.suppress(ProcessLookupError):
                self._child.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self._child is not None:
            self._child.wait()

    def stop(self) -> None:
        """Ask, wait `patience`, kill. Blocks."""
        if self._child is None:
            return
        self.signal(self.stop_signal)
        try:
            self._child.wait(self.patience)
        except subprocess.TimeoutExpired:
            self.kill()

    def last_words(self, lines: int = 15) -> str:
        """The end of its log, for error messages."""
        try:
            with self.log.open("rb") as log:
                log.seek(0, os.SEEK_END)
                log.seek(max(0, log.tell() - 16_384))
                tail = log.read()
        except OSError:
            return ""
        return "\n".join(tail.decode(errors="replace").splitlines()[-lines:])


def end(identity: Identity, *, ask: int | None = signal.SIGTERM, patience: float = 5.0) -> None:
    """End a process that is not our child, e.g. one that a killed supervisor left behind."""
    process = identity.find()
    if process is None:
        return
    with contextlib.suppress(psutil.Error):
        if ask is not None:
            process.send_signal(ask)
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline:
                if identity.find() is None:
                    return
                time.sleep(0.02)
        process.kill()
        deadline = time.monotonic() + patience
        while identity.find() is not None and time.monotonic() < deadline:
            time.sleep(0.02)
