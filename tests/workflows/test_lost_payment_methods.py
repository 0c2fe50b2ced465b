"""Payment methods and credit that arrive while the workflow of a debt is lost: they are tried after the restart."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from tests.support.lost_payments import LostPayments

DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
DECLINED = "pm_card_chargeCustomerFail"
"""Can be saved, and declines each charge."""


async def _create_debt(lost: LostPayments, *, days: int) -> str:
    """Return a subscription whose renewal no card on file has paid for some days."""
    await lost.subscriptions.top_up(500)
    subscription = await lost.subscriptions.create_active_subscription("starter")
    due = (await lost.subscriptions.subscription(subscription))["current_period_end"]
    await lost.subscriptions.advance_to(subscription, due + days * DAY + MINUTE)
    return subscription


async def _count_charges(lost: LostPayments, subscription: str) -> int:
    return len(await lost.payments(subscription))


async def _charges_after(lost: LostPayments, subscription: str, count: int) -> list[Mapping[str, Any]]:
    """Return the payments after the first ones; a restarted run is no longer ahead of the server's clock."""
    return sorted(await lost.payments(subscription), key=lambda row: row["gateway_requested_at"])[count:]


async def _restart(lost: LostPayments, subscription: str) -> None:
    await lost.restart()
    await lost.subscriptions.wait_until_idle(subscription)


@pytest.mark.scenario("B42")
@pytest.mark.parametrize(("days", "status"), [(2, "past_due"), (8, "suspended")])
@pytest.mark.parametrize("has_card", [True, False])
async def test_a_card_that_was_saved_meanwhile_pays_the_debt(
    lost: LostPayments, days: int, status: str, has_card: bool
) -> None:
    if has_card:
        await lost.add_card(DECLINED)
    subscription = await _create_debt(lost, days=days)
    assert (await lost.subscriptions.subscription(subscription))["status"] == status
    await lost.lose(subscription)
    new = await lost.add_card()
    await _restart(lost, subscription)
    assert (await lost.subscriptions.subscription(subscription))["status"] == "active"
    await lost.wait_until_paid(subscription)
    paid = [row["payment_method_id"] for row in await lost.payments(subscription) if row["status"] == "succeeded"]
    assert paid == [new]


async def test_a_card_that_became_the_default_meanwhile_is_tried_once(lost: LostPayments) -> None:
    default, backup = await lost.add_card(DECLINED), await lost.add_card(DECLINED, default=False)
    subscription = await _create_debt(lost, days=8)
    before = await _count_charges(lost, subscription)
    await lost.lose(subscription)
    await lost.set_default_payment_method(backup)
    await _restart(lost, subscription)
    charges = await _charges_after(lost, subscription, before)
    assert [row["payment_method_id"] for row in charges] == [backup, default]
    await lost.lose(subscription)
    await _restart(lost, subscription)
    assert await _count_charges(lost, subscription) == before + 2


async def test_the_backup_of_a_default_that_was_removed_meanwhile_is_tried(lost: LostPayments) -> None:
    default, backup = await lost.add_card(DECLINED), await lost.add_card(DECLINED, default=False)
    subscription = await _create_debt(lost, days=8)
    before = await _count_charges(lost, subscription)
    await lost.lose(subscription)
    await lost.remove_card(default)
    await _restart(lost, subscription)
    assert [row["payment_method_id"] for row in await _charges_after(lost, subscription, before)] == [backup]


@pytest.mark.parametrize("decline_code", ["stop_payment_order", "stolen_card"])
async def test_a_backup_with_a_hard_decline_is_not_tried_when_the_default_was_removed_meanwhile(
    lost: LostPayments, decline_code: str
) -> None:
    default, backup = await lost.add_card(DECLINED), await lost.add_card(DECLINED, default=False)
    subscription = await _create_debt(lost, days=8)
    before = await _count_charges(lost, subscription)
    await lost.lose(subscription)
    await lost.subscriptions.execute(
        "UPDATE payments SET decline_code = :code WHERE payment_method_id = :id", code=decline_code, id=backup
    )
    await lost.remove_card(default)
    await _restart(lost, subscription)
    assert await _charges_after(lost, subscription, before) == []


async def test_a_card_that_was_saved_again_meanwhile_is_tried(lost: LostPayments) -> None:
    card = await lost.add_card(DECLINED)
    subscription = await _create_debt(lost, days=8)
    before = await _count_charges(lost, subscription)
    await lost.lose(subscription)
    (row,) = await lost.subscriptions.rows("SELECT gateway_reference FROM payment_methods")
    await lost.add_card(row["gateway_reference"])
    await _restart(lost, subscription)
    assert [row["payment_method_id"] for row in await _charges_after(lost, subscription, before)] == [card]


@pytest.mark.scenario("B30")
async def test_a_card_is_charged_once_for_what_credit_that_arrived_meanwhile_leaves(lost: LostPayments) -> None:
    await lost.add_card(DECLINED)
    subscription = await _create_debt(lost, days=8)
    before = await _count_charges(lost, subscription)
    await lost.lose(subscription)
    await lost.subscriptions.top_up(200)
    await _restart(lost, subscription)
    assert [row["amount_minor"] for row in await _charges_after(lost, subscription, before)] == [300]
    await lost.lose(subscription)
    await _restart(lost, subscription)
    assert await _count_charges(lost, subscription) == before + 1
    assert (await lost.subscriptions.balance(), await lost.subscriptions.balance("held")) == (200, 0)


@pytest.mark.parametrize("days", [2, 8])
async def test_a_card_that_declined_already_is_left_to_the_schedule(lost: LostPayments, days: int) -> None:
    await lost.add_card(DECLINED)
    subscription = await _create_debt(lost, days=days)
    before = await _count_charges(lost, subscription)
    await lost.lose(subscription)
    await _restart(lost, subscription)
    assert await _count_charges(lost, subscription) == before
