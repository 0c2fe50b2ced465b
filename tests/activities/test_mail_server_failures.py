"""The outbox while the mail server is unavailable, stalls, defers or rejects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from deploy.local.mailbox import Mailbox
from deploy.ports import free_ports
from tests.support.databases import DatabaseFixture
from tests.support.notification_fixture import RECIPIENT, NotificationFixture
from workflows.ports.notifications import DrainOutcome
from workflows.rules.notifications import LIMITS


async def test_while_the_server_is_away_nothing_is_lost_and_no_attempt_counts(database: DatabaseFixture) -> None:
    (port,) = free_ports(1)
    notifications = NotificationFixture(database, port)
    notifications.insert_user(RECIPIENT)
    await notifications.enqueue(*(notifications.build_notification(f"fact {number}") for number in range(5)))
    notifications.shift_created_at(LIMITS.maximum_age * 2)
    for _ in range(LIMITS.maximum_rejections + 2):
        assert await notifications.drain() == DrainOutcome(sent=0, failures=0, server_unavailable=True)
    assert {(row["status"], row["attempts"], row["error"]) for row in notifications.rows()} == {("pending", 0, None)}
    async with Mailbox(smtp_port=port) as back:
        assert (await notifications.drain()).sent == 5
        assert len(await back.messages()) == 5


async def test_a_rejection_is_final_after_its_attempts(notifications: NotificationFixture, mailbox: Mailbox) -> None:
    mailbox.faults.add({"fault": "reject"})
    await notifications.enqueue(notifications.build_notification())
    for _ in range(LIMITS.maximum_rejections):
        assert notifications.get_notification()["status"] == "pending"
        await notifications.drain()
        notifications.make_all_due()
    assert (
        notifications.get_notification()["status"],
        notifications.get_notification()["error"],
        notifications.get_notification()["attempts"],
    ) == ("failed", "SMTP 550", 3)
    mailbox.faults.clear()
    assert (await notifications.drain()).sent == 0


def database_time(notifications: NotificationFixture) -> datetime:
    (row,) = notifications.rows("SELECT clock_timestamp() AS instant")
    instant: datetime = row["instant"]
    return instant


async def test_a_deferred_mail_waits_longer_each_time_and_arrives(
    notifications: NotificationFixture, mailbox: Mailbox
) -> None:
    mailbox.faults.add({"fault": "defer", "count": 5})
    await notifications.enqueue(notifications.build_notification())
    for seconds in (2, 4, 8, 16, 32):
        before = database_time(notifications)
        await notifications.drain()
        after = database_time(notifications)
        row = notifications.get_notification()
        assert (row["status"], row["error"]) == ("pending", "SMTP 451")
        # The delay counts from an instant within the attempt, however long that took.
        assert row["next_attempt_at"] - after <= timedelta(seconds=seconds) <= row["next_attempt_at"] - before
        assert (await notifications.drain()).failures == 0, "it is not due yet"
        notifications.make_all_due()
    assert (await notifications.drain()).sent == 1
    assert len(await mailbox.messages()) == 1


async def test_a_mail_that_is_deferred_for_days_fails_in_the_end(
    notifications: NotificationFixture, mailbox: Mailbox
) -> None:
    mailbox.faults.add({"fault": "defer"})
    await notifications.enqueue(notifications.build_notification())
    await notifications.drain()
    notifications.make_all_due()
    notifications.shift_created_at(LIMITS.maximum_age)
    await notifications.drain()
    assert (notifications.get_notification()["status"], notifications.get_notification()["error"]) == (
        "failed",
        "SMTP 451",
    )


@asynccontextmanager
async def stalling() -> AsyncIterator[int]:
    """A server that accepts connections and sends no greeting."""
    held: list[asyncio.StreamWriter] = []

    async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        for writer in held:
            writer.close()
        server.close()


async def test_a_server_that_stalls_is_away(notifications: NotificationFixture) -> None:
    await notifications.enqueue(notifications.build_notification())
    async with stalling() as port:
        assert (await notifications.drain(notifications.build_activities(port, timeout=0.3))).server_unavailable
    assert (notifications.get_notification()["status"], notifications.get_notification()["attempts"]) == ("pending", 0)
