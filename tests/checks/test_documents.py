"""The documents name activities and files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from workflows.rules import webhook_events

ROOT = Path(__file__).resolve().parents[2]
READMES = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "README.md", *ROOT.glob("[!.]*/**/README.md"))
    if "site-packages" not in path.parts
)
FILE = re.compile(r"`([\w./-]+\.(?:py|j2|yaml|toml|sh|html))`")


def test_the_activities_in_the_readme_exist() -> None:
    ports = "".join(path.read_text() for path in (ROOT / "workflows" / "ports").glob("*.py"))
    activities = set(re.findall(r'activity\.defn\(name="([^"]+)"', ports))
    prefixes = {name.partition(".")[0] for name in activities}
    named = set(re.findall(rf"\b(?:{'|'.join(prefixes)})\.[a-z_]+\b", (ROOT / "README.md").read_text()))
    assert named, "the picture of the main job names activities"
    assert named <= activities


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_the_files_that_a_readme_names_exist(readme: Path) -> None:
    named = FILE.findall((ROOT / readme).read_text())
    folders = (ROOT, (ROOT / readme).parent)
    existing = {path.name for folder in ROOT.glob("[!.]*") if folder.is_dir() for path in folder.rglob("*.*")}
    missing = [
        name
        for name in named
        if not any((folder / name).exists() for folder in folders) and ("/" in name or name not in existing)
    ]
    assert missing == []


def test_the_readme_lists_the_webhooks_that_are_handled() -> None:
    text = (ROOT / "README.md").read_text()
    assert set(re.findall(r"`(payment_intent\.[a-z_]+)`", text)) == set(webhook_events._STRIPE_STATUSES)
    assert set(re.findall(r"`(payment\.[a-z_]+)`", text)) == set(webhook_events._RAZORPAY_STATUSES)
    listed = re.search(r"`transaction_status` ([^.]+)\.", text)
    assert listed is not None
    # Whether a capture is paid depends on the fraud check as well.
    assert set(re.findall(r"`([a-z]+)`", listed[1])) == {"capture", *webhook_events._MIDTRANS_STATUSES}
