"""Money never loses a minor unit."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.rules.errors import RuleViolation
from workflows.rules.money import Money, allocate, sum_money


def usd(amount: int) -> Money:
    return Money(amount_minor=amount, currency="USD")


@given(total=st.integers(-(10**12), 10**12), weights=st.lists(st.integers(0, 10**6), min_size=1, max_size=12))
def test_parts_sum_to_the_total_and_stay_near_their_share(total: int, weights: list[int]) -> None:
    if sum(weights) == 0:
        with pytest.raises(ValueError, match="weights"):
            allocate(usd(total), weights)
        return
    parts = allocate(usd(total), weights)
    assert sum_money(parts, "USD") == usd(total)
    for part, weight in zip(parts, weights, strict=True):
        assert abs(Fraction(part.amount_minor) - Fraction(total * weight, sum(weights))) < 1


@pytest.mark.parametrize(
    ("amount", "factor", "expected"), [(5, Fraction(1, 2), 2), (15, Fraction(1, 2), 8), (-5, Fraction(1, 2), -2)]
)
def test_rounding_is_half_to_even(amount: int, factor: Fraction, expected: int) -> None:
    assert usd(amount).multiply(factor) == usd(expected)


@pytest.mark.scenario("B40")
def test_a_currency_without_minor_units_is_not_scaled() -> None:
    assert Money(amount_minor=1500, currency="JPY").multiply(1).amount_minor == 1500


def test_currencies_do_not_mix() -> None:
    with pytest.raises(RuleViolation) as refused:
        usd(1) + Money(amount_minor=1, currency="EUR")
    assert refused.value.code == "CURRENCY_MISMATCH"


@pytest.mark.parametrize("amount", [1.0, True, "1"])
def test_an_amount_is_an_integer(amount: object) -> None:
    with pytest.raises(TypeError):
        Money(amount_minor=amount, currency="USD")  # type: ignore[arg-type]  # the point of the test


@pytest.mark.parametrize("currency", ["usd", "US", "EURO", "ÜSD"])
def test_a_currency_is_an_iso_code(currency: str) -> None:
    with pytest.raises(ValueError, match="ISO 4217"):
        Money(amount_minor=1, currency=currency)
