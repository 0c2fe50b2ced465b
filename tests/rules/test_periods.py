"""Billing periods: computed from the anchor in the organization's time zone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest
from dateutil.relativedelta import relativedelta
from dateutil.tz import resolve_imaginary
from hypothesis import given
from hypothesis import strategies as st

from workflows.rules.periods import (
    Interval,
    add_calendar_days,
    billing_period,
    count_periods,
    next_period,
    period_boundary,
)

PARIS = "Europe/Paris"


def _days(anchor: datetime, count: int, interval: Interval = Interval.MONTH, timezone: str = "UTC") -> list[str]:
    return [billing_period(anchor, n, interval, timezone).start.strftime("%Y-%m-%d") for n in range(count)]


@pytest.mark.scenario("B1")
def test_the_31st_falls_back_to_the_last_day_and_returns() -> None:
    anchor = datetime(2027, 1, 31, 10, tzinfo=UTC)
    assert _days(anchor, 4) == ["2027-01-31", "2027-02-28", "2027-03-31", "2027-04-30"]
    assert _days(datetime(2028, 1, 31, 10, tzinfo=UTC), 2) == ["2028-01-31", "2028-02-29"]
    starts = [billing_period(anchor, n).start for n in range(61)]
    assert starts[60] == datetime(2032, 1, 31, 10, tzinfo=UTC)
    assert all(start.hour == 10 for start in starts)


@pytest.mark.scenario("B2")
def test_the_leap_day_bill_covers_to_the_29th_of_march_when_the_anchor_is_the_30th() -> None:
    anchor = datetime(2028, 1, 30, tzinfo=UTC)
    february = billing_period(anchor, 1)
    assert february.start == datetime(2028, 2, 29, tzinfo=UTC)
    assert february.end - timedelta(seconds=1) == datetime(2028, 3, 29, 23, 59, 59, tzinfo=UTC)


@pytest.mark.scenario("B3")
def test_a_yearly_leap_day_anchor() -> None:
    anchor = datetime(2028, 2, 29, tzinfo=UTC)
    assert _days(anchor, 5, Interval.YEAR) == ["2028-02-29", "2029-02-28", "2030-02-28", "2031-02-28", "2032-02-29"]


@pytest.mark.scenario("B4")
def test_the_day_of_the_month_is_that_of_the_organizations_time_zone() -> None:
    anchor = datetime(2027, 1, 31, 23, 30, tzinfo=UTC)  # already 1 February in Paris
    starts = [billing_period(anchor, n, Interval.MONTH, PARIS).start.astimezone(ZoneInfo(PARIS)) for n in range(4)]
    assert [(start.day, start.hour) for start in starts] == [(1, 0)] * 4


@pytest.mark.scenario("B6")
@pytest.mark.parametrize(
    ("anchor", "n", "expected"),
    [
        # 02:30 does not exist in Paris on 28 March 2027: the clock shows 03:30 instead.
        (datetime(2027, 2, 28, 1, 30, tzinfo=UTC), 1, datetime(2027, 3, 28, 1, 30, tzinfo=UTC)),
        # 02:30 exists twice in Paris on 31 October 2027: the first one, still in summer time, counts.
        (datetime(2027, 8, 31, 0, 30, tzinfo=UTC), 2, datetime(2027, 10, 31, 0, 30, tzinfo=UTC)),
        # Midnight and a half on the 1st stays that across both changes.
        (datetime(2027, 9, 30, 22, 30, tzinfo=UTC), 1, datetime(2027, 10, 31, 23, 30, tzinfo=UTC)),
    ],
)
def test_a_gap_moves_forward_and_a_fold_means_the_first(anchor: datetime, n: int, expected: datetime) -> None:
    assert billing_period(anchor, n, Interval.MONTH, PARIS).start == expected


zones = st.sampled_from(["UTC", PARIS, "America/New_York", "Asia/Jakarta", "Australia/Lord_Howe", "Pacific/Apia"])
instants = st.integers(0, 40 * 366 * 86400).map(
    lambda seconds: datetime(2020, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
)


@given(anchor=instants, n=st.integers(0, 60), interval=st.sampled_from(Interval), timezone=zones)
def test_periods_touch_and_never_overlap(anchor: datetime, n: int, interval: Interval, timezone: str) -> None:
    current, following = (
        billing_period(anchor, n, interval, timezone),
        billing_period(anchor, n + 1, interval, timezone),
    )
    assert current.end == following.start
    assert current.start < current.end
    longest = timedelta(days=31 if interval is Interval.MONTH else 366, hours=3)
    assert current.end - current.start <= longest
    assert current.end - current.start >= timedelta(days=28 if interval is Interval.MONTH else 365) - timedelta(
        days=1, hours=3
    )


@pytest.mark.scenario("B1", "B4", "B6")
@given(
    anchor=instants,
    n=st.integers(1, 240),
    interval=st.sampled_from(Interval),
    timezone=st.sampled_from(sorted(available_timezones() - {"localtime"})),
)
def test_boundaries_are_those_of_dateutil_in_every_zone(
    anchor: datetime, n: int, interval: Interval, timezone: str
) -> None:
    zone = ZoneInfo(timezone)
    wall_clock = anchor.astimezone(zone).replace(tzinfo=None)
    later = wall_clock + (relativedelta(months=n) if interval is Interval.MONTH else relativedelta(years=n))
    expected = resolve_imaginary(later.replace(tzinfo=zone))
    assert period_boundary(anchor, n, interval, timezone) == expected.astimezone(UTC)


def test_a_trial_is_counted_in_calendar_days_of_the_accounts_time_zone() -> None:
    """Los Angeles skips an hour on March 14: 30 days after March 1, 23:30, it is still 23:30, on March 31."""
    los_angeles = ZoneInfo("America/Los_Angeles")
    start = datetime(2027, 3, 1, 23, 30, tzinfo=los_angeles)
    end = add_calendar_days(start.astimezone(UTC), 30, "America/Los_Angeles")
    assert end == datetime(2027, 4, 1, 6, 30, tzinfo=UTC)
    assert end.astimezone(los_angeles).strftime("%m-%d %H:%M") == "03-31 23:30"


@pytest.mark.parametrize("interval", list(Interval))
@pytest.mark.parametrize("moved_by", [timedelta(hours=-1), timedelta(), timedelta(hours=1)])
def test_periods_are_counted_also_when_the_time_zone_data_has_moved_the_boundary(
    interval: Interval, moved_by: timedelta
) -> None:
    months = 1 if interval is Interval.MONTH else 12
    for day in range(28, 32):
        anchor = datetime(2024, 1, day, 23, 30, tzinfo=UTC)
        local = anchor.astimezone(ZoneInfo(PARIS)).replace(tzinfo=None)
        for n in range(1, 240):
            unmoved = (local + relativedelta(months=n * months)).replace(tzinfo=ZoneInfo(PARIS))
            boundary = unmoved.astimezone(UTC) + moved_by
            assert count_periods(anchor, boundary, interval) == n
            period = next_period(anchor, boundary, interval, PARIS)
            assert (period.start, period.end) == (boundary, period_boundary(anchor, n + 1, interval, PARIS))
