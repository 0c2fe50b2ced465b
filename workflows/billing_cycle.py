"""What money does in a subscription's life: renewals, dunning, resumption, plan changes.

Coroutines of the entity, not workflows of their own: a renewal that credit covers is one activity. Only a card needs a
``Payment`` child. ``cash`` lets one collection run at a time; the entity's ``orders`` lock is not held while a gateway
is asked, so that a customer can cancel meanwhile. Who needs both takes ``cash`` first.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING

from temporalio import workflow
from temporalio.exceptions import ActivityError, ChildWorkflowError
from temporalio.workflow import ParentClosePolicy

from workflows import names, policies
from workflows.ports.billing import (
    Bill,
    Billing,
    Changed,
    ChangeOutcome,
    ChangePlan,
    Collect,
    CompleteChange,
    Renew,
    RevertChange,
    Settle,
    Unpaid,
)
from workflows.ports.payments import Pay, PaymentOutcome, Purpose
from workflows.ports.subscription import CardDue, ChangePlanOrder, Fallback, Terms
from workflows.refusals import refuse, refused_by
from workflows.rules import dunning, ids
from workflows.rules.agenda import Due
from workflows.rules.errors import Refusal
from workflows.rules.payment import RECEIVED, PaymentStatus
from workflows.rules.periods import Period, nth_period
from workflows.rules.subscription import INDEBTED, LIVE, State

if TYPE_CHECKING:
    from workflows.subscription import Subscription


class BillingCycle:
    def __init__(self, entity: Subscription) -> None:
        self._entity = entity
        self.cash = asyncio.Lock()

    async def renew(self, due: Due) -> None:
        """The period (or the trial) has ended: begin the next one."""
        async with self.cash:
            async with self._entity.orders:
                if not self._entity.still(due):
                    return
                life = self._entity.alive
                terms = life.pending_terms or life.terms
                restart = life.state is State.TRIALING
                anew = restart or terms.interval is not life.terms.interval
                anchor, n = (due.at, 0) if anew or life.anchor is None else (life.anchor, life.periods_billed)
                period = nth_period(anchor, n, terms.interval, terms.timezone)
                bill = await self._begin(terms, period, restart, "platform")
                if bill.paid or not restart:
                    self._adopt(terms, anchor, n + 1, period)
            if bill.card is not None:
                bill, _ = await self._charged(bill, bill.card)
                if restart and bill.paid:
                    self._adopt(terms, anchor, 1, period)

    async def resume(self, actor: str) -> None:
        """End a pause: a new period starts and is charged now, or nothing changes.

        Raises:
            ApplicationError: ``INSUFFICIENT_FUNDS`` or ``PAYMENT_DECLINED``; it stays paused.
        """
        async with self.cash:
            async with self._entity.orders:
                life = self._entity.alive
                if life.state is not State.PAUSED:
                    raise refuse(Refusal.ILLEGAL_MOVE, f"A subscription that is {life.state} cannot be resumed.")
                terms, now = life.pending_terms or life.terms, workflow.now()
                period = nth_period(now, 0, terms.interval, terms.timezone)
                bill = await self._begin(terms, period, True, actor)
            decline = None
            if bill.card is not None:
                bill, decline = await self._charged(bill, bill.card)
            if not bill.paid:
                raise self._not_paid(decline)
            self._adopt(terms, now, 1, period)

    async def collect(
        self, *, scheduled: bool, actor: str, due: Due | None = None, refuse_unpaid: bool = False
    ) -> None:
        """Try to collect the open invoice.

        Raises:
            ApplicationError: with ``refuse_unpaid``, ``INSUFFICIENT_FUNDS`` or ``PAYMENT_DECLINED``.
        """
        async with self.cash:
            async with self._entity.orders:
                life = self._entity.alive
                if life.state not in INDEBTED or life.invoice_id is None:
                    return
                if due is not None and not self._entity.still(due):
                    return
                life.attempts += scheduled
                bill = await workflow.execute_activity_method(
                    Billing.collect,
                    Collect(
                        subscription_id=self._entity.order.subscription_id,
                        invoice_id=life.invoice_id,
                        scheduled=scheduled,
                        actor=actor,
                        now=workflow.now(),
                        next_attempt=self._next_attempt(),
                    ),
                    **policies.DATABASE,
                )
                self._take(bill)
            decline = None
            if bill.card is not None:
                bill, decline = await self._charged(bill, bill.card)
            if refuse_unpaid and not bill.paid:
                raise self._not_paid(decline)

    async def change_plan(self, order: ChangePlanOrder) -> None:
        """Apply, schedule or charge for a plan change.

        Raises:
            ApplicationError: the change is refused, or its payment failed; the old plan stands untouched.
        """
        async with self.cash:
            async with self._entity.orders:
                self._entity.may_change_plan(order)
                if self._entity.alive.fallback is not None:
                    raise refuse(Refusal.CONFLICT, "The last plan change is still being carried out.")
                changed = await self._priced_change(order)
                if changed.outcome is ChangeOutcome.SCHEDULED:
                    self._entity.alive.pending_terms = changed.terms
                    self._entity.alive.cancel_at_period_end = False
                    self._entity.changed()
                    return
                if changed.outcome is ChangeOutcome.APPLIED:
                    self._adopt_change(changed, order.order_id)
                    return
            if changed.card is None or changed.invoice_id is None:
                raise refuse(Refusal.INSUFFICIENT_FUNDS, "Neither credit nor a card covers the change.")
            outcome = await self._pay(changed.card, changed.invoice_id)
            async with self._entity.orders:
                if outcome.status not in RECEIVED:
                    await self._record_unpaid(changed.invoice_id, outcome)
                    raise self._not_paid(_decline(outcome))
                bill = await workflow.execute_activity_method(
                    Billing.complete_change,
                    CompleteChange(
                        subscription_id=self._entity.order.subscription_id,
                        invoice_id=changed.invoice_id,
                        payment_id=outcome.payment_id,
                        order_id=order.order_id,
                        actor=order.actor,
                        terms=changed.terms,
                        restarts=changed.restarts,
                        now=workflow.now(),
                    ),
                    **policies.DATABASE,
                )
                if not bill.paid:
                    raise self._not_paid(None)
                self._adopt_change(changed, order.order_id)

    async def revert_change(self, reason: str) -> None:
        """The instance could not be resized: back to the old plan, with the money returned."""
        async with self.cash, self._entity.orders:
            life = self._entity.alive
            fallback = life.fallback
            if fallback is None:
                return
            await workflow.execute_activity_method(
                Billing.revert_change,
                RevertChange(
                    subscription_id=self._entity.order.subscription_id,
                    fallback=fallback,
                    order_id=fallback.order_id,
                    reason=reason,
                    now=workflow.now(),
                ),
                **policies.DATABASE,
            )
            # As it was recorded, whatever the state is by now: a paused one goes on with these terms.
            life.terms, life.fallback = fallback.terms, None
            life.anchor, life.periods_billed = fallback.anchor, fallback.periods_billed
            life.period_start, life.period_end = fallback.period_start, fallback.period_end
            self._entity.changed()

    async def _priced_change(self, order: ChangePlanOrder) -> Changed:
        try:
            return await workflow.execute_activity_method(
                Billing.change_plan,
                ChangePlan(
                    subscription_id=self._entity.order.subscription_id,
                    plan_id=order.plan_id,
                    mode=order.mode,
                    order_id=order.order_id,
                    actor=order.actor,
                    now=workflow.now(),
                ),
                **policies.DATABASE,
            )
        except ActivityError as error:
            raise refused_by(error) from error

    async def _begin(self, terms: Terms, period: Period, restart: bool, actor: str) -> Bill:
        bill = await workflow.execute_activity_method(
            Billing.renew,
            Renew(
                subscription_id=self._entity.order.subscription_id,
                period_start=period.start,
                period_end=period.end,
                terms=terms,
                restart=restart,
                actor=actor,
                now=workflow.now(),
            ),
            **policies.DATABASE,
        )
        self._take(bill)
        return bill

    async def _charged(self, bill: Bill, card: CardDue) -> tuple[Bill, str | None]:
        """Let a card pay the bill; returns what became of it and the decline code."""
        if bill.invoice_id is None:
            return bill, None
        outcome = await self._pay(card, bill.invoice_id)
        async with self._entity.orders:
            return await self.conclude(bill.invoice_id, outcome), _decline(outcome)

    async def conclude(self, invoice_id: str, outcome: PaymentOutcome) -> Bill:
        """Record how a card's payment of an invoice ended. The caller holds ``orders``."""
        if outcome.status not in RECEIVED:
            return await self._record_unpaid(invoice_id, outcome)
        bill = await workflow.execute_activity_method(
            Billing.settle,
            Settle(
                subscription_id=self._entity.order.subscription_id,
                invoice_id=invoice_id,
                payment_id=outcome.payment_id,
                now=workflow.now(),
            ),
            **policies.DATABASE,
        )
        self._take(bill)
        return bill

    async def _record_unpaid(self, invoice_id: str, outcome: PaymentOutcome) -> Bill:
        life = self._entity.alive
        life.hard_declined = dunning.is_hard(outcome.decline_code)
        bill = await workflow.execute_activity_method(
            Billing.unpaid,
            Unpaid(
                subscription_id=self._entity.order.subscription_id,
                invoice_id=invoice_id,
                payment_id=outcome.payment_id,
                decline_code=outcome.decline_code,
                next_attempt=self._next_attempt(),
                now=workflow.now(),
            ),
            **policies.DATABASE,
        )
        self._take(bill)
        return bill

    def payment_of(self, card: CardDue, invoice_id: str | None) -> Pay:
        """Return the next payment's command; its id is the subscription's count of payments."""
        life, order = self._entity.alive, self._entity.order
        life.payments += 1
        return Pay(
            payment_id=ids.derived("pay", order.subscription_id, str(life.payments)),
            organization_id=order.organization_id,
            amount=card.amount,
            gateway="stripe",
            purpose=Purpose.INVOICE if invoice_id else Purpose.ORDER,
            payment_method_id=card.payment_method_id,
            subscription_id=order.subscription_id,
            invoice_id=invoice_id,
            business_time=workflow.now(),
            manual_capture=invoice_id is None,
            actor="platform",
            request_id=order.request_id,
        )

    async def start_payment(self, pay: Pay) -> workflow.ChildWorkflowHandle[object, PaymentOutcome]:
        handle: workflow.ChildWorkflowHandle[object, PaymentOutcome] = await workflow.start_child_workflow(
            names.PAYMENT,
            pay,
            id=names.payment_workflow(pay.payment_id),
            parent_close_policy=ParentClosePolicy.ABANDON,
            result_type=PaymentOutcome,
            search_attributes=names.attributes(
                pay.organization_id, "payment", subscription=self._entity.order.subscription_id
            ),
        )
        return handle

    async def _pay(self, card: CardDue, invoice_id: str) -> PaymentOutcome:
        """Charge a card and wait until the outcome is certain, however long that takes."""
        pay = self.payment_of(card, invoice_id)
        return await self.outcome_of(await self.start_payment(pay), pay.payment_id)

    @staticmethod
    async def outcome_of(
        payment: workflow.ChildWorkflowHandle[object, PaymentOutcome], payment_id: str
    ) -> PaymentOutcome:
        """Wait for a payment. One that somebody ended by hand has nobody to wait for it: what comes of it later goes
        to the wallet, and for the subscription it was not paid."""
        try:
            return await payment
        except ChildWorkflowError:
            return PaymentOutcome(payment_id=payment_id, status=PaymentStatus.CANCELLED)

    def _take(self, bill: Bill) -> None:
        """Take over what billing recorded."""
        life = self._entity.alive
        if bill.state in INDEBTED:
            if life.first_failure is None:
                life.attempts, life.first_failure = 0, bill.first_failure
            life.invoice_id = bill.invoice_id or life.invoice_id
        else:
            life.first_failure, life.attempts, life.hard_declined = None, 0, False
            life.invoice_id = None if bill.paid else bill.invoice_id
        self._entity.enter(bill.state)

    def _next_attempt(self) -> datetime | None:
        life = self._entity.alive
        if life.hard_declined:
            return None
        first = life.first_failure or workflow.now()
        return dunning.next_retry(life.terms.calendar, first, life.attempts)

    def _adopt(self, terms: Terms, anchor: datetime, periods_billed: int, period: Period) -> None:
        """A period begins. What it began with stands, also a plan change that the instance has yet to follow."""
        life = self._entity.alive
        if life.state not in (State.ACTIVE, State.PAST_DUE, State.SUSPENDED, State.TRIALING):
            return
        if terms.plan_id != life.terms.plan_id:
            life.pending_terms = None
        life.fallback = None
        life.terms, life.anchor, life.periods_billed = terms, anchor, periods_billed
        life.period_start, life.period_end, life.reminded = period.start, period.end, None
        self._entity.changed()

    def _adopt_change(self, changed: Changed, order_id: str) -> None:
        life = self._entity.alive
        if life.anchor is None or life.period_start is None or life.period_end is None:
            return
        fallback = Fallback(
            order_id=order_id,
            terms=life.terms,
            anchor=life.anchor,
            periods_billed=life.periods_billed,
            period_start=life.period_start,
            period_end=life.period_end,
        )
        life.pending_terms = None
        if changed.restarts and changed.period_start is not None and changed.period_end is not None:
            self._adopt(
                changed.terms,
                changed.period_start,
                1,
                Period(start=changed.period_start, end=changed.period_end),
            )
        else:
            life.terms = changed.terms
            self._entity.changed()
        # An instance that its customer has stopped is resized when it is started, maybe periods later.
        life.fallback = None if life.stopped_by_customer else fallback

    def _not_paid(self, decline_code: str | None) -> Exception:
        state = self._entity.state
        if state not in LIVE:
            return refuse(Refusal.ILLEGAL_MOVE, f"It became {state} before it was paid; what was paid is credit.")
        if decline_code is not None:
            return refuse(Refusal.PAYMENT_DECLINED, "The card was declined.", {"decline_code": decline_code})
        return refuse(Refusal.INSUFFICIENT_FUNDS, "Neither the wallet nor a card covers what is due.")


def _decline(outcome: PaymentOutcome) -> str | None:
    """Return why a card did not pay, None when it did."""
    return None if outcome.status in RECEIVED else outcome.decline_code or outcome.status.value
