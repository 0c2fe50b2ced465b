"""Renewal reminders: scheduled with the period, loaded when sent, voided when their reason is gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import text

from activities.mail_rendering import MailRenderer, Recipient
from db.session import session_factory
from tests.support.billing_commands import (
    collect_command,
    payment_failure_command,
    plan_change_command,
    start_first_period_with_card,
)
from tests.support.billing_fixture import (
    BillingFixture,
    OpenedSubscription,
    create_billing_fixture,
    credit_wallet,
    insert_payment_method,
)
from tests.support.databases import DatabaseFixture
from workflows.ports.billing import ApplyPlanChange
from workflows.ports.subscription import ChangeStatus, ReleaseReminders, SetCancelAtPeriodEnd
from workflows.rules.funding import CollectionMethod
from workflows.rules.money import Money
from workflows.rules.proration import PlanChangeMode
from workflows.rules.subscription import SubscriptionStatus

DAY = timedelta(days=1)
RECIPIENT = Recipient(name="Ada", organization_name="Test", timezone="UTC")


@pytest_asyncio.fixture
async def billing(database: DatabaseFixture) -> BillingFixture:
    return await create_billing_fixture(database)


async def fund(billing: BillingFixture, amount_minor: int) -> None:
    await credit_wallet(billing.sessions, Money(amount_minor=amount_minor, currency="USD"))


async def reminders(billing: BillingFixture, subscription_id: str) -> list[Mapping[str, Any]]:
    return await billing.query(
        "SELECT *, next_attempt_at <= now() AS is_due, extract(epoch FROM next_attempt_at - now()) AS seconds"
        " FROM notifications WHERE subscription_id = :id AND kind = 'subscription_expiring' ORDER BY scheduled_for",
        id=subscription_id,
    )


async def release(billing: BillingFixture, ordered: OpenedSubscription, now: datetime) -> None:
    await billing.subscription_activities.release_reminders(ReleaseReminders(subscription_id=ordered.id, now=now))


async def released_mail(billing: BillingFixture, ordered: OpenedSubscription, days_before: int) -> str:
    """Release what is due ``days_before`` the period's end and return the text of the newest reminder."""
    await release(billing, ordered, ordered.period.end - days_before * DAY)
    row = [row for row in await reminders(billing, ordered.id) if row["is_due"] and row["status"] == "pending"][-1]
    mail = MailRenderer(public_url="https://berth.example").render(row["kind"], row["template_context"], RECIPIENT)
    return f"{mail.subject}\n{mail.text}"


async def schedule_plan_change(billing: BillingFixture, ordered: OpenedSubscription, plan: str) -> None:
    await billing.billing_activities.change_plan(
        ApplyPlanChange(
            subscription_id=ordered.id,
            plan_change_id="change",
            plan_id=f"pln_{plan}",
            mode=PlanChangeMode.PERIOD_END,
            actor="usr_test",
            now=ordered.period.start + DAY,
        )
    )


def status_command(ordered: OpenedSubscription, status: SubscriptionStatus, now: datetime) -> ChangeStatus:
    return ChangeStatus(
        subscription_id=ordered.id,
        status=status,
        reason="test",
        actor="usr_test",
        data_deletion_at=None,
        void_invoice=False,
        now=now,
    )


async def test_a_period_schedules_its_reminders_at_their_distance_on_the_database_clock(
    billing: BillingFixture,
) -> None:
    await fund(billing, 500)
    ordered = await billing.create_active_subscription()
    rows = await reminders(billing, ordered.id)
    assert [row["scheduled_for"] for row in rows] == [ordered.period.end - days * DAY for days in (7, 3, 1)]
    length = (ordered.period.end - ordered.period.start).total_seconds()
    for row, days in zip(rows, (7, 3, 1), strict=True):
        assert float(row["seconds"]) == pytest.approx(length - days * 86400, abs=60)
        assert (row["status"], row["requires_render"]) == ("pending", True)


