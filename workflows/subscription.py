"""The life of one subscription, from the order to the deletion of its data: the only keeper of its calendar.

``run`` opens the order, brings the instance up, and then does what falls due, one thing at a time. Orders (updates)
and facts (signals) only change ``Life`` and wake it. What money does is in ``billing_cycle``; what the cluster has to
do follows from the state, in ``convergence``.
"""

from __future__ import annotations

import asyncio
import contextlib

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    import workflows.ports.instances  # noqa: F401 - the sandbox decodes only types of modules that it saw imported
    from workflows import names, policies
    from workflows.billing_cycle import BillingCycle
    from workflows.convergence import Convergence
    from workflows.opening import Opening
    from workflows.ports.billing import Subscriptions
    from workflows.ports.payments import PaymentOutcome
    from workflows.ports.subscription import (
        Cancel,
        CancelAt,
        ChangePlanOrder,
        ClockView,
        FundsArrived,
        Life,
        OperateOrder,
        Order,
        RecordIntent,
        RecordState,
        Remind,
        Subscribed,
        View,
    )
    from workflows.refusals import refuse, refused_by
    from workflows.rules import dunning
    from workflows.rules.agenda import Due, Standing, Step, next_due
    from workflows.rules.errors import Refusal
    from workflows.rules.subscription import BEFORE_READY, ENDED, INDEBTED, LIVE, State, move

REMEMBERED_ORDERS = 50
"""How many answered update ids survive a continue-as-new."""

PLATFORM_ACTOR = "platform"


