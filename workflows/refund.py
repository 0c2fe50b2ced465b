"""One refund: reserved of its payment first, so that two of them can never give back more than was received."""

from __future__ import annotations

from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from workflows import names, policies
    from workflows.errors import from_activity_error
    from workflows.past_due_signals import signal_past_due_subscriptions
    from workflows.ports.payments import RefundActivities, RefundInput, RefundOutcome, ReserveRefund, SendRefund
    from workflows.rules.dunning import FundsKind
    from workflows.rules.payment import next_poll_at

PENDING = "pending"


@workflow.defn(name=names.REFUND)
class Refund:
    @workflow.run
    async def run(self, order: RefundInput) -> RefundOutcome:
        """Reserve, have the gateway give back, and follow until it says that it did or did not.

        Raises:
            ApplicationError: the order was refused; nothing was written.
        """
        try:
            outcome = await workflow.execute_activity_method(
                RefundActivities.reserve, ReserveRefund(command=order, now=workflow.now()), **policies.DATABASE
            )
        except ActivityError as error:
            raise from_activity_error(error) from error
        since, polls = workflow.now(), 0
        while outcome.status == PENDING:
            try:
                outcome = await workflow.execute_activity_method(
                    RefundActivities.send, SendRefund(refund_id=order.refund_id, now=workflow.now()), **policies.GATEWAY
                )
            except ActivityError as error:
                if is_cancelled_exception(error):
                    raise
                workflow.logger.warning("the gateway does not say whether it gave back: %s", error.cause)
            if outcome.status == PENDING:
                await self._sleep_until(next_poll_at(since, polls))
                polls += 1
        await signal_past_due_subscriptions(outcome.past_due_subscription_ids, order.refund_id, FundsKind.CREDIT)
        return outcome

    async def _sleep_until(self, due: datetime) -> None:
        await workflow.sleep(max(due - workflow.now(), timedelta()))
