"""The funding rule: which sources pay an amount due."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.rules.allocations import AllocationSource
from workflows.rules.errors import RuleViolation
from workflows.rules.funding import (
    AvailableFunding,
    CollectionMethod,
    Funding,
    FundingPurpose,
    GatewayTerms,
    SavedPaymentMethod,
    decide_funding,
    decide_funding_with_debt,
)
from workflows.rules.money import Money

STRIPE = GatewayTerms(name="stripe", minimum_minor={"USD": 50})
CHEAP = GatewayTerms(name="cheap", minimum_minor={"USD": 10})
RUPIAH_ONLY = GatewayTerms(name="midtrans", currencies=frozenset({"IDR"}))
NO_AUTHORIZATION = GatewayTerms(name="razorpay", authorization=False)
NO_OFF_SESSION = GatewayTerms(name="redirect", off_session=False)

RENEWAL = FundingPurpose.RENEWAL
CARD, WALLET, BOTH = CollectionMethod.CARD, CollectionMethod.WALLET, CollectionMethod.WALLET_THEN_CARD


def usd(minor: int) -> Money:
    return Money(amount_minor=minor, currency="USD")


def available(promotional: int, wallet: int, *gateways: GatewayTerms) -> AvailableFunding:
    return AvailableFunding(
        promotional=usd(promotional),
        wallet=usd(wallet),
        payment_methods=tuple(
            SavedPaymentMethod(payment_method_id=f"pm_{number}", gateway=gateway)
            for number, gateway in enumerate(gateways)
        ),
    )


def parts(funding: Funding) -> dict[str, int]:
    return {part.source.value: part.amount.amount_minor for part in funding.parts}


@pytest.mark.parametrize(
    ("due", "has", "purpose", "method", "expected"),
    [
        (1500, available(0, 1500), FundingPurpose.RENEWAL, BOTH, {"wallet": 1500}),
        (1500, available(500, 2000), FundingPurpose.RENEWAL, BOTH, {"promotional": 500, "wallet": 1000}),
        (1500, available(0, 500, STRIPE), FundingPurpose.RENEWAL, BOTH, {"wallet": 500, "payment": 1000}),
        (1500, available(0, 0, STRIPE), FundingPurpose.ORDER, BOTH, {"payment": 1500}),
        # The remainder is below the minimum: the wallet gives way.
        (1500, available(0, 1480, STRIPE), FundingPurpose.ORDER, BOTH, {"wallet": 1450, "payment": 50}),
        (1500, available(0, 1480, STRIPE), FundingPurpose.RENEWAL, BOTH, {"wallet": 1450, "payment": 50}),
        (1500, available(900, 580, STRIPE), RENEWAL, BOTH, {"promotional": 900, "wallet": 550, "payment": 50}),
        (1500, available(1480, 0, STRIPE), FundingPurpose.RENEWAL, BOTH, {"promotional": 1450, "payment": 50}),
        (1500, available(1470, 10, STRIPE), FundingPurpose.RENEWAL, BOTH, {"promotional": 1450, "payment": 50}),
        # No method can take so little: debt.
        (26, available(0, 0, STRIPE), FundingPurpose.PLAN_CHANGE, BOTH, {"debt": 26}),
        (26, available(10, 5, STRIPE), FundingPurpose.PLAN_CHANGE, BOTH, {"promotional": 10, "wallet": 5, "debt": 11}),
        (26, available(0, 0, STRIPE), FundingPurpose.FINAL_COLLECTION, BOTH, {"debt": 26}),
        # A backup with a smaller minimum takes it.
        (26, available(0, 0, STRIPE, CHEAP), FundingPurpose.PLAN_CHANGE, BOTH, {"payment": 26}),
        # Card mode: card first; credit for what no card takes.
        (1500, available(500, 5000, STRIPE), FundingPurpose.RENEWAL, CARD, {"payment": 1500}),
        (26, available(0, 5000, STRIPE), FundingPurpose.PLAN_CHANGE, CARD, {"wallet": 26}),
        (26, available(0, 5, STRIPE), FundingPurpose.PLAN_CHANGE, CARD, {"wallet": 5, "debt": 21}),
        (1500, available(0, 5000), FundingPurpose.RENEWAL, CARD, {"wallet": 1500}),
        (1500, available(0, 5000, RUPIAH_ONLY), FundingPurpose.RENEWAL, CARD, {"wallet": 1500}),
        # In dunning any credit pays.
        (1500, available(0, 5000, STRIPE), FundingPurpose.DUNNING, CARD, {"wallet": 1500}),
        (1500, available(0, 5000, STRIPE), FundingPurpose.FINAL_COLLECTION, CARD, {"wallet": 1500}),
        (1500, available(0, 500, STRIPE), FundingPurpose.DUNNING, CARD, {"wallet": 500, "payment": 1000}),
        # Capabilities and currencies.
        (1500, available(0, 0, RUPIAH_ONLY, STRIPE), FundingPurpose.RENEWAL, BOTH, {"payment": 1500}),
        (1500, available(0, 0, NO_AUTHORIZATION), FundingPurpose.RENEWAL, BOTH, {"payment": 1500}),
        (0, available(0, 0), FundingPurpose.ORDER, BOTH, {}),
    ],
)  # fmt: skip
def test_the_parts(
    due: int, has: AvailableFunding, purpose: FundingPurpose, method: CollectionMethod, expected: dict[str, int]
) -> None:
    funding = decide_funding(usd(due), has, purpose=purpose, method=method)
    assert parts(funding) == expected
    assert funding.is_sufficient
    assert funding.is_settled_by_credit == ("payment" not in expected)


@pytest.mark.parametrize(
    ("due", "has", "purpose", "method", "shortfall"),
    [
        (1500, available(0, 1480), FundingPurpose.ORDER, BOTH, 20),
        (1500, available(100, 200), FundingPurpose.RENEWAL, BOTH, 1200),
        (1500, available(0, 1480, STRIPE), FundingPurpose.RENEWAL, WALLET, 20),
        (1500, available(0, 0, NO_AUTHORIZATION), FundingPurpose.ORDER, BOTH, 1500),
        (1500, available(0, 0, NO_OFF_SESSION), FundingPurpose.RENEWAL, BOTH, 1500),
        (1500, available(0, 0, RUPIAH_ONLY), FundingPurpose.RENEWAL, CARD, 1500),
    ],
)
def test_nothing_is_taken_of_an_amount_that_cannot_be_paid_in_full(
    due: int, has: AvailableFunding, purpose: FundingPurpose, method: CollectionMethod, shortfall: int
) -> None:
    funding = decide_funding(usd(due), has, purpose=purpose, method=method)
    assert (funding.parts, funding.shortfall, funding.is_sufficient) == ((), usd(shortfall), False)


def test_the_default_method_is_charged_and_the_backups_that_can_take_the_amount_follow() -> None:
    has = available(0, 0, RUPIAH_ONLY, CHEAP, STRIPE, CHEAP)
    funding = decide_funding(usd(40), has, purpose=FundingPurpose.RENEWAL, method=BOTH)
    assert funding.payment is not None
    assert (funding.payment.payment_method_id, funding.payment.amount) == ("pm_1", usd(40))
    assert funding.backup_payment_method_ids == ("pm_3",)
    assert decide_funding(usd(60), has, purpose=FundingPurpose.RENEWAL, method=BOTH).backup_payment_method_ids == (
        "pm_2",
        "pm_3",
    )


def test_another_currency_is_refused() -> None:
    has = AvailableFunding(promotional=usd(0), wallet=Money(amount_minor=5000, currency="ZAR"))
    with pytest.raises(RuleViolation, match="USD and ZAR"):
        decide_funding(usd(100), has, purpose=FundingPurpose.RENEWAL, method=BOTH)


def test_a_negative_amount_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="zero or positive"):
        decide_funding(usd(-1), available(0, 0), purpose=FundingPurpose.RENEWAL, method=BOTH)


AMOUNTS = st.integers(0, 300)
GATEWAYS = st.lists(st.sampled_from((STRIPE, CHEAP, RUPIAH_ONLY, NO_AUTHORIZATION, NO_OFF_SESSION)), max_size=3)


@given(
    due=AMOUNTS,
    promotional=AMOUNTS,
    wallet=AMOUNTS,
    gateways=GATEWAYS,
    purpose=st.sampled_from(FundingPurpose),
    method=st.sampled_from(CollectionMethod),
)
def test_funding_is_exact_affordable_and_never_refuses_a_small_amount(
    due: int,
    promotional: int,
    wallet: int,
    gateways: list[GatewayTerms],
    purpose: FundingPurpose,
    method: CollectionMethod,
) -> None:
    has = available(promotional, wallet, *gateways)
    funding = decide_funding(usd(due), has, purpose=purpose, method=method)
    usable = [gateway for gateway in gateways if gateway.supports("USD", purpose)] if method is not WALLET else []

    assert funding.is_sufficient == (promotional + wallet >= due or bool(usable))
    if not funding.is_sufficient:
        assert (funding.parts, funding.shortfall) == ((), usd(due - promotional - wallet))
        return
    assert sum(parts(funding).values()) == due
    assert all(amount > 0 for amount in parts(funding).values())
    assert funding.amount_from(AllocationSource.PROMOTIONAL) <= usd(promotional)
    assert funding.amount_from(AllocationSource.WALLET) <= usd(wallet)
    methods = {saved.payment_method_id: saved.gateway for saved in has.payment_methods}
    if funding.payment is not None:
        charged = [funding.payment.payment_method_id, *funding.backup_payment_method_ids]
        assert all(methods[str(method_id)] in usable for method_id in charged)
        assert all(methods[str(method_id)].minimum("USD") <= funding.payment.amount for method_id in charged)
    debt = funding.amount_from(AllocationSource.DEBT)
    if debt:
        assert funding.payment is None
        assert all(usd(due) < gateway.minimum("USD") for gateway in usable)
        assert parts(funding).get("promotional", 0) + parts(funding).get("wallet", 0) == promotional + wallet


@given(
    due=st.sampled_from((9, 10, 11, 49, 50, 51, 120)),
    promotional=st.sampled_from((0, 1, 40, 70)),
    wallet=st.sampled_from((0, 1, 39, 40)),
    gateways=st.lists(st.sampled_from((STRIPE, CHEAP, RUPIAH_ONLY, NO_AUTHORIZATION, NO_OFF_SESSION)), max_size=4),
    purpose=st.sampled_from(FundingPurpose),
    method=st.sampled_from((CARD, BOTH)),
)
def test_the_first_method_that_can_take_the_remainder_is_charged_and_each_later_one_that_can_is_a_backup(
    due: int,
    promotional: int,
    wallet: int,
    gateways: list[GatewayTerms],
    purpose: FundingPurpose,
    method: CollectionMethod,
) -> None:
    has = available(promotional, wallet, *gateways)
    funding = decide_funding(usd(due), has, purpose=purpose, method=method)
    in_dunning = purpose in (FundingPurpose.DUNNING, FundingPurpose.FINAL_COLLECTION)
    remainder = due if method is CARD and not in_dunning else max(due - promotional - wallet, 0)
    usable = [saved for saved in has.payment_methods if saved.gateway.supports("USD", purpose)]
    fitting = [saved for saved in usable if remainder and max(saved.gateway.minimum("USD"), usd(remainder)) <= usd(due)]
    if not fitting:
        assert funding.payment_method_ids == ()
        return
    charged = max(remainder, fitting[0].gateway.minimum("USD").amount_minor)
    assert funding.amount_from(AllocationSource.PAYMENT) == usd(charged)
    later = usable[usable.index(fitting[0]) + 1 :]
    backups = [saved.payment_method_id for saved in later if saved.gateway.minimum("USD").amount_minor <= charged]
    assert funding.payment_method_ids == (fitting[0].payment_method_id, *backups)
    assert funding.amount_from(AllocationSource.PROMOTIONAL) == min(usd(due - charged), usd(promotional))


@given(due=AMOUNTS, promotional=AMOUNTS, wallet=AMOUNTS, gateways=GATEWAYS, method=st.sampled_from(CollectionMethod))
def test_credit_that_covers_a_past_due_invoice_pays_it_without_a_charge(
    due: int, promotional: int, wallet: int, gateways: list[GatewayTerms], method: CollectionMethod
) -> None:
    for purpose in (FundingPurpose.DUNNING, FundingPurpose.FINAL_COLLECTION):
        has = available(promotional, wallet, *gateways)
        funding = decide_funding(usd(due), has, purpose=purpose, method=method)
        if promotional + wallet >= due:
            assert funding.payment is None
            assert not funding.amount_from(AllocationSource.DEBT)


@pytest.mark.parametrize(
    ("due", "debt", "has", "method", "expected"),
    [
        # Credit pays the amount due; the debt makes no card charge its condition, and stays.
        (500, 20, available(0, 500, STRIPE), BOTH, {"wallet": 500}),
        (500, 20, available(100, 410, STRIPE), BOTH, {"promotional": 100, "wallet": 400}),
        (0, 60, available(0, 0, STRIPE), BOTH, {}),
        (500, 20, available(0, 510), WALLET, {"wallet": 500}),
        # Credit pays both, or a part of a debt that is still below the minimum.
        (500, 20, available(0, 520, STRIPE), BOTH, {"wallet": 520}),
        (26, 20, available(0, 30, STRIPE), BOTH, {"wallet": 30, "debt": 16}),
        # A card is charged anyway, and for the debt as well.
        (500, 20, available(0, 0, STRIPE), BOTH, {"payment": 520}),
        (500, 20, available(0, 300, STRIPE), BOTH, {"wallet": 300, "payment": 220}),
        (500, 20, available(0, 900, STRIPE), CARD, {"payment": 520}),
        # Both together reach the minimum, or do not.
        (26, 30, available(0, 0, STRIPE), BOTH, {"payment": 56}),
        (26, 20, available(0, 0, STRIPE), BOTH, {"debt": 46}),
    ],
)
def test_the_parts_beside_debt(
    due: int, debt: int, has: AvailableFunding, method: CollectionMethod, expected: dict[str, int]
) -> None:
    funding = decide_funding_with_debt(usd(due), usd(debt), has, purpose=RENEWAL, method=method)
    assert parts(funding) == expected
    assert funding.is_sufficient


def test_debt_adds_nothing_to_a_shortfall() -> None:
    funding = decide_funding_with_debt(usd(500), usd(20), available(0, 499), purpose=RENEWAL, method=BOTH)
    assert (funding.parts, funding.shortfall) == ((), usd(1))


@given(
    due=AMOUNTS,
    debt=AMOUNTS,
    promotional=AMOUNTS,
    wallet=AMOUNTS,
    gateways=GATEWAYS,
    purpose=st.sampled_from(FundingPurpose),
    method=st.sampled_from(CollectionMethod),
)
def test_debt_decides_neither_whether_an_amount_is_paid_nor_that_a_card_is_charged_beside_credit(
    due: int,
    debt: int,
    promotional: int,
    wallet: int,
    gateways: list[GatewayTerms],
    purpose: FundingPurpose,
    method: CollectionMethod,
) -> None:
    has = available(promotional, wallet, *gateways)
    alone = decide_funding(usd(due), has, purpose=purpose, method=method)
    funding = decide_funding_with_debt(usd(due), usd(debt), has, purpose=purpose, method=method)
    assert (funding.is_sufficient, funding.shortfall) == (alone.is_sufficient, alone.shortfall)
    assert not funding.is_sufficient or funding.total in (usd(due), usd(due + debt))
    if parts(alone).keys() <= {"promotional", "wallet"}:
        assert funding.payment is None
