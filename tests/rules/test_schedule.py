"""The schedule: the next action of a subscription, and that unpaid subscriptions reach deletion."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.rules import dunning
from workflows.rules.notifications import is_superseded, reminder_times
from workflows.rules.schedule import ActionKind, ScheduledAction, ScheduleInput, next_action
from workflows.rules.subscription import SubscriptionStatus

START = datetime(2027, 1, 31, 10, tzinfo=UTC)
END = datetime(2027, 2, 28, 10, tzinfo=UTC)
DAY = timedelta(days=1)
POLICY = dunning.DunningPolicy()


def schedule_input(state: SubscriptionStatus, **facts: object) -> ScheduleInput:
    fields: dict[str, object] = {"period_start": START, "period_end": END, "policy": POLICY, **facts}
    return ScheduleInput(status=state, **fields)  # type: ignore[arg-type]  # facts are checked by the dataclass's users


def test_a_period_is_renewed_at_its_end() -> None:
    assert next_action(schedule_input(SubscriptionStatus.ACTIVE)) == ScheduledAction(
        at=END, kind=ActionKind.START_PERIOD
    )


def test_a_period_has_three_reminders() -> None:
    assert reminder_times(END, after=START) == [(7, END - 7 * DAY), (3, END - 3 * DAY), (1, END - 1 * DAY)]


def test_a_short_trial_has_no_reminders_from_before_its_start() -> None:
    assert reminder_times(START + 2 * DAY, after=START) == [(1, START + DAY)]


@pytest.mark.parametrize(("days_before", "later"), [(7, 4 * DAY), (3, 2 * DAY), (1, DAY)])
def test_a_reminder_is_superseded_when_the_next_one_or_the_renewal_is_due(days_before: int, later: timedelta) -> None:
    assert is_superseded(days_before, later)
    assert not is_superseded(days_before, later - timedelta(seconds=1))


def test_a_cancelled_period_ends_instead_of_renewing() -> None:
    assert next_action(schedule_input(SubscriptionStatus.ACTIVE, cancel_at_period_end=True)) == ScheduledAction(
        at=END, kind=ActionKind.CANCEL_AT_PERIOD_END
    )


@pytest.mark.parametrize(
    ("retries_made", "hard", "step", "day"),
    [
        (0, False, ActionKind.RETRY_PAYMENT, 1),
        (1, False, ActionKind.RETRY_PAYMENT, 3),
        (2, False, ActionKind.RETRY_PAYMENT, 5),
        (3, False, ActionKind.RETRY_PAYMENT, 7),
        (4, False, ActionKind.SUSPEND, 7),
        (0, True, ActionKind.SUSPEND, 7),
    ],
)
def test_dunning_days(retries_made: int, hard: bool, step: ActionKind, day: int) -> None:
    owed = schedule_input(
        SubscriptionStatus.PAST_DUE, grace_started_at=END, retries_made=retries_made, hard_declined=hard
    )
    assert next_action(owed) == ScheduledAction(at=END + day * DAY, kind=step)


def test_suspended_gives_up_on_day_thirty_and_cancelled_is_deleted_thirty_days_later() -> None:
    assert next_action(schedule_input(SubscriptionStatus.SUSPENDED, grace_started_at=END)) == ScheduledAction(
        at=END + 30 * DAY, kind=ActionKind.CANCEL_UNPAID
    )
    assert next_action(schedule_input(SubscriptionStatus.CANCELLED, cancelled_at=END)) == ScheduledAction(
        at=END + 30 * DAY, kind=ActionKind.DELETE_DATA
    )


@pytest.mark.parametrize(
    "state",
    [
        SubscriptionStatus.PENDING,
        SubscriptionStatus.PROVISIONING,
        SubscriptionStatus.PAUSED,
        SubscriptionStatus.TERMINATED,
        SubscriptionStatus.FAILED,
    ],
)
def test_a_status_that_only_a_command_changes_has_no_scheduled_action(state: SubscriptionStatus) -> None:
    assert next_action(schedule_input(state)) is None


@pytest.mark.scenario("B46")
@pytest.mark.parametrize(("late", "counted_from"), [(timedelta(minutes=5), "due"), (timedelta(days=10), "now")])
def test_grace_counts_from_the_due_time_or_from_now_after_a_long_platform_delay(
    late: timedelta, counted_from: str
) -> None:
    now = END + late
    assert dunning.past_due_since(END, now) == (END if counted_from == "due" else now)


@pytest.mark.parametrize(
    ("next_retry_day", "suspension_day", "today", "postponed"),
    [
        (3, 7, 3, (3, 7)),
        (3, 7, 5, (5, 9)),
        (3, 7, 10, (10, 14)),
        (None, 7, 10, (None, 10)),
        (None, 7, 5, (None, 7)),
        (None, None, 10, (None, None)),
        (3, None, 5, (5, None)),
    ],
)
def test_a_late_retry_or_suspension_moves_the_dates_that_follow_it(
    next_retry_day: int | None, suspension_day: int | None, today: int, postponed: tuple[int | None, int | None]
) -> None:
    def on_day(day: int | None) -> datetime | None:
        return None if day is None else END + timedelta(days=day)

    dates = dunning.postpone_dates(on_day(next_retry_day), on_day(suspension_day), END + timedelta(days=today))
    assert dates == (on_day(postponed[0]), on_day(postponed[1]))


@given(
    retry_days=st.lists(st.integers(0, 28), unique=True, max_size=6).map(lambda days: tuple(sorted(days))),
    state=st.sampled_from([SubscriptionStatus.ACTIVE, SubscriptionStatus.TRIALING]),
)
def test_an_unpaid_subscription_is_always_deleted_in_the_end(
    retry_days: tuple[int, ...], state: SubscriptionStatus
) -> None:
    """For any dunning policy, an unpaid renewal leads to deletion, and scheduled times never decrease."""
    policy = dunning.DunningPolicy(retry_days=retry_days, cancel_day=30, retention_days=30)
    now, facts = START, {"retries_made": 0}
    for _ in range(40):
        due = next_action(schedule_input(state, policy=policy, **facts))
        assert due is not None
        assert due.at >= now
        now = due.at
        match due.kind:
            case ActionKind.START_PERIOD:
                state, facts["grace_started_at"] = SubscriptionStatus.PAST_DUE, now  # type: ignore[assignment]  # a mixed dictionary
            case ActionKind.RETRY_PAYMENT:
                facts["retries_made"] = int(facts["retries_made"] or 0) + 1
            case ActionKind.SUSPEND:
                state = SubscriptionStatus.SUSPENDED
            case ActionKind.CANCEL_UNPAID:
                state, facts["cancelled_at"] = SubscriptionStatus.CANCELLED, now  # type: ignore[assignment]  # a mixed dictionary
            case ActionKind.DELETE_DATA:
                return
            case ActionKind.CANCEL_AT_PERIOD_END:
                raise AssertionError("the customer did not cancel")
    raise AssertionError("the data is never deleted")


CREDIT, RELEASED, CARD = dunning.FundsKind.CREDIT, dunning.FundsKind.RELEASED_CREDIT, dunning.FundsKind.PAYMENT_METHOD


@pytest.mark.parametrize("arrived", [set(), {CREDIT}, {RELEASED}, {CARD}, {CREDIT, RELEASED}, {CARD, RELEASED}])
@pytest.mark.parametrize("is_scheduled", [True, False])
@pytest.mark.parametrize("hard_declined", [True, False])
def test_only_a_customer_charges_a_hard_declined_card_and_released_credit_alone_charges_none(
    arrived: set[dunning.FundsKind], is_scheduled: bool, hard_declined: bool
) -> None:
    assert dunning.may_charge_card(arrived, by_customer=True, is_scheduled=False, hard_declined=hard_declined)
    charges = dunning.may_charge_card(
        arrived, by_customer=False, is_scheduled=is_scheduled, hard_declined=hard_declined
    )
    assert charges == (not hard_declined and (is_scheduled or arrived != {RELEASED}))


@pytest.mark.parametrize(
    ("failed_attempts", "last_attempt", "retries"),
    [
        (0, None, 0),
        (1, 0 * DAY, 0),
        (2, 1 * DAY, 1),
        (3, 3 * DAY + timedelta(minutes=1), 2),
        # Customers have tried as well.
        (6, 2 * DAY, 1),
        # The platform was down from the first to the ninth day, which extended the grace period.
        (2, 9 * DAY, 1),
        (9, 9 * DAY, 4),
    ],
)
def test_the_retries_that_were_made_follow_from_the_attempts_on_record(
    failed_attempts: int, last_attempt: timedelta | None, retries: int
) -> None:
    last_at = None if last_attempt is None else END + last_attempt
    assert (
        dunning.count_recorded_retries(POLICY, END, failed_attempts=failed_attempts, last_attempt_at=last_at) == retries
    )
