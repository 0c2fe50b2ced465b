"""Plan changes, priced to the second over the whole period."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.money import Money, sum_money
from workflows.rules.periods import BillingPeriod, Interval
from workflows.rules.plan_change import PlanChangeQuote, PlanPrice, quote_plan_change
from workflows.rules.pricing import CouponKind, Discount
from workflows.rules.proration import PlanChangeMode

START = datetime(2026, 4, 1, 12, tzinfo=UTC)
APRIL = BillingPeriod(start=START, end=START + timedelta(days=30))


def usd(minor: int) -> Money:
    return Money(amount_minor=minor, currency="USD")


def side(minor: int, interval: Interval = Interval.MONTH) -> PlanPrice:
    return PlanPrice(name=f"Plan {minor}", price=usd(minor), interval=interval)


def change(
    old: int,
    new: int,
    *,
    days: float,
    mode: PlanChangeMode | None = None,
    paid: int | None = None,
    carried: int = 0,
    discount: Discount | None = None,
) -> PlanChangeQuote:
    return quote_plan_change(
        old=side(old),
        new=side(new),
        period=APRIL,
        at=START + timedelta(days=days),
        net_paid_in_period=usd(old if paid is None else paid),
        carried_in_period=usd(carried),
        mode=mode,
        discount=discount,
        next_discount=discount,
    )


FIVE_OFF = Discount(code="FIVE", kind=CouponKind.FIXED, amount=usd(500))


@pytest.mark.scenario("B7")
def test_an_upgrade_after_one_of_thirty_days() -> None:
    result = change(500, 2000, days=1)
    assert result.mode is PlanChangeMode.IMMEDIATE
    assert [line.amount.amount_minor for line in result.lines] == [-483, 1933]
    assert (result.amount_due, result.credit) == (usd(1450), usd(0))
    assert result.next_invoice == usd(2000)


@pytest.mark.scenario("B8")
@pytest.mark.parametrize(
    ("mode", "credit", "lines"),
    [(PlanChangeMode.IMMEDIATE, 1450, [-1933, 483]), (PlanChangeMode.PERIOD_END, 0, []), (None, 0, [])],
    ids=["immediate", "period_end", "default"],
)
def test_a_downgrade_after_one_of_thirty_days(mode: PlanChangeMode | None, credit: int, lines: list[int]) -> None:
    result = change(2000, 500, days=1, mode=mode)
    assert [line.amount.amount_minor for line in result.lines] == lines
    assert (result.amount_due, result.credit) == (usd(0), usd(credit))
    assert result.next_invoice == usd(500)


@pytest.mark.scenario("B9")
def test_a_coupon_reduces_both_sides() -> None:
    result = change(2000, 3000, days=15, discount=FIVE_OFF, paid=1500)
    unused, remaining = result.lines
    assert (unused.amount, remaining.amount) == (usd(-750), usd(1250))
    assert (remaining.unit_price, remaining.discount) == (usd(1500), usd(250))
    assert result.amount_due == usd(500)
    assert result.next_invoice == usd(2500)


@pytest.mark.scenario("B10")
def test_a_second_change_prorates_over_the_whole_period() -> None:
    first = change(500, 2000, days=10)
    second = change(2000, 6000, days=20, paid=500 + first.amount_due.amount_minor)
    assert first.amount_due == usd(1000)
    assert [line.amount.amount_minor for line in second.lines] == [-667, 2000]
    assert second.amount_due == usd(1333)
    assert second.lines[0].period == BillingPeriod(start=START + timedelta(days=20), end=APRIL.end)


@pytest.mark.scenario("B14")
def test_the_credit_is_limited_to_what_was_paid() -> None:
    assert change(2000, 500, days=0, mode=PlanChangeMode.IMMEDIATE, paid=800).credit == usd(300)
    assert change(2000, 500, days=0, mode=PlanChangeMode.IMMEDIATE, paid=-5).credit == usd(0)


@pytest.mark.scenario("B14")
@pytest.mark.parametrize(
    ("paid", "lines"),
    [(3000, [-2000, 2667]), (500, [-500, 2667]), (0, [0, 2667]), (-5, [0, 2667])],
    ids=["nothing", "a part", "all", "more than all"],
)
def test_an_upgrade_after_a_refund_credits_no_refunded_time(paid: int, lines: list[int]) -> None:
    result = change(3000, 4000, days=10, paid=paid)
    assert [line.amount.amount_minor for line in result.lines] == lines
    assert (result.amount_due, result.credit) == (usd(sum(lines)), usd(0))


@pytest.mark.parametrize("paid", [0, 300, 500])
def test_a_downgrade_after_a_refund_is_free_and_credits_nothing(paid: int) -> None:
    result = change(2000, 500, days=0, mode=PlanChangeMode.IMMEDIATE, paid=paid)
    assert [line.amount.amount_minor for line in result.lines] == [-500, 500]
    assert (result.amount_due, result.credit) == (usd(0), usd(0))


def test_an_upgrade_charges_carried_debt_of_the_period_once() -> None:
    result = change(20, 2000, days=0, paid=0, carried=20)
    assert [line.amount.amount_minor for line in result.lines] == [-20, 2000]
    assert result.amount_due == usd(1980)


def test_a_downgrade_credits_no_carried_debt() -> None:
    assert change(2000, 500, days=0, mode=PlanChangeMode.IMMEDIATE, paid=1980, carried=20).credit == usd(1500)
    assert change(2000, 500, days=0, mode=PlanChangeMode.IMMEDIATE, paid=900, carried=1100).credit == usd(900)


@pytest.mark.parametrize("days", [-1, 0], ids=["before", "start"])
def test_at_the_start_of_the_period_everything_is_unused(days: float) -> None:
    assert change(500, 2000, days=days).amount_due == usd(1500)


@pytest.mark.parametrize("days", [30, 31], ids=["end", "after"])
def test_at_the_end_of_the_period_nothing_is_left(days: float) -> None:
    assert change(500, 2000, days=days).amount_due == usd(0)


def test_a_longer_interval_begins_at_the_change() -> None:
    at = START + timedelta(days=15)
    result = quote_plan_change(
        old=side(2000),
        new=side(20000, Interval.YEAR),
        period=APRIL,
        at=at,
        net_paid_in_period=usd(2000),
        timezone="Europe/Paris",
    )
    assert result.is_new_anchor
    assert result.period == BillingPeriod(start=at, end=at.replace(year=2027))
    assert [line.amount for line in result.lines] == [usd(-1000), usd(20000)]
    assert result.amount_due == usd(19000)


def test_a_shorter_interval_starts_at_the_period_end_unless_immediate_is_requested() -> None:
    year = BillingPeriod(start=START, end=START.replace(year=2027))
    modes: dict[str, PlanChangeMode | None] = {"default": None, "now": PlanChangeMode.IMMEDIATE}
    quotes = {
        name: quote_plan_change(
            old=side(36500, Interval.YEAR),
            new=side(2000),
            period=year,
            at=START + timedelta(days=65),
            net_paid_in_period=usd(36500),
            mode=mode,
        )
        for name, mode in modes.items()
    }
    assert (quotes["default"].mode, quotes["default"].amount_due, quotes["default"].is_new_anchor) == (
        PlanChangeMode.PERIOD_END,
        usd(0),
        False,
    )
    assert (quotes["now"].credit, quotes["now"].is_new_anchor) == (usd(30000 - 2000), True)


def test_a_restart_uses_one_period_of_the_coupon() -> None:
    once = Discount(code="HALF", kind=CouponKind.PERCENT, percent=50, remaining_periods=1)
    result = quote_plan_change(
        old=side(2000),
        new=side(20000, Interval.YEAR),
        period=APRIL,
        at=START,
        net_paid_in_period=usd(2000),
        next_discount=once,
    )
    assert result.amount_due == usd(10000 - 2000)
    assert result.next_invoice == usd(20000)


def test_nothing_is_due_in_a_trial() -> None:
    result = quote_plan_change(
        old=side(0), new=side(2000), period=APRIL, at=START, net_paid_in_period=usd(0), trialing=True
    )
    assert (result.mode, result.lines, result.amount_due) == (PlanChangeMode.IMMEDIATE, (), usd(0))


def test_other_currencies_are_refused() -> None:
    euro = PlanPrice(name="E", price=Money(amount_minor=1, currency="EUR"), interval=Interval.MONTH)
    with pytest.raises(RuleViolation) as refused:
        quote_plan_change(old=side(500), new=euro, period=APRIL, at=START, net_paid_in_period=usd(500))
    assert refused.value.code is ErrorCode.CURRENCY_MISMATCH


@given(
    old=st.integers(0, 10**7),
    new=st.integers(0, 10**7),
    second=st.integers(0, APRIL.seconds),
    paid=st.integers(0, 10**7),
    percent=st.integers(1, 100) | st.none(),
)
def test_lines_add_up_and_credit_is_bounded(old: int, new: int, second: int, paid: int, percent: int | None) -> None:
    discount = None if percent is None else Discount(code="P", kind=CouponKind.PERCENT, percent=percent)
    result = change(old, new, days=second / 86400, mode=PlanChangeMode.IMMEDIATE, paid=paid, discount=discount)
    net = sum_money((line.amount for line in result.lines), "USD").amount_minor
    assert result.amount_due.amount_minor == max(net, 0)
    assert result.credit.amount_minor == min(max(-net, 0), paid)


def switch_interval(
    old: int, new: int, *, days: float, paid: int, carried: int, discount: Discount | None = None
) -> PlanChangeQuote:
    """Return the quote of a change between a year and a month; ``discount`` reduces both."""
    return quote_plan_change(
        old=side(old, Interval.YEAR),
        new=side(new),
        period=BillingPeriod(start=START, end=START + timedelta(days=365)),
        at=START + timedelta(days=days),
        net_paid_in_period=usd(paid),
        carried_in_period=usd(carried),
        mode=PlanChangeMode.IMMEDIATE,
        discount=discount,
        next_discount=discount,
    )


@pytest.mark.parametrize(
    ("old", "new", "paid", "carried", "due", "credit", "granted"),
    [
        # Unused time that was paid becomes credit, of which the new period is paid.
        (10_000, 500, 10_000, 0, 0, 9_500, 10_000),
        (10_000, 500, 9_980, 20, 0, 9_480, 9_980),
        # Carried debt counts toward the new period and never becomes credit.
        (40, 20, 0, 40, 0, 0, 0),
        (40, 30, 20, 20, 0, 0, 20),
        (40, 50, 20, 20, 10, 0, 20),
        # Refunded time is charged again.
        (10_000, 500, 0, 0, 500, 0, 0),
        (10_000, 500, -100, 0, 500, 0, 0),
    ],
)
def test_a_change_of_the_interval_neither_charges_carried_debt_twice_nor_credits_it(
    old: int, new: int, paid: int, carried: int, due: int, credit: int, granted: int
) -> None:
    quote = switch_interval(old, new, days=0, paid=paid, carried=carried)
    assert (quote.amount_due, quote.credit, quote.granted) == (usd(due), usd(credit), usd(granted))
    assert sum_money((line.amount for line in quote.lines), "USD") == usd(due - credit)
    if not due:
        # The credit that is granted pays the invoice of the new period.
        assert sum_money((line.amount for line in quote.period_lines), "USD") + quote.credit == quote.granted
