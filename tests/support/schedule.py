"""Which tests run together on one of xdist's workers, and which begin first. A plugin of the main process.

Hazard: xdist 3.8 sends the group of a marked test to the main process at the end of its id, by an attribute that
pytest 9.2 no longer reads. The marks then have no effect, without a message: every worker starts every stack. The
groups are therefore found here, by the ids.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

GROUPS = (
    # Two, so that at most two whole stacks run at a time: more would exceed the time limits of each other's tests.
    (
        re.compile(
            r"tests/(e2e/test_(account|money|orders|life|small_amounts|credit_collects)|faults/test_kills)\.py::"
        ),
        "journeys",
    ),
    (re.compile(r"tests/(e2e/|faults/test_outages\.py::)"), "adversities"),
    # One control plane takes half a gigabyte and several seconds.
    (re.compile(r"tests/contracts/cluster/test_control_plane\.py::|\[(.*-)?control_plane(-.*)?\]$"), "control-plane"),
)
"""Tests that share a server which is slow to start. The first pattern that matches counts."""

BEGIN_EARLY = (
    "tests/bench/test_bench_runs.py::",
    "tests/activities/test_database_costs.py::",
    "tests/activities/test_money_machine.py::",
    "tests/db/test_ledger_machine.py::",
    "tests/faults/test_worker_process.py::",
    "tests/local/test_simulate.py::",
    "tests/local/test_supervisor.py::",
    "tests/workflows/",
)
"""Starts of ids, slowest first: a long test that begins last is awaited by idle workers."""


def group_of(node_id: str) -> str | None:
    """Return the name of the group that a test is in."""
    return next((name for pattern, name in GROUPS if pattern.search(node_id)), None)


def rank(node_id: str) -> int:
    """Return the place of a test in the order of beginning; tests of one place keep their order."""
    if group_of(node_id) is not None:
        return 0
    places = (place for place, start in enumerate(BEGIN_EARLY, 1) if node_id.startswith(start))
    return next(places, len(BEGIN_EARLY) + 1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Under `--dist loadgroup`, keep each group on one worker."""
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadGroupScheduling

    scheduling = LoadGroupScheduling(config, log)
    scheduling._split_scope = lambda node_id: group_of(node_id) or node_id
    return scheduling
