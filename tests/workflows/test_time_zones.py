"""Workflow code computes no boundary in a time zone: zone data differs between workers and changes over the years."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from importlib import resources
from pathlib import Path

import pytest
from temporalio.worker import Replayer

import workflows
import workflows.rules.periods
from tests.support.databases import DatabaseFixture
from tests.support.subscription_fixture import run_subscription_fixture
from tests.support.temporal import TemporalFixture
from workflows.subscription.workflow import Subscription

ROOT = Path(str(workflows.__file__)).parent
ZONE_FREE = {"BillingPeriod", "Interval"}
"""Names of zone-aware rule modules that carry instants and compute none."""


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """Module and name of each import; the name is empty for a whole module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def zone_aware() -> set[str]:
    """Rule modules that compute in time zones, by themselves or through another."""
    rules = {f"workflows.rules.{path.stem}": set(imported(path)) for path in (ROOT / "rules").glob("*.py")}
    time_zone_modules = {name for name, imports in rules.items() if any(module == "zoneinfo" for module, _ in imports)}
    while True:
        more = {
            name
            for name, imports in rules.items()
            if name not in time_zone_modules
            and any(
                (module in time_zone_modules and each not in ZONE_FREE)
                or (module == "workflows.rules" and f"{module}.{each}" in time_zone_modules)
                for module, each in imports
            )
        }
        if not more:
            return time_zone_modules
        time_zone_modules |= more


def test_workflow_modules_call_nothing_that_computes_in_time_zones() -> None:
    aware = zone_aware()
    modules = sorted(path for path in ROOT.glob("*.py") if path.name != "time_zones.py")  # entry points call that one
    assert "workflows.rules.periods" in aware
    offences = [
        f"{path.name}: {module} {name}"
        for path in modules
        for module, name in imported(path)
        if module == "zoneinfo"
        or (module in aware and name not in ZONE_FREE | {""})
        or (module == "workflows.rules" and f"{module}.{name}" in aware)
    ]
    calls = [
        f"{path.name}:{node.lineno}: astimezone"
        for path in modules
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "astimezone"
    ]
    assert offences + calls == []


SCRIPT = """
import sys
from datetime import UTC, datetime
from unittest.mock import patch
from workflows.rules.periods import Interval, period_boundary

def shown(*_, **__):
    print(period_boundary(datetime(2027, 1, 31, 10, tzinfo=UTC), 2, Interval.MONTH, "Europe/Paris").isoformat())
    raise SystemExit(0)

module, first_step = sys.argv[1:]
if not module:
    shown()
with patch(f"{module}.{first_step}", shown):
    __import__(module, fromlist=["main"]).main()
"""


@pytest.mark.parametrize(
    ("module", "first_step"),
    [("worker.__main__", "load"), ("worker.cli", "parse_arguments"), ("api.__main__", "load_settings")],
)
def test_every_entry_point_uses_the_packaged_zones_whatever_the_machine_has(
    module: str, first_step: str, tmp_path: Path
) -> None:
    """The machine's Europe/Paris is UTC here: without the pin the boundary would be at 10:00 UTC."""
    (tmp_path / "Europe").mkdir()
    utc = resources.files("tzdata.zoneinfo").joinpath("UTC").read_bytes()
    (tmp_path / "Europe" / "Paris").write_bytes(utc)

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *arguments],
            cwd=ROOT.parent,
            env={**os.environ, "PYTHONTZPATH": str(tmp_path), "PYTHONPATH": str(ROOT.parent)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stdout, done.stderr
        return done.stdout.strip()

    assert run("", "") == "2027-03-31T10:00:00+00:00"
    assert run(module, first_step) == "2027-03-31T09:00:00+00:00"


async def test_a_history_replays_where_the_zone_has_other_boundaries(
    temporal: TemporalFixture, database: DatabaseFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run_subscription_fixture(temporal, database, timezone="Europe/Paris") as subscriptions:
        await subscriptions.top_up(50_000)
        subscription = await subscriptions.create_active_subscription("starter")
        await subscriptions.advance(subscription, timedelta(days=70))
        assert len(await subscriptions.invoices(subscription)) == 3
        history = await subscriptions.handle(subscription).fetch_history()
    right = workflows.rules.periods.period_boundary

    def moved(anchor: datetime, n: int, *more: object) -> datetime:
        return right(anchor, n, *more) + timedelta(hours=30 if n else 0)  # type: ignore[arg-type]

    monkeypatch.setattr(workflows.rules.periods, "period_boundary", moved)
    await Replayer(workflows=[Subscription]).replay_workflow(history)
