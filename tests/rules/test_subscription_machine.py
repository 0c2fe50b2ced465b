"""The subscription's states as a machine: whatever is ordered in whatever order, only the table's moves happen."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from workflows.rules.errors import RuleBroken
from workflows.rules.subscription import BEFORE_READY, ENDED, INDEBTED, LIVE, MOVES, State, move

SPEC = """
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


def test_the_table_is_the_design() -> None:
    lines = [line.split(">") for line in SPEC.strip().splitlines()]
    assert {State(left.strip()): {State(word) for word in right.split()} for left, right in lines} == {
        state: set(targets) for state, targets in MOVES.items()
    }


@pytest.mark.parametrize("current", State)
@pytest.mark.parametrize("target", State)
def test_every_other_move_is_refused_with_its_code(current: State, target: State) -> None:
    if target in MOVES[current]:
        assert move(current, target) is target
        return
    with pytest.raises(RuleBroken) as refused:
        move(current, target)
    assert refused.value.code == "ILLEGAL_MOVE"


class SubscriptionMachine(RuleBasedStateMachine):
    """Tries any move at any time and remembers what must never be forgotten."""

    @initialize(first=st.sampled_from([State.PENDING, State.PROVISIONING]))
    def order(self, first: State) -> None:
        self.state = first
        self.was_ready = False
        self.ended_as: State | None = None
        self.owed = False

    @rule(to=st.sampled_from(State))
    def attempt(self, to: State) -> None:
        before = self.state
        try:
            self.state = move(before, to)
        except RuleBroken:
            assert self.state is before
            return
        self.was_ready |= to in (State.ACTIVE, State.TRIALING)
        self.owed = to in INDEBTED
        if to in ENDED:
            self.ended_as = to

    @precondition(lambda self: self.ended_as is not None)
    @rule(to=st.sampled_from(State))
    def nothing_revives_the_ended(self, to: State) -> None:
        with pytest.raises(RuleBroken):
            move(self.state, to)

    @invariant()
    def never_free(self) -> None:
        """Who owes is past due or suspended, never active; who was never ready has never been billed."""
        state = getattr(self, "state", None)
        if state is None:
            return
        assert not (self.owed and state is State.ACTIVE)
        if state in (State.PAST_DUE, State.SUSPENDED, State.PAUSED):
            assert self.was_ready
        if state in (State.FAILED, State.EXPIRED):
            assert not self.was_ready
        assert (state in LIVE) == (state not in ENDED and state is not State.CANCELLED)
        assert not (state in BEFORE_READY and self.was_ready)


TestSubscriptionMachine = SubscriptionMachine.TestCase
TestSubscriptionMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
