"""Which currencies money is taken in, and how little of it is worth a card's fee.

Minor units are ISO 4217's (the yen has none). Source of the minima: Stripe, "Minimum and maximum charge amounts"; the
rupiah's is what half a dollar comes to.
"""

from __future__ import annotations

from types import MappingProxyType

from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.money import Money

MINIMUM_CHARGE = MappingProxyType(
    {
        "AUD": 50,
        "CAD": 50,
        "CHF": 50,
        "DKK": 250,
        "EUR": 50,
        "GBP": 30,
        "HKD": 400,
        "IDR": 1_000_000,
        "INR": 50,
        "JPY": 50,
        "NOK": 300,
        "NZD": 50,
        "PLN": 200,
        "SEK": 300,
        "SGD": 50,
        "USD": 50,
    }
)

MAX_AMOUNT_MINOR = 10**12
"""Upper limit of an amount: above any top-up in these currencies, far below the range of the database column."""


def require_chargeable(amount: Money) -> None:
    """Refuse what no card is charged.

    Raises:
        RuleViolation: ``VALIDATION_ERROR`` for a currency that is not taken, ``AMOUNT_TOO_SMALL``.
    """
    smallest = MINIMUM_CHARGE.get(amount.currency)
    if smallest is None:
        raise RuleViolation(
            ErrorCode.VALIDATION_ERROR,
            f"Unsupported currency: {amount.currency}.",
            {"field": "currency", "reason": "unsupported"},
        )
    if amount.amount_minor < smallest:
        raise RuleViolation(
            ErrorCode.AMOUNT_TOO_SMALL,
            "The amount is below the minimum of a card charge.",
            {"field": "amount_minor", "minimum_minor": smallest},
        )
