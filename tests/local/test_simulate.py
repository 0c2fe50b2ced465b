"""`berth simulate`, run as a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from worker.simulate.events import EventAction, Events, InvalidEventsFile, add_duration, parse_instant

ROOT = Path(__file__).resolve().parents[2]
LEAP_START = datetime(2024, 1, 31, 22, 10, tzinfo=UTC)


def simulate(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command with `folder` as its directory for temporary files."""
    return subprocess.run(
        [sys.executable, "-m", "worker.cli", "simulate", *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def parse_result(completed: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert completed.returncode == 0, completed.stderr
    result: dict[str, Any] = json.loads(completed.stdout)
    return result


def assert_ledger_balanced(result: dict[str, Any]) -> None:
    assert (result["ledger"]["unbalanced"], result["ledger"]["drift"]) == (0, 0)


@pytest.mark.stack
@pytest.mark.scenario("B1")
@pytest.mark.scenario("B2")
def test_a_simulated_subscription_since_a_past_january_31(tmp_path: Path) -> None:
    result = parse_result(simulate(tmp_path, "--months", "14", "--start", LEAP_START.isoformat(), "--json"))
    starts = [invoice["period_start"] for invoice in result["invoices"]]
    days = ["2024-01-31", "2024-02-29", "2024-03-31", "2024-04-30", "2024-05-31", "2024-06-30", "2024-07-31"]
    days += ["2024-08-31", "2024-09-30", "2024-10-31", "2024-11-30", "2024-12-31", "2025-01-31", "2025-02-28"]
    assert starts == [f"{day}T22:10:00Z" for day in days]
    ends = [invoice["period_end"] for invoice in result["invoices"]]
    assert ends == [*starts[1:], "2025-03-31T22:10:00Z"]
    assert {(invoice["status"], invoice["total"]["amount_minor"]) for invoice in result["invoices"]} == {("paid", 1500)}
    numbers = [f"2024-{n:06}" for n in range(1, 13)] + ["2025-000001", "2025-000002"]
    assert [invoice["number"].removeprefix("BERTH-") for invoice in result["invoices"]] == numbers
    assert_ledger_balanced(result)
    assert result["ledger"]["wallet"] == {"amount_minor": 0, "currency": "USD"}
    assert (result["months"], result["subscription"]["status"], result["subscription"]["plan"]) == (
        14, "active", "n8n-starter",
    )  # fmt: skip
    kinds = [notification["kind"] for notification in result["notifications"]]
    assert kinds.count("subscription_renewed") == 13
    assert kinds.count("subscription_expiring") == 3 * 14
    first = next(
        notification for notification in result["notifications"] if notification["kind"] == "subscription_expiring"
    )
    assert first["at"].startswith("2024-02-22T22:10")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.stack
def test_a_simulated_subscription_with_a_failing_card_and_a_cancellation(tmp_path: Path) -> None:
    files, own = tmp_path / "files", tmp_path / "own"
    files.mkdir()
    own.mkdir()
    events = [
        {"at": "P10D", "do": "card_declines"},
        {"at": "P1M2DT6H", "do": "card_works"},
        {"at": "P2M", "do": "change_plan", "plan": "n8n-pro", "mode": "immediate"},
        {"at": "P2M10D", "do": "refund", "amount_minor": 700, "to": "wallet"},
        {"at": "P2M11D", "do": "top_up", "amount_minor": 2500},
        {"at": "P2M20D", "do": "cancel", "when": "now"},
        {"at": "P2M21D", "do": "pause"},
    ]
    (files / "events.json").write_text(json.dumps(events))
    arguments = ("--months", "5", "--start", "2031-01-31", "--events", str(files / "events.json"), "--json")
    result = parse_result(simulate(own, *arguments))
    moves = [(change["at"][:10], change["to"]) for change in result["changes"]]
    assert moves == [
        ("2031-01-31", "provisioning"),
        ("2031-01-31", "active"),
        ("2031-02-28", "past_due"),
        ("2031-03-02", "active"),
        ("2031-03-31", "n8n-pro"),
        ("2031-04-20", "cancelled"),
        ("2031-05-20", "terminated"),
    ]
    assert [event["outcome"] for event in result["events"]] == ["done"] * 6 + ["ILLEGAL_MOVE"]
    periods = [invoice["period_start"][:10] for invoice in result["invoices"] if invoice["kind"] == "period"]
    assert periods == ["2031-01-31", "2031-02-28", "2031-03-31"]
    assert_ledger_balanced(result)
    assert list(own.iterdir()) == []


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({"at": "P1M", "do": "dance"}, "entry 2: `do` is one of"),
        ({"at": "1 month", "do": "cancel"}, "entry 2 ('cancel'): `at`"),
        ({"at": "P", "do": "cancel"}, "entry 2 ('cancel'): `at`"),
        ({"at": "P24M", "do": "cancel"}, "entry 2 ('cancel'): `at` P24M is after the end"),
        ({"at": "P1M", "do": "top_up"}, "entry 2 ('top_up'): missing fields: amount_minor"),
        ({"at": "P1M", "do": "top_up", "amount_minor": 1.5}, "entry 2 ('top_up'): `amount_minor`"),
        ({"at": "P1M", "do": "top_up", "amount_minor": -5}, "entry 2 ('top_up'): `amount_minor`"),
        ({"at": "P1M", "do": "cancel", "when": "later"}, "entry 2 ('cancel'): `when`"),
        ({"at": "P1M", "do": "pause", "plan": "x"}, "entry 2 ('pause'): unknown fields: plan"),
        ("pause", "entry 2: not an object"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, entry: object, complaint: str) -> None:
    path = tmp_path / "events.json"
    path.write_text(json.dumps([{"at": "P1D", "do": "pause"}, entry]))
    with pytest.raises(InvalidEventsFile) as wrong:
        Events.read(path, LEAP_START, 24)
    assert complaint in str(wrong.value)


@pytest.mark.parametrize("content", ["", "{}", "[", "\x00"])
def test_a_file_that_is_no_list_of_events(tmp_path: Path, content: str) -> None:
    path = tmp_path / "events.json"
    path.write_text(content)
    with pytest.raises(InvalidEventsFile, match=r"events\.json is not"):
        Events.read(path, LEAP_START, 24)


def test_durations_count_months_as_billing_does() -> None:
    assert add_duration(LEAP_START, "P1M") == datetime(2024, 2, 29, 22, 10, tzinfo=UTC)
    assert add_duration(LEAP_START, "P1Y1M1W2DT1H5M7S") == datetime(2025, 2, 28, 22, 10, tzinfo=UTC) + timedelta(
        weeks=1, days=2, hours=1, minutes=5, seconds=7
    )
    assert add_duration(LEAP_START, "PT0S") == LEAP_START
    for wrong in ("P1", "PT", "P1M2", "P-1M", "P1MT", "1M", ""):
        with pytest.raises(ValueError):
            add_duration(LEAP_START, wrong)


def test_events_of_one_instant_keep_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "events.json"
    entries = [("P2M", "cancel"), ("P1M", "pause"), ("P2M", "resume")]
    path.write_text(json.dumps([{"at": at, "do": do} for at, do in entries]))
    assert [event.action for event in Events.read(path, LEAP_START, 24).events] == [
        EventAction.PAUSE,
        EventAction.CANCEL,
        EventAction.RESUME,
    ]


def test_starts_are_instants_with_an_offset_or_days() -> None:
    assert parse_instant("2027-01-31") == datetime(2027, 1, 31, tzinfo=UTC)
    assert parse_instant("2027-01-31T02:00:00+03:00") == datetime(2027, 1, 30, 23, tzinfo=UTC)
    for wrong in ("2027-01-31T02:00:00", "tomorrow", "2027-02-30"):
        with pytest.raises(ValueError):
            parse_instant(wrong)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--months", "0"], "--months"),
        (["--months", "3", "--start", "yesterday"], "--start"),
        (["--months", "3", "--start", "1999-01-01"], "--start"),
        (["--months", "3", "--events", "/nowhere/events.json"], "/nowhere/events.json cannot be read"),
    ],
)
def test_wrong_arguments_end_with_2(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    done = simulate(tmp_path, *arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stdout == ""
