"""Directories for the data of servers that a test starts and throws away."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")
MINIMUM_FREE_BYTES = 6 * 1024**3


def scratch_directory(prefix: str) -> Path:
    """Create a private directory for a server's data; the caller removes it.

    It is in memory where there is plenty: on a disk, copying the template is most of what a database test costs.
    """
    return Path(tempfile.mkdtemp(prefix=prefix, dir=MEMORY if _has_memory() else None))


def _has_memory() -> bool:
    if not os.access(MEMORY, os.W_OK | os.X_OK):
        return False
    return shutil.disk_usage(MEMORY).free >= MINIMUM_FREE_BYTES
