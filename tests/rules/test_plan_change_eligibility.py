"""Which subscriptions may change to which plan."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.money import Money
from workflows.rules.periods import BillingPeriod, Interval
from workflows.rules.plan_change import (
    PlanChangeFacts,
    PlanPrice,
    ReplacedTerms,
    can_roll_back,
    decide_plan_change,
    plan_change_period,
)
from workflows.rules.proration import PlanChangeMode
from workflows.rules.subscription import SubscriptionStatus

START = datetime(2027, 1, 31, tzinfo=UTC)
PERIOD = BillingPeriod(start=START, end=START + timedelta(days=28))


def plan_price(name: str, amount_minor: int) -> PlanPrice:
    return PlanPrice(name=name, price=Money(amount_minor=amount_minor, currency="USD"), interval=Interval.MONTH)


FACTS = PlanChangeFacts(
    status=SubscriptionStatus.ACTIVE,
    plan_id="plan_small",
    service_id="svc_1",
    timezone="UTC",
    period=PERIOD,
    current_plan=plan_price("Small", 500),
    target_plan_id="plan_large",
    target_service_id="svc_1",
    target_is_orderable=True,
    target_plan=plan_price("Large", 2_000),
)


@pytest.mark.parametrize("status", [SubscriptionStatus.ACTIVE, SubscriptionStatus.TRIALING])
def test_a_permitted_change_is_quoted(status: SubscriptionStatus) -> None:
    quote = decide_plan_change(replace(FACTS, status=status), at=START, mode=None)
    assert quote.next_invoice == Money(amount_minor=2_000, currency="USD")
    assert bool(quote.amount_due) is (status is SubscriptionStatus.ACTIVE)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"target_plan_id": "plan_small"}, ErrorCode.CONFLICT),
        ({"target_service_id": "svc_2"}, ErrorCode.CONFLICT),
        ({"target_is_orderable": False}, ErrorCode.PLAN_UNAVAILABLE),
        ({"target_plan": None}, ErrorCode.PLAN_UNAVAILABLE),
        ({"period": None}, ErrorCode.ILLEGAL_MOVE),
        ({"status": SubscriptionStatus.PAST_DUE, "target_plan_id": "plan_small"}, ErrorCode.ILLEGAL_MOVE),
    ],
)
def test_a_refused_change_names_its_reason(changes: dict[str, Any], code: ErrorCode) -> None:
    with pytest.raises(RuleViolation) as raised:
        decide_plan_change(replace(FACTS, **changes), at=START, mode=None)
    assert raised.value.code is code


@pytest.mark.parametrize("mode", list(PlanChangeMode))
@pytest.mark.parametrize("status", [SubscriptionStatus.ACTIVE, SubscriptionStatus.TRIALING])
def test_a_change_withdraws_a_scheduled_cancellation(status: SubscriptionStatus, mode: PlanChangeMode) -> None:
    for cancels in (True, False):
        facts = replace(FACTS, status=status, cancel_at_period_end=cancels)
        assert decide_plan_change(facts, at=START, mode=mode).withdraws_cancellation is cancels


def test_the_current_plan_withdraws_a_scheduled_change() -> None:
    chosen = replace(FACTS, target_plan_id="plan_small", pending_plan_id="plan_large", target_is_orderable=False)
    quote = decide_plan_change(chosen, at=START, mode=None)
    assert (quote.withdraws_scheduled, quote.lines, quote.amount_due.amount_minor) == (True, (), 0)
    assert quote.next_invoice == Money(amount_minor=500, currency="USD")


@pytest.mark.parametrize(
    "status",
    ["pending", "provisioning", "past_due", "suspended", "paused", "cancelled", "terminated", "failed", "expired"],
)
def test_only_active_and_trialing_subscriptions_change_their_plan(status: str) -> None:
    with pytest.raises(RuleViolation, match=status):
        decide_plan_change(replace(FACTS, status=SubscriptionStatus(status)), at=START, mode=None)


def test_the_period_of_a_trial_is_the_trial() -> None:
    none = {"period_start": None, "period_end": None, "billing_anchor": None, "trial_end": None}
    assert plan_change_period(**none) is None
    assert plan_change_period(**none | {"billing_anchor": PERIOD.start, "trial_end": PERIOD.end}) == PERIOD
    current = {"period_start": PERIOD.start, "period_end": PERIOD.end, "billing_anchor": START - timedelta(days=90)}
    assert plan_change_period(**none | current | {"trial_end": START}) == PERIOD


@pytest.mark.parametrize(
    ("plan_id", "period_start", "has_plan_resources", "expected"),
    [
        ("pln_new", START, False, True),
        ("pln_new", START, True, False),
        ("pln_new", PERIOD.end, False, False),
        ("pln_old", START, False, False),
        ("pln_new", None, False, False),
    ],
)
def test_a_recorded_plan_change_is_rolled_back_until_the_resize_or_the_next_period(
    plan_id: str, period_start: datetime | None, has_plan_resources: bool, expected: bool
) -> None:
    replaced = ReplacedTerms(
        plan_change_id="upd",
        plan_id="pln_old",
        price_id="prc_old",
        billing_anchor=START,
        period=PERIOD,
        pending_plan_id=None,
        new_plan_id="pln_new",
        new_period_start=START,
    )
    assert (
        can_roll_back(replaced, plan_id=plan_id, period_start=period_start, has_plan_resources=has_plan_resources)
        is expected
    )
