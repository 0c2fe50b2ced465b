"""Attempts that succeed days after their activity was scheduled: what counts from the attempt, and what does not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeVar

import pytest
from sqlalchemy import text

from activities.attempt_time import scheduled_at
from db.session import session_factory
from tests.support.billing_commands import (
    DAY,
    TEN_DAYS_AFTER_ORDER,
    cancel_at_period_end_command,
    card_payment_command,
    change_status_command,
    collect_command,
    payment_failure_command,
    plan_change_command,
    top_up,
)
from tests.support.billing_fixture import ORDERED_AT, BillingFixture, OpenedSubscription, insert_payment_method
from tests.support.databases import DatabaseFixture
from tests.support.late_attempts import run_late
from workflows.ports.billing import StartPeriod
from workflows.ports.subscription import ReleaseReminders
from workflows.rules.periods import billing_period
from workflows.rules.renewal import PeriodKind, PeriodOutcome
from workflows.rules.subscription import SubscriptionStatus

Command = TypeVar("Command")
Result = TypeVar("Result")

LATE = 3 * DAY
VERY_LATE = 4 * DAY


async def test_commands_are_moved_to_the_time_of_the_attempt_from_a_minute_on() -> None:
    received = list[tuple[datetime, datetime]]()

    async def perform(command: ReleaseReminders) -> None:
        received.append((command.now, scheduled_at(command.now)))

    command = ReleaseReminders(subscription_id="sub", now=ORDERED_AT)
    await run_late(perform, command, timedelta(seconds=59))
    await run_late(perform, command, timedelta(seconds=60))
    await run_late(perform, command, LATE, waited=True)
    assert [now - ORDERED_AT for now, _ in received] == [timedelta(), timedelta(seconds=60), LATE]
    assert {scheduled for _, scheduled in received} == {ORDERED_AT}


async def test_the_instant_of_keys_does_not_outlive_an_attempt() -> None:
    async def perform(command: ReleaseReminders) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await run_late(perform, ReleaseReminders(subscription_id="sub", now=ORDERED_AT), LATE)
    assert scheduled_at(ORDERED_AT) == ORDERED_AT


async def test_an_argument_that_is_no_command_is_not_changed() -> None:
    async def perform(text: str) -> str:
        return text

    assert await run_late(perform, "text", LATE) == "text"


# The grace period


@pytest.mark.parametrize(
    ("delay", "grace_delay"), [(timedelta(minutes=59), timedelta()), (timedelta(minutes=61), timedelta(minutes=61))]
)
@pytest.mark.parametrize("waited", [False, True])
async def test_the_grace_period_of_a_late_renewal_counts_from_the_attempt(
    billing: BillingFixture, delay: timedelta, grace_delay: timedelta, waited: bool
) -> None:
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription()
    command = billing.start_period_command(ordered)
    outcome = await run_late(billing.billing_activities.start_period, command, delay, waited=waited)
    due = ordered.period.end
    assert outcome.state.status is SubscriptionStatus.PAST_DUE
    assert (outcome.state.period_start, outcome.state.past_due_since) == (due, due + grace_delay)
    assert await _notified_dates(billing, "payment_failed") == [(due + grace_delay + DAY, due + grace_delay + 7 * DAY)]


async def test_the_grace_period_counts_from_the_attempt_that_records_the_declined_card(billing: BillingFixture) -> None:
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription()
    await insert_payment_method(billing.sessions)
    renewed = await billing.billing_activities.start_period(billing.start_period_command(ordered))
    due = ordered.period.end
    command = replace(payment_failure_command(ordered, renewed), next_retry_at=due + DAY, suspends_at=due + 7 * DAY)
    outcome = await run_late(billing.billing_activities.record_payment_failure, command, LATE)
    assert outcome.state.past_due_since == due + LATE
    assert await _notified_dates(billing, "payment_failed") == [(due + LATE + DAY, due + LATE + 7 * DAY)]


async def test_a_late_retry_notifies_of_the_dates_that_the_downtime_extends(billing: BillingFixture) -> None:
    ordered, renewed = await billing.create_past_due_subscription()
    due = ordered.period.end
    command = replace(collect_command(ordered, renewed), suspends_at=due + 7 * DAY)
    await run_late(billing.billing_activities.collect_invoice, command, LATE)
    # The retry of day 3 is late by one day at day 4: it is made at once, and the suspension is a day later.
    assert (await _notified_dates(billing, "payment_failed"))[-1] == (due + 4 * DAY, due + 8 * DAY)


# Periods


async def test_the_first_period_starts_when_it_is_recorded(billing: BillingFixture) -> None:
    await top_up(billing, 500)
    command = billing.create_command()
    opened = await billing.subscription_activities.record_order(command)
    first = billing.start_first_period_command(command, opened)
    outcome = await _assert_later_attempt_repeats(billing, billing.billing_activities.start_first_period, first)
    period = billing_period(ORDERED_AT + LATE, 0)
    assert (outcome.state.billing_anchor, outcome.state.period_start) == (period.start, period.start)
    assert outcome.state.period_end == period.end
    (invoice,) = await billing.invoices(command.order.subscription_id)
    assert (invoice["period_start"], invoice["finalized_at"]) == (period.start, period.start)


async def test_a_trial_keeps_all_its_days(billing: BillingFixture) -> None:
    command = billing.create_command("trial")
    opened = await billing.subscription_activities.record_order(command)
    first = billing.start_first_period_command(command, opened)
    outcome = await _assert_later_attempt_repeats(billing, billing.billing_activities.start_first_period, first)
    assert outcome.state.period_end == ORDERED_AT + LATE + 14 * DAY


async def test_a_resumed_period_starts_when_it_is_paid_from_credit(billing: BillingFixture) -> None:
    command = _resumption_command(billing, await _paused(billing))
    await top_up(billing, 500)
    outcome = await _assert_later_attempt_repeats(billing, billing.billing_activities.start_period, command)
    period = billing_period(TEN_DAYS_AFTER_ORDER + LATE, 0)
    assert (outcome.result, outcome.state.status) == (PeriodOutcome.PAID, SubscriptionStatus.ACTIVE)
    assert outcome.state.billing_anchor == outcome.state.period_start == period.start
    assert outcome.state.period_end == period.end


async def test_a_resumed_period_starts_when_the_card_payment_is_applied(billing: BillingFixture) -> None:
    ordered = await _paused(billing)
    await insert_payment_method(billing.sessions)
    drafted = await billing.billing_activities.start_period(_resumption_command(billing, ordered))
    command = replace(await card_payment_command(billing, ordered, drafted), now=TEN_DAYS_AFTER_ORDER)
    outcome = await _assert_later_attempt_repeats(billing, billing.billing_activities.apply_card_payment, command)
    period = billing_period(TEN_DAYS_AFTER_ORDER + LATE, 0)
    assert (outcome.state.billing_anchor, outcome.state.period_start) == (period.start, period.start)
    assert outcome.state.period_end == period.end
    (invoice,) = await billing.query("SELECT * FROM invoices WHERE id = :id", id=drafted.invoice_id)
    (line,) = await billing.query("SELECT * FROM invoice_lines WHERE invoice_id = :id", id=drafted.invoice_id)
    for row in (invoice, line):
        assert (row["period_start"], row["period_end"]) == (period.start, period.end)
    explained = invoice["explanation"]["lines"][0]["period"]
    assert explained == {"start": period.start.isoformat(), "end": period.end.isoformat()}
    # The command of the resumption that drafted it still finds it.
    repeated = await run_late(billing.billing_activities.start_period, _resumption_command(billing, ordered), VERY_LATE)
    assert (repeated.result, repeated.invoice_id) == (PeriodOutcome.PAID, drafted.invoice_id)


async def test_a_resumption_is_drafted_once(billing: BillingFixture) -> None:
    ordered = await _paused(billing)
    await insert_payment_method(billing.sessions)
    await top_up(billing, 100)
    command = _resumption_command(billing, ordered)
    outcome = await _assert_later_attempt_repeats(billing, billing.billing_activities.start_period, command)
    assert outcome.result is PeriodOutcome.DRAFT
    assert await billing.balance("held") == 100


async def test_a_renewal_that_is_late_starts_its_period_at_the_end_of_the_last_one(billing: BillingFixture) -> None:
    await top_up(billing, 1000)
    ordered = await billing.create_active_subscription()
    command = billing.start_period_command(ordered)
    outcome = await _assert_later_attempt_repeats(billing, billing.billing_activities.start_period, command)
    assert (outcome.result, outcome.state.period_start) == (PeriodOutcome.PAID, ordered.period.end)
    assert (await billing.invoices(ordered.id))[-1]["finalized_at"] == ordered.period.end + LATE


# What was ordered, and keys


async def test_an_order_has_the_price_of_the_time_when_it_was_placed(
    billing: BillingFixture, database: DatabaseFixture
) -> None:
    await _raise_price(database, "starter", 900, ORDERED_AT + DAY)
    await top_up(billing, 1000)
    opened = await run_late(billing.subscription_activities.record_order, billing.create_command(), LATE)
    assert (opened.terms.price.amount_minor, opened.order.created_at) == (500, ORDERED_AT)


async def test_a_plan_change_has_the_price_of_its_order_and_the_share_of_its_attempt(
    billing: BillingFixture, database: DatabaseFixture
) -> None:
    await top_up(billing, 5000)
    ordered = await billing.create_active_subscription()
    command = plan_change_command(ordered, "pro")
    await _raise_price(database, "pro", 9000, command.now + DAY)
    outcome = await _assert_later_attempt_repeats(billing, billing.billing_activities.change_plan, command)
    assert outcome.terms.price.amount_minor == 2000
    (line, _) = await billing.query(
        "SELECT * FROM invoice_lines WHERE invoice_id = :id ORDER BY position", id=outcome.invoice_id
    )
    assert line["period_start"] == command.now + LATE


async def test_a_change_to_another_interval_starts_its_period_once(billing: BillingFixture) -> None:
    await top_up(billing, 50000)
    ordered = await billing.create_active_subscription()
    command = plan_change_command(ordered, "pro-yearly")
    outcome = await _assert_later_attempt_repeats(billing, billing.billing_activities.change_plan, command)
    assert outcome.is_new_anchor
    assert outcome.state.period_start == command.now + LATE


async def test_the_hold_of_a_retry_has_the_same_key_in_each_attempt(billing: BillingFixture) -> None:
    ordered, renewed = await billing.create_past_due_subscription()
    await insert_payment_method(billing.sessions)
    command = collect_command(ordered, renewed)
    await _assert_later_attempt_repeats(billing, billing.billing_activities.collect_invoice, command)
    (hold,) = await billing.query("SELECT dedup_key FROM holds WHERE status = 'held'")
    assert hold["dedup_key"] == f"{renewed.invoice_id}/{command.now.isoformat()}"


async def test_a_mail_has_the_same_key_in_each_attempt(billing: BillingFixture) -> None:
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription()
    command = change_status_command(ordered, SubscriptionStatus.PAUSED)
    await run_late(billing.subscription_activities.change_status, command, LATE)
    (mail,) = await billing.query("SELECT * FROM notifications WHERE kind = 'subscription_paused'")
    assert mail["dedup_key"].endswith(f"/subscription_paused/{command.now.isoformat()}")
    assert mail["occurred_at"] == command.now + LATE


async def test_a_cancellation_keeps_the_whole_retention(billing: BillingFixture) -> None:
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription()
    command = change_status_command(ordered, SubscriptionStatus.CANCELLED)
    outcome = await _assert_later_attempt_repeats(billing, billing.subscription_activities.change_status, command)
    assert outcome.state.cancelled_at == command.now + LATE
    (row,) = await billing.query("SELECT * FROM subscriptions WHERE id = :id", id=ordered.id)
    assert row["data_deletion_at"] == command.now + LATE + 30 * DAY


async def test_a_cancellation_at_the_end_of_the_period_holds_when_it_is_recorded_after_it(
    billing: BillingFixture,
) -> None:
    ordered = await _paused(billing)
    command = cancel_at_period_end_command(ordered, ordered.period.end - DAY)
    committed = await run_late(billing.subscription_activities.set_cancel_at_period_end, command, LATE)
    assert committed.cancel_at_period_end


async def _assert_later_attempt_repeats(
    billing: BillingFixture, perform: Callable[[Command], Awaitable[Result]], command: Command
) -> Result:
    """Run a late attempt, and a later one as after a lost result, which returns the same and changes no row."""
    delays = iter([LATE, VERY_LATE])
    return await billing.assert_idempotent(lambda received: run_late(perform, received, next(delays)), command)


async def _paused(billing: BillingFixture) -> OpenedSubscription:
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription()
    await billing.subscription_activities.change_status(change_status_command(ordered, SubscriptionStatus.PAUSED))
    return ordered


def _resumption_command(billing: BillingFixture, ordered: OpenedSubscription) -> StartPeriod:
    return billing.start_period_command(ordered, kind=PeriodKind.RESUMPTION, start=TEN_DAYS_AFTER_ORDER)


async def _notified_dates(billing: BillingFixture, kind: str) -> list[tuple[datetime, datetime]]:
    """Return the next retry and the suspension that each mail names, the oldest first."""
    rows = await billing.query(
        "SELECT template_context FROM notifications WHERE kind = :kind ORDER BY occurred_at", kind=kind
    )
    contexts = [row["template_context"] for row in rows]
    return [
        (datetime.fromisoformat(context["next_retry_at"]), datetime.fromisoformat(context["suspends_at"]))
        for context in contexts
        if context.get("suspends_at")
    ]


async def _raise_price(database: DatabaseFixture, plan: str, amount_minor: int, effective_from: datetime) -> None:
    async with session_factory(database.owner).begin() as session:
        await session.execute(
            text(
                "INSERT INTO prices (id, plan_id, currency, amount_minor, effective_from)"
                " VALUES ('prc_raised', :plan, 'USD', :amount, :at)"
            ),
            {"plan": f"pln_{plan}", "amount": amount_minor, "at": effective_from},
        )
