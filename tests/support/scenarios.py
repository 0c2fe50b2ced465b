"""Which numbered scenarios have a passing test: recorded by every run, printed by `make scenarios`."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A read-only checkout cannot hold it: the Makefile then names another folder.
RESULTS_FILE = Path(os.environ.get("BERTH_TEST_RESULTS") or ROOT) / ".scenarios.json"

# How many numbers each chapter of the scenarios has: billing, provisioning, security.
TOTALS = {"B": 52, "P": 41, "S": 14}
NUMBER = re.compile(r"[BPS]\d+")
SCENARIO_PROPERTY = "scenario"


def is_valid_number(number: str) -> bool:
    return bool(NUMBER.fullmatch(number)) and 1 <= int(number[1:]) <= TOTALS[number[0]]


class ScenarioRecorder:
    """A pytest plugin of the main process. Stores each test's scenario numbers and result across runs."""

    def __init__(self, config: pytest.Config) -> None:
        self._is_full_run = (
            not config.getoption("keyword") and not config.getoption("markexpr") and not _is_partial_run(config)
        )
        self._results: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        numbers = [str(value) for name, value in report.user_properties if name == SCENARIO_PROPERTY]
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
        previous = (
            {} if self._is_full_run else {node: entry for node, entry in load_results().items() if is_defined(node)}
        )
        partial = RESULTS_FILE.with_suffix(".tmp")
        partial.write_text(json.dumps(dict(sorted((previous | self._results).items())), indent=1) + "\n")
        partial.replace(RESULTS_FILE)


def attach_scenario_numbers(items: list[pytest.Item]) -> None:
    """Attach the numbers to the tests, so that they travel with the reports from xdist's workers."""
    for item in items:
        for mark in item.iter_markers("scenario"):
            for number in mark.args:
                if not is_valid_number(number):
                    raise pytest.UsageError(f"{item.nodeid}: no such scenario: {number!r}")
                if (SCENARIO_PROPERTY, number) not in item.user_properties:
                    item.user_properties.append((SCENARIO_PROPERTY, number))


def _is_partial_run(config: pytest.Config) -> bool:
    """Return whether the command line selects a part of the tests."""
    return bool(config.args) and [Path(arg).name for arg in config.args] != ["tests"]


def is_defined(node: str) -> bool:
    """Return whether the file of a test id still defines its function."""
    file, _, name = node.partition("::")
    function = re.escape(name.rpartition("::")[2].partition("[")[0])
    path = ROOT / file
    return path.is_file() and re.search(rf"^\s*(?:async )?def {function}\(", path.read_text(), re.MULTILINE) is not None


def load_results() -> dict[str, dict[str, Any]]:
    try:
        results = json.loads(RESULTS_FILE.read_text())
    except (OSError, ValueError):
        return {}
    return results if isinstance(results, dict) else {}


def summary(results: dict[str, dict[str, Any]]) -> tuple[str, dict[str, list[str]], list[str]]:
    """Return the line of counts, the missing numbers by chapter, and the numbers with a failing test."""
    passed = {number for entry in results.values() if entry["passed"] for number in entry["numbers"]}
    failed = {number for entry in results.values() if not entry["passed"] for number in entry["numbers"]}
    passing = passed - failed
    counts, missing = [], {}
    for chapter, total in TOTALS.items():
        numbers = [f"{chapter}{index}" for index in range(1, total + 1)]
        counts.append(f"{chapter} {sum(number in passing for number in numbers)}/{total}")
        missing[chapter] = [number for number in numbers if number not in passing]
    return "  ".join(counts), missing, sorted(failed, key=lambda number: (number[0], int(number[1:])))


def main() -> int:
    results = load_results()
    if not results:
        sys.stderr.write("no recorded results: run `make test` first\n")
        return 1
    line, missing, failed = summary(results)
    print(line)
    for chapter, numbers in missing.items():
        print(f"missing {chapter}: {' '.join(numbers) or 'none'}")
    if failed:
        print(f"failing: {' '.join(failed)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
