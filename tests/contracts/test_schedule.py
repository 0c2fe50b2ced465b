"""Tests that share a stack run on one of xdist's workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.schedule import group_of, rank

ROOT = Path(__file__).resolve().parents[2]

TESTS = """
from pathlib import Path

import pytest

@pytest.mark.parametrize("number", range(8))
def test_recorded(number: int, worker_id: str) -> None:
    with Path(__file__).with_suffix(".workers").open("a") as file:
        file.write(f"{worker_id}\\n")
"""


def test_a_group_runs_on_one_worker_and_other_tests_on_each(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    grouped, others = tmp_path / "tests/e2e/test_orders.py", tmp_path / "tests/api/test_orders.py"
    for file in (grouped, others):
        file.parent.mkdir(parents=True)
        file.write_text(TESTS)
    options = ["-n", "2", "--dist", "loadgroup", "--import-mode=importlib", "-p", "tests.support.schedule"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", "-p", "no:asyncio", str(tmp_path)],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
        | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    workers = [file.with_suffix(".workers").read_text().split() for file in (grouped, others)]
    assert [len(names) for names in workers] == [8, 8]
    assert len(set(workers[0])) == 1


@pytest.mark.parametrize(
    ("node_id", "group"),
    [
        ("tests/e2e/test_life.py::test_a_renewal", "journeys"),
        ("tests/e2e/test_fuzz.py::test_requests", "adversities"),
        ("tests/faults/test_outages.py::test_a_stopped_dependency[api]", "adversities"),
        ("tests/contracts/cluster/test_control_plane.py::test_it", "control-plane"),
        ("tests/activities/test_cluster.py::test_it[control_plane]", "control-plane"),
        ("tests/activities/test_cluster.py::test_it[cpu-control_plane-2]", "control-plane"),
        ("tests/activities/test_cluster.py::test_it[simulated]", None),
        ("tests/faults/test_kills.py::test_kills", "journeys"),
        ("tests/faults/test_worker_process.py::test_it", None),
    ],
)
def test_groups_are_found_by_the_id(node_id: str, group: str | None) -> None:
    assert group_of(node_id) == group


def test_groups_begin_first_then_the_longest_tests() -> None:
    ids = [
        "tests/api/test_tokens.py::test_b",
        "tests/bench/test_bench_runs.py::test_it",
        "tests/api/test_tokens.py::test_a",
        "tests/e2e/test_life.py::test_life",
    ]
    assert sorted(ids, key=rank) == [ids[3], ids[1], ids[0], ids[2]]
