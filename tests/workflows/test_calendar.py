"""Periods, prices and coupons over months of a subscription's life; what an outage and a long history do to it."""

from __future__ import annotations

import calendar
import itertools
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from temporalio import workflow

from tests.support import books
from tests.support.databases import Database
from tests.support.life import CancelAt, Mode, World, world
from tests.support.temporal import Temporal
from tests.support.wait import eventually
from workflows.clock import RUN_UP
from workflows.ports.subscription import CustomerOperation, FundsArrived, OperateOrder
from workflows.rules.errors import RuleBroken
from workflows.rules.periods import Interval, boundary

DAY = timedelta(days=1)
PARIS = ZoneInfo("Europe/Paris")


def _last_sunday(year: int, month: int) -> int:
    """The day on which Europe changes its clocks."""
    last = date(year, month, calendar.monthrange(year, month)[1])
    return last.day - (last.weekday() + 1) % 7


def _starts(invoices: list[Mapping[str, Any]]) -> list[datetime]:
    assert all(one["period_end"] == next_["period_start"] for one, next_ in itertools.pairwise(invoices))
    return [row["period_start"] for row in invoices]


@pytest.mark.scenario("B4")
async def test_in_paris_every_month_begins_at_the_same_local_time(temporal: Temporal, database: Database) -> None:
    async with world(temporal, database, timezone="Europe/Paris") as life:
        await life.top_up(20_000)
        subscription = await life.active("starter")
        anchor: datetime = (await life.subscription(subscription))["anchor"]
        await life.temporal.fast_forward(life.handle(subscription), 380 * DAY)
        await life.settled(subscription)
        starts = _starts(await life.invoices(subscription))
        assert starts == [boundary(anchor, n, Interval.MONTH, "Europe/Paris") for n in range(13)]
        local = [start.astimezone(PARIS) for start in starts]
        assert len({start.utcoffset() for start in local}) == 2
        assert len({start.time() for start in local}) == 1
        await life.ledger_is_sound()


@pytest.mark.scenario("B6")
@pytest.mark.parametrize(("anchored", "changes"), [(1, 3), (8, 10)], ids=["gap", "fold"])
async def test_a_renewal_while_the_clocks_change_is_one_invoice(
    temporal: Temporal, database: Database, anchored: int, changes: int
) -> None:
    """Resumed two months before at half past two, the hour that is skipped or comes twice on the day itself."""
    async with world(temporal, database, timezone="Europe/Paris") as life:
        await life.top_up(20_000)
        subscription = await life.active("starter")
        await life.orchestrator.pause(subscription, life.simple("pause"))
        await life.settled(subscription)
        now = await life.now(subscription)
        year = now.year + 1
        begin = datetime(year, anchored, _last_sunday(year, changes), 2, 30, tzinfo=PARIS).astimezone(UTC)
        await life.temporal.fast_forward(life.handle(subscription), begin - now)
        await life.orchestrator.resume(subscription, life.simple("resume"))
        await life.until(subscription, "active")
        anchor: datetime = (await life.subscription(subscription))["anchor"]
        await life.temporal.fast_forward(life.handle(subscription), 75 * DAY)
        await life.settled(subscription)
        starts = _starts((await life.invoices(subscription))[1:])
        assert starts == [boundary(anchor, n, Interval.MONTH, "Europe/Paris") for n in range(3)]
        local = starts[2].astimezone(PARIS)
        assert (local.month, local.day, local.hour) == (changes, _last_sunday(year, changes), 3 if changes == 3 else 2)
        await life.ledger_is_sound()


@pytest.mark.scenario("B15")
async def test_a_dearer_price_is_for_new_customers_and_for_those_who_change(life: World) -> None:
    await life.top_up(50_000)
    subscription = await life.active("starter")
    now = await life.now(subscription)
    await life.price_rises("starter", 900, now + 5 * DAY)
    await life.advance(subscription, 65 * DAY)
    assert [row["total_minor"] for row in await life.invoices(subscription)] == [500, 500, 500]
    # Who leaves for another plan and comes back agrees to today's price.
    await life.change_plan(subscription, "pro", order="up")
    await life.settled(subscription)
    await life.change_plan(subscription, "starter", order="down")
    await life.advance(subscription, 31 * DAY)
    assert (await life.invoices(subscription))[-1]["total_minor"] == 900


