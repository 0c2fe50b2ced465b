"""Each migration can be taken back on a database with rows, and applied again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sqlalchemy import text

from tests.support.databases import DatabaseFixture, migrate
from tests.support.inserts import insert_organization, insert_subscription

ROOT = Path(__file__).resolve().parents[2]

OLDEST_DOWNGRADE = "0009_notifications"

SAME_SERVICE = """
INSERT INTO subscriptions (id, organization_id, user_id, plan_id, price_id, service_id, status, currency, price_minor,
    timezone, workflow_id, created_at, updated_at, is_trial, trial_end)
SELECT id || :suffix, organization_id, user_id, plan_id, price_id, service_id, :status, currency, price_minor,
    timezone, workflow_id || :suffix, created_at, updated_at, true, CASE WHEN :started THEN created_at END
FROM subscriptions WHERE id = :id
"""


def downgrade(database: DatabaseFixture, revision: str) -> None:
    completed = subprocess.run(
        [sys.executable, "-m", "alembic", "downgrade", revision],
        cwd=ROOT,
        env={**os.environ, "BERTH_OWNER_DATABASE_URL": database.owner_url, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr[-2000:]


async def test_migrations_are_taken_back_and_applied_again_on_a_database_with_rows(database: DatabaseFixture) -> None:
    """An order that was cancelled before its trial began, and the trial that the organization then had."""
    subscription = await insert_subscription(database.owner, await insert_organization(database.owner))
    async with database.owner.begin() as connection:
        for suffix, status, started in (("-a", "cancelled", False), ("-b", "trialing", True)):
            values = {"id": subscription, "suffix": suffix, "status": status, "started": started}
            await connection.execute(text(SAME_SERVICE), values)
    downgrade(database, OLDEST_DOWNGRADE)
    migrate(database.owner_url)
    async with database.worker.connect() as connection:
        rows = await connection.execute(text("SELECT status, is_trial FROM subscriptions ORDER BY id"))
        assert [tuple(row) for row in rows] == [("active", False), ("cancelled", False), ("trialing", True)]
