"""Runs every gate and says which held: `make check`. All run, whichever fails."""

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
LONGEST = 600
"""Seconds that one gate may take."""


@dataclass(frozen=True, slots=True)
class Gate:
    name: str
    argv: tuple[str, ...]


def tool(name: str, *args: str) -> tuple[str, ...]:
    return (str(BIN / name), *args)


def module(name: str, *args: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name, *args)


def gates() -> list[Gate]:
    found = [
        Gate("types (mypy)", tool("mypy")),
        Gate("format (ruff)", tool("ruff", "format", "--check", "--quiet", ".")),
        Gate("style and faults (ruff)", tool("ruff", "check", "--quiet", ".")),
        Gate("who may import whom (import-linter)", tool("lint-imports", "--no-cache")),
        Gate("rules are pure", module("tests.checks.purity")),
        Gate("the models are what the migrations make", module("tests.checks.migrations")),
        Gate("openapi.json is what the routes say", module("api.openapi", "--check")),
        Gate("recorded histories replay", module("tests.checks.histories")),
    ]
    # Asks a network service about every dependency and changes its answer from one day to the next: a matter for
    # continuous integration and `make audit`, not for every check of a working copy.
    if os.environ.get("CI"):
        found.append(Gate("known vulnerabilities (pip-audit)", module("tests.checks.audit")))
    return found


def held(gate: Gate) -> bool:
    begun = time.monotonic()
    try:
        done = subprocess.run(
            gate.argv,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
        )
        code, said = done.returncode, (done.stdout + done.stderr).strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        code, said = 1, str(error)
    line = f"{'ok  ' if code == 0 else 'FAIL'}  {gate.name:<42}{time.monotonic() - begun:5.1f} s"
    # In one piece: gates run side by side.
    print(f"{line}\n{said}\n" if code else line, flush=True)
    return code == 0


def main() -> int:
    with ThreadPoolExecutor(max_workers=2) as pool:
        results = list(pool.map(held, gates()))
    failed = results.count(False)
    print("every gate held" if not failed else f"{failed} of {len(results)} gates did not hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
