"""What an invoice says paid it."""

from __future__ import annotations

import pytest

from workflows.rules.allocations import AllocationSource
from workflows.rules.invoice import InvoiceSource, covered_amounts, payment_summary
from workflows.rules.money import Money

PROMOTIONAL = AllocationSource.PROMOTIONAL
WALLET = AllocationSource.WALLET
DEBT = AllocationSource.DEBT


def usd(minor: int) -> Money:
    return Money(amount_minor=minor, currency="USD")


def source(kind: AllocationSource, minor: int) -> InvoiceSource:
    return InvoiceSource(source=kind, amount=usd(minor))


def payment(minor: int, card: str | None = "Visa ending in 4242", payment_id: str = "pay_1") -> InvoiceSource:
    return InvoiceSource(source=AllocationSource.PAYMENT, amount=usd(minor), payment_id=payment_id, card=card)


@pytest.mark.parametrize(
    ("sources", "summary"),
    [
        ([], None),
        ([source(WALLET, 500)], "Wallet"),
        ([source(PROMOTIONAL, 100), source(WALLET, 400)], "Wallet"),
        ([payment(500)], "Visa ending in 4242"),
        ([payment(500, card=None)], "Card"),
        ([payment(300), payment(200, payment_id="pay_2")], "Visa ending in 4242"),
        ([source(WALLET, 100), payment(400)], "Wallet, Visa ending in 4242"),
        ([source(DEBT, 20)], "Carried to the next payment"),
        ([source(WALLET, 480), source(DEBT, 20)], "Wallet, carried to the next payment"),
        ([source(DEBT, 0), payment(20)], "Visa ending in 4242"),
        ([payment(0)], "Visa ending in 4242"),
    ],
    ids=[
        "free",
        "wallet",
        "credit of two kinds",
        "card",
        "card without a saved method",
        "one card twice",
        "wallet and card",
        "carried",
        "wallet and carried",
        "carried debt that a card paid",
        "refunded",
    ],
)
def test_the_summary_names_what_paid(sources: list[InvoiceSource], summary: str | None) -> None:
    assert payment_summary(sources) == summary


def test_covered_amounts_sum_to_what_was_received() -> None:
    sources = [source(PROMOTIONAL, 100), source(WALLET, 50), payment(300), payment(30, payment_id="pay_2")]
    assert covered_amounts([*sources, source(DEBT, 20)], "USD") == {
        "promotional": usd(100),
        "wallet": usd(50),
        "card": usd(330),
        "credit_note": usd(0),
        "debt": usd(20),
    }