async def test_a_reminder_names_the_scheduled_plan_and_its_price(billing: BillingFixture) -> None:
    """A customer with 5 dollars and a scheduled change to a plan for 20 is asked to top up."""
    await fund(billing, 1000)
    ordered = await billing.create_active_subscription()
    before = await released_mail(billing, ordered, 7)
    assert "US$5.00" in before
    assert "No action is required" in before
    await schedule_plan_change(billing, ordered, "pro")
    after = await released_mail(billing, ordered, 3)
    assert "please top up" in after
    assert "US$20.00" in after
    assert "from starter to pro" in " ".join(after.split()).lower()
    assert "No action" not in after
    await insert_payment_method(billing.sessions)
    with_card = await released_mail(billing, ordered, 1)
    assert "ending in 4242" in with_card
    assert "US$20.00" in with_card


async def test_a_reminder_names_the_source_that_is_charged_first(billing: BillingFixture) -> None:
    """With ``card`` the card pays the renewal, whatever the wallet holds."""
    await fund(billing, 5000)
    ordered = await billing.create_active_subscription(collection_method=CollectionMethod.CARD)
    await insert_payment_method(billing.sessions)
    mail = await released_mail(billing, ordered, 1)
    assert "Your card ending in 4242 is charged" in mail
    assert "wallet is charged first" not in mail


async def test_the_scheduled_price_is_the_one_in_force_when_the_change_was_scheduled(
    billing: BillingFixture, database: DatabaseFixture
) -> None:
    await fund(billing, 500)
    ordered = await billing.create_active_subscription()
    await schedule_plan_change(billing, ordered, "pro")
    later = ordered.period.start + 2 * DAY
    await _insert_price(database, "pln_pro", 9900, later)
    assert "US$20.00" in await released_mail(billing, ordered, 1)


async def test_a_cancellation_at_the_period_end_is_reported(billing: BillingFixture) -> None:
    await fund(billing, 500)
    ordered = await billing.create_active_subscription()
    await billing.subscription_activities.set_cancel_at_period_end(
        SetCancelAtPeriodEnd(
            subscription_id=ordered.id,
            cancel_at_period_end=True,
            pending_plan_id=None,
            reason="customer",
            actor="usr_test",
            now=ordered.period.start + DAY,
        )
    )
    mail = await released_mail(billing, ordered, 7)
    assert "ends in 7 days" in mail
    assert "Amount due" not in mail


@pytest.mark.parametrize("status", [SubscriptionStatus.CANCELLED, SubscriptionStatus.PAUSED])
async def test_cancel_and_pause_void_what_is_not_due_yet(billing: BillingFixture, status: SubscriptionStatus) -> None:
    await fund(billing, 500)
    ordered = await billing.create_active_subscription()
    now = ordered.period.end - 5 * DAY
    await release(billing, ordered, now)
    await billing.assert_idempotent(billing.subscription_activities.change_status, status_command(ordered, status, now))
    assert [row["status"] for row in await reminders(billing, ordered.id)] == ["pending", "voided", "voided"]


async def test_a_failed_renewal_leaves_no_reminder_and_a_late_payment_schedules_them(billing: BillingFixture) -> None:
    ordered, outcome = await billing.create_past_due_subscription()
    assert len(await reminders(billing, ordered.id)) == 3, "those of the paid period"
    await fund(billing, 500)
    paid = await billing.billing_activities.collect_invoice(collect_command(ordered, outcome))
    assert paid.state.status is SubscriptionStatus.ACTIVE
    rows = await reminders(billing, ordered.id)
    (subscription,) = await billing.query("SELECT current_period_end AS period_end FROM subscriptions")
    assert [row["scheduled_for"] for row in rows[3:]] == [subscription["period_end"] - days * DAY for days in (7, 3, 1)]


