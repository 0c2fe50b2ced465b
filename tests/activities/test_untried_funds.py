"""Which credit and which payment methods a restarted workflow tries."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from activities.payment_methods import GatewayPaymentMethodActivities
from tests.support import billing_commands
from tests.support.billing_commands import (
    DAY,
    collect_command,
    create_past_due_subscriptions,
    payment_failure_command,
    start_first_period_with_card,
    top_up,
    usd,
)
from tests.support.billing_fixture import ORGANIZATION, USER, BillingFixture, insert_payment_method
from tests.support.payment_fixture import run_activity
from tests.support.recovery_rows import insert_payment, recovery_activities
from workflows.ports.payments import DetachPaymentMethod, RemovePaymentMethod
from workflows.ports.recovery import LoadRecovery


@pytest.mark.parametrize("is_offered", [True, False])
@pytest.mark.parametrize("is_tried", [True, False])
async def test_a_payment_method_is_untried_until_a_payment_follows_its_offer(
    billing: BillingFixture, is_offered: bool, is_tried: bool
) -> None:
    ordered, _ = await billing.create_past_due_subscription()
    method = await insert_payment_method(billing.sessions)
    if is_offered:
        await billing.execute("UPDATE payment_methods SET offered_at = now() - interval '1 hour'")
    gateway_requested_at = datetime.now(UTC) - (timedelta() if is_tried else 2 * timedelta(hours=1))
    await insert_payment(
        billing, ordered.id, 500, status="failed", payment_method_id=method, gateway_requested_at=gateway_requested_at
    )
    loaded = await recovery_activities(billing).load(LoadRecovery(subscription_id=ordered.id))
    assert loaded.has_untried_payment_method is (is_offered and not is_tried)
    await billing.execute("UPDATE payment_methods SET is_default = false, detached_at = now()")
    loaded = await recovery_activities(billing).load(LoadRecovery(subscription_id=ordered.id))
    assert not loaded.has_untried_payment_method


@pytest.mark.parametrize("is_tried", [True, False])
async def test_a_backup_is_untried_from_its_promotion_until_a_payment_follows(
    billing: BillingFixture, is_tried: bool
) -> None:
    ordered, _ = await billing.create_past_due_subscription()
    default = await insert_payment_method(billing.sessions)
    await insert_payment_method(billing.sessions, default=False, charge_order=1)
    await billing.execute("UPDATE payment_methods SET offered_at = now() - interval '1 hour'")
    await insert_payment(billing, ordered.id, 500, status="failed", gateway_requested_at=datetime.now(UTC))
    command = RemovePaymentMethod(payment_method_id=default, organization_id=ORGANIZATION, actor=USER)
    removal = DetachPaymentMethod(command=command, now=ordered.period.end)
    await run_activity(GatewayPaymentMethodActivities(billing.sessions, {}).remove, removal)
    if is_tried:
        await insert_payment(
            billing,
            ordered.id,
            500,
            id="pay_2",
            idempotency_key="pay_2:1",
            status="failed",
            gateway_requested_at=datetime.now(UTC),
        )
    loaded = await recovery_activities(billing).load(LoadRecovery(subscription_id=ordered.id))
    assert (loaded.has_untried_payment_method, loaded.has_promoted_payment_method) == (False, not is_tried)


@pytest.mark.parametrize("later", [0, 200])
async def test_credit_for_the_invoice_of_an_order_is_untried_only_if_it_came_after_the_last_charge(
    billing: BillingFixture, later: int
) -> None:
    await insert_payment_method(billing.sessions)
    ordered, opened = await start_first_period_with_card(billing)
    declined = payment_failure_command(ordered, opened)
    await billing.billing_activities.record_payment_failure(declined)
    await top_up(billing, 100)
    collected = await billing.billing_activities.collect_invoice(collect_command(ordered, opened))
    assert collected.card_charge is not None
    assert collected.card_charge.amount == usd(400)
    await billing.billing_activities.record_payment_failure(replace(declined, payment_id="pay_2"))
    if later:
        await top_up(billing, later)
    loaded = await recovery_activities(billing).load(LoadRecovery(subscription_id=ordered.id))
    assert loaded.has_untried_credit is bool(later)


@pytest.mark.parametrize(("credit", "is_untried"), [(500, False), (700, True)])
async def test_credit_that_pays_an_older_debt_is_no_untried_credit_of_a_younger_one(
    billing: BillingFixture, credit: int, is_untried: bool
) -> None:
    older, younger = await create_past_due_subscriptions(billing, "starter", "pro")
    await insert_payment_method(billing.sessions)
    charged = await billing_commands.collect(billing, younger)
    await billing.billing_activities.record_payment_failure(payment_failure_command(younger, charged))
    await top_up(billing, credit)
    loaded = await recovery_activities(billing).load(LoadRecovery(subscription_id=younger.id))
    assert loaded.has_untried_credit is is_untried
    # The older one is paid by it without a card.
    assert not (await recovery_activities(billing).load(LoadRecovery(subscription_id=older.id))).has_untried_credit


async def test_credit_is_not_tried_beside_a_card_that_was_declined_for_good(billing: BillingFixture) -> None:
    card = await insert_payment_method(billing.sessions)
    ordered, opened = await start_first_period_with_card(billing)
    columns = {"purpose": "order", "status": "failed", "decline_code": "stolen_card", "payment_method_id": card}
    await insert_payment(billing, ordered.id, 500, **columns)
    await billing.billing_activities.record_payment_failure(payment_failure_command(ordered, opened))
    await top_up(billing, 100)
    loaded = await recovery_activities(billing).load(LoadRecovery(subscription_id=ordered.id))
    assert (loaded.hard_declined, loaded.has_untried_credit) == (True, False)


async def test_credit_that_the_last_attempt_held_is_not_new(billing: BillingFixture) -> None:
    ordered, _ = await billing.create_past_due_subscription()
    await insert_payment_method(billing.sessions)
    first = await billing_commands.collect(billing, ordered)
    await billing.billing_activities.record_payment_failure(payment_failure_command(ordered, first))
    await top_up(billing, 100)
    next_day = replace(collect_command(ordered, first), now=ordered.period.end + 6 * DAY)
    last = await billing.billing_activities.collect_invoice(next_day)
    assert [attempt.card_charge.amount for attempt in (first, last) if attempt.card_charge] == [usd(500), usd(400)]

    async def has_untried_credit() -> bool:
        return (await recovery_activities(billing).load(LoadRecovery(subscription_id=ordered.id))).has_untried_credit

    # While its payment is not recorded its hold is open, and more credit counts beside it.
    assert not await has_untried_credit()
    await top_up(billing, 50)
    assert await has_untried_credit()
    declined = replace(payment_failure_command(ordered, last), payment_id="pay_2")
    await billing.billing_activities.record_payment_failure(declined)
    assert await has_untried_credit()


@pytest.mark.scenario("B42")
async def test_the_invoice_of_an_order_remembers_that_its_card_was_declined_for_good(billing: BillingFixture) -> None:
    card = await insert_payment_method(billing.sessions)
    ordered, opened = await start_first_period_with_card(billing)
    await insert_payment(
        billing,
        ordered.id,
        500,
        purpose="order",
        status="failed",
        decline_code="stolen_card",
        payment_method_id=card,
    )
    await billing.billing_activities.record_payment_failure(payment_failure_command(ordered, opened))
    loaded = await recovery_activities(billing).load(LoadRecovery(subscription_id=ordered.id))
    assert (loaded.hard_declined, loaded.hard_declined_payment_method_ids) == (True, [card])
