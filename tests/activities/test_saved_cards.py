"""Which saved cards are charged for an invoice, and in which order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from activities.billing import PostgresBillingActivities
from tests.support.billing_commands import collect_command, top_up
from tests.support.billing_fixture import BillingFixture, insert_payment_method
from workflows.rules.funding import GatewayTerms

GATEWAYS = {
    "stripe": GatewayTerms(name="stripe", minimum_minor={"USD": 50}),
    "cheap": GatewayTerms(name="cheap", minimum_minor={"USD": 10}),
    "large": GatewayTerms(name="large", minimum_minor={"USD": 501}),
    "exact": GatewayTerms(name="exact", minimum_minor={"USD": 500}),
    "rupiah": GatewayTerms(name="rupiah", currencies=frozenset({"IDR"})),
}


@pytest.mark.parametrize(
    ("cards", "excluded", "charged"),
    [
        (["stripe", "cheap"], [], [0, 1]),
        # The default has the highest number: the order is that of the cards, not of their ids.
        (["stripe", "cheap", "stripe"], [0], [1, 2]),
        (["stripe", "cheap", "stripe"], [1], [0, 2]),
        (["stripe", "cheap"], [0, 1], []),
        # The default cannot take so little, its currency is not supported, or its gateway is gone.
        (["large", "stripe"], [], [1]),
        (["rupiah", "stripe"], [], [1]),
        (["withdrawn", "stripe"], [], [1]),
        (["stripe", "large", "rupiah", "withdrawn", "cheap"], [], [0, 4]),
        (["stripe", "exact"], [], [0, 1]),
        (["exact", "stripe"], [], [0, 1]),
        (["rupiah", "withdrawn"], [], []),
    ],
)
async def test_the_default_and_then_the_backups_that_can_take_the_amount_are_charged(
    billing: BillingFixture, cards: list[str], excluded: list[int], charged: list[int]
) -> None:
    billing.billing_activities = PostgresBillingActivities(billing.sessions, GATEWAYS)
    ordered, outcome = await billing.create_past_due_subscription()
    backups = [
        await insert_payment_method(billing.sessions, default=False, charge_order=position, gateway=gateway)
        for position, gateway in enumerate(cards[1:], start=1)
    ]
    ids = [await insert_payment_method(billing.sessions, gateway=cards[0]), *backups]
    command = replace(
        collect_command(ordered, outcome), excluded_payment_method_ids=[ids[position] for position in excluded]
    )
    collected = await billing.assert_idempotent(billing.billing_activities.collect_invoice, command)
    if not charged:
        assert collected.card_charge is None
        return
    assert collected.card_charge is not None
    assert collected.card_charge.amount.amount_minor == 500
    methods = [method.payment_method_id for method in collected.card_charge.payment_methods]
    assert methods == [ids[position] for position in charged]


async def test_credit_gives_way_to_the_minimum_of_the_card_that_is_charged(billing: BillingFixture) -> None:
    billing.billing_activities = PostgresBillingActivities(billing.sessions, GATEWAYS)
    ordered, outcome = await billing.create_past_due_subscription()
    await insert_payment_method(billing.sessions, default=False, charge_order=1, gateway="cheap")
    await insert_payment_method(billing.sessions)
    await top_up(billing, 480)
    collected = await billing.billing_activities.collect_invoice(collect_command(ordered, outcome))
    assert collected.card_charge is not None
    assert collected.card_charge.amount.amount_minor == 50
    assert len(collected.card_charge.payment_methods) == 2
    assert (await billing.balance(), await billing.balance("held")) == (30, 450)
