"""The life of one subscription, from the order to the deletion of its data: the only keeper of its calendar.

``run`` opens the order, brings the instance up, and then does what falls due, one thing at a time. Orders (updates)
and facts (signals) only change ``Life`` and wake it. What money does is in ``billing_cycle``; what the cluster has to
do follows from the state, beside the calendar, in ``convergence``; moves that touch no money are in ``moves``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    import workflows.ports.instances  # noqa: F401 - the sandbox decodes only types of modules that it saw imported
    from workflows import names, policies
    from workflows.billing_cycle import BillingCycle
    from workflows.convergence import Convergence
    from workflows.moves import Moves
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
        Remind,
        Subscribed,
        View,
    )
    from workflows.refusals import refuse, refused_by
    from workflows.rules import dunning
    from workflows.rules.agenda import OF_DEBT, Due, Step, next_due
    from workflows.rules.errors import Refusal
    from workflows.rules.subscription import BEFORE_READY, ENDED, INDEBTED, LIVE, State

REMEMBERED_ORDERS = 50
"""How many answered update ids survive a continue-as-new."""

PLATFORM_ACTOR = "platform"

OPERATOR_STOPS = Cancel(order_id="", actor="operator", at=CancelAt.NOW, reason="the process was cancelled")


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
        self._stop_wanted = False
        self._working = 1
        self.changes = 0
        self.cycle = BillingCycle(self)
        self.convergence = Convergence(self)
        self.moves = Moves(self)

    @workflow.run
    async def run(self, given: Subscribed) -> View:
        living = asyncio.create_task(self._live())
        while not living.done():
            try:
                await asyncio.shield(living)
            except asyncio.CancelledError:
                # An operator cancelled the process itself: an order like any other, carried out between two steps, so
                # that no payment is left without whoever waits for it and nothing stays held or running.
                self._stop()
        view = await living
        if view is None:
            workflow.continue_as_new(Subscribed(order=self.order, life=self.life))
        return view

    # Orders

    @workflow.update
    async def opened(self) -> View:
        """Wait until the order was written down, or refused."""
        await self._until(lambda: self.life is not None)
        return self._view()

    @workflow.update
    async def cancel(self, order: Cancel) -> View:
        """Cancel now or at the end of the period that is paid for. Before readiness: undo everything."""
        if self._answered(order.order_id):
            return self._view()
        if self.life is None or self.state in BEFORE_READY:
            self.cancel_request = self.cancel_request or order
            await self._until(lambda: self.life is not None and self.state not in BEFORE_READY)
        if self.state not in LIVE:
            return self._view()
        async with self.orders:
            await self.moves.end(order.at, order.actor, order.reason)
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
                self._may_resume(order)
                await self.moves.intend(False, order.actor, "resumed")
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
        await self._up_to_date()
        # A payment that is under way decides first: had it come after, it would have ended the pause.
        async with self.cycle.cash, self.orders:
            self._may_pause(order)
            await self.moves.record(State.PAUSED, "paused by the customer", order.actor)
            self.alive.cancel_at_period_end = False
        return self._done(order.order_id)

    @pause.validator
    def _may_pause(self, order: Order) -> None:
        self._require(self.state in (State.ACTIVE, State.TRIALING), "be paused")

    @workflow.update
    async def change_plan(self, order: ChangePlanOrder) -> View:
        """Change to another plan of the same service, now or when the period ends."""
        if not self._answered(order.order_id):
            await self._up_to_date()
            await self._soon(lambda: self.life is None or self.life.fallback is None)
            await self.cycle.change_plan(order)
        return self._done(order.order_id)

    @change_plan.validator
    def may_change_plan(self, order: ChangePlanOrder) -> None:
        """Refuse what cannot be; asked again by ``cycle`` when its turn has come."""
        self._require(self.state in (State.ACTIVE, State.TRIALING), "change its plan")

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
            await self._soon(lambda: not self.convergence.busy)
            async with self.orders:
                self._may_operate(order)
                if self.convergence.busy:
                    raise refuse(Refusal.CONFLICT, "Another operation on this instance is not finished yet.")
                await self.convergence.accept(order)
        return self._done(order.order_id)

    @operate.validator
    def _may_operate(self, order: OperateOrder) -> None:
        self._require(self.state in (State.ACTIVE, State.TRIALING, State.PAST_DUE), "be operated")

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
        due = self._next_due() if self.life is not None else None
        busy = self._working or self.orders.locked() or self.cycle.cash.locked() or self._funds_to_collect()
        idle = not busy and (self.life is None or self.convergence.at_rest)
        return ClockView(now=workflow.now(), next_due=due.at if due else None, idle=idle, state=self.state)

    # The loop

    async def _live(self) -> View | None:
        """Live on. None: the history has become long, and nothing is in hand that the next run would not know of."""
        if self.life is None and not await self._brought_up():
            await workflow.wait_condition(workflow.all_handlers_finished)
            return self._view()
        converging = asyncio.create_task(self.convergence.run())
        converging.add_done_callback(lambda _: self.changed())
        try:
            while self.state not in ENDED:
                if converging.done():
                    converging.result()  # it has no end of its own: this raises what ended it
                await self._next()
                if workflow.info().is_continue_as_new_suggested() and not self._in_hand():
                    return None
        finally:
            converging.cancel()
        self._working = 0
        await workflow.wait_condition(workflow.all_handlers_finished)
        return self._view()

    def _in_hand(self) -> bool:
        awaited = self.convergence.busy or self._funds_to_collect() or self._stop_wanted
        return awaited or not workflow.all_handlers_finished()

    def _stop(self) -> None:
        self._stop_wanted = True
        if self.life is None or self.state in BEFORE_READY:
            self.cancel_request = self.cancel_request or OPERATOR_STOPS
        self.changed()

    async def _brought_up(self) -> bool:
        """Open the order and see it to readiness. False: it has ended, and nothing of it is left."""
        try:
            return await Opening(self).bring_up()
        except (ActivityError, ApplicationError) as error:
            if self.life is not None:
                raise
            self._refusal = refused_by(error)
            await workflow.wait_condition(workflow.all_handlers_finished)
            raise self._refusal from error

    async def _next(self) -> None:
        """Do what is to be done now, else sleep until something falls due or happens."""
        self._working = 1
        if self._stop_wanted:
            async with self.orders:
                await self.moves.end(OPERATOR_STOPS.at, OPERATOR_STOPS.actor, OPERATOR_STOPS.reason)
            self._stop_wanted = False
            return
        if self._funds_to_collect():
            self._funds_arrived = False
            await self.cycle.collect(scheduled=False, actor=PLATFORM_ACTOR)
            return
        due = self._next_due()
        if due is not None and workflow.now() >= due.at:
            await self._do(due)
            return
        seen = self.changes
        self._working = 0
        wait = None if due is None else due.at - workflow.now()
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(lambda: self.changes != seen or self._funds_to_collect(), timeout=wait)

    async def _do(self, due: Due) -> None:
        late = workflow.now() - due.at
        first_failure = self.alive.first_failure
        if due.step in OF_DEBT and first_failure is not None and late > dunning.LATE:
            # Nobody asked, warned or took payments meanwhile: these days are not taken from the customer's grace.
            self.alive.first_failure = first_failure + late
            return
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
                        await self.moves.record(State.SUSPENDED, "the open invoice was not paid", PLATFORM_ACTOR)
            case Step.DELETE:
                await self.convergence.delete()
                async with self.orders:
                    await self.moves.record(State.TERMINATED, "the retention period is over", PLATFORM_ACTOR)

    async def _if_still(self, due: Due, at: CancelAt, reason: str) -> None:
        async with self.orders:
            if self.still(due):
                await self.moves.end(at, PLATFORM_ACTOR, reason)

    async def _remind(self, due: Due) -> None:
        life = self.alive
        async with self.orders:
            if not self.still(due) or life.period_end is None:
                return
            follows = next_due(replace(life.standing(), reminded=due.days))
            if follows is not None and follows.at <= workflow.now():
                # It comes so late that the next reminder, or the renewal itself, is due as well.
                life.reminded = due.days
                return
            await workflow.execute_local_activity_method(
                Subscriptions.remind,
                Remind(subscription_id=self.order.subscription_id, days=due.days, due_at=life.period_end, now=due.at),
                **policies.DATABASE_LOCAL,
            )
            life.reminded = due.days
            self.changed()

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
        self.changes += 1

    def still(self, due: Due) -> bool:
        """Tell whether ``due`` is still what comes next, now that the lock is held."""
        return self._next_due() == due

    def _next_due(self) -> Due | None:
        return next_due(self.alive.standing())

    async def _up_to_date(self) -> None:
        """Let a period that is over be renewed first: what is ordered now must not leave it out."""
        await workflow.wait_condition(lambda: not self._period_is_over())

    async def _soon(self, reached: Callable[[], bool]) -> None:
        """Wait a moment for what may just be ending: that it has ended can be read before this process hears of it."""
        if not reached():
            with contextlib.suppress(TimeoutError):
                await workflow.wait_condition(reached, timeout=policies.HEARD_WITHIN)

    def _period_is_over(self) -> bool:
        end = self.alive.period_end
        return self.state in (State.ACTIVE, State.TRIALING) and end is not None and workflow.now() >= end

    async def _until(self, reached: Callable[[], bool]) -> None:
        """Wait for something that only an order that was written down can reach.

        Raises:
            ApplicationError: it was refused.
        """
        await workflow.wait_condition(lambda: self._refusal is not None or reached())
        if self._refusal is not None:
            raise self._refusal

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
