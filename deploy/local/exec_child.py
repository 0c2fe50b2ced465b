"""Sets user, capabilities and parent-death signal, then executes a program.

Usage: `python -I -S exec_child.py SETTINGS PROGRAM ARG…`.

SETTINGS is JSON: `parent` (pid; when it is already gone the program is not started), `death` (signal to receive when
the parent dies; Linux), `uid` and `gid` (run as that user), `reach` (keep the right to pass through folders that this
user could not enter, for data and programs below a private folder; Linux). A separate program instead of a
`preexec_fn`, which is not safe in a process with threads. Standard library only, without site-packages, so that it
costs some ten milliseconds.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_SET_SECUREBITS = 28
SECBIT_NO_SETUID_FIXUP = 1 << 2
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


def _prepare_to_keep(libc: ctypes.CDLL) -> None:
    """Make the capabilities outlive the change of user, also inside access(2).

    access(2) ignores the capabilities of a process whose real user is not root, unless SECBIT_NO_SETUID_FIXUP is set
    (capabilities(7), `access_override_creds` in the kernel's fs/open.c). initdb calls access(2) on its own programs, so
    it fails with "Permission denied" in a folder of mode 0700 although it could execute them.
    """
    _prctl(libc, PR_SET_KEEPCAPS, 1)
    try:
        _prctl(libc, PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
    except OSError:
        # Without CAP_SETPCAP only the data may lie in a private folder; initdb's message says what it cannot reach.
        return


def _keep_dac_override(libc: ctypes.CDLL) -> None:
    """Keep only CAP_DAC_OVERRIDE across the change of user and exec."""
    capability = 1 << CAP_DAC_OVERRIDE
    header = _Header(CAPABILITY_VERSION_3, 0)
    data = (_Data * 2)(_Data(capability, capability, capability), _Data(0, 0, 0))
    if libc.capset(ctypes.byref(header), ctypes.byref(data)) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    _prctl(libc, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE)


def main() -> None:
    settings = json.loads(sys.argv[1])
    linux = sys.platform == "linux"
    libc = ctypes.CDLL(None, use_errno=True)
    uid, dac_override = settings.get("uid"), settings.get("reach", False) and linux
    if uid is not None:
        if dac_override:
            _prepare_to_keep(libc)
        os.setgroups([])
        os.setgid(settings["gid"])
        os.setuid(uid)
        if dac_override:
            _keep_dac_override(libc)
    if linux and settings.get("death"):
        # After the change of user: that clears it.
        _prctl(libc, PR_SET_PDEATHSIG, settings["death"])
    if settings.get("parent") and os.getppid() != settings["parent"]:
        sys.exit("parent process exited")
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
