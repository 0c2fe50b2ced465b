"""Which numbered scenarios have a passing test: recorded by every run, printed by `make scenarios`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / ".scenarios.json"

# How many numbers each chapter of the scenarios has: billing, provisioning, security.
TOTALS = {"B": 52, "P": 41, "S": 14}
NUMBER = re.compile(r"[BPS]\d+")
PROPERTY = "scenario"


def known(number: str) -> bool:
    return bool(NUMBER.fullmatch(number)) and 1 <= int(number[1:]) <= TOTALS[number[0]]


class ScenarioRecorder:
    """A pytest plugin of the main process: test id → its numbers and whether it passed, kept over runs."""

    def __init__(self, config: pytest.Config) -> None:
        self._whole = not config.getoption("keyword") and not config.getoption("markexpr") and not _chosen(config)
        self._results: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        numbers = [str(value) for name, value in report.user_properties if name == PROPERTY]
        if not numbers:
            return
        entry = self._results.setdefault(report.nodeid, {"numbers": numbers, "passed": False})
        if report.when == "call":
            entry["passed"] = report.passed
        elif report.failed:
            entry["passed"] = False

    def pytest_sessionfinish(self) -> None:
        if not self._results:
            return
        kept = {} if self._whole else {node: entry for node, entry in load().items() if _file(node).exists()}
        partial = RECORD.with_suffix(".tmp")
        partial.write_text(json.dumps(dict(sorted((kept | self._results).items())), indent=1) + "\n")
        partial.replace(RECORD)


def note_numbers(items: list[pytest.Item]) -> None:
    """Attach the numbers to the tests, so that they travel with the reports from xdist's workers."""
    for item in items:
        for mark in item.iter_markers("scenario"):
            for number in mark.args:
                if not known(number):
                    raise pytest.UsageError(f"{item.nodeid}: no such scenario: {number!r}")
                if (PROPERTY, number) not in item.user_properties:
                    item.user_properties.append((PROPERTY, number))


def _chosen(config: pytest.Config) -> bool:
    """Whether the command line names something other than all tests."""
    return bool(config.args) and [Path(arg).name for arg in config.args] != ["tests"]


def _file(node: str) -> Path:
    return ROOT / node.split("::", 1)[0]


def load() -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(RECORD.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def summary(record: dict[str, dict[str, Any]]) -> tuple[str, dict[str, list[str]], list[str]]:
    """The line of counts, the missing numbers by chapter, and numbers with a test that does not pass."""
    passed = {number for entry in record.values() if entry["passed"] for number in entry["numbers"]}
    failed = {number for entry in record.values() if not entry["passed"] for number in entry["numbers"]}
    held = passed - failed
    counts, missing = [], {}
    for chapter, total in TOTALS.items():
        numbers = [f"{chapter}{index}" for index in range(1, total + 1)]
        counts.append(f"{chapter} {sum(number in held for number in numbers)}/{total}")
        missing[chapter] = [number for number in numbers if number not in held]
    return "  ".join(counts), missing, sorted(failed, key=lambda number: (number[0], int(number[1:])))


def main() -> int:
    record = load()
    if not record:
        sys.stderr.write("no recorded results: run `make test` first\n")
        return 1
    line, missing, failed = summary(record)
    print(line)
    for chapter, numbers in missing.items():
        print(f"missing {chapter}: {' '.join(numbers) or 'none'}")
    if failed:
        print(f"failing: {' '.join(failed)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
