"""Periods, prices and coupons over months, with an outage and with continue-as-new after every step."""

from __future__ import annotations

import calendar
import itertools
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from temporalio import workflow

from tests.support import billing_fixture
from tests.support.databases import DatabaseFixture
from tests.support.subscription_fixture import CancelAt, PlanChangeMode, SubscriptionFixture, run_subscription_fixture
from tests.support.temporal import TemporalFixture
from tests.support.wait import wait_until
from workflows.ports.subscription import CustomerOperation, FundsArrived, StartOperation
from workflows.rules.dunning import FundsKind
from workflows.rules.errors import RuleViolation
from workflows.rules.periods import Interval, period_boundary
from workflows.subscription.test_clock import SKIP_MARGIN

DAY = timedelta(days=1)
PARIS = ZoneInfo("Europe/Paris")


def _last_sunday(year: int, month: int) -> int:
    """Return the day of the month on which Europe changes its clocks."""
    last = date(year, month, calendar.monthrange(year, month)[1])
    return last.day - (last.weekday() + 1) % 7


def _starts(invoices: list[Mapping[str, Any]]) -> list[datetime]:
    assert all(earlier["period_end"] == later["period_start"] for earlier, later in itertools.pairwise(invoices))
    return [row["period_start"] for row in invoices]


@pytest.mark.scenario("B4")
async def test_in_paris_every_month_begins_at_the_same_local_time(
    temporal: TemporalFixture, database: DatabaseFixture
) -> None:
    async with run_subscription_fixture(temporal, database, timezone="Europe/Paris") as subscriptions:
        await subscriptions.top_up(20_000)
        subscription = await subscriptions.create_active_subscription("starter")
        anchor: datetime = (await subscriptions.subscription(subscription))["billing_anchor"]
        await subscriptions.temporal.fast_forward(subscriptions.handle(subscription), 380 * DAY)
        await subscriptions.wait_until_idle(subscription)
        starts = _starts(await subscriptions.invoices(subscription))
        assert starts == [period_boundary(anchor, n, Interval.MONTH, "Europe/Paris") for n in range(13)]
        local = [start.astimezone(PARIS) for start in starts]
        assert len({start.utcoffset() for start in local}) == 2
        assert len({start.time() for start in local}) == 1
        await subscriptions.assert_ledger_balanced()


@pytest.mark.scenario("B6")
@pytest.mark.parametrize(("anchored", "changes"), [(1, 3), (8, 10)], ids=["gap", "fold"])
async def test_a_renewal_while_the_clocks_change_is_one_invoice(
    temporal: TemporalFixture, database: DatabaseFixture, anchored: int, changes: int
) -> None:
    """The anchor is at 02:30 local time, which a later period start finds skipped or repeated."""
    async with run_subscription_fixture(temporal, database, timezone="Europe/Paris") as subscriptions:
        await subscriptions.top_up(20_000)
        subscription = await subscriptions.create_active_subscription("starter")
        await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
        await subscriptions.wait_until_idle(subscription)
        now = await subscriptions.now(subscription)
        year = now.year + 1
        begin = datetime(year, anchored, _last_sunday(year, changes), 2, 30, tzinfo=PARIS).astimezone(UTC)
        await subscriptions.temporal.fast_forward(subscriptions.handle(subscription), begin - now)
        await subscriptions.workflows.resume(subscription, subscriptions.lifecycle_command("resume"))
        await subscriptions.wait_for_status(subscription, "active")
        anchor: datetime = (await subscriptions.subscription(subscription))["billing_anchor"]
        await subscriptions.temporal.fast_forward(subscriptions.handle(subscription), 75 * DAY)
        await subscriptions.wait_until_idle(subscription)
        starts = _starts((await subscriptions.invoices(subscription))[1:])
        assert starts == [period_boundary(anchor, n, Interval.MONTH, "Europe/Paris") for n in range(3)]
        local = starts[2].astimezone(PARIS)
        assert (local.month, local.day, local.hour) == (changes, _last_sunday(year, changes), 3 if changes == 3 else 2)
        await subscriptions.assert_ledger_balanced()