async def test_from_months_to_a_year_and_back(life: World) -> None:
    await life.top_up(80_000)
    subscription = await life.active("starter")
    await life.advance(subscription, 10 * DAY)
    await life.change_plan(subscription, "pro-yearly", order="year")
    await life.settled(subscription)
    year = await life.subscription(subscription)
    assert (year["current_period_end"] - year["current_period_start"]).days in (365, 366)
    await life.change_plan(subscription, "starter", order="months")
    assert (await life.subscription(subscription))["pending_plan_id"] == life.plan("starter")
    await life.advance_to(subscription, year["current_period_end"] + 40 * DAY)
    invoices = await life.invoices(subscription)
    assert [row["total_minor"] for row in invoices[2:]] == [500, 500]
    assert invoices[2]["period_start"] == year["current_period_end"]
    assert invoices[3]["period_start"] == boundary(year["current_period_end"], 1, Interval.MONTH, "UTC")


async def test_coupons_reduce_as_many_periods_as_they_say(life: World) -> None:
    await life.top_up(50_000)
    for code, percent, duration, periods, expected in (
        ("ONCE", 20, "once", None, [400, 500, 500]),
        ("TWICE", 20, "periods", 2, [400, 400, 500]),
        ("EVER", 100, "forever", None, [0, 0, 0]),
    ):
        await books.add_coupon(life.sessions, code, percent, duration, periods)
        subscription = await life.active("starter", coupon=code)
        await life.advance(subscription, 62 * DAY)
        invoices = await life.invoices(subscription)
        assert [row["total_minor"] for row in invoices[:3]] == expected
        assert {row["status"] for row in invoices} == {"paid"}
    assert {row["status"] for row in await life.rows("SELECT status FROM coupon_redemptions")} == {"used"}


async def test_a_coupon_reduces_both_sides_of_a_change(life: World) -> None:
    await life.top_up(50_000)
    await books.add_coupon(life.sessions, "EVER", 100, "forever")
    subscription = await life.active("starter", coupon="EVER")
    await life.change_plan(subscription, "pro", order="free")
    await life.settled(subscription)
    assert (await life.subscription(subscription))["plan_id"] == life.plan("pro")
    assert len(await life.invoices(subscription)) == 1
    assert await life.balance() == 50_000


async def test_a_trial_that_is_paused_and_resumed_begins_to_pay_then(life: World) -> None:
    await life.top_up(5000)
    subscription = await life.active("trial")
    await life.advance(subscription, 2 * DAY)
    await life.orchestrator.pause(subscription, life.simple("pause"))
    await life.advance(subscription, 30 * DAY)
    assert await life.invoices(subscription) == []
    now = await life.now(subscription)
    await life.orchestrator.resume(subscription, life.simple("resume"))
    await life.until(subscription, "active")
    (invoice,) = await life.invoices(subscription)
    assert timedelta() <= invoice["period_start"] - now < timedelta(minutes=1)


async def test_a_stopped_instance_stays_stopped_over_a_pause(life: World) -> None:
    await life.top_up(5000)
    subscription = await life.active("starter")
    stop = OperateOrder(order_id="stop", actor="usr", operation_id="op_1", kind=CustomerOperation.STOP)
    await life.orchestrator.operate(subscription, stop)
    await life.settled(subscription)
    await life.orchestrator.pause(subscription, life.simple("pause"))
    await life.orchestrator.resume(subscription, life.simple("resume"))
    await life.until(subscription, "active")
    assert life.outside.operations() == ["stop"]


async def test_who_wanted_to_leave_at_the_end_and_falls_behind_before_leaves_when_it_is_paid_for(life: World) -> None:
    await life.top_up(500)
    await life.add_card()
    subscription = await life.active("starter")
    life.outside.decline = "insufficient_funds"
    end = (await life.subscription(subscription))["current_period_end"]
    life.outside.answer.clear()
    await life.advance_to(subscription, end - timedelta(seconds=1))
    await life.charging(1)
    await life.cancel(subscription, CancelAt.PERIOD_END)
    life.outside.answer.set()
    await life.until(subscription, "past_due")
    await life.top_up(500, subscription)
    await life.until(subscription, "active")
    await life.advance(subscription, 40 * DAY)
    assert (await life.subscription(subscription))["status"] == "cancelled"
    assert [row["status"] for row in await life.invoices(subscription)] == ["paid", "paid"]


