"""Why the amounts of an invoice are what they are, for ``GET …/explain``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from activities.notification_context import money_to_json
from db.queries.locked_subscriptions import LockedSubscription
from workflows.rules.pricing import InvoiceLine


def build_explanation(subscription: LockedSubscription, lines: Sequence[InvoiceLine]) -> dict[str, Any]:
    """Return why the amounts of an invoice are what they are, line by line. What paid it is in its allocations."""
    return {
        "price_id": subscription.price_id,
        "plan": subscription.plan_code,
        "lines": [
            {
                "description": line.description,
                "unit_price": money_to_json(line.unit_price),
                "discount": money_to_json(line.discount),
                "coupon": subscription.discount.code if subscription.discount and line.discount else None,
                "period": {"start": line.period.start.isoformat(), "end": line.period.end.isoformat()},
                "arithmetic": f"{line.unit_price.amount_minor} x {line.quantity} - {line.discount.amount_minor}"
                f" = {line.amount.amount_minor} {line.amount.currency} (minor units)",
            }
            for line in lines
        ],
    }
