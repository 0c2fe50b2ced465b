"""Plan changes, priced to the second over the whole period."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.rules.errors import Refusal, RuleBroken
from workflows.rules.money import Money, total
from workflows.rules.periods import Interval, Period
from workflows.rules.plan_change import Quote, Side, quote
from workflows.rules.pricing import CouponKind, Discount
from workflows.rules.proration import Mode

START = datetime(2026, 4, 1, 12, tzinfo=UTC)
APRIL = Period(start=START, end=START + timedelta(days=30))


def usd(minor: int) -> Money:
    return Money(amount_minor=minor, currency="USD")


def side(minor: int, interval: Interval = Interval.MONTH) -> Side:
    return Side(name=f"Plan {minor}", price=usd(minor), interval=interval)


def change(
    old: int,
    new: int,
    *,
    days: float,
    mode: Mode | None = None,
    paid: int | None = None,
    discount: Discount | None = None,
) -> Quote:
    return quote(
        old=side(old),
        new=side(new),
        period=APRIL,
        at=START + timedelta(days=days),
        paid_in_period=usd(old if paid is None else paid),
        mode=mode,
        discount=discount,
        next_discount=discount,
    )


FIVE_OFF = Discount(code="FIVE", kind=CouponKind.FIXED, amount=usd(500))


@pytest.mark.scenario("B7")
def test_an_upgrade_after_one_of_thirty_days() -> None:
    result = change(500, 2000, days=1)
    assert result.mode is Mode.IMMEDIATE
    assert [line.amount.amount_minor for line in result.lines] == [-483, 1933]
    assert (result.due, result.credit) == (usd(1450), usd(0))
    assert result.next_invoice == usd(2000)


@pytest.mark.scenario("B8")
@pytest.mark.parametrize(
    ("mode", "credit", "lines"),
    [(Mode.IMMEDIATE, 1450, [-1933, 483]), (Mode.PERIOD_END, 0, []), (None, 0, [])],
    ids=["immediate", "period_end", "default"],
)
def test_the_downgrade_of_the_same(mode: Mode | None, credit: int, lines: list[int]) -> None:
    result = change(2000, 500, days=1, mode=mode)
    assert [line.amount.amount_minor for line in result.lines] == lines
    assert (result.due, result.credit) == (usd(0), usd(credit))
    assert result.next_invoice == usd(500)


@pytest.mark.scenario("B9")
def test_a_coupon_reduces_both_sides() -> None:
    result = change(2000, 3000, days=15, discount=FIVE_OFF, paid=1500)
    unused, remaining = result.lines
    assert (unused.amount, remaining.amount) == (usd(-750), usd(1250))
    assert (remaining.unit_price, remaining.discount) == (usd(1500), usd(250))
    assert result.due == usd(500)
    assert result.next_invoice == usd(2500)


@pytest.mark.scenario("B10")
def test_a_second_change_prorates_over_the_whole_period() -> None:
    first = change(500, 2000, days=10)
    second = change(2000, 6000, days=20, paid=500 + first.due.amount_minor)
    assert first.due == usd(1000)
    assert [line.amount.amount_minor for line in second.lines] == [-667, 2000]
    assert second.due == usd(1333)
    assert second.lines[0].period == Period(start=START + timedelta(days=20), end=APRIL.end)


@pytest.mark.scenario("B14")
def test_what_was_never_paid_is_never_credited() -> None:
    assert change(2000, 500, days=0, mode=Mode.IMMEDIATE, paid=300).credit == usd(300)
    assert change(2000, 500, days=0, mode=Mode.IMMEDIATE, paid=-5).credit == usd(0)


@pytest.mark.parametrize("days", [-1, 0], ids=["before", "start"])
def test_at_the_start_of_the_period_everything_is_unused(days: float) -> None:
    assert change(500, 2000, days=days).due == usd(1500)


@pytest.mark.parametrize("days", [30, 31], ids=["end", "after"])
def test_at_the_end_of_the_period_nothing_is_left(days: float) -> None:
    assert change(500, 2000, days=days).due == usd(0)


def test_a_longer_interval_begins_at_the_change() -> None:
    at = START + timedelta(days=15)
    result = quote(
        old=side(2000),
        new=side(20000, Interval.YEAR),
        period=APRIL,
        at=at,
        paid_in_period=usd(2000),
        timezone="Europe/Paris",
    )
    assert result.restarts
    assert result.period == Period(start=at, end=at.replace(year=2027))
    assert [line.amount for line in result.lines] == [usd(-1000), usd(20000)]
    assert result.due == usd(19000)


def test_a_shorter_interval_waits_for_the_period_end_unless_told_otherwise() -> None:
    year = Period(start=START, end=START.replace(year=2027))
    asked: dict[str, Mode | None] = {"default": None, "now": Mode.IMMEDIATE}
    made = {
        name: quote(
            old=side(36500, Interval.YEAR),
            new=side(2000),
            period=year,
            at=START + timedelta(days=65),
            paid_in_period=usd(36500),
            mode=mode,
        )
        for name, mode in asked.items()
    }
    assert (made["default"].mode, made["default"].due, made["default"].restarts) == (Mode.PERIOD_END, usd(0), False)
    assert (made["now"].credit, made["now"].restarts) == (usd(30000 - 2000), True)


def test_a_restart_uses_one_period_of_the_coupon() -> None:
    once = Discount(code="HALF", kind=CouponKind.PERCENT, percent=50, periods_left=1)
    result = quote(
        old=side(2000),
        new=side(20000, Interval.YEAR),
        period=APRIL,
        at=START,
        paid_in_period=usd(2000),
        next_discount=once,
    )
    assert result.due == usd(10000 - 2000)
    assert result.next_invoice == usd(20000)


def test_nothing_is_due_in_a_trial() -> None:
    result = quote(old=side(0), new=side(2000), period=APRIL, at=START, paid_in_period=usd(0), trialing=True)
    assert (result.mode, result.lines, result.due) == (Mode.IMMEDIATE, (), usd(0))


def test_other_currencies_are_refused() -> None:
    euro = Side(name="E", price=Money(amount_minor=1, currency="EUR"), interval=Interval.MONTH)
    with pytest.raises(RuleBroken) as refused:
        quote(old=side(500), new=euro, period=APRIL, at=START, paid_in_period=usd(500))
    assert refused.value.code is Refusal.CURRENCY_MISMATCH


@given(
    old=st.integers(0, 10**7),
    new=st.integers(0, 10**7),
    second=st.integers(0, APRIL.seconds),
    paid=st.integers(0, 10**7),
    percent=st.integers(1, 100) | st.none(),
)
def test_lines_add_up_and_credit_is_bounded(old: int, new: int, second: int, paid: int, percent: int | None) -> None:
    discount = None if percent is None else Discount(code="P", kind=CouponKind.PERCENT, percent=percent)
    result = change(old, new, days=second / 86400, mode=Mode.IMMEDIATE, paid=paid, discount=discount)
    net = total((line.amount for line in result.lines), "USD").amount_minor
    assert result.due.amount_minor == max(net, 0)
    assert result.credit.amount_minor == min(max(-net, 0), paid)
