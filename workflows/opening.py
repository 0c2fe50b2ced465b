"""From the order to readiness: open, secure, provision, activate; or undo all of it, newest first."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING

from temporalio import workflow
from temporalio.exceptions import ChildWorkflowError, FailureError
from temporalio.workflow import ParentClosePolicy

from workflows import names, policies
from workflows.ports.billing import Activate, Bill, Billing, Subscriptions
from workflows.ports.instances import Operate, OperationKind, Provision, Provisioned
from workflows.ports.payments import PaymentOutcome
from workflows.ports.subscription import CardDue, CloseOrder, Life, Opened, OpenSubscription, Secured
from workflows.rules import ids
from workflows.rules.payment import IN_FLIGHT, PaymentStatus
from workflows.rules.periods import Period, nth_period
from workflows.rules.subscription import State
from workflows.saga import Saga

if TYPE_CHECKING:
    from workflows.subscription import Subscription

Payment = workflow.ChildWorkflowHandle[object, PaymentOutcome]


class _GaveUp(Exception):
    """The order ends as ``state``; the saga undoes what was done."""

    def __init__(self, state: State, reason: str) -> None:
        super().__init__(reason)
        self.state = state
        self.reason = reason


class Opening:
    def __init__(self, entity: Subscription) -> None:
        self._entity = entity
        self._payment: Payment | None = None
        self._payment_id = ""
        self._provisioning: workflow.ChildWorkflowHandle[object, Provisioned] | None = None
        self._undone = False
        self._ending = _GaveUp(State.CANCELLED, "the process was cancelled")

    async def bring_up(self) -> bool:
        """Return True when the instance is ready and billing has begun, False when the order has ended.

        Raises:
            ApplicationError: the order was refused; nothing was written.
        """
        opened = await self._open()
        try:
            async with Saga() as saga:
                saga.on_failure(self._close)
                try:
                    if opened.card is not None:
                        saga.on_failure(self._release_card)
                        await self._secure(opened.card)
                    saga.on_failure(self._tear_down)
                    await self._provision()
                except _GaveUp as ending:
                    self._ending = ending
                    raise
        except _GaveUp:
            return False
        await self._activate()
        return True

    async def _open(self) -> Opened:
        order, info = self._entity.order, workflow.info()
        # The customer waits for this one: locally it costs one workflow task instead of two and an activity task.
        opened = await workflow.execute_local_activity_method(
            Subscriptions.open,
            OpenSubscription(order=order, workflow_id=info.workflow_id, run_id=info.run_id, now=workflow.now()),
            **policies.DATABASE_LOCAL,
        )
        self._entity.life = Life(
            terms=opened.terms,
            state=State.PENDING if opened.card else State.PROVISIONING,
            applied_plan_id=opened.terms.plan_id,
        )
        workflow.upsert_search_attributes([names.STATUS_KEY.value_set(self._entity.state)])
        return opened

    async def _secure(self, card: CardDue) -> None:
        """Have the card authorised for what credit does not cover."""
        pay = self._entity.cycle.payment_of(card, None)
        self._payment_id = pay.payment_id
        handle = self._payment = await self._entity.cycle.start_payment(pay)
        await workflow.wait_condition(
            lambda: self._status() not in (None, *UNDECIDED) or handle.done() or self._asked_to_cancel()
        )
        self._stop_if_asked()
        if self._status() is not PaymentStatus.AUTHORIZED:
            raise _GaveUp(State.EXPIRED, "the card was declined")
        await workflow.execute_activity_method(
            Subscriptions.secured,
            Secured(subscription_id=self._entity.order.subscription_id, payment_id=pay.payment_id, now=workflow.now()),
            **policies.DATABASE,
        )
        self._entity.enter(State.PROVISIONING)

    async def _provision(self) -> None:
        self._stop_if_asked()
        order = self._entity.order
        child: workflow.ChildWorkflowHandle[object, Provisioned] = await workflow.start_child_workflow(
            names.PROVISIONING,
            Provision(
                instance_id=order.instance_id,
                subscription_id=order.subscription_id,
                organization_id=order.organization_id,
                business_time=workflow.now(),
                request_id=order.request_id,
            ),
            id=names.provisioning_workflow(order.instance_id),
            parent_close_policy=ParentClosePolicy.ABANDON,
            cancellation_type=workflow.ChildWorkflowCancellationType.WAIT_CANCELLATION_COMPLETED,
            result_type=Provisioned,
            search_attributes=names.attributes(
                order.organization_id, "provisioning", subscription=order.subscription_id, instance=order.instance_id
            ),
        )
        self._provisioning = child
        await workflow.wait_condition(lambda: child.done() or self._asked_to_cancel())
        self._stop_if_asked()
        try:
            provisioned = await child
        except ChildWorkflowError as error:
            raise _GaveUp(State.FAILED, "setting it up was broken off") from error
        if not provisioned.ready:
            self._undone = True
            raise _GaveUp(State.FAILED, provisioned.message or provisioned.reason or "it did not become ready")

    async def _activate(self) -> None:
        """The instance is ready: billing starts now."""
        entity, life, now = self._entity, self._entity.alive, workflow.now()
        trial = life.terms.trial_days > 0
        period = (
            Period(start=now, end=now + timedelta(days=life.terms.trial_days))
            if trial
            else nth_period(now, 0, life.terms.interval, life.terms.timezone)
        )
        life.instance_running = True
        # No other payment, and no pause, before it is known whether the first one is taken.
        async with entity.cycle.cash:
            async with entity.orders:
                bill: Bill = await workflow.execute_activity_method(
                    Billing.activate,
                    Activate(
                        subscription_id=entity.order.subscription_id,
                        period_start=period.start,
                        period_end=period.end,
                        trial=trial,
                        now=now,
                    ),
                    **policies.DATABASE,
                )
                life.anchor, life.periods_billed = now, 0 if trial else 1
                life.period_start, life.period_end = period.start, period.end
                life.invoice_id = None if bill.paid else bill.invoice_id
                entity.enter(bill.state)
            if self._payment is not None and bill.invoice_id is not None:
                await self._decide("capture")
                outcome = await entity.cycle.outcome_of(self._payment, self._payment_id)
                async with entity.orders:
                    await entity.cycle.conclude(bill.invoice_id, outcome)

    # What undoes it

    async def _close(self) -> None:
        state = self._ending.state
        request = self._entity.cancel_request
        await workflow.execute_activity_method(
            Subscriptions.close_order,
            CloseOrder(
                subscription_id=self._entity.order.subscription_id,
                state=state,
                reason=self._ending.reason,
                actor=request.actor if request else "platform",
                now=workflow.now(),
            ),
            **policies.DATABASE,
        )
        self._entity.enter(state)

    async def _release_card(self) -> None:
        if self._payment is not None:
            await self._decide("release")
            await workflow.wait_condition(self._payment.done)

    async def _decide(self, decision: str) -> None:
        """Tell the authorised payment; one that has ended by itself (its authorisation lapsed) has nothing to hear."""
        if self._payment is not None and not self._payment.done():
            with contextlib.suppress(FailureError):
                await self._payment.signal(decision)

    async def _tear_down(self) -> None:
        """Provisioning undoes itself; what is left is an instance that became ready just before it was cancelled."""
        order, provisioning = self._entity.order, self._provisioning
        if self._undone:
            return
        if provisioning is not None and not provisioning.done():
            provisioning.cancel()
            await workflow.wait_condition(provisioning.done)
        operation_id = ids.derived("op", order.subscription_id, "undo")
        await workflow.execute_child_workflow(
            names.INSTANCE_OPERATION,
            Operate(
                operation_id=operation_id,
                instance_id=order.instance_id,
                subscription_id=order.subscription_id,
                organization_id=order.organization_id,
                kind=OperationKind.DELETE,
                actor="platform",
                business_time=workflow.now(),
            ),
            id=names.operation_workflow(order.instance_id, operation_id),
            parent_close_policy=ParentClosePolicy.ABANDON,
        )

    # What it looks at

    def _status(self) -> PaymentStatus | None:
        outcome = self._entity.payments.get(self._payment_id)
        return outcome.status if outcome else None

    def _asked_to_cancel(self) -> bool:
        return self._entity.cancel_request is not None

    def _stop_if_asked(self) -> None:
        request = self._entity.cancel_request
        if request is not None:
            raise _GaveUp(State.CANCELLED, request.reason or "cancelled by the customer")


UNDECIDED = tuple(IN_FLIGHT - {PaymentStatus.AUTHORIZED})
