"""Billing periods: counted from the anchor, in the account's time zone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.rules.periods import Interval, nth_period

PARIS = "Europe/Paris"


def _days(anchor: datetime, count: int, interval: Interval = Interval.MONTH, timezone: str = "UTC") -> list[str]:
    return [nth_period(anchor, n, interval, timezone).start.strftime("%Y-%m-%d") for n in range(count)]


@pytest.mark.scenario("B1")
def test_the_31st_falls_back_to_the_last_day_and_returns() -> None:
    anchor = datetime(2027, 1, 31, 10, tzinfo=UTC)
    assert _days(anchor, 4) == ["2027-01-31", "2027-02-28", "2027-03-31", "2027-04-30"]
    assert _days(datetime(2028, 1, 31, 10, tzinfo=UTC), 2) == ["2028-01-31", "2028-02-29"]
    starts = [nth_period(anchor, n).start for n in range(61)]
    assert starts[60] == datetime(2032, 1, 31, 10, tzinfo=UTC)
    assert all(start.hour == 10 for start in starts)


@pytest.mark.scenario("B2")
def test_the_leap_day_bill_covers_to_the_29th_of_march_when_the_anchor_is_the_30th() -> None:
    anchor = datetime(2028, 1, 30, tzinfo=UTC)
    february = nth_period(anchor, 1)
    assert february.start == datetime(2028, 2, 29, tzinfo=UTC)
    assert february.end - timedelta(seconds=1) == datetime(2028, 3, 29, 23, 59, 59, tzinfo=UTC)


@pytest.mark.scenario("B3")
def test_a_yearly_leap_day_anchor() -> None:
    anchor = datetime(2028, 2, 29, tzinfo=UTC)
    assert _days(anchor, 5, Interval.YEAR) == ["2028-02-29", "2029-02-28", "2030-02-28", "2031-02-28", "2032-02-29"]


@pytest.mark.scenario("B4")
def test_the_day_is_the_accounts_own_whatever_the_hour_is_in_utc() -> None:
    anchor = datetime(2027, 1, 31, 23, 30, tzinfo=UTC)  # already 1 February in Paris
    starts = [nth_period(anchor, n, Interval.MONTH, PARIS).start.astimezone(ZoneInfo(PARIS)) for n in range(4)]
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
    assert nth_period(anchor, n, Interval.MONTH, PARIS).start == expected


zones = st.sampled_from(["UTC", PARIS, "America/New_York", "Asia/Jakarta", "Australia/Lord_Howe", "Pacific/Apia"])
instants = st.integers(0, 40 * 366 * 86400).map(
    lambda seconds: datetime(2020, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
)


@given(anchor=instants, n=st.integers(0, 60), interval=st.sampled_from(Interval), timezone=zones)
def test_periods_touch_and_never_overlap(anchor: datetime, n: int, interval: Interval, timezone: str) -> None:
    one, following = nth_period(anchor, n, interval, timezone), nth_period(anchor, n + 1, interval, timezone)
    assert one.end == following.start
    assert one.start < one.end
    longest = timedelta(days=31 if interval is Interval.MONTH else 366, hours=3)
    assert one.end - one.start <= longest
    assert one.end - one.start >= timedelta(days=28 if interval is Interval.MONTH else 365) - timedelta(days=1, hours=3)
