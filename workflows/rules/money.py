"""Money: integer minor units with their currency, one rounding rule, allocations that sum to the whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from workflows.rules.errors import ErrorCode, RuleViolation


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Money:
    """An amount in the minor unit of its ISO 4217 currency; may be negative.

    The minor unit is the currency's own: cents for USD, whole yen for JPY. Nothing here multiplies by 100.
    """

    currency: str
    amount_minor: int

    def __post_init__(self) -> None:
        if type(self.amount_minor) is not int:
            raise TypeError("amount_minor is an integer count of minor units")
        if len(self.currency) != 3 or not self.currency.isascii() or not self.currency.isupper():
            raise ValueError(f"{self.currency!r} is not an ISO 4217 code")

    def __add__(self, other: Money) -> Money:
        return Money(amount_minor=self.amount_minor + self._require_same_currency(other), currency=self.currency)

    def __sub__(self, other: Money) -> Money:
        return Money(amount_minor=self.amount_minor - self._require_same_currency(other), currency=self.currency)

    def __neg__(self) -> Money:
        return Money(amount_minor=-self.amount_minor, currency=self.currency)

    def __bool__(self) -> bool:
        return self.amount_minor != 0

    def multiply(self, factor: Fraction | int) -> Money:
        """Return the product, rounded half to even once."""
        return Money(amount_minor=round_half_even(Fraction(self.amount_minor) * factor), currency=self.currency)

    def _require_same_currency(self, other: Money) -> int:
        if other.currency != self.currency:
            raise RuleViolation(
                ErrorCode.CURRENCY_MISMATCH, f"Currency mismatch: {self.currency} and {other.currency}."
            )
        return other.amount_minor


def zero_money(currency: str) -> Money:
    return Money(amount_minor=0, currency=currency)


def sum_money(amounts: Iterable[Money], currency: str) -> Money:
    """Return the sum; ``currency`` is that of an empty sum.

    Raises:
        RuleViolation: ``CURRENCY_MISMATCH``.
    """
    result = zero_money(currency)
    for amount in amounts:
        result = result + amount
    return result


def round_half_even(value: Fraction) -> int:
    """Round to the nearest integer, ties to the even one (what ``round`` does for fractions, exactly)."""
    return round(value)


def allocate(total: Money, weights: Sequence[int]) -> list[Money]:
    """Split ``total`` in proportion to ``weights`` by largest remainder, so that the parts sum to it exactly.

    Ties go to the earlier part. A negative whole is split like its opposite.

    Raises:
        ValueError: no weight is positive, or one is negative.
    """
    if any(weight < 0 for weight in weights) or sum(weights) <= 0:
        raise ValueError("weights are non-negative and one of them is positive")
    sign = -1 if total.amount_minor < 0 else 1
    amount, total_weight = abs(total.amount_minor), sum(weights)
    shares = [divmod(amount * weight, total_weight) for weight in weights]
    remaining = amount - sum(share for share, _ in shares)
    by_remainder = sorted(range(len(weights)), key=lambda index: (-shares[index][1], index))
    extra = set(by_remainder[:remaining])
    return [
        Money(amount_minor=sign * (share + (index in extra)), currency=total.currency)
        for index, (share, _) in enumerate(shares)
    ]
