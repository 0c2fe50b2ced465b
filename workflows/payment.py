"""``Payment``: creates one charge at its gateway, then polls it until a final status.

A gateway that times out makes the payment ``unknown``, never ``failed``. The parent workflow receives each status by
the signal ``payment_status_changed``, and the final one as this workflow's result. Status arrives from responses, polls
and webhooks in any order; ``rules.payment`` resolves conflicts. A webhook for a closed payment restarts the workflow
under the same id.
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
    from workflows.errors import from_activity_error, non_retryable_error
    from workflows.past_due_signals import signal_past_due_subscriptions
    from workflows.ports.payments import (
        ApplyGatewayEvent,
        CancelPayment,
        CapturePayment,
        ChargePayment,
        GatewayEvent,
        PaymentActivities,
        PaymentInput,
        PaymentOutcome,
        PaymentProgress,
        PollPayment,
        Purpose,
        Requester,
    )
    from workflows.rules.dunning import FundsKind
    from workflows.rules.errors import ErrorCode
    from workflows.rules.payment import (
        CUSTOMER_ACTION_TIMEOUT,
        PAID_STATUSES,
        UNPAID_FINAL_STATUSES,
        PaymentStatus,
        next_poll_at,
    )


@workflow.defn(name=names.PAYMENT)
class Payment:
    @workflow.init
    def __init__(self, input: PaymentInput) -> None:
        self._input = input
        self._events: deque[GatewayEvent] = deque()
        self._capture_requested = False
        is_awaited = input.purpose is Purpose.TOP_UP or workflow.info().parent is not None
        self._requester = Requester.WAITING if is_awaited else Requester.ABSENT
        self._progress: PaymentProgress | None = None
        self._outcome_for_parent: PaymentOutcome | None = None
        self._error: ApplicationError | None = None
        self._status_since: datetime = workflow.now()
        self._poll_count = 0
        self._retry_at_next_poll = False

    @workflow.run
    async def run(self, input: PaymentInput) -> PaymentOutcome:
        if not self._events:
            await (self._poll_gateway() if input.is_recorded else self._charge())
        while True:
            while self._error is None and (self._events or not self._is_final()):
                await self._run_next_step()
            await workflow.wait_condition(lambda: bool(self._events) or workflow.all_handlers_finished())
            if self._error is not None or not self._events:
                break
        return self._result()

    @workflow.update
    async def await_outcome(self) -> PaymentOutcome:
        """Wait for the first outcome that the caller of the payment acts on.

        Raises:
            ApplicationError: ``PAYMENT_DECLINED`` with ``decline_code`` and ``payment_id``, or why it was rejected.
        """
        await workflow.wait_condition(lambda: self._error is not None or self._progress is not None)
        if self._error is not None:
            raise self._error
        outcome = self._outcome()
        if outcome.status is PaymentStatus.FAILED:
            details = {"decline_code": outcome.decline_code or "declined", "payment_id": outcome.payment_id}
            raise non_retryable_error(ErrorCode.PAYMENT_DECLINED, "The payment was declined.", details)
        return outcome

    @workflow.signal
    async def gateway_event(self, event: GatewayEvent) -> None:
        self._events.append(event)

    @workflow.signal
    async def capture(self) -> None:
        """Capture the payment, as soon as it is authorized."""
        self._capture_requested = True

    @workflow.signal
    async def cancel_authorization(self) -> None:
        """Abandon the payment: void an authorization; money that was captured becomes wallet credit."""
        if self._requester is Requester.WAITING:
            self._requester = Requester.WITHDRAWN
        self._status_since, self._poll_count, self._retry_at_next_poll = workflow.now(), 0, False

    # Steps

    async def _charge(self) -> None:
        """Charge, and apply a webhook that arrives before the gateway's response."""
        charging = asyncio.create_task(
            self._call_gateway(PaymentActivities.charge, ChargePayment(input=self._input, now=self._business_time()))
        )
        while not charging.done():
            await workflow.wait_condition(lambda: charging.done() or bool(self._events))
            if charging.done():
                break
            await self._apply_gateway_event(self._events.popleft())
            if self._is_final():
                charging.cancel()
                with contextlib.suppress(ActivityError, asyncio.CancelledError):
                    await charging
                return
        try:
            progress = await charging
        except ActivityError as error:
            self._error = from_activity_error(error)
        else:
            await self._apply_progress(progress)

    async def _run_next_step(self) -> None:
        """Execute the step that is due, or wait until one is."""
        if self._events:
            await self._apply_gateway_event(self._events.popleft())
        elif self._should_capture():
            command = CapturePayment(payment_id=self._input.payment_id, now=self._business_time())
            await self._request_transition(PaymentActivities.capture, command)
        elif self._should_cancel():
            await self._cancel_at_gateway(PaymentStatus.CANCELLED)
        else:
            await self._wait_or_poll()

    async def _wait_or_poll(self) -> None:
        """Wait for a gateway event or a command; poll the gateway when none came in time."""
        since = self._status_since
        due = next_poll_at(since, self._poll_count)
        expiry = since + CUSTOMER_ACTION_TIMEOUT if self._requires_customer_action() else None
        wake = min(due, expiry) if expiry is not None else due
        try:
            await workflow.wait_condition(
                lambda: (
                    bool(self._events) or self._should_capture() or self._should_cancel() or self._status_since != since
                ),
                timeout=max(wake - workflow.now(), timedelta()),
            )
        except TimeoutError:
            if expiry is not None and workflow.now() >= expiry:
                await self._cancel_at_gateway(PaymentStatus.EXPIRED)
            else:
                await self._poll_gateway()

    async def _poll_gateway(self) -> None:
        self._poll_count += 1
        self._retry_at_next_poll = False
        command = PollPayment(input=self._input, requester=self._requester, now=self._business_time())
        try:
            progress = await workflow.execute_activity_method(PaymentActivities.poll, command, **policies.GATEWAY)
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            workflow.logger.warning("payment status poll failed: %s", error.cause)
        else:
            await self._apply_progress(progress)

    async def _apply_gateway_event(self, event: GatewayEvent) -> None:
        command = ApplyGatewayEvent(
            payment_id=self._input.payment_id,
            event=event,
            requester=self._requester,
            now=self._business_time(),
        )
        try:
            progress = await workflow.execute_activity_method(
                PaymentActivities.apply_gateway_event, command, **policies.DATABASE
            )
        except ActivityError as error:
            self._error = from_activity_error(error)
        else:
            await self._apply_progress(progress)

    async def _cancel_at_gateway(self, final_status: PaymentStatus) -> None:
        command = CancelPayment(
            payment_id=self._input.payment_id,
            final_status=final_status,
            now=self._business_time(),
            requester=self._requester,
        )
        await self._request_transition(PaymentActivities.cancel, command)

    async def _request_transition(self, method: Callable[[Any, Any], Any], command: object) -> None:
        """Request a transition; if the gateway keeps the status, request it again after the next poll."""
        before = self._status()
        await self._apply_progress(await self._call_gateway(method, command))
        self._retry_at_next_poll = self._status() is before

    async def _call_gateway(self, method: Callable[[Any, Any], Any], command: object) -> PaymentProgress:
        """Call the gateway; if no retry gets a response, mark the payment as unknown.

        Raises:
            ActivityError: The command was rejected, or the workflow is being cancelled.
        """
        try:
            progress: PaymentProgress = await workflow.execute_activity_method(method, command, **policies.GATEWAY)
        except ActivityError as error:
            refused = isinstance(error.cause, ApplicationError) and error.cause.type in ErrorCode.__members__
            if refused or is_cancelled_exception(error):
                raise
            workflow.logger.warning("the gateway did not respond; the payment is unknown: %s", error.cause)
            command = ChargePayment(input=self._input, now=self._business_time())
            return await workflow.execute_activity_method(PaymentActivities.mark_unknown, command, **policies.DATABASE)
        return progress

    async def _apply_progress(self, progress: PaymentProgress) -> None:
        """Store the progress of the payment and signal the workflow that waits for it."""
        before, self._progress = self._progress, progress
        status = progress.outcome.status
        if before is None or before.outcome.status is not status:
            self._status_since, self._poll_count, self._retry_at_next_poll = workflow.now(), 0, False
            if progress.received_after_close:
                # The money is in the wallet: the waiting workflow must not apply it a second time.
                unpaid = (
                    before.outcome if before is not None and before.outcome.status in UNPAID_FINAL_STATUSES else None
                )
                self._outcome_for_parent = unpaid or replace(progress.outcome, status=PaymentStatus.CANCELLED)
            else:
                await self._signal_parent(progress.outcome)
        await signal_past_due_subscriptions(
            progress.past_due_subscription_ids, self._input.payment_id, FundsKind.CREDIT
        )
        if progress.has_unwanted_authorization:
            await self._cancel_at_gateway(status)

    async def _signal_parent(self, outcome: PaymentOutcome) -> None:
        parent = workflow.info().parent
        if parent is None:
            return
        handle: workflow.ExternalWorkflowHandle[object] = workflow.get_external_workflow_handle(parent.workflow_id)
        try:
            await handle.signal("payment_status_changed", outcome)
        except FailureError as ended:
            workflow.logger.info("parent workflow is closed; payment result not delivered: %s", ended)

    # State

    def _business_time(self) -> datetime:
        """Return the subscription's time if it is ahead, else this workflow's."""
        return max(self._input.business_time or workflow.now(), workflow.now())

    def _status(self) -> PaymentStatus | None:
        return self._progress.outcome.status if self._progress else None

    def _outcome(self) -> PaymentOutcome:
        if self._progress is None:
            return PaymentOutcome(payment_id=self._input.payment_id, status=PaymentStatus.CREATED)
        return self._progress.outcome

    def _is_final(self) -> bool:
        status = self._status()
        return status is not None and (status in PAID_STATUSES or status in UNPAID_FINAL_STATUSES)

    def _requires_customer_action(self) -> bool:
        outcome = self._outcome()
        return outcome.status is PaymentStatus.PENDING and outcome.redirect_url is not None

    def _should_capture(self) -> bool:
        is_due = self._capture_requested and not self._requester.abandons_payment and not self._retry_at_next_poll
        return is_due and self._status() is PaymentStatus.AUTHORIZED

    def _should_cancel(self) -> bool:
        open_there = self._status() in (PaymentStatus.AUTHORIZED, PaymentStatus.PENDING)
        return self._requester.abandons_payment and not self._retry_at_next_poll and open_there

    def _result(self) -> PaymentOutcome:
        if self._error is None:
            return self._outcome_for_parent or self._outcome()
        if workflow.info().parent is None:
            raise self._error
        # A child does not raise: for the waiting workflow a rejected command is a failed payment, and the error code is
        # its decline code.
        code = (self._error.type or "refused").lower()
        return PaymentOutcome(payment_id=self._input.payment_id, status=PaymentStatus.FAILED, decline_code=code)
