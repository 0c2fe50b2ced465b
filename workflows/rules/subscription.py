"""What a subscription may do next."""

from __future__ import annotations

from enum import StrEnum

from workflows.rules.errors import Refusal, RuleBroken


class State(StrEnum):
    PENDING = "pending"
    PROVISIONING = "provisioning"
    TRIALING = "trialing"
    ACTIVE = "active"
    PAST_DUE = "past_due"
    SUSPENDED = "suspended"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    TERMINATED = "terminated"
    FAILED = "failed"
    EXPIRED = "expired"


MOVES: dict[State, frozenset[State]] = {
    State.PENDING: frozenset({State.PROVISIONING, State.EXPIRED, State.CANCELLED}),
    State.PROVISIONING: frozenset({State.TRIALING, State.ACTIVE, State.FAILED, State.CANCELLED}),
    State.TRIALING: frozenset({State.ACTIVE, State.PAUSED, State.CANCELLED}),
    State.ACTIVE: frozenset({State.PAST_DUE, State.PAUSED, State.CANCELLED}),
    State.PAST_DUE: frozenset({State.ACTIVE, State.SUSPENDED, State.CANCELLED}),
    State.SUSPENDED: frozenset({State.ACTIVE, State.CANCELLED}),
    State.PAUSED: frozenset({State.ACTIVE, State.CANCELLED}),
    State.CANCELLED: frozenset({State.TERMINATED}),
    State.TERMINATED: frozenset(),
    State.FAILED: frozenset(),
    State.EXPIRED: frozenset(),
}

LIVE = frozenset(
    {
        State.PENDING,
        State.PROVISIONING,
        State.TRIALING,
        State.ACTIVE,
        State.PAST_DUE,
        State.SUSPENDED,
        State.PAUSED,
    }
)
"""States in which the customer still has, or is about to have, the service."""

BEFORE_READY = frozenset({State.PENDING, State.PROVISIONING})
INDEBTED = frozenset({State.PAST_DUE, State.SUSPENDED})
ENDED = frozenset(state for state, targets in MOVES.items() if not targets)


def move(current: State, target: State) -> State:
    """Return ``target`` if it is a legal move.

    Raises:
        RuleBroken: ``ILLEGAL_MOVE`` if the table does not list it.
    """
    if target not in MOVES[current]:
        raise RuleBroken(
            Refusal.ILLEGAL_MOVE,
            f"A subscription that is {current} cannot become {target}.",
            {"from": current, "to": target},
        )
    return target
