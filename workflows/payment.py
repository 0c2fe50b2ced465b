"""One payment: charged once, and followed until its outcome is certain.

A gateway's silence is ``unknown``, never ``failed``. Whoever waits for the payment hears each status by the signal
``payment_moved``, and the certain one as this workflow's result. Facts come from answers, polls and webhooks in any
order; rules decide which one counts. A webhook for a payment that has ended starts it anew under the same id.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, FailureError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from workflows import names, policies
    from workflows.funds import tell_indebted
    from workflows.ports.payments import (
        Capture,
        Charge,
        GatewayEvent,
        Hear,
        Inquire,
        Pay,
        PaymentOutcome,
        Payments,
        Progress,
        Purpose,
        Withdraw,
    )
    from workflows.refusals import refuse, refused_by
    from workflows.rules.errors import Refusal
    from workflows.rules.payment import CLOSED, PENDING_AT_MOST, RECEIVED, PaymentStatus, next_poll


@workflow.defn(name=names.PAYMENT)
class Payment:
    @workflow.init
    def __init__(self, pay: Pay) -> None:
        self._pay = pay
        self._events: deque[GatewayEvent] = deque()
        self._capture_wanted = False
        # A payment for something that was not started by it (its workflow had ended) has nobody waiting for it.
        self._abandoned = pay.purpose is not Purpose.TOP_UP and workflow.info().parent is None
        self._progress: Progress | None = None
        self._for_the_waiting: PaymentOutcome | None = None
        self._refusal: ApplicationError | None = None
        self._since: datetime = workflow.now()
        self._polls = 0
        self._patient = False

    @workflow.run
    async def run(self, pay: Pay) -> PaymentOutcome:
        if not self._events:
            await self._open()
        while True:
            while self._refusal is None and (self._events or not self._settled()):
                await self._step()
            await workflow.wait_condition(lambda: bool(self._events) or workflow.all_handlers_finished())
            if self._refusal is not None or not self._events:
                break
        return self._result()

    @workflow.update
    async def answered(self) -> PaymentOutcome:
        """Wait for the first outcome that means something to whoever ordered the payment.

        Raises:
            ApplicationError: ``PAYMENT_DECLINED`` with ``decline_code`` and ``payment_id``, or the order's refusal.
        """
        await workflow.wait_condition(lambda: self._refusal is not None or self._progress is not None)
        if self._refusal is not None:
            raise self._refusal
        outcome = self._outcome()
        if outcome.status is PaymentStatus.FAILED:
            details = {"decline_code": outcome.decline_code or "declined", "payment_id": outcome.payment_id}
            raise refuse(Refusal.PAYMENT_DECLINED, "The payment was declined.", details)
        return outcome

    @workflow.signal
    async def gateway_event(self, event: GatewayEvent) -> None:
        self._events.append(event)

    @workflow.signal
    async def capture(self) -> None:
        """Take what was authorised, as soon as it is."""
        self._capture_wanted = True

    @workflow.signal
    async def release(self) -> None:
        """Nobody waits for this payment any more: let go of what was authorised, keep what was taken as credit."""
        self._abandoned = True
        self._since, self._polls, self._patient = workflow.now(), 0, False

    # Steps

    async def _open(self) -> None:
        """Charge; a webhook that is faster than the gateway's answer is heard meanwhile."""
        charging = asyncio.create_task(self._ask(Payments.charge, Charge(pay=self._pay, now=self._now())))
        while not charging.done():
            await workflow.wait_condition(lambda: charging.done() or bool(self._events))
            if charging.done():
                break
            await self._hear(self._events.popleft())
            if self._settled():
                charging.cancel()
                with contextlib.suppress(ActivityError, asyncio.CancelledError):
                    await charging
                return
        try:
            progress = await charging
        except ActivityError as error:
            self._refusal = refused_by(error)
        else:
            await self._take(progress)

    async def _step(self) -> None:
        """Do the one thing that is due, or wait until one is."""
        if self._events:
            await self._hear(self._events.popleft())
        elif self._to_capture():
            command = Capture(payment_id=self._pay.payment_id, now=self._now())
            await self._try(Payments.capture, command)
        elif self._to_withdraw():
            await self._withdraw(PaymentStatus.CANCELLED)
        else:
            await self._wait()

    async def _wait(self) -> None:
        """Wait for a fact or an order; ask the gateway when none came in time."""
        since = self._since
        due = next_poll(since, self._polls)
        expiry = since + PENDING_AT_MOST if self._awaits_customer() else None
        wake = min(due, expiry) if expiry is not None else due
        try:
            await workflow.wait_condition(
                lambda: bool(self._events) or self._to_capture() or self._to_withdraw() or self._since != since,
                timeout=max(wake - workflow.now(), timedelta()),
            )
        except TimeoutError:
            if expiry is not None and workflow.now() >= expiry:
                await self._withdraw(PaymentStatus.EXPIRED)
            else:
                await self._inquire()

    async def _inquire(self) -> None:
        self._polls += 1
        self._patient = False
        command = Inquire(pay=self._pay, abandoned=self._abandoned, now=self._now())
        try:
            progress = await workflow.execute_activity_method(Payments.inquire, command, **policies.GATEWAY)
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            workflow.logger.warning("the gateway does not say where the payment stands: %s", error.cause)
        else:
            await self._take(progress)

    async def _hear(self, event: GatewayEvent) -> None:
        command = Hear(payment_id=self._pay.payment_id, event=event, abandoned=self._abandoned, now=self._now())
        try:
            progress = await workflow.execute_activity_method(Payments.hear, command, **policies.DATABASE)
        except ActivityError as error:
            self._refusal = refused_by(error)
        else:
            await self._take(progress)

    async def _withdraw(self, ends_as: PaymentStatus) -> None:
        command = Withdraw(payment_id=self._pay.payment_id, ends_as=ends_as, now=self._now())
        await self._try(Payments.withdraw, command)

    async def _try(self, method: Callable[[Any, Any], Any], command: object) -> None:
        """Ask for a move. When the gateway leaves the payment as it is, the next try comes with the next poll."""
        before = self._status()
        await self._take(await self._ask(method, command))
        self._patient = self._status() is before

    async def _ask(self, method: Callable[[Any, Any], Any], command: object) -> Progress:
        """Ask the gateway; when it stays silent over all retries, the payment is unknown.

        Raises:
            ActivityError: a refusal, or the process is being cancelled.
        """
        try:
            answer: Progress = await workflow.execute_activity_method(method, command, **policies.GATEWAY)
        except ActivityError as error:
            refused = isinstance(error.cause, ApplicationError) and error.cause.type in Refusal.__members__
            if refused or is_cancelled_exception(error):
                raise
            workflow.logger.warning("the gateway's answer stays out: %s", error.cause)
            lost = Charge(pay=self._pay, now=self._now())
            return await workflow.execute_activity_method(Payments.lose_sight, lost, **policies.DATABASE)
        return answer

    async def _take(self, progress: Progress) -> None:
        """Take over where the payment stands, and tell whoever waits for it."""
        before, self._progress = self._progress, progress
        status = progress.outcome.status
        if before is None or before.outcome.status is not status:
            self._since, self._polls, self._patient = workflow.now(), 0, False
            if progress.late:
                # The money is in the wallet: whoever waited for this payment must not apply it a second time.
                ended = before.outcome if before is not None and before.outcome.status in CLOSED else None
                self._for_the_waiting = ended or replace(progress.outcome, status=PaymentStatus.CANCELLED)
            else:
                await self._tell_waiting(progress.outcome)
        await tell_indebted(progress.indebted, self._pay.payment_id)
        if progress.stray:
            await self._withdraw(status)

    async def _tell_waiting(self, outcome: PaymentOutcome) -> None:
        parent = workflow.info().parent
        if parent is None:
            return
        handle: workflow.ExternalWorkflowHandle[object] = workflow.get_external_workflow_handle(parent.workflow_id)
        try:
            await handle.signal("payment_moved", outcome)
        except FailureError as ended:
            workflow.logger.info("nobody waits for the payment any more: %s", ended)

    # What it looks at

    def _now(self) -> datetime:
        """The subscription's clock where it is ahead, else this workflow's own."""
        return max(self._pay.business_time or workflow.now(), workflow.now())

    def _status(self) -> PaymentStatus | None:
        return self._progress.outcome.status if self._progress else None

    def _outcome(self) -> PaymentOutcome:
        if self._progress is None:
            return PaymentOutcome(payment_id=self._pay.payment_id, status=PaymentStatus.CREATED)
        return self._progress.outcome

    def _settled(self) -> bool:
        status = self._status()
        return status is not None and (status in RECEIVED or status in CLOSED)

    def _awaits_customer(self) -> bool:
        outcome = self._outcome()
        return outcome.status is PaymentStatus.PENDING and outcome.redirect_url is not None

    def _to_capture(self) -> bool:
        wanted = self._capture_wanted and not self._abandoned and not self._patient
        return wanted and self._status() is PaymentStatus.AUTHORIZED

    def _to_withdraw(self) -> bool:
        open_there = self._status() in (PaymentStatus.AUTHORIZED, PaymentStatus.PENDING)
        return self._abandoned and not self._patient and open_there

    def _result(self) -> PaymentOutcome:
        if self._refusal is None:
            return self._for_the_waiting or self._outcome()
        if workflow.info().parent is None:
            raise self._refusal
        # Whoever waits gets an outcome: an order that was refused is a payment that did not happen.
        code = (self._refusal.type or "refused").lower()
        return PaymentOutcome(payment_id=self._pay.payment_id, status=PaymentStatus.FAILED, decline_code=code)
