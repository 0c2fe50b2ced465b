"""The keys of holds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

_ORDER = "order"
_SEPARATOR = "/"


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldKey:
    """Names a hold among those of its subscription: that of its order, or one attempt to pay an invoice.

    Stored as ``order`` or ``<invoice>/<attempt>``; ids of invoices have no slash.

    Attributes:
        invoice_id: None for the hold of the order, whose invoice is written when its instance is ready.
        attempt: What pays the invoice, unique among its attempts.
    """

    invoice_id: str | None
    attempt: str = ""

    def __str__(self) -> str:
        return _ORDER if self.invoice_id is None else invoice_key_prefix(self.invoice_id) + self.attempt


ORDER_HOLD = HoldKey(invoice_id=None)
"""The hold of an order's first period."""


def period_hold(invoice_id: str) -> HoldKey:
    """Return the key of the hold that is placed with the invoice of a period."""
    return HoldKey(invoice_id=invoice_id, attempt="renewal")


def plan_change_hold(invoice_id: str) -> HoldKey:
    return HoldKey(invoice_id=invoice_id, attempt="change")


def collection_hold(invoice_id: str, at: datetime) -> HoldKey:
    """Return the key of the hold of an attempt to collect an open invoice."""
    return HoldKey(invoice_id=invoice_id, attempt=at.isoformat())


def parse_hold_key(stored: str) -> HoldKey:
    invoice_id, separator, attempt = stored.partition(_SEPARATOR)
    return HoldKey(invoice_id=invoice_id, attempt=attempt) if separator else ORDER_HOLD


def invoice_key_prefix(invoice_id: str) -> str:
    """Return how the stored keys of an invoice's holds begin, and no others."""
    return invoice_id + _SEPARATOR