@pytest.mark.scenario("B15")
async def test_a_raised_price_applies_to_new_orders_and_to_plan_changes(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(50_000)
    subscription = await subscriptions.create_active_subscription("starter")
    now = await subscriptions.now(subscription)
    await subscriptions.insert_price("starter", 900, now + 5 * DAY)
    await subscriptions.advance(subscription, 65 * DAY)
    assert [row["total_minor"] for row in await subscriptions.invoices(subscription)] == [500, 500, 500]
    # A change to another plan and back applies today's price.
    await subscriptions.change_plan(subscription, "pro", order="up")
    await subscriptions.wait_until_idle(subscription)
    await subscriptions.change_plan(subscription, "starter", order="down")
    await subscriptions.advance(subscription, 31 * DAY)
    assert (await subscriptions.invoices(subscription))[-1]["total_minor"] == 900


async def test_a_change_to_a_yearly_plan_and_back(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(80_000)
    subscription = await subscriptions.create_active_subscription("starter")
    await subscriptions.advance(subscription, 10 * DAY)
    await subscriptions.change_plan(subscription, "pro-yearly", order="year")
    await subscriptions.wait_until_idle(subscription)
    year = await subscriptions.subscription(subscription)
    assert (year["current_period_end"] - year["current_period_start"]).days in (365, 366)
    await subscriptions.change_plan(subscription, "starter", order="months")
    assert (await subscriptions.subscription(subscription))["pending_plan_id"] == subscriptions.plan("starter")
    await subscriptions.advance_to(subscription, year["current_period_end"] + 40 * DAY)
    invoices = await subscriptions.invoices(subscription)
    assert [row["total_minor"] for row in invoices[2:]] == [500, 500]
    assert invoices[2]["period_start"] == year["current_period_end"]
    assert invoices[3]["period_start"] == period_boundary(year["current_period_end"], 1, Interval.MONTH, "UTC")


async def test_coupons_reduce_the_number_of_periods_of_their_duration(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(50_000)
    for code, percent, duration, periods, expected in (
        ("ONCE", 20, "once", None, [400, 500, 500]),
        ("TWICE", 20, "periods", 2, [400, 400, 500]),
        ("EVER", 100, "forever", None, [0, 0, 0]),
    ):
        await billing_fixture.insert_coupon(subscriptions.sessions, code, percent, duration, periods)
        subscription = await subscriptions.create_active_subscription("starter", coupon=code)
        await subscriptions.advance(subscription, 62 * DAY)
        invoices = await subscriptions.invoices(subscription)
        assert [row["total_minor"] for row in invoices[:3]] == expected
        assert {row["status"] for row in invoices} == {"paid"}
    assert {row["status"] for row in await subscriptions.rows("SELECT status FROM coupon_redemptions")} == {"redeemed"}


async def test_a_coupon_reduces_both_sides_of_a_change(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(50_000)
    await billing_fixture.insert_coupon(subscriptions.sessions, "EVER", 100, "forever")
    subscription = await subscriptions.create_active_subscription("starter", coupon="EVER")
    await subscriptions.change_plan(subscription, "pro", order="free")
    await subscriptions.wait_until_idle(subscription)
    assert (await subscriptions.subscription(subscription))["plan_id"] == subscriptions.plan("pro")
    assert len(await subscriptions.invoices(subscription)) == 1
    assert await subscriptions.balance() == 50_000


async def test_a_trial_that_is_paused_is_billed_when_it_is_resumed(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(5000)
    subscription = await subscriptions.create_active_subscription("trial")
    await subscriptions.advance(subscription, 2 * DAY)
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    await subscriptions.advance(subscription, 30 * DAY)
    assert await subscriptions.invoices(subscription) == []
    now = await subscriptions.now(subscription)
    await subscriptions.workflows.resume(subscription, subscriptions.lifecycle_command("resume"))
    await subscriptions.wait_for_status(subscription, "active")
    (invoice,) = await subscriptions.invoices(subscription)
    assert timedelta() <= invoice["period_start"] - now < timedelta(minutes=1)


async def test_a_stopped_instance_stays_stopped_over_a_pause(subscriptions: SubscriptionFixture) -> None:
    await subscriptions.top_up(5000)
    subscription = await subscriptions.create_active_subscription("starter")
    stop = StartOperation(update_id="stop", actor="usr", operation_id="op_1", kind=CustomerOperation.STOP)
    await subscriptions.workflows.start_operation(subscription, stop)
    await subscriptions.wait_until_idle(subscription)
    await subscriptions.workflows.pause(subscription, subscriptions.lifecycle_command("pause"))
    await subscriptions.workflows.resume(subscription, subscriptions.lifecycle_command("resume"))
    await subscriptions.wait_for_status(subscription, "active")
    assert subscriptions.external.operations() == ["stop"]


async def test_a_cancellation_at_period_end_survives_a_past_due_renewal(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(500)
    await subscriptions.add_card()
    subscription = await subscriptions.create_active_subscription("starter")
    subscriptions.external.decline_code = "insufficient_funds"
    end = (await subscriptions.subscription(subscription))["current_period_end"]
    subscriptions.external.gateway_responses.clear()
    await subscriptions.advance_to(subscription, end - timedelta(seconds=1))
    await subscriptions.wait_for_charges(1)
    await subscriptions.cancel(subscription, CancelAt.PERIOD_END)
    subscriptions.external.gateway_responses.set()
    await subscriptions.wait_for_status(subscription, "past_due")
    await subscriptions.top_up(500, subscription)
    await subscriptions.wait_for_status(subscription, "active")
    await subscriptions.advance(subscription, 40 * DAY)
    assert (await subscriptions.subscription(subscription))["status"] == "cancelled"
    assert [row["status"] for row in await subscriptions.invoices(subscription)] == ["paid", "paid"]


async def test_a_payment_after_the_next_due_date_pays_each_period_once(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.set_dunning_policy("starter", retry_days=[1], cancel_day=50)
    await subscriptions.top_up(500)
    subscription = await subscriptions.create_active_subscription("starter")
    first = await subscriptions.subscription(subscription)
    await subscriptions.advance_to(subscription, first["current_period_end"] + 40 * DAY)
    assert (await subscriptions.subscription(subscription))["status"] == "suspended"
    await subscriptions.top_up(1000, subscription)
    await subscriptions.wait_for_status(subscription, "active")
    invoices = await subscriptions.invoices(subscription)
    assert [row["status"] for row in invoices] == ["paid", "paid", "paid"]
    assert all(earlier["period_end"] == later["period_start"] for earlier, later in itertools.pairwise(invoices))
    assert (await subscriptions.notification_kinds()).count("subscription_suspended") == 1
    await subscriptions.advance(subscription, 60 * DAY)
    assert (await subscriptions.notification_kinds()).count("subscription_suspended") == 2


@pytest.mark.scenario("B44", "B45")
async def test_funds_reach_a_past_due_subscription_and_a_past_due_subscription_blocks_a_second_order(
    subscriptions: SubscriptionFixture,
) -> None:
    await subscriptions.top_up(1000)
    gone, debtor = (
        await subscriptions.create_active_subscription("starter"),
        await subscriptions.create_active_subscription("starter"),
    )
    for subscription in (gone, debtor):
        end = (await subscriptions.subscription(subscription))["current_period_end"]
        await subscriptions.advance_to(subscription, end + timedelta(seconds=1))
    with pytest.raises(RuleViolation) as refused:
        await subscriptions.create_subscription("starter")
    assert refused.value.code == "DUPLICATE_SUBSCRIPTION"
    await subscriptions.cancel(gone)
    await subscriptions.advance(gone, 31 * DAY)
    assert (await subscriptions.subscription(gone))["status"] == "terminated"
    await subscriptions.top_up(500, gone, debtor)
    await subscriptions.wait_for_status(debtor, "active")


async def test_an_outage_of_months_bills_each_period_once_and_keeps_the_full_grace_period(
    temporal: TemporalFixture, database: DatabaseFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time-skipping server has no time without a worker, so the outages are added to the workflows' time.

    What is added depends on the time of the workflow task alone, so that a replay of an earlier task adds the same.
    """
    workflow_now = workflow.now
    outages: list[tuple[datetime, timedelta]] = []

    def later_now() -> datetime:
        task_time = workflow_now()
        return task_time + sum((length for start, length in outages if task_time >= start), timedelta())

    monkeypatch.setattr(workflow, "now", later_now)
    async with run_subscription_fixture(temporal, database) as subscriptions:
        await subscriptions.top_up(1000)
        subscription = await subscriptions.create_active_subscription("starter")
        first = await subscriptions.subscription(subscription)
        await subscriptions.wait_until_idle(subscription)
        outages.append((first["current_period_end"] - DAY, 100 * DAY))
        to_the_renewal = first["current_period_end"] - await subscriptions.now(subscription)
        await subscriptions.temporal.fast_forward(subscriptions.handle(subscription), to_the_renewal - SKIP_MARGIN)
        await subscriptions.wait_for_status(subscription, "past_due")
        invoices = await subscriptions.invoices(subscription)
        assert [row["status"] for row in invoices] == ["paid", "paid", "open"]
        _starts(invoices)
        # A period that is over when it begins schedules no reminders.
        scheduled = await subscriptions.rows(
            "SELECT template_context FROM notifications WHERE kind = 'subscription_expiring'"
        )
        assert {row["template_context"]["due_at"] for row in scheduled} == {first["current_period_end"].isoformat()}
        row = await subscriptions.subscription(subscription)
        assert row["past_due_since"] > row["current_period_start"] + 30 * DAY
        await subscriptions.wait_until_idle(subscription)
        outages.append((await subscriptions.now(subscription) + DAY / 2, 20 * DAY))
        await subscriptions.temporal.fast_forward(subscriptions.handle(subscription), DAY - SKIP_MARGIN)
        await wait_until(lambda: _has_notifications(subscriptions, "payment_failed", 2))
        await subscriptions.wait_until_idle(subscription)
        assert (await subscriptions.subscription(subscription))["status"] == "past_due"
        await subscriptions.assert_ledger_balanced()


async def _has_notifications(subscriptions: SubscriptionFixture, kind: str, times: int) -> bool:
    return (await subscriptions.notification_kinds()).count(kind) == times


async def test_a_subscription_that_continues_as_new_after_every_step(
    temporal: TemporalFixture, database: DatabaseFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operations and commands in flight are carried into the next run."""
    monkeypatch.setattr(workflow.Info, "is_continue_as_new_suggested", lambda _: True)
    async with run_subscription_fixture(temporal, database) as subscriptions:
        await subscriptions.top_up(1000)
        subscription = await subscriptions.create_active_subscription("starter")
        restart = StartOperation(update_id="o1", actor="usr", operation_id="op_1", kind=CustomerOperation.RESTART)
        await subscriptions.workflows.start_operation(subscription, restart)
        await subscriptions.wait_until_idle(subscription)
        await subscriptions.change_plan(subscription, "pro", PlanChangeMode.PERIOD_END)
        await subscriptions.workflows.start_operation(subscription, restart)
        end = (await subscriptions.subscription(subscription))["current_period_end"]
        await subscriptions.temporal.fast_forward(
            subscriptions.handle(subscription), end - await subscriptions.now(subscription) - SKIP_MARGIN
        )
        await subscriptions.wait_for_status(subscription, "past_due")
        await subscriptions.top_up(1500, subscription)
        await subscriptions.wait_for_status(subscription, "active")
        await subscriptions.workflows.signal_funds_arrived(
            subscription, FundsArrived(source="late", kind=FundsKind.CREDIT)
        )
        assert subscriptions.external.operations() == ["restart", "resize"]
        assert [row["total_minor"] for row in await subscriptions.invoices(subscription)] == [500, 2000]
        await subscriptions.cancel(subscription)
        await subscriptions.wait_for_status(subscription, "cancelled")
        runs = subscriptions.temporal.client.list_workflows(f"WorkflowId = 'subscription/{subscription}'")
        assert len([run async for run in runs]) > 6
        await subscriptions.assert_ledger_balanced()
