"""The calendar: what falls due next, and that following it always comes to an end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.rules import dunning
from workflows.rules.agenda import Due, Standing, Step, next_due
from workflows.rules.subscription import State

START = datetime(2027, 1, 31, 10, tzinfo=UTC)
END = datetime(2027, 2, 28, 10, tzinfo=UTC)
DAY = timedelta(days=1)
CALENDAR = dunning.Calendar()


def standing(state: State, **facts: object) -> Standing:
    known: dict[str, object] = {"period_start": START, "period_end": END, "calendar": CALENDAR, **facts}
    return Standing(state=state, **known)  # type: ignore[arg-type]  # facts are checked by the dataclass's users


@pytest.mark.parametrize(
    ("reminded", "expected"),
    [
        (None, Due(at=END - 7 * DAY, step=Step.REMIND, days=7)),
        (7, Due(at=END - 3 * DAY, step=Step.REMIND, days=3)),
        (3, Due(at=END - 1 * DAY, step=Step.REMIND, days=1)),
        (1, Due(at=END, step=Step.RENEW)),
    ],
)
def test_a_period_is_reminded_of_thrice_and_then_renewed(reminded: int | None, expected: Due) -> None:
    assert next_due(standing(State.ACTIVE, reminded=reminded)) == expected


def test_a_short_trial_skips_reminders_from_before_its_start() -> None:
    short = standing(State.TRIALING, period_end=START + 2 * DAY)
    assert next_due(short) == Due(at=START + DAY, step=Step.REMIND, days=1)


def test_a_cancelled_period_ends_instead_of_renewing() -> None:
    assert next_due(standing(State.ACTIVE, reminded=1, cancel_at_period_end=True)) == Due(at=END, step=Step.END)


@pytest.mark.parametrize(
    ("attempts", "hard", "step", "day"),
    [
        (0, False, Step.RETRY, 1),
        (1, False, Step.RETRY, 3),
        (2, False, Step.RETRY, 5),
        (3, False, Step.RETRY, 7),
        (4, False, Step.SUSPEND, 7),
        (0, True, Step.SUSPEND, 7),
    ],
)
def test_dunning_days(attempts: int, hard: bool, step: Step, day: int) -> None:
    owed = standing(State.PAST_DUE, first_failure=END, attempts=attempts, hard_declined=hard)
    assert next_due(owed) == Due(at=END + day * DAY, step=step)


def test_suspended_gives_up_on_day_thirty_and_cancelled_is_deleted_thirty_days_later() -> None:
    assert next_due(standing(State.SUSPENDED, first_failure=END)) == Due(at=END + 30 * DAY, step=Step.GIVE_UP)
    assert next_due(standing(State.CANCELLED, cancelled_at=END)) == Due(at=END + 30 * DAY, step=Step.DELETE)


@pytest.mark.parametrize("state", [State.PENDING, State.PROVISIONING, State.PAUSED, State.TERMINATED, State.FAILED])
def test_what_only_an_order_moves_has_no_calendar(state: State) -> None:
    assert next_due(standing(state)) is None


@pytest.mark.scenario("B46")
@pytest.mark.parametrize(("late", "counted_from"), [(timedelta(minutes=5), "due"), (timedelta(days=10), "now")])
def test_grace_counts_from_the_first_failure_and_nobody_loses_days_to_our_own_delay(
    late: timedelta, counted_from: str
) -> None:
    now = END + late
    assert dunning.first_failure(END, now) == (END if counted_from == "due" else now)


@given(
    retry_days=st.lists(st.integers(0, 28), unique=True, max_size=6).map(lambda days: tuple(sorted(days))),
    state=st.sampled_from([State.ACTIVE, State.TRIALING]),
)
def test_an_unpaid_life_always_ends(retry_days: tuple[int, ...], state: State) -> None:
    """Whatever the calendar, following it from an unpaid renewal reaches deletion, and time never runs backwards."""
    calendar = dunning.Calendar(retry_days=retry_days, cancel_day=30, retention_days=30)
    now, facts = START, {"reminded": None, "attempts": 0}
    for _ in range(40):
        due = next_due(standing(state, calendar=calendar, **facts))
        assert due is not None
        assert due.at >= now
        now = due.at
        match due.step:
            case Step.REMIND:
                facts["reminded"] = due.days
            case Step.RENEW:
                state, facts["first_failure"] = State.PAST_DUE, now  # type: ignore[assignment]  # a mixed dictionary
            case Step.RETRY:
                facts["attempts"] = int(facts["attempts"] or 0) + 1
            case Step.SUSPEND:
                state = State.SUSPENDED
            case Step.GIVE_UP:
                state, facts["cancelled_at"] = State.CANCELLED, now  # type: ignore[assignment]  # a mixed dictionary
            case Step.DELETE:
                return
            case Step.END:
                raise AssertionError("nothing was cancelled")
    raise AssertionError("it never ends")
