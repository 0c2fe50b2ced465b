"""The transitions of a subscription's status, held to a table that this test writes out."""

from __future__ import annotations

import pytest

from workflows.rules.errors import RuleViolation
from workflows.rules.subscription import (
    LIVE_STATUSES,
    PAST_DUE_STATUSES,
    PRE_READY_STATUSES,
    STOPPED_STATUSES,
    TERMINAL_STATUSES,
    SubscriptionStatus,
    transition,
)

SPECIFICATION = """
pending      > provisioning expired cancelled
provisioning > trialing active failed cancelled
trialing     > active paused cancelled
active       > past_due paused cancelled
past_due     > active suspended cancelled
suspended    > active cancelled
paused       > active cancelled
cancelled    > terminated
terminated   >
failed       >
expired      >
"""
ALLOWED = {
    status.strip(): frozenset(targets.split())
    for status, _, targets in (line.partition(">") for line in SPECIFICATION.strip().splitlines())
}


def test_the_specification_covers_every_status() -> None:
    assert set(ALLOWED) == {status.value for status in SubscriptionStatus}


@pytest.mark.parametrize("current", SubscriptionStatus)
@pytest.mark.parametrize("target", SubscriptionStatus)
def test_only_the_specified_transitions_are_allowed(current: SubscriptionStatus, target: SubscriptionStatus) -> None:
    if target.value in ALLOWED[current.value]:
        assert transition(current, target) is target
        return
    with pytest.raises(RuleViolation) as raised:
        transition(current, target)
    assert raised.value.code == "ILLEGAL_MOVE"


def test_the_groups_of_statuses() -> None:
    assert {status.value for status in PRE_READY_STATUSES} == {"pending", "provisioning"}
    assert {status.value for status in PAST_DUE_STATUSES} == {"past_due", "suspended"}
    assert {status.value for status in TERMINAL_STATUSES} == {"terminated", "failed", "expired"}
    assert {status.value for status in STOPPED_STATUSES} == {"suspended", "paused", "cancelled"}
    ended = {"cancelled", "terminated", "failed", "expired"}
    assert {status.value for status in LIVE_STATUSES} == set(ALLOWED) - ended
