"""A test that hangs fails by name, and the tests after it run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

HANGS = {
    "call": """
def test_hanging():
    hang()
""",
    "teardown of a failure": """
import pytest

@pytest.fixture
def hanging_teardown():
    yield
    hang()

def test_hanging(hanging_teardown):
    raise AssertionError
""",
}

TESTS = """
import signal
import threading

def hang():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # pytest-timeout cannot end it
    threading.Event().wait()

def test_before():
    pass
"""

AFTER = """
def test_after():
    pass

def test_last():
    pass
"""


@pytest.mark.parametrize("place", HANGS)
def test_a_hang_fails_by_name_and_other_tests_run(place: str, tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nfaulthandler_timeout = 3\nfaulthandler_exit_on_timeout = true\n")
    (tmp_path / "test_it.py").write_text(TESTS + HANGS[place] + AFTER)
    options = ["-n", "1", "--timeout", "1", "-p", "tests.support.hangs", "-p", "no:cacheprovider", "-p", "no:asyncio"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
        | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "crashed while running 'test_it.py::test_hanging'" in done.stdout
    assert "3 passed" in done.stdout
    assert "in hang" in done.stderr
