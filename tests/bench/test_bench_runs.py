"""The benchmark itself: it runs through, and what it writes is what the contract says. Its figures gate nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.results import Figure, Rule, percentile, table

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.stack
def test_a_tiny_run_writes_every_figure(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--quick", "--results", str(results)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=570,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = {one["name"]: one for one in json.loads(results.read_text())}
    assert all(
        {"name", "value", "unit", "reference", "ratio", "target", "held"} <= set(one) for one in figures.values()
    )
    assert all(one["value"] > 0 for one in figures.values())
    compared = [name for name, one in figures.items() if one["ratio"] is not None]
    assert {"orders taken to active per second", "order accepted, p50", "order accepted, p99"} <= set(compared)
    assert any(name.startswith("renewals per second") for name in compared)
    # Counted, not timed: these hold on any machine.
    assert figures["transactions of a renewal"]["value"] == 1
    assert figures["transactions of an order's request"]["held"] is True
    assert all(name in done.stdout for name in figures)


def test_a_figure_holds_what_its_rule_says() -> None:
    fast = Figure(name="a", value=8, unit="1/s", reference=10, rule=Rule.RATIO_AT_LEAST, target=0.6)
    slow = Figure(name="b", value=5, unit="1/s", reference=10, rule=Rule.RATIO_AT_LEAST, target=0.6)
    late = Figure(name="c", value=201, unit="ms", reference=10, rule=Rule.VALUE_AT_MOST, target=200)
    told = Figure(name="d", value=1, unit="")
    assert [one.held for one in (fast, slow, late, told)] == [True, False, False, None]
    assert (fast.ratio, told.ratio) == (0.8, None)
    shown = table([fast, slow, late, told]).splitlines()
    assert [line.split()[-1] for line in shown[1:4]] == ["held", "HELD", "HELD"]
    assert "NOT HELD" in shown[2]


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(value) for value in range(1, 201)]
    assert (percentile(values, 50), percentile(values, 99), percentile([7.0], 99)) == (100.0, 198.0, 7.0)
