"""What a plan change in the middle of a period costs, to the second over the whole period."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from fractions import Fraction

from workflows.rules.money import Money, zero_money
from workflows.rules.periods import BillingPeriod


class PlanChangeMode(StrEnum):
    IMMEDIATE = "immediate"
    PERIOD_END = "period_end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proration:
    """The two lines of a change and what follows from them.

    Attributes:
        unused_credit: Credit for the rest of the old price as far as it was paid, zero or negative.
        remaining_charge: Debit for the rest of the new price, zero or positive.
        amount_due: What is charged now, zero or positive.
        credit: What becomes account credit, zero or positive.
    """

    unused_credit: Money
    remaining_charge: Money
    amount_due: Money
    credit: Money


def default_mode(old: Money, new: Money) -> PlanChangeMode:
    """Upgrades take effect at once, downgrades when the period that is paid for ends."""
    return PlanChangeMode.IMMEDIATE if new.amount_minor > old.amount_minor else PlanChangeMode.PERIOD_END


def prorate(
    *,
    old: Money,
    new: Money,
    period: BillingPeriod,
    at: datetime,
    net_paid_in_period: Money,
    carried_in_period: Money | None = None,
) -> Proration:
    """Prorate a change from ``old`` to ``new``, both the discounted price of one whole ``period``, at ``at``.

    A change outside the period prorates nothing before its start or after its end. Time that was refunded is not
    credited, so an upgrade is charged for it; a downgrade is never charged.

    Args:
        net_paid_in_period: Bounds the credit: what was never paid in money is never handed back (upgrade, consume,
            downgrade does not cash out).
        carried_in_period: Carried debt for the period. It counts as paid toward the new price, because the
            organization still owes it, and is never handed back. None is zero.
    """
    remaining_seconds = min(max((period.end - at).total_seconds(), 0), period.seconds)
    share = Fraction(int(remaining_seconds), period.seconds)
    zero = zero_money(old.currency)
    unused, remaining_charge = old.multiply(share), new.multiply(share)
    paid = max(net_paid_in_period, zero)
    received = paid + (carried_in_period or zero)
    unused = min(unused, received if remaining_charge > unused else max(received, remaining_charge))
    net = remaining_charge - unused
    return Proration(
        unused_credit=-unused,
        remaining_charge=remaining_charge,
        amount_due=max(net, zero),
        credit=min(max(-net, zero), paid),
    )
