"""The state that the parts of the subscription workflow share, the locks that guard it, and the waits on it.

Lock order: ``collection_lock``, then ``state_lock``. ``state_lock`` is never held while a gateway is asked, so that a
customer can cancel meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime

from temporalio import workflow

from workflows import names, policies
from workflows.errors import in_progress_error, non_retryable_error
from workflows.past_due_signals import signal_past_due_subscriptions
from workflows.ports.payments import PaymentOutcome
from workflows.ports.recovery import Recovery
from workflows.ports.subscription import (
    CancelSubscription,
    CommittedState,
    CreateSubscription,
    CreateSubscriptionOutcome,
    PlanTerms,
    RecordedOrder,
    SubscriptionState,
)
from workflows.rules import dunning
from workflows.rules.dunning import FundsKind
from workflows.rules.errors import ErrorCode
from workflows.rules.schedule import ScheduledAction, next_action
from workflows.rules.subscription import PAST_DUE_STATUSES, PRE_READY_STATUSES, SubscriptionStatus

MAX_HANDLED_UPDATE_IDS = 50
"""How many handled update ids are carried through a continue-as-new."""


class SubscriptionContext:
    """State of one subscription workflow. Parts of the workflow take this and never the workflow itself.

    Attributes:
        command: The order.
        state: None until the order is recorded.
        state_lock: Serializes changes of the state.
        collection_lock: Admits one collection at a time; taken before ``state_lock``.
        payments: The last outcome that each payment has signaled, by payment id.
        cancel_request: A cancellation that arrived before the instance was ready.
        pending_funds: Kinds of funds that arrived since the last attempt to collect the open invoice.
        order: Values of the recorded order, for the API; None in a run that was continued as new.
        change_count: Grows with each change of the state; loops wait for it.
        recovery: What a lost run left, until it is settled; None in a run that follows no lost one.
        payment_started_at: When the card payment that is awaited was started; None while none is.
        is_charging_for_new_period: A card is charged for a period, or a plan change, that starts only
            when it has paid.
    """

    def __init__(self, command: CreateSubscription, state: SubscriptionState | None) -> None:
        self.command = command
        self.state = state
        self.state_lock = asyncio.Lock()
        self.collection_lock = asyncio.Lock()
        self.payments: dict[str, PaymentOutcome] = {}
        self.cancel_request: CancelSubscription | None = None
        self.pending_funds: set[FundsKind] = set()
        self.order: RecordedOrder | None = None
        self.change_count = 0
        self.recovery: Recovery | None = None
        self.payment_started_at: datetime | None = None
        self.is_charging_for_new_period = False

    @property
    def status(self) -> SubscriptionStatus:
        """The committed status; ``pending`` until the order is recorded."""
        return self.state.committed.status if self.state is not None else SubscriptionStatus.PENDING

    @property
    def is_pre_ready(self) -> bool:
        """Whether the order is not recorded yet, or its instance is not ready: its compensation can still end it."""
        return self.status in PRE_READY_STATUSES

    def require_state(self) -> SubscriptionState:
        """Return the state.

        Raises:
            ApplicationError: ``ILLEGAL_MOVE``: the order is not recorded yet.
        """
        if self.state is None:
            raise non_retryable_error(ErrorCode.ILLEGAL_MOVE, "The order is not recorded yet. Retry when it is.")
        return self.state

    def require_status(self, allowed: bool, verb: str) -> None:
        """Raise ``ILLEGAL_MOVE`` unless ``allowed``; ``verb`` completes the message."""
        if not allowed:
            raise non_retryable_error(ErrorCode.ILLEGAL_MOVE, f"A subscription that is {self.status} cannot {verb}.")

    def notify_changed(self) -> None:
        """Wake the loops that wait for a change of the state."""
        self.change_count += 1

    # The schedule

    def next_action(self) -> ScheduledAction | None:
        return next_action(self.require_state().schedule_input())

    def is_still_due(self, action: ScheduledAction) -> bool:
        """Return whether ``action`` is still the next one; asked again once a lock is held."""
        return self.next_action() == action

    def next_retry_at(self) -> datetime | None:
        """Return when the open invoice is collected again, None after a hard decline."""
        state = self.require_state()
        if state.hard_declined:
            return None
        return dunning.next_retry_at(state.terms.dunning_policy, self._grace_started_at(), state.retries_made)

    def suspends_at(self) -> datetime | None:
        """Return when the subscription is suspended if its invoice stays unpaid, None once it is."""
        state = self.require_state()
        if self.status is SubscriptionStatus.SUSPENDED:
            return None
        return dunning.suspends_at(state.terms.dunning_policy, self._grace_started_at())

    def _grace_started_at(self) -> datetime:
        """Return when the grace period started, or will have started if the payment in progress fails now.

        ``subscription_transitions.mark_past_due`` counts it from the due date as well, which can be on the day before.
        """
        state, now = self.require_state(), workflow.now()
        return state.grace_started_at or dunning.past_due_since(state.committed.period_start or now, now)

    def clear_hard_decline(self) -> None:
        """Allow retries again. Those that were due while the card was hard-declined are skipped, not made up for: their
        delay is no platform downtime and must not extend the grace period.
        """
        state = self.state
        if state is None or not state.hard_declined:
            return
        state.hard_declined = False
        if state.grace_started_at is not None:
            elapsed = dunning.count_elapsed_retries(state.terms.dunning_policy, state.grace_started_at, workflow.now())
            state.retries_made = max(state.retries_made, elapsed)

    def record_decline(self, payment_method_id: str, *, is_hard_decline: bool) -> None:
        """Exclude a card from automatic charges after a hard decline; any other outcome admits it again."""
        state = self.require_state()
        others = [other for other in state.hard_declined_payment_method_ids if other != payment_method_id]
        state.hard_declined_payment_method_ids = [*others, payment_method_id] if is_hard_decline else others

    # The state

    def store_created(self, created: CreateSubscriptionOutcome) -> None:
        """Store the state of a recorded order."""
        self.state = SubscriptionState(
            committed=created.state,
            terms=created.terms,
            pending_terms=created.pending_terms,
            instance_plan_id=created.terms.plan_id,
        )
        self.order = created.order
        self.publish_status()

    def store_committed(self, committed: CommittedState, new_terms: PlanTerms | None = None) -> None:
        """Store the row that an activity has written. The only place that does.

        Args:
            committed: The row.
            new_terms: Terms of the plan, or of the scheduled plan, that the row has from now on. None: those that the
                subscription has.
        """
        state = self.require_state()
        previous, state.committed = state.committed, committed
        candidates = [terms for terms in (new_terms, state.terms, state.pending_terms) if terms is not None]
        state.terms = _find_terms(candidates, committed.plan_id)
        pending_plan_id = committed.pending_plan_id
        state.pending_terms = _find_terms(candidates, pending_plan_id) if pending_plan_id is not None else None
        if committed.status not in PAST_DUE_STATUSES:
            state.retries_made, state.hard_declined, state.grace_extension_seconds = 0, False, 0.0
            state.hard_declined_payment_method_ids = []
        if committed.period_start != previous.period_start:
            # The terms of a new period are final: a plan change before it is no longer rolled back.
            state.plan_change_rollback = None
        if committed.status is not previous.status:
            self.publish_status()
        self.notify_changed()

    def publish_status(self) -> None:
        """Let operators find the workflow by its status; by none when no order is recorded.

        The order's start has published a status already, which most orders have when they are recorded.
        """
        status = self.status if self.state is not None else None
        if workflow.info().typed_search_attributes.get(names.STATUS_KEY) == status:
            return
        update = names.STATUS_KEY.value_unset() if status is None else names.STATUS_KEY.value_set(status)
        workflow.upsert_search_attributes([update])

    # Waits

    async def wait_briefly(self, reached: Callable[[], bool]) -> None:
        """Wait at most ``PREVIOUS_UPDATE_WAIT`` for ``reached``.

        A caller can read the end of an earlier command from the database before this workflow receives it.
        """
        if not reached():
            with contextlib.suppress(TimeoutError):
                await workflow.wait_condition(reached, timeout=policies.PREVIOUS_UPDATE_WAIT)

    @property
    def payment_is_slow(self) -> bool:
        """Whether a card payment has had no outcome for longer than ``PREVIOUS_UPDATE_WAIT``."""
        started_at = self.payment_started_at
        return started_at is not None and workflow.now() - started_at > policies.PREVIOUS_UPDATE_WAIT

    def require_no_slow_payment(self) -> None:
        """Raise ``CONFLICT`` while ``payment_is_slow``; for validators, so that a refusal leaves no event."""
        if self.payment_is_slow:
            raise in_progress_error("A payment of this subscription has no outcome yet. Retry when it has, or cancel.")

    @contextmanager
    def charging_for_new_period(self) -> Iterator[None]:
        """Mark a charge, and the record of its outcome, that starts another period or plan than the committed one.

        Its success would withdraw a cancellation at the end of the committed period, or charge after it.
        """
        self.is_charging_for_new_period = True
        try:
            yield
        finally:
            self.is_charging_for_new_period = False

    def require_no_charge_for_new_period(self) -> None:
        """Raise ``CONFLICT`` while a charge is in progress after which a cancellation would not hold."""
        if self.is_charging_for_new_period:
            raise in_progress_error(
                "A payment for another period of this subscription is in progress. Retry when it has ended, or cancel"
                " now."
            )

    @asynccontextmanager
    async def customer_collection_lock(self) -> AsyncIterator[None]:
        """Hold ``collection_lock`` for a customer's command.

        Raises:
            ApplicationError: ``CONFLICT``: another command or payment still holds it after ``PREVIOUS_UPDATE_WAIT``.
        """
        await self.wait_briefly(lambda: not self.collection_lock.locked())
        if self.collection_lock.locked():
            raise in_progress_error(
                "Another payment or command of this subscription is in progress. Retry when it has ended."
            )
        async with self.collection_lock:
            yield

    async def wait_for_change(self) -> None:
        """Wait until no change of the state is being written.

        Hazard: a change whose row the database refuses is repeated until a release corrects it, with the lock held.
        Updates that waited for it would exhaust the server's limit.

        Raises:
            ApplicationError: ``CONFLICT``: a change still holds ``state_lock`` after ``PREVIOUS_UPDATE_WAIT``.
        """
        await self.wait_briefly(lambda: not self.state_lock.locked())
        if self.state_lock.locked():
            raise in_progress_error("Another change of this subscription is not recorded yet. Retry when it is.")

    @asynccontextmanager
    async def customer_state_lock(self) -> AsyncIterator[None]:
        """Hold ``state_lock`` for a customer's command. Raises as ``wait_for_change`` does."""
        await self.wait_for_change()
        async with self.state_lock:
            yield

    # Handled updates

    def can_judge(self, update_id: str) -> bool:
        """Return whether a validator can judge a command by the state; otherwise its handler does, under the locks.

        False for a handled command, and while a change of the state is being written: a caller can read the row before
        this workflow receives the result, and would be refused for the status that has passed.
        """
        return not self.is_handled(update_id) and not self.state_lock.locked()

    def is_handled(self, update_id: str) -> bool:
        """Return whether an update was answered before; the server forgets update ids at continue-as-new.

        Validators accept such an update: the state that it led to may refuse the same command today.
        """
        return self.state is not None and update_id in self.state.handled_update_ids

    def mark_handled(self, update_id: str) -> None:
        state = self.require_state()
        if update_id not in state.handled_update_ids:
            state.handled_update_ids = [*state.handled_update_ids[1 - MAX_HANDLED_UPDATE_IDS :], update_id]

    # Funds

    async def signal_past_due(self, subscription_ids: list[str], kind: FundsKind = FundsKind.CREDIT) -> None:
        """Let past-due subscriptions of the account collect again; this one's own loop does so by itself."""
        own = self.command.subscription_id
        if own in subscription_ids:
            self.pending_funds.add(kind)
        await signal_past_due_subscriptions([other for other in subscription_ids if other != own], own, kind)

    def take_pending_funds(self) -> frozenset[FundsKind]:
        """Return what has arrived since the last attempt; a card that the customer offers admits every card again.

        Only the collection calls it, under its lock: the charge of the previous card may be declined after the signal.
        """
        taken = frozenset(self.pending_funds)
        self.pending_funds.clear()
        if FundsKind.PAYMENT_METHOD in taken:
            self.clear_hard_decline()
            self.require_state().hard_declined_payment_method_ids = []
        return taken

    @property
    def should_collect_now(self) -> bool:
        return bool(self.pending_funds) and self.status in PAST_DUE_STATUSES


def _find_terms(candidates: list[PlanTerms], plan_id: str) -> PlanTerms:
    """Return the newest terms of a plan.

    Raises:
        LookupError: the workflow has not agreed to this plan: a bug, which must not be billed.
    """
    for terms in candidates:
        if terms.plan_id == plan_id:
            return terms
    raise LookupError(f"no terms are agreed for plan {plan_id}")
