"""The gate over recorded histories finds changed commands and missing recordings, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.checks import histories
from tests.support import history_recording

SOURCE = '''
"""A workflow."""
from workflows import policies

class Reminder:
    async def run(self, order):
        """Remind."""
        # twice
        await workflow.sleep(5)
        await self._notify(order)
'''


def fingerprint_of(source: str) -> str:
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
def test_comments_docstrings_and_layout_do_not_change_the_fingerprint(before: str, after: str) -> None:
    assert before in SOURCE
    assert fingerprint_of(SOURCE.replace(before, after)) == fingerprint_of(SOURCE)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("sleep(5)", "sleep(6)"),
        (
            "        await workflow.sleep(5)\n        await self._notify(order)",
            "        await self._notify(order)\n        await workflow.sleep(5)",
        ),
        ("await self._notify(order)", "if workflow.patched('notify'):\n            await self._notify(order)"),
    ],
)
def test_changed_statements_change_the_fingerprint(before: str, after: str) -> None:
    assert before in SOURCE
    assert fingerprint_of(SOURCE.replace(before, after)) != fingerprint_of(SOURCE)


def test_sources_of_a_workflow_include_the_modules_that_it_imports_and_no_others() -> None:
    by_name = {histories.type_name(kind): set(histories.sources(kind)) for kind in histories.all_workflows()}
    assert {
        "workflows.subscription.workflow",
        "workflows.subscription.billing_cycle",
        "workflows.subscription.instance_reconciler",
    } <= by_name["Subscription"]
    assert by_name["InvoiceRendering"] == {"workflows.invoice_rendering"}


def test_a_missing_and_a_changed_recording_are_named() -> None:
    recorded_fingerprints = {"Payment": "1", "Refund": "1"}
    now = {"Payment": "1", "Refund": "2", "WalletAdjustment": "1"}
    messages = histories.find_stale_workflows(
        recorded_fingerprints, now, [Path("0.1.0/Payment-top-up.json"), Path("0.1.0/Refund-followed.json")]
    )
    assert [line.partition(":")[0] for line in messages] == ["WalletAdjustment", "Refund"]


def test_every_workflow_has_a_recipe() -> None:
    kinds = {histories.type_name(kind) for kind in histories.all_workflows()}
    assert {name.partition("-")[0] for name in history_recording.RECIPES} == kinds


def test_recordings_hold_no_identity_or_path_of_the_machine() -> None:
    scrubbed = history_recording.redact_history(
        {"identity": "4711@builder.local", "failure": {"message": "no", "stackTrace": "File /home/x"}, "n": [1, "a"]}
    )
    assert scrubbed == {"identity": "recorder", "failure": {"message": "no"}, "n": [1, "a"]}


async def test_a_history_with_another_activity_does_not_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first activity of the recorded run is replaced, so that the current code issues another command."""
    (recorded_path,) = histories.HISTORIES.glob("*/InvoiceRendering-rendered.json")
    monkeypatch.setattr(histories, "HISTORIES", tmp_path)
    same, other = tmp_path / "InvoiceRendering-same.json", tmp_path / "InvoiceRendering-other.json"
    same.write_text(recorded_path.read_text())
    history = json.loads(recorded_path.read_text())
    for event in history["events"]:
        if "activityTaskScheduledEventAttributes" in event:
            event["activityTaskScheduledEventAttributes"]["activityType"]["name"] = "documents.burn"
    other.write_text(json.dumps(history))
    assert set(await histories.find_replay_failures([same, other])) == {other.name}
