"""The timeline of a subscription says that a mail was sent once it was sent, and when."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from deploy.local.mailbox import Mailbox
from tests.support.billing_commands import top_up
from tests.support.billing_fixture import ORGANIZATION, BillingFixture, OpenedSubscription
from tests.support.databases import DatabaseFixture
from tests.support.notification_fixture import RECIPIENT, NotificationFixture
from workflows.rules.notifications import LIMITS


@pytest.fixture
def notifications(billing: BillingFixture, database: DatabaseFixture, mailbox: Mailbox) -> NotificationFixture:
    """The dispatcher of the organization that ``billing`` has created."""
    fixture = NotificationFixture(database, mailbox.smtp_port)
    fixture.organization = ORGANIZATION
    fixture.insert_user(RECIPIENT)
    return fixture


async def sent_events(billing: BillingFixture, ordered: OpenedSubscription) -> list[Mapping[str, Any]]:
    return await billing.query(
        "SELECT t.occurred_at - n.occurred_at AS delay, t.message, n.kind, n.status FROM timeline_events t"
        " JOIN notifications n ON n.id = t.reference_id WHERE t.subscription_id = :id AND t.kind = 'notification.sent'",
        id=ordered.id,
    )


async def test_a_mail_is_on_the_timeline_once_it_is_sent(
    billing: BillingFixture, notifications: NotificationFixture, mailbox: Mailbox
) -> None:
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription()
    assert await sent_events(billing, ordered) == []
    # For 2 hours the mail server was unavailable.
    notifications.execute(
        "UPDATE notifications SET available_at = now() - interval '2 hours' WHERE scheduled_for IS NULL"
    )
    await notifications.drain()
    events = await sent_events(billing, ordered)
    subjects = {message["subject"] for message in await mailbox.messages()}
    assert {event["message"] for event in events} == {f"Mail sent: {subject}." for subject in subjects}
    assert sorted(event["kind"] for event in events) == ["service_ready", "subscription_created"]
    for event in events:
        assert event["status"] == "sent"
        assert timedelta(hours=2) <= event["delay"] < timedelta(hours=3)
    notifications.make_all_due()
    await notifications.drain()
    assert (
        len([event for event in await sent_events(billing, ordered) if event["kind"] != "subscription_expiring"]) == 2
    )


async def test_a_mail_that_no_server_accepts_is_never_on_the_timeline(
    billing: BillingFixture, notifications: NotificationFixture, mailbox: Mailbox
) -> None:
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription()
    notifications.execute("DELETE FROM notifications WHERE scheduled_for IS NOT NULL")
    mailbox.faults.add({"fault": "reject"})
    for _ in range(LIMITS.maximum_rejections):
        await notifications.drain()
        notifications.make_all_due()
    assert {row["status"] for row in notifications.rows()} == {"failed"}
    assert await sent_events(billing, ordered) == []
