"""One stack for all of them, and a customer of its own for each test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.steps import Sandbox
from tests.support.stack import Customer, RunningStack, running_stack

HERE = Path(__file__).parent
JOURNEYS = {"test_account", "test_money", "test_orders", "test_life"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            # Two stacks on two workers: what customers walk, and what is done to them.
            journey = item.path.stem in JOURNEYS
            item.add_marker(pytest.mark.xdist_group("journeys" if journey else "adversities"))
            item.add_marker(pytest.mark.stack)


@pytest.fixture(scope="package")
def stack() -> Iterator[RunningStack]:
    """Not for the whole session: a dozen processes, which the tests after these have no use for."""
    home = os.environ.get("BERTH_E2E_HOME")
    if home:
        with subprocess.Popen(["sleep", "infinity"]) as stand_in:
            running = RunningStack(Path(home), stand_in)
            yield running
            running.stop()
        return
    with running_stack() as running:
        yield running


@pytest.fixture
def customer(stack: RunningStack) -> Customer:
    """Somebody new, verified and signed in, with dollars."""
    return stack.register()


@pytest.fixture(scope="package")
def administrator(stack: RunningStack) -> Customer:
    return stack.administrator()


@pytest.fixture
def sandbox(stack: RunningStack) -> Iterator[Sandbox]:
    """Faults may be ordered; none is left afterwards."""
    found = Sandbox(stack)
    found.clear()
    yield found
    found.clear()
