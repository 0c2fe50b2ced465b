"""Where the programs that come as Python packages are."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def program(name: str) -> str:
    """The path of `name`, beside the running interpreter or on PATH. Raises `FileNotFoundError` with the remedy."""
    beside = Path(sys.executable).parent / name
    if beside.exists():
        return str(beside)
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed (the project's extra `local` brings it)")
    return found
