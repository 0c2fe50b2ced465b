"""Invoice allocations: conservation per source, bounded reversals, refunds and credits within what was paid."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from workflows.rules.allocations import (
    Allocation,
    AllocationSource,
    InvoiceBalance,
    Reversal,
    carried_debt,
    plan_change_credit_limit,
    plan_full_reversal,
    plan_reversal,
    refundable_amount,
    split_credit,
    unreversed_amount,
)
from workflows.rules.errors import RuleViolation
from workflows.rules.money import Money

PROMOTIONAL, WALLET, PAYMENT = AllocationSource.PROMOTIONAL, AllocationSource.WALLET, AllocationSource.PAYMENT
CREDIT_NOTE, DEBT = AllocationSource.CREDIT_NOTE, AllocationSource.DEBT


def usd(minor: int) -> Money:
    return Money(amount_minor=minor, currency="USD")


def allocation(number: int, source: AllocationSource, minor: int, reverses: str | None = None) -> Allocation:
    return Allocation(
        id=f"a{number}",
        source=source,
        amount=usd(minor),
        payment_id=f"pay_{number}" if source is PAYMENT else None,
        credit_note_id=f"cn_{number}" if source is CREDIT_NOTE else None,
        reverses=reverses,
    )


def to_allocation(reversal: Reversal, allocation_id: str) -> Allocation:
    """Return the allocation that ``ChangeSet.reverse`` writes for a reversal."""
    return Allocation(
        id=allocation_id,
        source=reversal.source,
        amount=-reversal.amount,
        payment_id=reversal.payment_id,
        credit_note_id=reversal.credit_note_id,
        reverses=reversal.allocation_id,
    )


def invoice(total: int, *allocations: Allocation, refunded: int = 0, credited: int = 0) -> InvoiceBalance:
    return InvoiceBalance(total=usd(total), refunded=usd(refunded), credited=usd(credited), allocations=allocations)


MIXED = (allocation(1, PROMOTIONAL, 300), allocation(2, WALLET, 700), allocation(3, PAYMENT, 500))


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        (200, [("a3", 200)]),
        (500, [("a3", 500)]),
        (900, [("a3", 500), ("a2", 400)]),
        (1500, [("a3", 500), ("a2", 700), ("a1", 300)]),
    ],
)
def test_a_partial_reversal_starts_with_the_payment_and_ends_with_promotional_credit(
    amount: int, expected: list[tuple[str, int]]
) -> None:
    planned = plan_reversal(MIXED, usd(amount))
    assert [(reversal.allocation_id, reversal.amount.amount_minor) for reversal in planned] == expected


def test_carried_debt_is_cancelled_before_money_is_returned() -> None:
    planned = plan_reversal((*MIXED, allocation(4, DEBT, 20)), usd(30))
    assert [(reversal.source, reversal.amount.amount_minor) for reversal in planned] == [(DEBT, 20), (PAYMENT, 10)]


def test_only_what_one_payment_paid() -> None:
    two = (allocation(1, PAYMENT, 400), allocation(2, PAYMENT, 600))
    (reversal,) = plan_reversal(two, usd(400), payment_id="pay_1")
    assert (reversal.allocation_id, reversal.payment_id) == ("a1", "pay_1")
    with pytest.raises(ValueError, match="more than was allocated"):
        plan_reversal(two, usd(401), payment_id="pay_1")


def test_more_than_was_allocated_or_another_currency_is_refused() -> None:
    with pytest.raises(ValueError, match="more than was allocated"):
        plan_reversal(MIXED, usd(1501))
    with pytest.raises(ValueError, match="positive"):
        plan_reversal(MIXED, usd(0))
    with pytest.raises(RuleViolation):
        plan_reversal(MIXED, Money(amount_minor=10, currency="EUR"))


def test_refundable_is_bounded_by_the_payment_by_refunds_and_by_credits() -> None:
    assert refundable_amount(invoice(1500, *MIXED), "pay_3") == usd(500)
    assert refundable_amount(invoice(1500, *MIXED, credited=1200), "pay_3") == usd(300)
    refunded = (*MIXED, to_allocation(plan_reversal(MIXED, usd(400), payment_id="pay_3")[0], "a4"))
    assert refundable_amount(invoice(1500, *refunded, refunded=400), "pay_3") == usd(100)
    assert refundable_amount(invoice(1500, *MIXED), "pay_9") == usd(0)


def test_a_refunded_period_cannot_be_credited_again() -> None:
    """Pay 30.00, refund 30.00, downgrade: nothing is left to credit (gumroad#6077)."""
    paid = allocation(1, PAYMENT, 3000)
    assert plan_change_credit_limit([invoice(3000, paid)], "USD") == usd(3000)
    back = to_allocation(plan_reversal((paid,), usd(3000))[0], "a2")
    assert plan_change_credit_limit([invoice(3000, paid, back, refunded=3000)], "USD") == usd(0)
    assert plan_change_credit_limit([invoice(3000, paid, credited=1200)], "USD") == usd(1800)
    assert plan_change_credit_limit([invoice(20, allocation(1, DEBT, 20))], "USD") == usd(0)
    assert plan_change_credit_limit([], "USD") == usd(0)


def test_a_credit_is_noted_on_the_newest_invoices_first() -> None:
    period, change = invoice(500, allocation(1, WALLET, 500)), invoice(1450, allocation(2, PAYMENT, 1450))
    assert split_credit([period, change], usd(1500)) == (usd(50), usd(1450))
    with pytest.raises(ValueError, match="more than the invoices can be credited"):
        split_credit([period, change], usd(1951))


@pytest.mark.parametrize(
    "fields",
    [
        {"source": WALLET, "amount": usd(0)},
        {"source": WALLET, "amount": usd(-1)},
        {"source": WALLET, "amount": usd(1), "reverses": "a0"},
        {"source": WALLET, "amount": usd(1), "payment_id": "pay_1"},
        {"source": PAYMENT, "amount": usd(1)},
        {"source": CREDIT_NOTE, "amount": usd(1)},
    ],
)
def test_contradicting_fields_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Allocation(id="a1", **fields)  # type: ignore[arg-type]


@given(st.lists(st.sampled_from((1, 5, 40)), max_size=8), st.integers(1, 400))
def test_a_plan_reverses_exactly_the_amount_or_nothing(amounts: list[int], amount: int) -> None:
    allocations = [
        allocation(number, list(AllocationSource)[number % 5], minor) for number, minor in enumerate(amounts)
    ]
    if amount > sum(amounts):
        with pytest.raises(ValueError, match="more than was allocated"):
            plan_reversal(allocations, usd(amount))
        return
    planned = plan_reversal(allocations, usd(amount))
    assert sum(reversal.amount.amount_minor for reversal in planned) == amount


class InvoiceAllocationMachine(RuleBasedStateMachine):
    """One invoice with five sources: no sequence of rules creates, loses or converts money."""

    def __init__(self) -> None:
        super().__init__()
        self.allocations: list[Allocation] = []
        self.allocated: Counter[str] = Counter()
        self.returned: Counter[str] = Counter()

    @rule(source=st.sampled_from(AllocationSource), minor=st.integers(1, 500))
    def allocate(self, source: AllocationSource, minor: int) -> None:
        new_allocation = allocation(len(self.allocations), source, minor)
        self.allocations.append(new_allocation)
        self.allocated[self._origin(new_allocation)] += minor

    @precondition(lambda self: self._remaining() > 0)
    @rule(data=st.data())
    def reverse_a_part(self, data: st.DataObject) -> None:
        amount = data.draw(st.integers(1, self._remaining()))
        for reversal in plan_reversal(self.allocations, usd(amount)):
            self._add_reversal(to_allocation(reversal, f"a{len(self.allocations)}"))

    @rule()
    def reverse_everything(self) -> None:
        for reversal in plan_full_reversal(self.allocations):
            self._add_reversal(to_allocation(reversal, f"a{len(self.allocations)}"))
        assert self._remaining() == 0

    @rule(excess=st.integers(1, 100))
    def more_than_remains_is_rejected(self, excess: int) -> None:
        with pytest.raises(ValueError, match="more than was allocated"):
            plan_reversal(self.allocations, usd(self._remaining() + excess))

    @invariant()
    def amounts_are_received_or_returned_per_source(self) -> None:
        now: Counter[str] = Counter()
        for allocated in self.allocations:
            now[self._origin(allocated)] += allocated.amount.amount_minor
        assert all(self.allocated[origin] == now[origin] + self.returned[origin] for origin in self.allocated)
        assert sum(now.values()) == self._remaining() >= 0
        carried = carried_debt(invoice(9999, *self.allocations))
        assert carried.amount_minor == sum(amount for origin, amount in now.items() if origin.startswith(f"{DEBT}/"))

    @invariant()
    def no_allocation_is_reversed_beyond_its_amount(self) -> None:
        originals = [original for original in self.allocations if original.reverses is None]
        assert all(usd(0) <= unreversed_amount(original, self.allocations) <= original.amount for original in originals)

    @invariant()
    def refunds_and_credits_stay_within_what_was_paid(self) -> None:
        credited = plan_change_credit_limit([invoice(9999, *self.allocations)], "USD")
        spent = invoice(9999, *self.allocations, credited=credited.amount_minor)
        payments = {allocated.payment_id for allocated in self.allocations if allocated.payment_id is not None}
        assert all(refundable_amount(spent, payment) == usd(0) for payment in payments)

    def _add_reversal(self, reversal: Allocation) -> None:
        self.allocations.append(reversal)
        self.returned[self._origin(reversal)] -= reversal.amount.amount_minor

    def _remaining(self) -> int:
        return sum(allocated.amount.amount_minor for allocated in self.allocations)

    @staticmethod
    def _origin(allocated: Allocation) -> str:
        return f"{allocated.source}/{allocated.payment_id or allocated.credit_note_id or ''}"


TestInvoiceAllocations = InvoiceAllocationMachine.TestCase
TestInvoiceAllocations.settings = settings(max_examples=40, stateful_step_count=25)
