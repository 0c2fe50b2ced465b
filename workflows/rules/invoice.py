"""An invoice's states, and its number."""

from __future__ import annotations

from enum import StrEnum

from workflows.rules.errors import Refusal, RuleBroken


class InvoiceStatus(StrEnum):
    DRAFT = "draft"
    OPEN = "open"
    PAID = "paid"
    VOID = "void"
    UNCOLLECTIBLE = "uncollectible"


MOVES: dict[InvoiceStatus, frozenset[InvoiceStatus]] = {
    InvoiceStatus.DRAFT: frozenset({InvoiceStatus.OPEN, InvoiceStatus.PAID, InvoiceStatus.VOID}),
    InvoiceStatus.OPEN: frozenset({InvoiceStatus.PAID, InvoiceStatus.VOID, InvoiceStatus.UNCOLLECTIBLE}),
    InvoiceStatus.PAID: frozenset({InvoiceStatus.OPEN}),
    InvoiceStatus.VOID: frozenset(),
    InvoiceStatus.UNCOLLECTIBLE: frozenset({InvoiceStatus.PAID}),
}


def move(current: InvoiceStatus, target: InvoiceStatus) -> InvoiceStatus:
    """Return ``target`` if it is a legal move. A paid invoice reopens when its payment is charged back.

    Raises:
        RuleBroken: ``ILLEGAL_MOVE``.
    """
    if target not in MOVES[current]:
        raise RuleBroken(Refusal.ILLEGAL_MOVE, f"An invoice that is {current} cannot become {target}.")
    return target
