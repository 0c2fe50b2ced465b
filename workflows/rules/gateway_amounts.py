"""Units in which gateways count money, where they differ from ISO 4217's minor units.

Sources: Stripe "Supported currencies" (zero-decimal currencies and the special cases ISK, UGX), Midtrans "Charge API"
(``gross_amount`` is whole rupiah), Razorpay "Orders" (the smallest unit of the currency).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from workflows.rules.money import Money

_EXPONENT_OFFSETS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        # ISK and UGX have no minor unit, but Stripe still wants two digits; MGA has one in ISO and none at Stripe.
        "stripe": MappingProxyType({"ISK": 2, "UGX": 2, "MGA": -2}),
        # ISO 4217 gives the rupiah two decimals; Midtrans takes integer rupiah.
        "midtrans": MappingProxyType({"IDR": -2}),
        "razorpay": MappingProxyType({}),
    }
)


def to_gateway_amount(gateway: str, money: Money) -> int:
    """Return the amount as the gateway counts it. JPY stays what it is: nothing is multiplied by 100 by default.

    Raises:
        ValueError: the amount cannot be said in the gateway's units (half a rupiah at Midtrans).
    """
    shift = _EXPONENT_OFFSETS.get(gateway, {}).get(money.currency, 0)
    if shift >= 0:
        return int(money.amount_minor * 10**shift)
    gateway_amount, remainder = divmod(money.amount_minor, 10**-shift)
    if remainder:
        raise ValueError(f"{gateway} takes whole {money.currency} only")
    return int(gateway_amount)


def from_gateway_amount(gateway: str, amount: int, currency: str) -> Money:
    """Return what the gateway's count means; ``currency`` in any case.

    Raises:
        ValueError: the count has digits that the currency does not have.
    """
    code = currency.upper()
    shift = _EXPONENT_OFFSETS.get(gateway, {}).get(code, 0)
    if shift <= 0:
        return Money(amount_minor=amount * 10**-shift, currency=code)
    amount_minor, remainder = divmod(amount, 10**shift)
    if remainder:
        raise ValueError(f"{amount} is no whole amount of {code}")
    return Money(amount_minor=amount_minor, currency=code)
