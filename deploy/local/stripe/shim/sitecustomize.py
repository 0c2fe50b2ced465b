"""Loaded by the localstripe process before the program: where it keeps its store, where it listens, when it dies.

It touches the interpreter only (open, sockets, process flags), never localstripe's code.
"""

from __future__ import annotations

import builtins
import ctypes
import io
import os
import signal
import socket
import sys
from typing import Any

_FIXED_STORE = "/tmp/localstripe.pickle"  # noqa: S108
_STORE = os.environ["BERTH_LOCALSTRIPE_STORE"]
_PARENT = int(os.environ["BERTH_LOCALSTRIPE_PARENT"])
_PR_SET_PDEATHSIG = 1
_open = builtins.open


class _Replacing(io.FileIO):
    """Written beside the store and renamed over it on close: a kill in between leaves the old one whole."""

    def __init__(self) -> None:
        super().__init__(_STORE + ".new", "w")

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.replace(_STORE + ".new", _STORE)


def _open_moved(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
    if file != _FIXED_STORE:
        return _open(file, mode, *args, **kwargs)
    return _Replacing() if "w" in mode else _open(_STORE, mode, *args, **kwargs)


class _LoopbackSocket(socket.socket):
    """A socket for every interface becomes one for 127.0.0.1."""

    def __init__(self, family: int = -1, *args: Any, **kwargs: Any) -> None:
        super().__init__(socket.AF_INET if family == socket.AF_INET6 else family, *args, **kwargs)

    def bind(self, address: Any) -> None:
        super().bind(("127.0.0.1", address[1]) if address[0] in ("::", "", "0.0.0.0") else address)  # noqa: S104


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != _PARENT:
        os._exit(1)


_die_with_parent()
builtins.open = _open_moved
socket.socket = _LoopbackSocket  # type: ignore[misc]  # the point of this file
