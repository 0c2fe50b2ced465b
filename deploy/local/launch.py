"""Becomes another program after settling how it lives: run as `python -I -S launch.py SETTINGS PROGRAM ARG…`.

SETTINGS is JSON: `parent` (pid; when it is already gone the program is not started), `death` (signal to receive when
the parent dies; Linux), `uid` and `gid` (run as that user), `reach` (keep the right to pass through folders that this
user could not enter, for data below a private home). A program of its own rather than a `preexec_fn`, which is not safe
in a process with threads. Standard library only, without site-packages, so that it costs some ten milliseconds.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAP_DAC_OVERRIDE = 1
CAPABILITY_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Data(ctypes.Structure):
    _fields_ = [
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    ]


def _prctl(libc: ctypes.CDLL, *args: int) -> None:
    if libc.prctl(*(ctypes.c_ulong(arg) for arg in (*args, 0, 0, 0, 0)[:5])) != 0:
        raise OSError(ctypes.get_errno(), f"prctl{args}")


def _keep_only_reach(libc: ctypes.CDLL) -> None:
    """Of all that root may do, keep the one right over the change of user and over exec."""
    one = 1 << CAP_DAC_OVERRIDE
    header = _Header(CAPABILITY_VERSION_3, 0)
    data = (_Data * 2)(_Data(one, one, one), _Data(0, 0, 0))
    if libc.capset(ctypes.byref(header), ctypes.byref(data)) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    _prctl(libc, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE)


def main() -> None:
    settings = json.loads(sys.argv[1])
    linux = sys.platform == "linux"
    libc = ctypes.CDLL(None, use_errno=True)
    uid, reach = settings.get("uid"), settings.get("reach", False) and linux
    if uid is not None:
        if reach:
            _prctl(libc, PR_SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setgid(settings["gid"])
        os.setuid(uid)
        if reach:
            _keep_only_reach(libc)
    if linux and settings.get("death"):
        # After the change of user: that clears it.
        _prctl(libc, PR_SET_PDEATHSIG, settings["death"])
    if settings.get("parent") and os.getppid() != settings["parent"]:
        sys.exit("the process that wanted this one is gone")
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
