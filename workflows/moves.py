"""Moves of a subscription that touch no money: they end, pause and suspend it, or say what its period's end brings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio import workflow

from workflows import policies
from workflows.ports.billing import Subscriptions
from workflows.ports.subscription import CancelAt, RecordIntent, RecordState
from workflows.refusals import refusal_of
from workflows.rules import dunning
from workflows.rules.errors import RuleBroken
from workflows.rules.subscription import LIVE, State, move

if TYPE_CHECKING:
    from workflows.subscription import Subscription


class Moves:
    """Whoever calls holds the entity's ``orders``."""

    def __init__(self, entity: Subscription) -> None:
        self._entity = entity

    async def end(self, at: CancelAt, actor: str, reason: str) -> None:
        """Cancel, or flag that the period's end does; what has ended stays as it is."""
        life, state = self._entity.alive, self._entity.state
        if at is CancelAt.PERIOD_END and state in (State.ACTIVE, State.TRIALING):
            await self.intend(True, actor, reason)
            return
        if state not in LIVE:
            return
        await self.record(State.CANCELLED, reason, actor)
        life.invoice_id = life.first_failure = life.pending_terms = None
        life.cancel_at_period_end = False

    async def intend(self, cancel_at_period_end: bool, actor: str, reason: str) -> None:
        """Say whether the period's end is the end of all; a cancellation drops a scheduled plan change."""
        life = self._entity.alive
        pending = life.pending_terms if not cancel_at_period_end else None
        await workflow.execute_activity_method(
            Subscriptions.record_intent,
            RecordIntent(
                subscription_id=self._entity.order.subscription_id,
                cancel_at_period_end=cancel_at_period_end,
                pending_plan_id=pending.plan_id if pending else None,
                reason=reason,
                actor=actor,
                now=workflow.now(),
            ),
            **policies.DATABASE,
        )
        life.cancel_at_period_end, life.pending_terms = cancel_at_period_end, pending
        self._entity.changed()

    async def record(self, to: State, reason: str, actor: str) -> None:
        """Record a move.

        Raises:
            ApplicationError: ``ILLEGAL_MOVE``.
        """
        life = self._entity.alive
        try:
            move(life.state, to)
        except RuleBroken as broken:
            raise refusal_of(broken) from broken
        now = workflow.now()
        delete_at = dunning.deletion(life.terms.calendar, now) if to is State.CANCELLED else None
        owing = to is State.SUSPENDED and life.first_failure is not None
        cancels_at = dunning.cancellation(life.terms.calendar, life.first_failure or now) if owing else None
        await workflow.execute_activity_method(
            Subscriptions.record_state,
            RecordState(
                subscription_id=self._entity.order.subscription_id,
                to=to,
                reason=reason,
                actor=actor,
                now=now,
                delete_at=delete_at,
                cancels_at=cancels_at,
                void_invoice=to is State.CANCELLED,
            ),
            **policies.DATABASE,
        )
        if to is State.CANCELLED:
            life.cancelled_at = now
        self._entity.enter(to)
