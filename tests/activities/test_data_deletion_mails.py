"""Mails name the day on which a cancelled subscription's data is deleted, from the context that the activity sends."""

from __future__ import annotations

from activities.mail_rendering import MailRenderer, Recipient
from tests.support.billing_commands import DAY, TEN_DAYS_AFTER_ORDER, change_status_command, top_up
from tests.support.billing_fixture import BillingFixture
from tests.support.notification_fixture import PUBLIC_URL
from workflows.rules.notifications import NotificationKind
from workflows.rules.subscription import SubscriptionStatus

DELETED_AT = TEN_DAYS_AFTER_ORDER + 30 * DAY
RECIPIENT = Recipient(name="Ada", organization_name="Example Ltd", timezone="UTC")


async def sent_text(billing: BillingFixture, kind: NotificationKind) -> str:
    """Return the text of the mail of this kind that waits in the outbox, on one line."""
    (row,) = await billing.query(f"SELECT template_context FROM notifications WHERE kind = '{kind}'")
    mail = MailRenderer(public_url=PUBLIC_URL).render(kind, row["template_context"], RECIPIENT)
    return " ".join(mail.text.replace("\u00a0", " ").split())


async def test_a_cancellation_and_the_removal_name_the_day(billing: BillingFixture) -> None:
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription()
    day = f"{DELETED_AT.day} {DELETED_AT:%B} {DELETED_AT.year}"
    for status in (SubscriptionStatus.CANCELLED, SubscriptionStatus.TERMINATED):
        await billing.subscription_activities.change_status(change_status_command(ordered, status))
    cancelled = await sent_text(billing, NotificationKind.SUBSCRIPTION_CANCELLED)
    assert f"Your data is retained until {day}" in cancelled
    assert f"Deleted on: {day}" in await sent_text(billing, NotificationKind.SUBSCRIPTION_TERMINATED)
