"""Paths of the programs that are installed as Python packages."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def find_program(name: str) -> str:
    """Return the path of `name`, beside the interpreter or on PATH. Raises `FileNotFoundError` with the remedy."""
    beside = Path(sys.executable).parent / name
    if beside.exists():
        return str(beside)
    program = shutil.which(name)
    if program is None:
        raise FileNotFoundError(f"{name} is not installed (the project's extra `local` brings it)")
    return program
