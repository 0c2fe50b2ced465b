"""The backlog of the outbox is counted without its scheduled reminders."""

from __future__ import annotations

from sqlalchemy import text

from db.queries import outbox_delivery
from tests.support.databases import DatabaseFixture
from tests.support.notification_fixture import NotificationFixture
from workflows.rules.notifications import CHANNEL_EMAIL, LIMITS


async def test_the_backlog_reads_no_reminder_of_a_later_day(database: DatabaseFixture) -> None:
    notifications = NotificationFixture(database, smtp_port=0)
    await notifications.enqueue(*(notifications.build_notification(str(number)) for number in range(500)))
    notifications.execute(
        "UPDATE notifications SET scheduled_for = now() + interval '7 days',"
        " next_attempt_at = now() + interval '7 days' WHERE dedup_key <> '0'"
    )
    notifications.execute(
        "UPDATE notifications SET next_attempt_at = now() + %s WHERE dedup_key = '0'", LIMITS.maximum_interval
    )
    notifications.execute("ANALYZE notifications")
    parameters = {"channel": CHANNEL_EMAIL, "longest_delay": LIMITS.maximum_interval.total_seconds()}
    async with notifications.sessions() as session:
        waiting, _ = await outbox_delivery.pending_backlog(session, CHANNEL_EMAIL)
        explain = text(f"EXPLAIN (ANALYZE) {outbox_delivery.PENDING_BACKLOG.text}")
        plan = "\n".join(await session.scalars(explain, parameters))
    assert waiting == 1
    assert "Rows Removed by Filter" not in plan
