"""One refund: reserved of its payment first, so that two of them can never give back more than was received."""

from __future__ import annotations

from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from workflows import names, policies
    from workflows.errors import from_activity_error
    from workflows.past_due_signals import signal_past_due_subscriptions
    from workflows.ports.payments import RefundActivities, RefundInput, RefundOutcome, ReserveRefund, SendRefund
    from workflows.rules.dunning import FundsKind
    from workflows.rules.payment import RefundStatus, next_poll_at


@workflow.defn(name=names.REFUND)
class Refund:
    @workflow.init
    def __init__(self, command: RefundInput) -> None:
        self._outcome: RefundOutcome | None = None
        self._error: ApplicationError | None = None

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
        since, polls = workflow.now(), 0
        while outcome.status == RefundStatus.PENDING:
            try:
                outcome = await workflow.execute_activity_method(
                    RefundActivities.send,
                    SendRefund(refund_id=command.refund_id, now=workflow.now()),
                    **policies.GATEWAY,
                )
            except ActivityError as error:
                if is_cancelled_exception(error):
                    raise
                workflow.logger.warning("the gateway does not say whether it gave back: %s", error.cause)
            if outcome.status == RefundStatus.PENDING:
                self._outcome = outcome
                await self._sleep_until(next_poll_at(since, polls))
                polls += 1
        self._outcome = outcome
        await signal_past_due_subscriptions(outcome.past_due_subscription_ids, command.refund_id, FundsKind.CREDIT)
        await workflow.wait_condition(workflow.all_handlers_finished)
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

    async def _sleep_until(self, due: datetime) -> None:
        await workflow.sleep(max(due - workflow.now(), timedelta()))
