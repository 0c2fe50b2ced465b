"""Reports each failure when it happens, so that the log of an interrupted run names it as well."""

from __future__ import annotations

import pytest

MAX_CHARACTERS = 2_000
"""How much of the end of a failure's traceback is printed at once. The summary prints it whole."""


class FailureReporter:
    """A pytest plugin of the main process."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if not report.failed or terminal is None:
            return
        terminal.ensure_newline()
        terminal.write_line(f"{report.nodeid} failed in {report.when} after {report.duration:.0f} s:")
        terminal.write_line(report.longreprtext[-MAX_CHARACTERS:])
