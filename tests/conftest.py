"""What every test may ask for. Nothing starts before a test asks for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import hangs, schedule
from tests.support.failures import FailureReporter
from tests.support.scenarios import ScenarioRecorder, attach_scenario_numbers

HERE = Path(__file__).parent

IN_OTHER_PROCESSES = [
    HERE / name for name in ("e2e", "faults", "bench", "contracts/cluster", "contracts/stripe", "contracts/mailbox")
]
"""What the product does for these tests, it does elsewhere: tracing this process would only slow them down."""

pytest_plugins = [
    "tests.support.databases",
    "tests.support.temporal",
    "tests.support.sandboxes",
    "tests.support.planes",
]


def pytest_configure(config: pytest.Config) -> None:
    # The same examples in every run; how long one takes depends on what else the machine does.
    settings.register_profile("berth", derandomize=True, deadline=None)
    settings.load_profile("berth")
    config.pluginmanager.register(hangs, "berth-hangs")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(ScenarioRecorder(config), "berth-scenarios")
        config.pluginmanager.register(FailureReporter(config), "berth-failures")
        config.pluginmanager.register(schedule, "berth-schedule")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # In xdist's workers as well: there the tests are, and the numbers travel with their reports.
    attach_scenario_numbers(items)
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in IN_OTHER_PROCESSES):
            item.add_marker(pytest.mark.no_cover)
    items.sort(key=lambda item: schedule.rank(item.nodeid))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    yield
    # Read again in `pytest_unconfigure`: plugins may still change it after this hook.
    session.config.stash[SESSION] = session


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave without the interpreter's own teardown once the SDK was in use: it can crash there (rc 134/139,
    temporalio/sdk-python#300). Reports, coverage and results are written by now; xdist's workers have sent theirs."""
    session = config.stash.get(SESSION, None)
    if session is None or "temporalio.bridge" not in sys.modules:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(session.exitstatus))


SESSION: pytest.StashKey[pytest.Session] = pytest.StashKey()
