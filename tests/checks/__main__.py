"""Run every gate and print which passed (`make check`). A failed gate does not stop the others."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
GATE_TIMEOUT_SECONDS = 600
"""Timeout of one gate."""


@dataclass(frozen=True, slots=True)
class Gate:
    """One check, run as a separate process. Exit status 0 means that it passed."""

    name: str
    argv: tuple[str, ...]


def tool(name: str, *args: str) -> tuple[str, ...]:
    """Return the command line of a program of the virtual environment."""
    return (str(BIN / name), *args)


def module(name: str, *args: str) -> tuple[str, ...]:
    """Return the command line that runs a Python module."""
    return (sys.executable, "-m", name, *args)


def gates() -> list[Gate]:
    """Return the gates that run here."""
    selected = [
        Gate("types (mypy)", tool("mypy")),
        Gate("format (ruff)", tool("ruff", "format", "--check", "--quiet", ".")),
        Gate("style and faults (ruff)", tool("ruff", "check", "--quiet", ".")),
        Gate("import rules (import-linter)", tool("lint-imports", "--no-cache")),
        Gate("rules are pure", module("tests.checks.purity")),
        Gate("vocabulary", module("tests.checks.vocabulary")),
        Gate("docstrings name what exists", module("tests.checks.references")),
        Gate("migrations create what the models describe", module("tests.checks.migrations")),
        Gate("openapi.json matches the routes", module("api.openapi", "--check")),
        Gate("recorded histories replay", module("tests.checks.histories")),
    ]
    # Queries a network service about every dependency, and its result changes from day to day: continuous integration
    # and `make audit` run it, not every check of a working copy.
    if os.environ.get("CI"):
        selected.append(Gate("known vulnerabilities (pip-audit)", module("tests.checks.audit")))
    return selected


def run_gate(gate: Gate) -> bool:
    """Run a gate, print its result, and return whether it passed."""
    started_at = time.monotonic()
    try:
        completed = subprocess.run(
            gate.argv,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=GATE_TIMEOUT_SECONDS,
            check=False,
        )
        code, output = completed.returncode, (completed.stdout + completed.stderr).strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        code, output = 1, str(error)
    line = f"{'ok  ' if code == 0 else 'FAIL'}  {gate.name:<42}{time.monotonic() - started_at:5.1f} s"
    # One call, because gates run in parallel and their lines would mix.
    print(f"{line}\n{output}\n" if code else line, flush=True)
    return code == 0


def main() -> int:
    with ThreadPoolExecutor(max_workers=2) as pool:
        results = list(pool.map(run_gate, gates()))
    failed = results.count(False)
    print("every gate passed" if not failed else f"{failed} of {len(results)} gates failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
