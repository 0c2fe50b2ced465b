"""A simulation that cannot start names a taken port in one line; other errors keep their traceback."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from deploy.local.server_process import run_server

ROOT = Path(__file__).resolve().parents[2]


def start(error: OSError) -> None:
    """Run a server whose start raises ``error``."""

    def open_server() -> AbstractAsyncContextManager[None]:
        raise error

    run_server("mailbox", open_server, lambda _: "")


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "deploy.local.mailbox", "--state", str(tmp_path), "--http-port", port],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith("mailbox: ")
    assert port in line


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EADDRNOTAVAIL])
def test_what_the_system_refuses_is_one_line(number: int) -> None:
    with pytest.raises(SystemExit, match=r"^mailbox: \[Errno \d+\] refused$"):
        start(OSError(number, "refused"))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), ConnectionResetError(), TimeoutError("late")])
def test_other_errors_keep_their_traceback(error: OSError) -> None:
    with pytest.raises(type(error)) as raised:
        start(error)
    assert raised.value is error
