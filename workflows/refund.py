"""One refund: reserved of its payment first, so that two of them can never give back more than was received."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from workflows import names, policies
    from workflows.errors import from_activity_error
    from workflows.past_due_signals import signal_past_due_subscriptions
    from workflows.ports.refunds import (
        RecheckRefund,
        RefundActivities,
        RefundInput,
        RefundOutcome,
        ReserveRefund,
        SendRefund,
    )
    from workflows.rules.dunning import FundsKind
    from workflows.rules.payment import RefundStatus, next_poll_at


@workflow.defn(name=names.REFUND)
class Refund:
    """A refund until the gateway says that it did or did not give back, and again whenever a webhook is about it.

    A bank may reject a refund days after the gateway has sent it. The workflow has ended then: the webhook starts it
    again, and it goes on from the row.
    """

    @workflow.init
    def __init__(self, command: RefundInput) -> None:
        self._outcome: RefundOutcome | None = None
        self._error: ApplicationError | None = None
        self._events = 0
        self._rechecked_events = 0

    @workflow.run
    async def run(self, command: RefundInput) -> RefundOutcome:
        """Reserve, have the gateway give back, and follow until it says that it did or did not.

        Raises:
            ApplicationError: the request was rejected; nothing was written.
        """
        try:
            outcome = await workflow.execute_activity_method(
                RefundActivities.reserve, ReserveRefund(command=command, now=workflow.now()), **policies.DATABASE
            )
        except ActivityError as error:
            self._error = from_activity_error(error)
            await workflow.wait_condition(workflow.all_handlers_finished)
            raise self._error from error
        while True:
            outcome = self._outcome = await self._follow(command.refund_id, outcome)
            await signal_past_due_subscriptions(outcome.past_due_subscription_ids, command.refund_id, FundsKind.CREDIT)
            await workflow.wait_condition(workflow.all_handlers_finished)
            if not self._has_to_ask(outcome):
                return outcome

    @workflow.update
    async def await_outcome(self) -> RefundOutcome:
        """Wait for the gateway's first answer, which may be that the refund is pending.

        Raises:
            ApplicationError: the request was rejected; nothing was written.
        """
        await workflow.wait_condition(lambda: self._outcome is not None or self._error is not None)
        if self._outcome is None:
            assert self._error is not None
            raise self._error
        return self._outcome

    @workflow.signal
    def gateway_event(self, event_id: str) -> None:
        """A verified webhook is about this refund. It moves nothing by itself: the gateway is asked."""
        self._events += 1
        workflow.logger.info("gateway event %s", event_id)

    async def _follow(self, refund_id: str, outcome: RefundOutcome) -> RefundOutcome:
        """Ask the gateway until it has decided and every event was looked into."""
        since, polls = workflow.now(), 0
        while self._has_to_ask(outcome):
            events, answered = self._events, True
            try:
                outcome = await self._ask(refund_id, outcome)
            except ActivityError as error:
                if is_cancelled_exception(error):
                    raise
                workflow.logger.warning("the gateway does not say whether it gave back: %s", error.cause)
                answered = False
            if not answered or outcome.status == RefundStatus.PENDING:
                self._outcome = outcome
                await self._wait_for_event(events, next_poll_at(since, polls))
                polls += 1
        return outcome

    async def _ask(self, refund_id: str, outcome: RefundOutcome) -> RefundOutcome:
        """Send a pending refund or follow it up; read a sent one again, which the bank may have rejected since.

        The response to a repeated request is that to the first one. An event that came before it is therefore looked
        into afterwards.
        """
        if outcome.status == RefundStatus.PENDING:
            return await workflow.execute_activity_method(
                RefundActivities.send, SendRefund(refund_id=refund_id, now=workflow.now()), **policies.GATEWAY
            )
        events = self._events
        rechecked = await workflow.execute_activity_method(
            RefundActivities.recheck, RecheckRefund(refund_id=refund_id, now=workflow.now()), **policies.GATEWAY
        )
        self._rechecked_events = events
        return rechecked

    async def _wait_for_event(self, processed: int, until: datetime) -> None:
        """Wait until there are more than ``processed`` events, or until it is time to poll."""
        with suppress(asyncio.TimeoutError):
            await workflow.wait_condition(
                lambda: self._events > processed, timeout=max(until - workflow.now(), timedelta())
            )

    def _has_to_ask(self, outcome: RefundOutcome) -> bool:
        if outcome.status == RefundStatus.SUCCEEDED:
            return self._events > self._rechecked_events
        return outcome.status == RefundStatus.PENDING
