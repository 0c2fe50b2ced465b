"""End the process of a test that hangs. A plugin of every process that runs tests.

pytest-timeout raises an exception in the main thread, which a hang can outlast: the exception can end in a task that is
not awaited, and a teardown can hang after it. pytest's faulthandler_timeout with faulthandler_exit_on_timeout
needs no Python code to run: it writes the stacks of every thread and exits. xdist then reports the test as crashed and
goes on in a new worker. But pytest cancels it at the first failure of a test, before the teardown.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator

import pytest

STDERR: pytest.StashKey[int] = pytest.StashKey()
"""A copy of stderr's descriptor from before pytest captures what tests write to it."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[STDERR] = os.dup(2)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Bound the teardown as well, with faulthandler_timeout seconds more."""
    limit = float(item.config.getini("faulthandler_timeout") or 0)
    if limit > 0:
        faulthandler.dump_traceback_later(limit, file=item.config.stash[STDERR], exit=True)
    yield