async def test_a_first_period_that_its_card_does_not_pay_leaves_no_reminder(billing: BillingFixture) -> None:
    await insert_payment_method(billing.sessions)
    ordered, outcome = await start_first_period_with_card(billing)
    assert [row["status"] for row in await reminders(billing, ordered.id)] == ["pending"] * 3
    failure = replace(payment_failure_command(ordered, outcome), now=ordered.period.start)
    failed = await billing.billing_activities.record_payment_failure(failure)
    assert failed.state.status is SubscriptionStatus.PAST_DUE
    assert [row["status"] for row in await reminders(billing, ordered.id)] == ["voided"] * 3


async def test_a_change_of_the_interval_replaces_the_reminders_by_those_of_the_new_period(
    billing: BillingFixture,
) -> None:
    await fund(billing, 20_500)
    ordered = await billing.create_active_subscription()
    changed = await billing.billing_activities.change_plan(plan_change_command(ordered, "pro-yearly"))
    assert changed.is_new_anchor
    rows = [row for row in await reminders(billing, ordered.id) if row["status"] == "pending"]
    assert changed.state.period_end is not None
    assert [row["scheduled_for"] for row in rows] == [changed.state.period_end - days * DAY for days in (7, 3, 1)]


@pytest.mark.parametrize(("months_after", "is_warned"), [(-1, True), (0, False)])
async def test_a_card_that_expires_before_the_renewal_is_reported(
    billing: BillingFixture, months_after: int, is_warned: bool
) -> None:
    """A card is valid until the end of its month. The mail said "No action is required" of an expired one."""
    await fund(billing, 500)
    ordered = await billing.create_active_subscription()
    await insert_payment_method(billing.sessions)
    months = 12 * ordered.period.end.year + ordered.period.end.month - 1 + months_after
    await billing.execute(f"UPDATE payment_methods SET exp_year = {months // 12}, exp_month = {months % 12 + 1}")
    mail = " ".join((await released_mail(billing, ordered, 1)).split())
    assert ("expires before then: save another one" in mail) is is_warned
    assert ("No action is required" in mail) is not is_warned


async def test_a_reminder_that_was_not_voided_is_voided_when_it_no_longer_applies(billing: BillingFixture) -> None:
    await fund(billing, 500)
    ordered = await billing.create_active_subscription()
    await billing.execute("UPDATE subscriptions SET current_period_end = current_period_end + interval '1 day'")
    await release(billing, ordered, ordered.period.end - 3 * DAY)
    assert [row["status"] for row in await reminders(billing, ordered.id)] == ["voided", "voided", "pending"]


async def test_a_release_is_idempotent_and_reschedules_the_later_ones(billing: BillingFixture) -> None:
    await fund(billing, 500)
    ordered = await billing.create_active_subscription()
    now = ordered.period.end - 5 * DAY
    await release(billing, ordered, now)
    first = await reminders(billing, ordered.id)
    await release(billing, ordered, now)
    second = await reminders(billing, ordered.id)
    assert [row["is_due"] for row in second] == [True, False, False]
    assert second[0]["available_at"] == first[0]["available_at"]
    assert float(second[1]["seconds"]) == pytest.approx(2 * 86400, abs=60)


async def test_a_renewal_and_its_retry_schedule_three_reminders(billing: BillingFixture) -> None:
    await fund(billing, 1000)
    ordered = await billing.create_active_subscription()
    await billing.assert_idempotent(billing.billing_activities.start_period, billing.start_period_command(ordered))
    rows = await reminders(billing, ordered.id)
    assert len({row["template_context"]["due_at"] for row in rows}) == 2
    assert len(rows) == 6


async def _insert_price(database: DatabaseFixture, plan_id: str, amount_minor: int, at: datetime) -> None:
    """Insert a price as the owner: the worker's role may not change the catalog."""
    async with session_factory(database.owner).begin() as session:
        await session.execute(
            text(
                "INSERT INTO prices (id, plan_id, currency, amount_minor, effective_from)"
                " VALUES ('prc_later', :plan, 'USD', :amount, :at)"
            ),
            {"plan": plan_id, "amount": amount_minor, "at": at},
        )