async def test_a_debt_that_is_paid_when_the_next_period_is_due_pays_each_period_once(life: World) -> None:
    await life.dunning("starter", retry_days=[1], cancel_day=50)
    await life.top_up(500)
    subscription = await life.active("starter")
    first = await life.subscription(subscription)
    await life.advance_to(subscription, first["current_period_end"] + 40 * DAY)
    assert (await life.subscription(subscription))["status"] == "suspended"
    await life.top_up(1000, subscription)
    await life.until(subscription, "active")
    invoices = await life.invoices(subscription)
    assert [row["status"] for row in invoices] == ["paid", "paid", "paid"]
    assert all(one["period_end"] == next_["period_start"] for one, next_ in itertools.pairwise(invoices))
    assert (await life.notices()).count("subscription_suspended") == 1
    await life.advance(subscription, 60 * DAY)
    assert (await life.notices()).count("subscription_suspended") == 2


@pytest.mark.scenario("B44", "B45")
async def test_funds_reach_the_debtor_behind_one_that_has_ended_and_a_debt_allows_no_second_order(life: World) -> None:
    await life.top_up(1000)
    gone, debtor = await life.active("starter"), await life.active("starter")
    for subscription in (gone, debtor):
        end = (await life.subscription(subscription))["current_period_end"]
        await life.advance_to(subscription, end + timedelta(seconds=1))
    with pytest.raises(RuleBroken) as refused:
        await life.subscribe("starter")
    assert refused.value.code == "DUPLICATE_SUBSCRIPTION"
    await life.cancel(gone)
    await life.advance(gone, 31 * DAY)
    assert (await life.subscription(gone))["status"] == "terminated"
    await life.top_up(500, gone, debtor)
    await life.until(debtor, "active")


async def test_a_worker_that_was_away_for_months_bills_each_period_once_and_takes_no_grace(
    temporal: Temporal, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's clock stands still without a worker, so the outage is in what workflows are told of the time."""
    told, missed = workflow.now, [timedelta()]
    monkeypatch.setattr(workflow, "now", lambda: told() + missed[0])
    async with world(temporal, database) as life:
        await life.top_up(1000)
        subscription = await life.active("starter")
        first = await life.subscription(subscription)
        missed[0] += 100 * DAY
        to_the_reminder = first["current_period_end"] - 7 * DAY - await life.now(subscription)
        await life.temporal.fast_forward(life.handle(subscription), to_the_reminder - RUN_UP)
        await life.until(subscription, "past_due")
        invoices = await life.invoices(subscription)
        assert [row["status"] for row in invoices] == ["paid", "paid", "open"]
        _starts(invoices)
        # Nobody is told what is to come of a period that is over.
        assert "subscription_expiring" not in await life.notices()
        row = await life.subscription(subscription)
        assert row["first_failure_at"] > row["current_period_start"] + 30 * DAY
        missed[0] += 20 * DAY
        await life.temporal.fast_forward(life.handle(subscription), DAY - RUN_UP)
        await eventually(lambda: _told(life, "payment_failed", 2))
        await life.settled(subscription)
        assert (await life.subscription(subscription))["status"] == "past_due"
        await life.ledger_is_sound()


async def _told(life: World, kind: str, times: int) -> bool:
    return (await life.notices()).count(kind) == times


async def test_a_life_whose_every_step_ends_in_a_new_run(
    temporal: Temporal, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that is in hand is lost between two runs."""
    monkeypatch.setattr(workflow.Info, "is_continue_as_new_suggested", lambda _: True)
    async with world(temporal, database) as life:
        await life.top_up(1000)
        subscription = await life.active("starter")
        restart = OperateOrder(order_id="o1", actor="usr", operation_id="op_1", kind=CustomerOperation.RESTART)
        await life.orchestrator.operate(subscription, restart)
        await life.settled(subscription)
        await life.change_plan(subscription, "pro", Mode.PERIOD_END)
        await life.orchestrator.operate(subscription, restart)
        end = (await life.subscription(subscription))["current_period_end"]
        await life.temporal.fast_forward(life.handle(subscription), end - await life.now(subscription) - RUN_UP)
        await life.until(subscription, "past_due")
        await life.top_up(1500, subscription)
        await life.until(subscription, "active")
        await life.orchestrator.funds_arrived(subscription, FundsArrived(source="late"))
        assert life.outside.operations() == ["restart", "resize"]
        assert [row["total_minor"] for row in await life.invoices(subscription)] == [500, 2000]
        await life.cancel(subscription)
        await life.until(subscription, "cancelled")
        runs = life.temporal.client.list_workflows(f"WorkflowId = 'subscription/{subscription}'")
        assert len([run async for run in runs]) > 6
        await life.ledger_is_sound()
