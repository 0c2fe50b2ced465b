"""One stack for all tests of the package, and a new customer for each test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.steps import Sandbox
from tests.support.running_stack import ApiUser, RunningStack, running_stack

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.stack)


@pytest.fixture(scope="package")
def stack() -> Iterator[RunningStack]:
    """The running stack. It ends with the package, because other tests have no use for its processes."""
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
def customer(stack: RunningStack) -> ApiUser:
    """A new customer, verified and signed in, whose currency is USD."""
    return stack.register()


@pytest.fixture(scope="package")
def administrator(stack: RunningStack) -> ApiUser:
    return stack.administrator()


@pytest.fixture
def sandbox(stack: RunningStack) -> Iterator[Sandbox]:
    """Control of faults. All faults are cleared after the test."""
    faults = Sandbox(stack)
    faults.clear()
    yield faults
    faults.clear()
