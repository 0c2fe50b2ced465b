"""The outcome of a period's invoice, by the kind of the period and its funding."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.rules.funding import (
    AvailableFunding,
    CollectionMethod,
    Funding,
    GatewayTerms,
    SavedPaymentMethod,
    decide_funding,
)
from workflows.rules.money import Money
from workflows.rules.renewal import FUNDING_PURPOSES, PeriodKind, PeriodOutcome, decide_period

STRIPE = GatewayTerms(name="stripe", minimum_minor={"USD": 50})
RENEWAL, TRIAL_END, RESUMPTION = PeriodKind.RENEWAL, PeriodKind.TRIAL_END, PeriodKind.RESUMPTION


def usd(minor: int) -> Money:
    return Money(amount_minor=minor, currency="USD")


def fund(kind: PeriodKind, due: int, wallet: int, *, card: bool) -> Funding:
    methods = (SavedPaymentMethod(payment_method_id="pm_1", gateway=STRIPE),) if card else ()
    return decide_funding(
        usd(due),
        AvailableFunding(promotional=usd(0), wallet=usd(wallet), payment_methods=methods),
        purpose=FUNDING_PURPOSES[kind],
        method=CollectionMethod.WALLET_THEN_CARD,
    )


@pytest.mark.parametrize(
    ("kind", "wallet", "card", "outcome", "starts", "unpaid_now"),
    [
        (RENEWAL, 1500, False, PeriodOutcome.PAID, True, False),
        (RENEWAL, 0, True, PeriodOutcome.OPEN, True, False),
        (RENEWAL, 0, False, PeriodOutcome.OPEN, True, True),
        (TRIAL_END, 1500, False, PeriodOutcome.PAID, True, False),
        (TRIAL_END, 0, True, PeriodOutcome.DRAFT, False, False),
        (TRIAL_END, 1499, False, PeriodOutcome.REFUSED, False, True),
        (RESUMPTION, 1500, True, PeriodOutcome.PAID, True, False),
        (RESUMPTION, 0, True, PeriodOutcome.DRAFT, False, False),
        (RESUMPTION, 0, False, PeriodOutcome.REFUSED, False, True),
    ],
)
def test_the_outcome(
    kind: PeriodKind, wallet: int, card: bool, outcome: PeriodOutcome, starts: bool, unpaid_now: bool
) -> None:
    decision = decide_period(kind, fund(kind, 1500, wallet, card=card))
    assert (decision.outcome, decision.starts_period, decision.is_unpaid_now) == (outcome, starts, unpaid_now)


@pytest.mark.parametrize("kind", list(PeriodKind))
def test_an_amount_below_the_minimum_is_paid_by_carried_debt(kind: PeriodKind) -> None:
    assert decide_period(kind, fund(kind, 26, 0, card=True)).outcome is PeriodOutcome.PAID


@pytest.mark.parametrize("kind", list(PeriodKind))
def test_a_free_period_is_paid(kind: PeriodKind) -> None:
    assert decide_period(kind, fund(kind, 0, 0, card=False)).outcome is PeriodOutcome.PAID


@given(kind=st.sampled_from(PeriodKind), due=st.integers(0, 200), wallet=st.integers(0, 200), card=st.booleans())
def test_only_a_renewal_starts_a_period_that_is_not_paid(kind: PeriodKind, due: int, wallet: int, card: bool) -> None:
    funding = fund(kind, due, wallet, card=card)
    decision = decide_period(kind, funding)
    paid = decision.outcome is PeriodOutcome.PAID
    assert decision.starts_period == (paid or kind is RENEWAL)
    assert paid == (funding.is_sufficient and funding.payment is None)
    assert decision.is_unpaid_now == (not paid and funding.payment is None)
