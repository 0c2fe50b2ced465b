"""Mails and timeline of an amount that is too small to charge: it was not received, and is charged with the next."""

from __future__ import annotations

import pytest

from tests.activities.test_carried_debt import account_with_card, carried, set_minimum_charge  # noqa: F401 - fixtures
from tests.activities.test_data_deletion_mails import sent_text
from tests.support.billing_commands import collect, plan_change_command, top_up
from tests.support.billing_fixture import BillingFixture, OpenedSubscription
from workflows.rules.notifications import NotificationKind


async def messages(billing: BillingFixture, kind: str) -> list[str]:
    rows = await billing.query("SELECT message FROM timeline_events WHERE kind = :kind ORDER BY id", kind=kind)
    return [row["message"].replace("\u00a0", " ") for row in rows]


@pytest.mark.scenario("B13")
async def test_an_amount_that_is_carried_is_not_said_to_be_received(account_with_card: BillingFixture) -> None:  # noqa: F811
    billing = account_with_card
    await billing.execute("UPDATE coupons SET duration = 'forever'")
    ordered = await billing.create_active_subscription(coupon="SMALL")
    await billing.billing_activities.start_period(billing.start_period_command(ordered))
    assert await billing.balance("debt") == -40
    for kind in (NotificationKind.SERVICE_READY, NotificationKind.SUBSCRIPTION_RENEWED):
        text = await sent_text(billing, kind)
        assert "Added to the next payment: US$0.20" in text
        assert not any(word in text for word in ("We received", "Charged:", "Paid:"))
    assert "US$0.20 of it is below the minimum" in await sent_text(billing, NotificationKind.SUBSCRIPTION_CREATED)
    assert await messages(billing, "payment.authorized") == []


@pytest.mark.scenario("B13")
async def test_an_order_names_what_is_reserved_and_what_is_carried(account_with_card: BillingFixture) -> None:  # noqa: F811
    billing = account_with_card
    await top_up(billing, 15)
    await billing.create_active_subscription(coupon="SMALL")
    assert await messages(billing, "payment.authorized") == ["US$0.15 reserved for the first period."]
    ready = await sent_text(billing, NotificationKind.SERVICE_READY)
    assert "Charged: US$0.15" in ready
    assert "Added to the next payment: US$0.05" in ready


@pytest.mark.scenario("B13")
async def test_a_recovery_names_what_is_paid_and_what_is_carried(account_with_card: BillingFixture) -> None:  # noqa: F811
    billing = account_with_card
    await billing.execute("UPDATE coupons SET duration = 'forever'")
    ordered = await billing.create_active_subscription(coupon="SMALL")
    await billing.execute("UPDATE payment_methods SET detached_at = created_at")
    await billing.billing_activities.start_period(billing.start_period_command(ordered))
    await billing.execute("UPDATE payment_methods SET detached_at = NULL")
    await top_up(billing, 5)
    assert (await collect(billing, ordered)).paid
    recovered = await sent_text(billing, NotificationKind.SUBSCRIPTION_RECOVERED)
    assert "We received US$0.05." in recovered
    assert "Added to the next payment: US$0.15" in recovered


@pytest.mark.scenario("B13")
async def test_a_plan_change_names_what_is_charged_and_what_is_carried(account_with_card: BillingFixture) -> None:  # noqa: F811
    billing = account_with_card
    await top_up(billing, 600)
    ordered = await billing.create_active_subscription()
    set_minimum_charge(billing, 5_000)
    changed = await billing.billing_activities.change_plan(plan_change_command(ordered, "pro"))
    assert changed.card_charge is None
    assert await billing.balance("debt") == -916
    text = await sent_text(billing, NotificationKind.PLAN_CHANGED)
    assert "Charged now: US$1.00" in text
    assert "Added to the next payment: US$9.16" in text


@pytest.mark.scenario("B13")
async def test_an_order_names_the_debt_that_its_card_is_charged_for(
    account_with_card: BillingFixture,  # noqa: F811
    carried: OpenedSubscription,  # noqa: F811
) -> None:
    billing, command = account_with_card, account_with_card.create_command()
    opened = await billing.subscription_activities.record_order(command)
    assert opened.card_charge is not None
    assert opened.card_charge.amount.amount_minor == 520
    (row,) = await billing.query(
        "SELECT template_context -> 'carried_debt' AS debt FROM notifications WHERE kind = 'subscription_created'"
        " AND template_context ->> 'subscription_id' = :id",
        id=command.order.subscription_id,
    )
    assert row["debt"] == {"amount_minor": 20, "currency": "USD"}
