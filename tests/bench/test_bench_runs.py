"""The benchmark itself: it runs through, and what it writes is what the contract says. Its figures gate nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.results import Figure, Rule, percentile, table

ROOT = Path(__file__).resolve().parents[2]


def _tiny_run(results: Path, *parts: str) -> tuple[dict[str, dict[str, Any]], str]:
    """Run parts of the benchmark with tiny sizes; return their figures by name, and what was printed."""
    only = [argument for part in parts for argument in ("--only", part)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--quick", *only, "--results", str(results)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=570,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {figure["name"]: figure for figure in json.loads(results.read_text())}, done.stdout


@pytest.mark.stack
def test_a_tiny_run_compares_year_old_and_evicted_subscriptions(tmp_path: Path) -> None:
    figures, _ = _tiny_run(tmp_path / "results.json", "aged")
    assert figures.keys() == {
        "renewals per second, new",
        "renewals per second, a year old",
        "renewals per second, new, evicted",
        "renewals per second, a year old, evicted",
    }
    assert all(figure["value"] > 0 and figure["ratio"] > 0 for figure in figures.values())


@pytest.mark.stack
def test_a_tiny_run_writes_every_figure(tmp_path: Path) -> None:
    figures, printed = _tiny_run(tmp_path / "results.json", "trips", "latency", "reads", "orders", "renewals")
    assert all(
        {"name", "value", "unit", "reference", "ratio", "target", "held"} <= set(figure) for figure in figures.values()
    )
    assert all(figure["value"] > 0 for figure in figures.values())
    compared = [name for name, figure in figures.items() if figure["ratio"] is not None]
    assert {"orders taken to active per second", "order accepted, p50", "order accepted, p99"} <= set(compared)
    assert any(name.startswith("renewals per second") for name in compared)
    # Counted, not timed: these hold on any machine.
    assert figures["transactions of a renewal"]["value"] == 1
    assert figures["transactions of an order's request"]["held"] is True
    assert all(name in printed for name in figures)


def test_a_figure_holds_what_its_rule_says() -> None:
    fast = Figure(name="a", value=8, unit="1/s", reference=10, rule=Rule.RATIO_AT_LEAST, target=0.6)
    slow = Figure(name="b", value=5, unit="1/s", reference=10, rule=Rule.RATIO_AT_LEAST, target=0.6)
    late = Figure(name="c", value=201, unit="ms", reference=10, rule=Rule.VALUE_AT_MOST, target=200)
    untargeted = Figure(name="d", value=1, unit="")
    assert [figure.held for figure in (fast, slow, late, untargeted)] == [True, False, False, None]
    assert (fast.ratio, untargeted.ratio) == (0.8, None)
    lines = table([fast, slow, late, untargeted]).splitlines()
    assert [line.split()[-1] for line in lines[1:4]] == ["held", "HELD", "HELD"]
    assert "NOT HELD" in lines[2]


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(value) for value in range(1, 201)]
    assert (percentile(values, 50), percentile(values, 99), percentile([7.0], 99)) == (100.0, 198.0, 7.0)
