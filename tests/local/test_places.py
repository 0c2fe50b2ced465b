"""The stack starts wherever a checkout lies; a machine that cannot run it gets one line instead of a traceback."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local.postgres import binaries_directory

ROOT = Path(__file__).resolve().parents[2]


def link_or_copy(source: str, target: str) -> None:
    """Hard links cost nothing; another file system gets copies."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def duplicate(source: Path, target: Path, **options: Any) -> None:
    shutil.copytree(source, target, symlinks=True, copy_function=link_or_copy, dirs_exist_ok=True, **options)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder outside of pytest's own (which is private), with spaces and umlauts in its name."""
    folder = Path(tempfile.mkdtemp(prefix="Größe mit Leerzeichen "))
    yield folder
    shutil.rmtree(folder)


def test_postgres_starts_where_only_its_owner_may_enter(place: Path) -> None:
    """Data and programs in a folder of mode 0700, e.g. root's home: root's stand-in may not enter it."""
    package = binaries_directory().parents[1]
    # The shared libraries lie beside the package, in `….libs`.
    for folder in package.parent.glob(f"{package.name}*"):
        duplicate(folder, place / "packages" / folder.name)
    place.chmod(0o700)
    program = textwrap.dedent(f"""
        from pathlib import Path
        from deploy.local.postgres import Postgres, binaries_directory
        here = Path({str(place)!r})
        (here / "home").mkdir()
        assert binaries_directory().is_relative_to(here)
        with Postgres(here / "home" / "postgres", durable=False) as server:
            assert server.ready()
    """)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(place / "packages")},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_folder_that_cannot_be_written_to_is_named(place: Path) -> None:
    (place / "file").touch()
    environ = {name: value for name, value in os.environ.items() if name != "BERTH_HOME"}
    done = subprocess.run(
        [sys.executable, "deploy/build/bootstrap.py", place / "file" / "venv", "run"],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"The installation failed: {place / 'file' / 'venv'}: Not a directory."]


def test_no_registry_is_one_line(place: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    environ |= {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_NO_CACHE_DIR": "1", "PIP_RETRIES": "1"}
    environ |= {"PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(
        [sys.executable, "deploy/build/bootstrap.py", place / "venv", "run"],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "the package index cannot be reached" in line


@pytest.mark.parametrize("name", ["bootstrap.py"])
def test_the_first_file_parses_under_every_python(name: str) -> None:
    """No syntax beyond Python 2.7: f-strings, annotations, keyword-only arguments, `nonlocal`, async, walrus."""
    tree = ast.parse((ROOT / "deploy" / "build" / name).read_text())
    newer = (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.Nonlocal, ast.AsyncFunctionDef, ast.Starred, ast.Match)
    assert [node for node in ast.walk(tree) if isinstance(node, newer)] == []
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert [f.name for f in functions if f.returns or f.args.kwonlyargs or any(a.annotation for a in f.args.args)] == []


def test_an_old_python_is_one_line() -> None:
    program = (
        "import sys, runpy; sys.version_info = (3, 6, 15, 'final', 0); runpy.run_path(sys.argv[1], None, '__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "deploy/build/bootstrap.py", "x", "run"],
        cwd=ROOT, env={"PATH": "/nonexistent"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        "Berth needs Python 3.11 to 3.14: python3 is Python 3.6, and no newer one was found on PATH.\n"
    )


def start_stack(home: Path, port: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy.local.supervisor"],
        cwd=ROOT, env=os.environ | {"BERTH_HOME": str(home), "BERTH_PORT": port},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("port", ["abc", "0", "99999", "-1"])
def test_an_invalid_port_is_one_line(place: Path, port: str) -> None:
    done = start_stack(place / "home", port)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (1, "", 1)
    assert f"BERTH_PORT is '{port}'; set a number from 1 to 65535" in done.stdout


def test_a_full_disk_is_one_line(place: Path) -> None:
    program = (
        "import shutil, sys; from collections import namedtuple;"
        "shutil.disk_usage = lambda path: namedtuple('Usage', 'total used free')(2**30, 2**30, 2**20);"
        "from deploy.local.supervisor import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, env=os.environ | {"BERTH_HOME": str(place / "home")},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (1, "", 1)
    assert "the disk is full" in done.stdout
    assert "free some space or set BERTH_HOME" in done.stdout


def test_the_demo_without_a_running_stack_is_one_line(place: Path) -> None:
    (place / "card.json").write_text('{"ready": true, "urls": {"api": "http://127.0.0.1:9"}}')
    done = subprocess.run(
        [sys.executable, "-m", "deploy.local.demo"],
        cwd=ROOT, env=os.environ | {"BERTH_HOME": str(place)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (1, "", 1)
    assert "http://127.0.0.1:9 does not answer; start one with `make run`" in done.stdout


def test_a_home_that_is_a_file_is_one_line(place: Path) -> None:
    (place / "home").touch()
    done = start_stack(place / "home", "8000")
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (1, "", 1)
    assert f"BERTH_HOME {place / 'home'}: File exists" in done.stdout