@workflow.defn(name=names.SUBSCRIPTION)
class Subscription:
    @workflow.init
    def __init__(self, given: Subscribed) -> None:
        self.order = given.order
        self.life: Life | None = given.life
        self.orders = asyncio.Lock()
        self.cancel_request: Cancel | None = None
        self.payments: dict[str, PaymentOutcome] = {}
        self._refusal: ApplicationError | None = None
        self._funds_arrived = False
        self._working = 1
        self._changes = 0
        self.cycle = BillingCycle(self)
        self.convergence = Convergence(self)

    @workflow.run
    async def run(self, given: Subscribed) -> View:
        if self.life is None and not await self._brought_up():
            await workflow.wait_condition(workflow.all_handlers_finished)
            return self._view()
        while self.state not in ENDED:
            try:
                await self._next()
            except BaseException as error:
                if not is_cancelled_exception(error):
                    raise
                # An operator cancelled the process itself: that is an order like any other, and nothing is left open.
                await asyncio.shield(self._end(CancelAt.NOW, "operator", "the process was cancelled"))
            if workflow.info().is_continue_as_new_suggested() and workflow.all_handlers_finished():
                workflow.continue_as_new(Subscribed(order=self.order, life=self.life))
        self._working = 0
        await workflow.wait_condition(workflow.all_handlers_finished)
        return self._view()

    # Orders

    @workflow.update
    async def opened(self) -> View:
        """Wait until the order was written down, or refused."""
        await workflow.wait_condition(lambda: self.life is not None or self._refusal is not None)
        if self._refusal is not None:
            raise self._refusal
        return self._view()

    @workflow.update
    async def cancel(self, order: Cancel) -> View:
        """Cancel now or at the end of the period that is paid for. Before readiness: undo everything."""
        if self._answered(order.order_id):
            return self._view()
        if self.life is None or self.state in BEFORE_READY:
            self.cancel_request = self.cancel_request or order
            await workflow.wait_condition(lambda: self.life is not None and self.state not in BEFORE_READY)
        if self.state not in LIVE:
            return self._view()
        async with self.orders:
            await self._end(order.at, order.actor, order.reason)
        return self._done(order.order_id)

    @cancel.validator
    def _may_cancel(self, order: Cancel) -> None:
        self._require(self.life is None or self.state in LIVE, "be cancelled")

    @workflow.update
    async def resume(self, order: Order) -> View:
        """Go on after all: take back a cancellation at the period's end, or begin a new period after a pause."""
        if self._answered(order.order_id):
            return self._view()
        if self.state is State.PAUSED:
            await self.cycle.resume(order.actor)
        else:
            async with self.orders:
                await self._intend(False, order.actor, "resumed")
        return self._done(order.order_id)

    @resume.validator
    def _may_resume(self, order: Order) -> None:
        flagged = self.life is not None and self.life.cancel_at_period_end and self.state in LIVE
        self._require(flagged or self.state is State.PAUSED, "be resumed")

    @workflow.update
    async def pause(self, order: Order) -> View:
        """Stop service and billing until it is resumed; the data stays."""
        if self._answered(order.order_id):
            return self._view()
        async with self.orders:
            await self.record(State.PAUSED, "paused by the customer", order.actor)
        return self._done(order.order_id)

    @pause.validator
    def _may_pause(self, order: Order) -> None:
        self._require(self.state in (State.ACTIVE, State.TRIALING), "be paused")

    @workflow.update
    async def change_plan(self, order: ChangePlanOrder) -> View:
        """Change to another plan of the same service, now or when the period ends."""
        if not self._answered(order.order_id):
            await self.cycle.change_plan(order)
        return self._done(order.order_id)

    @change_plan.validator
    def _may_change_plan(self, order: ChangePlanOrder) -> None:
        self._require(self.state in (State.ACTIVE, State.TRIALING), "change its plan")
        if self.life is not None and self.life.fallback is not None:
            raise refuse(Refusal.CONFLICT, "The last plan change is still being carried out.")

    @workflow.update
    async def retry_payment(self, order: Order) -> View:
        """Try to collect the open invoice now. It consumes no scheduled attempt."""
        if not self._answered(order.order_id):
            await self.cycle.collect(scheduled=False, actor=order.actor, refuse_unpaid=True)
        return self._done(order.order_id)

    @retry_payment.validator
    def _may_retry_payment(self, order: Order) -> None:
        self._require(self.state in INDEBTED, "be collected")

    @workflow.update
    async def operate(self, order: OperateOrder) -> View:
        """Restart, stop, start or back up the instance; answers when the operation is recorded."""
        if not self._answered(order.order_id):
            async with self.orders:
                await self.convergence.accept(order)
        return self._done(order.order_id)

    @operate.validator
    def _may_operate(self, order: OperateOrder) -> None:
        self._require(self.state in (State.ACTIVE, State.TRIALING, State.PAST_DUE), "be operated")
        if self.convergence.busy:
            raise refuse(Refusal.CONFLICT, "Another operation on this instance is not finished yet.")

    # Facts and questions

    @workflow.signal
    async def payment_moved(self, outcome: PaymentOutcome) -> None:
        self.payments[outcome.payment_id] = outcome

    @workflow.signal
    async def funds_arrived(self, fact: FundsArrived) -> None:
        self._funds_arrived = True
        if self.life is not None:
            self.life.hard_declined = False

    @workflow.query
    def clock(self) -> ClockView:
        due = next_due(self._standing()) if self.life is not None else None
        idle = not self._working and not self.orders.locked() and not self._funds_to_collect()
        return ClockView(now=workflow.now(), next_due=due.at if due else None, idle=idle, state=self.state)

    # The loop

    async def _brought_up(self) -> bool:
        """Open the order and see it to readiness. False: it has ended, and nothing of it is left."""
        try:
            return await Opening(self).bring_up()
        except ActivityError as error:
            if self.life is not None:
                raise
            self._refusal = refused_by(error)
            await workflow.wait_condition(workflow.all_handlers_finished)
            raise self._refusal from error

    async def _next(self) -> None:
        """Do what is to be done now, else sleep until something falls due or happens."""
        self._working = 1
        if self._funds_to_collect():
            self._funds_arrived = False
            await self.cycle.collect(scheduled=False, actor=PLATFORM_ACTOR)
            return
        if await self.convergence.step():
            return
        due = next_due(self._standing())
        if due is not None and workflow.now() >= due.at:
            await self._do(due)
            return
        seen = self._changes
        self._working = 0
        wait = self.convergence.wait(None if due is None else due.at)
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(
                lambda: self._changes != seen or self._funds_to_collect() or self.convergence.due, timeout=wait
            )

    async def _do(self, due: Due) -> None:
        match due.step:
            case Step.REMIND:
                await self._remind(due)
            case Step.RENEW:
                self._funds_arrived = False
                await self.cycle.renew(due)
            case Step.RETRY:
                await self.cycle.collect(scheduled=True, actor=PLATFORM_ACTOR, due=due)
            case Step.END:
                await self._if_still(due, CancelAt.NOW, "the period that was paid for has ended")
            case Step.GIVE_UP:
                await self._if_still(due, CancelAt.NOW, "the open invoice was not paid")
            case Step.SUSPEND:
                async with self.orders:
                    if self.still(due):
                        await self.record(State.SUSPENDED, "the open invoice was not paid", PLATFORM_ACTOR)
            case Step.DELETE:
                await self.convergence.delete()
                async with self.orders:
                    await self.record(State.TERMINATED, "the retention period is over", PLATFORM_ACTOR)

    async def _if_still(self, due: Due, at: CancelAt, reason: str) -> None:
        async with self.orders:
            if self.still(due):
                await self._end(at, PLATFORM_ACTOR, reason)

    async def _remind(self, due: Due) -> None:
        life = self.alive
        async with self.orders:
            if not self.still(due) or life.period_end is None:
                return
            await workflow.execute_local_activity_method(
                Subscriptions.remind,
                Remind(subscription_id=self.order.subscription_id, days=due.days, due_at=life.period_end, now=due.at),
                **policies.DATABASE_LOCAL,
            )
            life.reminded = due.days
            self.changed()

    # Moves that touch no money

    async def _end(self, at: CancelAt, actor: str, reason: str) -> None:
        life = self.alive
        if at is CancelAt.PERIOD_END and self.state in (State.ACTIVE, State.TRIALING):
            await self._intend(True, actor, reason)
            return
        if self.state not in LIVE:
            return
        await self.record(State.CANCELLED, reason, actor)
        life.invoice_id = life.first_failure = life.pending_terms = None
        life.cancel_at_period_end = False

    async def _intend(self, cancel_at_period_end: bool, actor: str, reason: str) -> None:
        life = self.alive
        pending = life.pending_terms if not cancel_at_period_end else None
        await workflow.execute_activity_method(
            Subscriptions.record_intent,
            RecordIntent(
                subscription_id=self.order.subscription_id,
                cancel_at_period_end=cancel_at_period_end,
                pending_plan_id=pending.plan_id if pending else None,
                reason=reason,
                actor=actor,
                now=workflow.now(),
            ),
            **policies.DATABASE,
        )
        life.cancel_at_period_end, life.pending_terms = cancel_at_period_end, pending
        self.changed()

    async def record(self, to: State, reason: str, actor: str) -> None:
        """Record a move. The caller holds ``orders``."""
        life = self.alive
        move(life.state, to)
        now = workflow.now()
        delete_at = dunning.deletion(life.terms.calendar, now) if to is State.CANCELLED else None
        await workflow.execute_activity_method(
            Subscriptions.record_state,
            RecordState(
                subscription_id=self.order.subscription_id,
                to=to,
                reason=reason,
                actor=actor,
                now=now,
                delete_at=delete_at,
                void_invoice=to is State.CANCELLED,
            ),
            **policies.DATABASE,
        )
        if to is State.CANCELLED:
            life.cancelled_at = now
        self.enter(to)

    # What the parts share

    @property
    def state(self) -> State:
        return self.life.state if self.life is not None else State.PENDING

    @property
    def alive(self) -> Life:
        if self.life is None:
            raise ApplicationError("the order is not open", type=Refusal.ILLEGAL_MOVE, non_retryable=True)
        return self.life

    def enter(self, state: State) -> None:
        """Take over a state that has been recorded."""
        life = self.alive
        if life.state is not state:
            life.state = state
            workflow.upsert_search_attributes([names.STATUS_KEY.value_set(state)])
        self.changed()

    def changed(self) -> None:
        self._changes += 1

    def still(self, due: Due) -> bool:
        """Tell whether ``due`` is still what comes next, now that the lock is held."""
        return next_due(self._standing()) == due

    def _standing(self) -> Standing:
        life = self.alive
        return Standing(
            state=life.state,
            period_start=life.period_start,
            period_end=life.period_end,
            cancel_at_period_end=life.cancel_at_period_end,
            reminded=life.reminded,
            first_failure=life.first_failure,
            attempts=life.attempts,
            hard_declined=life.hard_declined,
            cancelled_at=life.cancelled_at,
            calendar=life.terms.calendar,
        )

    def _funds_to_collect(self) -> bool:
        return self._funds_arrived and self.state in INDEBTED

    def _require(self, allowed: bool, verb: str) -> None:
        if not allowed:
            raise refuse(Refusal.ILLEGAL_MOVE, f"A subscription that is {self.state} cannot {verb}.")

    def _answered(self, order_id: str) -> bool:
        return self.life is not None and order_id in self.life.handled

    def _done(self, order_id: str) -> View:
        life = self.alive
        if order_id not in life.handled:
            life.handled = [*life.handled[1 - REMEMBERED_ORDERS :], order_id]
        return self._view()

    def _view(self) -> View:
        return View(subscription_id=self.order.subscription_id, state=self.state)
