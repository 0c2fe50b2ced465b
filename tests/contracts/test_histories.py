"""The guard over recorded histories: it notices changed commands and forgotten recordings, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.checks import histories
from tests.support import recording

SOURCE = '''
"""A workflow."""
from workflows import policies

class Reminder:
    async def run(self, order):
        """Remind."""
        # twice
        await workflow.sleep(5)
        await self._tell(order)
'''


def of(source: str) -> str:
    return histories.fingerprint({"workflows.reminder": source})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"""A workflow."""', '"""A workflow that reminds."""'),
        ("# twice", "# once"),
        ("await workflow.sleep(5)", "await workflow.sleep(\n            5\n        )"),
        ("from workflows import policies", "from workflows import names, policies"),
    ],
)
def test_words_and_form_are_no_change(before: str, after: str) -> None:
    assert before in SOURCE
    assert of(SOURCE.replace(before, after)) == of(SOURCE)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("sleep(5)", "sleep(6)"),
        (
            "        await workflow.sleep(5)\n        await self._tell(order)",
            "        await self._tell(order)\n        await workflow.sleep(5)",
        ),
        ("await self._tell(order)", "if workflow.patched('tell'):\n            await self._tell(order)"),
    ],
)
def test_what_the_code_does_is_a_change(before: str, after: str) -> None:
    assert before in SOURCE
    assert of(SOURCE.replace(before, after)) != of(SOURCE)


def test_a_workflows_code_includes_its_helpers_and_no_more() -> None:
    by_name = {histories.type_name(kind): set(histories.sources(kind)) for kind in histories.all_workflows()}
    assert {"workflows.subscription", "workflows.billing_cycle", "workflows.convergence"} <= by_name["Subscription"]
    assert by_name["InvoiceDocument"] == {"workflows.document"}


def test_what_is_missing_or_changed_is_named() -> None:
    kept = {"Payment": "1", "Refund": "1"}
    now = {"Payment": "1", "Refund": "2", "Adjustment": "1"}
    said = histories.stale(kept, now, [Path("0.1.0/Payment-top-up.json"), Path("0.1.0/Refund-followed.json")])
    assert [line.partition(":")[0] for line in said] == ["Adjustment", "Refund"]


def test_every_workflow_has_a_recipe() -> None:
    kinds = {histories.type_name(kind) for kind in histories.all_workflows()}
    assert {name.partition("-")[0] for name in recording.RECIPES} == kinds


def test_recordings_hold_nothing_of_the_machine() -> None:
    scrubbed = recording.scrubbed(
        {"identity": "4711@builder.local", "failure": {"message": "no", "stackTrace": "File /home/x"}, "n": [1, "a"]}
    )
    assert scrubbed == {"identity": "recorder", "failure": {"message": "no"}, "n": [1, "a"]}


async def test_a_history_with_another_course_does_not_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorded run whose first activity was another one: today's code would ask for something else."""
    (kept,) = histories.HISTORIES.glob("*/InvoiceDocument-rendered.json")
    monkeypatch.setattr(histories, "HISTORIES", tmp_path)
    same, other = tmp_path / "InvoiceDocument-same.json", tmp_path / "InvoiceDocument-other.json"
    same.write_text(kept.read_text())
    history = json.loads(kept.read_text())
    for event in history["events"]:
        if "activityTaskScheduledEventAttributes" in event:
            event["activityTaskScheduledEventAttributes"]["activityType"]["name"] = "documents.burn"
    other.write_text(json.dumps(history))
    assert set(await histories.failures([same, other])) == {other.name}
