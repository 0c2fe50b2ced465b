"""`berth simulate`: real lives, run as anybody runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from worker.simulate.events import Deed, Events, WrongEvents, after, instant_of

ROOT = Path(__file__).resolve().parents[2]
LEAP_START = datetime(2024, 1, 31, 22, 10, tzinfo=UTC)


def simulate(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command; everything that it makes for itself would have to be made in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "worker.cli", "simulate", *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def adds_up(story: dict[str, Any]) -> None:
    assert (story["ledger"]["unbalanced"], story["ledger"]["drift"]) == (0, 0)


@pytest.mark.stack
@pytest.mark.scenario("B1")
@pytest.mark.scenario("B2")
def test_a_life_that_began_on_a_january_31st_years_ago(tmp_path: Path) -> None:
    story = told(simulate(tmp_path, "--months", "14", "--start", LEAP_START.isoformat(), "--json"))
    starts = [invoice["period_start"] for invoice in story["invoices"]]
    days = ["2024-01-31", "2024-02-29", "2024-03-31", "2024-04-30", "2024-05-31", "2024-06-30", "2024-07-31"]
    days += ["2024-08-31", "2024-09-30", "2024-10-31", "2024-11-30", "2024-12-31", "2025-01-31", "2025-02-28"]
    assert starts == [f"{day}T22:10:00Z" for day in days]
    ends = [invoice["period_end"] for invoice in story["invoices"]]
    assert ends == [*starts[1:], "2025-03-31T22:10:00Z"]
    assert {(invoice["status"], invoice["total"]["amount_minor"]) for invoice in story["invoices"]} == {("paid", 1500)}
    numbers = [f"2024-{n:06}" for n in range(1, 13)] + ["2025-000001", "2025-000002"]
    assert [invoice["number"].removeprefix("BERTH-") for invoice in story["invoices"]] == numbers
    adds_up(story)
    assert story["ledger"]["wallet"] == {"amount_minor": 0, "currency": "USD"}
    assert (story["months"], story["subscription"]["status"], story["subscription"]["plan"]) == (
        14, "active", "n8n-starter",
    )  # fmt: skip
    kinds = [notice["kind"] for notice in story["notifications"]]
    assert kinds.count("subscription_renewed") == 13
    assert kinds.count("subscription_expiring") == 3 * 14
    first = next(notice for notice in story["notifications"] if notice["kind"] == "subscription_expiring")
    assert first["at"].startswith("2024-02-22T22:10")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.stack
def test_a_card_fails_recovers_and_the_story_ends(tmp_path: Path) -> None:
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
    story = told(simulate(own, *arguments))
    moves = [(change["at"][:10], change["to"]) for change in story["changes"]]
    assert moves == [
        ("2031-01-31", "provisioning"),
        ("2031-01-31", "active"),
        ("2031-02-28", "past_due"),
        ("2031-03-02", "active"),
        ("2031-03-31", "n8n-pro"),
        ("2031-04-20", "cancelled"),
        ("2031-05-20", "terminated"),
    ]
    assert [event["outcome"] for event in story["events"]] == ["done"] * 6 + ["ILLEGAL_MOVE"]
    periods = [invoice["period_start"][:10] for invoice in story["invoices"] if invoice["kind"] == "period"]
    assert periods == ["2031-01-31", "2031-02-28", "2031-03-31"]
    adds_up(story)
    assert list(own.iterdir()) == []


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({"at": "P1M", "do": "dance"}, "entry 2: `do` is one of"),
        ({"at": "1 month", "do": "cancel"}, "entry 2 ('cancel'): `at`"),
        ({"at": "P", "do": "cancel"}, "entry 2 ('cancel'): `at`"),
        ({"at": "P24M", "do": "cancel"}, "entry 2 ('cancel'): P24M lies beyond"),
        ({"at": "P1M", "do": "top_up"}, "entry 2 ('top_up'): needs amount_minor"),
        ({"at": "P1M", "do": "top_up", "amount_minor": 1.5}, "entry 2 ('top_up'): `amount_minor`"),
        ({"at": "P1M", "do": "top_up", "amount_minor": -5}, "entry 2 ('top_up'): `amount_minor`"),
        ({"at": "P1M", "do": "cancel", "when": "later"}, "entry 2 ('cancel'): `when`"),
        ({"at": "P1M", "do": "pause", "plan": "x"}, "entry 2 ('pause'): knows no plan"),
        ("pause", "entry 2: not an object"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, entry: object, complaint: str) -> None:
    path = tmp_path / "events.json"
    path.write_text(json.dumps([{"at": "P1D", "do": "pause"}, entry]))
    with pytest.raises(WrongEvents) as wrong:
        Events.read(path, LEAP_START, 24)
    assert complaint in str(wrong.value)


@pytest.mark.parametrize("content", ["", "{}", "[", "\x00"])
def test_a_file_that_is_no_list_of_events(tmp_path: Path, content: str) -> None:
    path = tmp_path / "events.json"
    path.write_text(content)
    with pytest.raises(WrongEvents, match=r"events\.json is not"):
        Events.read(path, LEAP_START, 24)


def test_durations_count_months_as_billing_does() -> None:
    assert after(LEAP_START, "P1M") == datetime(2024, 2, 29, 22, 10, tzinfo=UTC)
    assert after(LEAP_START, "P1Y1M1W2DT1H5M7S") == datetime(2025, 2, 28, 22, 10, tzinfo=UTC) + timedelta(
        weeks=1, days=2, hours=1, minutes=5, seconds=7
    )
    assert after(LEAP_START, "PT0S") == LEAP_START
    for wrong in ("P1", "PT", "P1M2", "P-1M", "P1MT", "1M", ""):
        with pytest.raises(ValueError):
            after(LEAP_START, wrong)


def test_events_of_one_instant_keep_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "events.json"
    entries = [("P2M", "cancel"), ("P1M", "pause"), ("P2M", "resume")]
    path.write_text(json.dumps([{"at": at, "do": do} for at, do in entries]))
    assert [event.do for event in Events.read(path, LEAP_START, 24).all] == [Deed.PAUSE, Deed.CANCEL, Deed.RESUME]


def test_starts_are_instants_with_an_offset_or_days() -> None:
    assert instant_of("2027-01-31") == datetime(2027, 1, 31, tzinfo=UTC)
    assert instant_of("2027-01-31T02:00:00+03:00") == datetime(2027, 1, 30, 23, tzinfo=UTC)
    for wrong in ("2027-01-31T02:00:00", "tomorrow", "2027-02-30"):
        with pytest.raises(ValueError):
            instant_of(wrong)


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
