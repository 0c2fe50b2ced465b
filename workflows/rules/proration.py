"""What a plan change in the middle of a period costs, to the second over the whole period."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from fractions import Fraction

from workflows.rules.money import Money, zero
from workflows.rules.periods import Period


class Mode(StrEnum):
    IMMEDIATE = "immediate"
    PERIOD_END = "period_end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proration:
    """The two lines of a change and what follows from them.

    Attributes:
        unused: Credit for the rest of the old price, zero or negative.
        remaining: Debit for the rest of the new price, zero or positive.
        due: What is charged now, zero or positive.
        credit: What becomes account credit, zero or positive.
    """

    unused: Money
    remaining: Money
    due: Money
    credit: Money


def default_mode(old: Money, new: Money) -> Mode:
    """Upgrades take effect at once, downgrades when the period that is paid for ends."""
    return Mode.IMMEDIATE if new.amount_minor > old.amount_minor else Mode.PERIOD_END


def prorate(*, old: Money, new: Money, period: Period, at: datetime, paid_in_period: Money) -> Proration:
    """Prorate a change from ``old`` to ``new``, both the discounted price of one whole ``period``, at ``at``.

    ``paid_in_period`` bounds the credit: what was never paid in money is never handed back (upgrade, consume,
    downgrade does not cash out). A change outside the period prorates nothing before its start or after its end.
    """
    left = min(max((period.end - at).total_seconds(), 0), period.seconds)
    share = Fraction(int(left), period.seconds)
    unused, remaining = -old.times(share), new.times(share)
    net = unused + remaining
    nothing = zero(old.currency)
    if net.amount_minor >= 0:
        return Proration(unused=unused, remaining=remaining, due=net, credit=nothing)
    credit = Money(amount_minor=min(-net.amount_minor, max(paid_in_period.amount_minor, 0)), currency=old.currency)
    return Proration(unused=unused, remaining=remaining, due=nothing, credit=credit)
