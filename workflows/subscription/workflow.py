"""``Subscription``: one long-running workflow per subscription, from the order to the deletion of its data.

``run`` fulfills the order and then executes each scheduled action when it is due: renewal, dunning, deletion. Updates
and signals change the state and wake the loop. The parts of the workflow are functions of a ``SubscriptionContext``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    import workflows.ports.instances
    import workflows.rules.periods  # noqa: F401 - as above
    from workflows import names, policies
    from workflows.errors import from_activity_error, in_progress_error
    from workflows.ports.billing import SubscriptionActivities
    from workflows.ports.payments import PaymentOutcome
    from workflows.ports.subscription import (
        PLATFORM_ACTOR,
        CancelAt,
        CancelSubscription,
        ChangePlan,
        ClockStatus,
        FundsArrived,
        LifecycleCommand,
        ReleaseReminders,
        StartOperation,
        SubscriptionInput,
        SubscriptionResult,
    )
    from workflows.rules.schedule import ActionKind
    from workflows.rules.subscription import (
        LIVE_STATUSES,
        PAST_DUE_STATUSES,
        RENEWING_STATUSES,
        RUNNING_STATUSES,
        TERMINAL_STATUSES,
        SubscriptionStatus,
    )
    from workflows.subscription import billing_cycle, lifecycle, plan_change, recovery, scheduled_actions
    from workflows.subscription.bounded_tasks import BoundedTasks
    from workflows.subscription.context import SubscriptionContext
    from workflows.subscription.instance_reconciler import InstanceReconciler
    from workflows.subscription.order_fulfillment import OrderFulfillment, execute_late_cancellation

OPERATOR_CANCELLATION = CancelSubscription(
    update_id="", actor="operator", at=CancelAt.NOW, reason="the workflow was cancelled"
)


@workflow.defn(name=names.SUBSCRIPTION)
class Subscription:
    @workflow.init
    def __init__(self, input: SubscriptionInput) -> None:
        self.context = SubscriptionContext(input.command, input.state)
        self._tasks = BoundedTasks(self.context.notify_changed)
        self.reconciler = InstanceReconciler(self.context, self._tasks, plan_change.rollback_plan_change)
        self._order_error: ApplicationError | None = None
        self._stop_requested = False
        self._is_acting = True
        self._has_started_period = False

    @workflow.run
    async def run(self, input: SubscriptionInput) -> SubscriptionResult:
        main_task = asyncio.create_task(self._run_until_terminal())
        while not main_task.done():
            try:
                await asyncio.shield(main_task)
            except asyncio.CancelledError:
                # A cancelled workflow is a cancelled subscription: the cancellation is executed between two actions,
                # so that no payment is abandoned and no instance keeps running.
                self._request_stop()
        result = await main_task
        if result is None:
            workflow.continue_as_new(SubscriptionInput(command=self.context.command, state=self.context.state))
        return result

    # Updates

    @workflow.update
    async def await_created(self) -> SubscriptionResult:
        """Wait until the order is recorded, or raise its error."""
        await self._wait_for_order(lambda: self.context.state is not None)
        return replace(self._result(), order=self.context.order if self.context.is_pre_ready else None)

    @workflow.update
    async def cancel(self, command: CancelSubscription) -> SubscriptionResult:
        """Cancel now or at the end of the period. Before the instance is ready: compensate the order."""
        context = self.context
        if context.is_handled(command.update_id):
            return self._result()
        if context.is_pre_ready:
            context.cancel_request = context.cancel_request or command
            # Releasing an authorization whose payment is unknown takes days; the compensation goes on after the answer.
            with contextlib.suppress(TimeoutError):
                await self._wait_for_order(lambda: not context.is_pre_ready, timeout=policies.UPDATE_ANSWERED_WITHIN)
        if context.is_pre_ready:
            # Only the compensation ends the order: it also releases the hold, the coupon and the authorization.
            return self._result()
        if context.status not in LIVE_STATUSES:
            return self._result()
        await context.wait_briefly(lambda: command.at is CancelAt.NOW or not context.is_charging_for_new_period)
        async with context.customer_state_lock():
            # The renewal may have failed since the command was accepted.
            lifecycle.require_cancellable(context, command.at)
            await lifecycle.cancel(context, command.at, command.actor, command.reason)
        context.mark_handled(command.update_id)
        return self._result()

    @cancel.validator
    def validate_cancel(self, command: CancelSubscription) -> None:
        if self.context.is_handled(command.update_id):
            return
        self.context.require_status(self.context.status in LIVE_STATUSES, "be cancelled")
        if self.context.can_judge(command.update_id):
            lifecycle.require_cancellable(self.context, command.at)

    @workflow.update
    async def resume(self, command: LifecycleCommand) -> SubscriptionResult:
        """Clear the cancellation at the end of the period, or start a new period after a pause."""
        if self.context.is_handled(command.update_id):
            return self._result()
        # The caller can have read the pause from the row.
        await self.context.wait_for_change()
        if self.context.status is SubscriptionStatus.PAUSED:
            await self._tasks.run(billing_cycle.resume_from_pause(self.context, command.actor))
        else:
            async with self.context.customer_state_lock():
                self._require_resumable()
                await lifecycle.set_cancel_at_period_end(self.context, False, command.actor, "resumed")
        self.context.mark_handled(command.update_id)
        return self._result()

    @resume.validator
    def validate_resume(self, command: LifecycleCommand) -> None:
        if self.context.can_judge(command.update_id):
            self._require_resumable()

    def _require_resumable(self) -> None:
        context = self.context
        is_cancelling = (
            context.state is not None
            and context.state.committed.cancel_at_period_end
            and context.status in LIVE_STATUSES
        )
        context.require_status(is_cancelling or context.status is SubscriptionStatus.PAUSED, "be resumed")
        if context.status is SubscriptionStatus.PAUSED:
            context.require_no_slow_payment()

    @workflow.update
    async def pause(self, command: LifecycleCommand) -> SubscriptionResult:
        """Stop service and billing until the subscription is resumed; the data is kept."""
        if self.context.is_handled(command.update_id):
            return self._result()
        await billing_cycle.wait_for_renewal(self.context)
        # The collection lock: a payment that succeeds would end the pause.
        async with self.context.customer_collection_lock(), self.context.customer_state_lock():
            billing_cycle.require_no_due_renewal(self.context)
            self._require_pausable()
            await lifecycle.pause(self.context, command.actor)
        self.context.mark_handled(command.update_id)
        return self._result()

    @pause.validator
    def validate_pause(self, command: LifecycleCommand) -> None:
        if self.context.can_judge(command.update_id):
            self._require_pausable()

    def _require_pausable(self) -> None:
        self.context.require_status(self.context.status in RENEWING_STATUSES, "be paused")
        self.context.require_no_slow_payment()

    @workflow.update
    async def change_plan(self, command: ChangePlan) -> SubscriptionResult:
        """Change to another plan of the same service, now or at the end of the period."""
        if not self.context.is_handled(command.update_id):
            await billing_cycle.wait_for_renewal(self.context)
            await self.context.wait_briefly(
                lambda: self.context.state is None or self.context.state.plan_change_rollback is None
            )
            await self._tasks.run(plan_change.change_plan(self.context, command))
        self.context.mark_handled(command.update_id)
        return self._result()

    @change_plan.validator
    def validate_change_plan(self, command: ChangePlan) -> None:
        if self.context.can_judge(command.update_id):
            plan_change.require_changeable(self.context)

    @workflow.update
    async def retry_payment(self, command: LifecycleCommand) -> SubscriptionResult:
        """Try to collect the open invoice now. Does not count as a scheduled retry."""
        if not self.context.is_handled(command.update_id):
            await self._tasks.run(
                billing_cycle.collect(self.context, scheduled=False, actor=command.actor, fail_if_unpaid=True)
            )
        self.context.mark_handled(command.update_id)
        return self._result()

    @retry_payment.validator
    def validate_retry_payment(self, command: LifecycleCommand) -> None:
        if self.context.can_judge(command.update_id):
            self.context.require_status(self.context.status in PAST_DUE_STATUSES, "be collected")
            self.context.require_no_slow_payment()

    @workflow.update
    async def start_operation(self, command: StartOperation) -> SubscriptionResult:
        """Restart, stop, start or back up the instance; returns when the operation is recorded."""
        if not self.context.is_handled(command.update_id):
            await self.context.wait_briefly(lambda: not self.reconciler.has_operation)
            async with self.context.customer_state_lock():
                self._require_operation_allowed()
                if self.reconciler.has_operation:
                    raise in_progress_error(
                        "Another operation on this instance is in progress. Retry when it has ended."
                    )
                await self.reconciler.enqueue_operation(command)
        self.context.mark_handled(command.update_id)
        return self._result()

    @start_operation.validator
    def validate_start_operation(self, command: StartOperation) -> None:
        if self.context.can_judge(command.update_id):
            self._require_operation_allowed()

    def _require_operation_allowed(self) -> None:
        self.context.require_status(self.context.status in RUNNING_STATUSES, "be operated")

    @workflow.update
    async def release_reminders(self) -> None:
        """Send the reminders that are due on this subscription's clock. The sandbox calls it after moving the clock."""
        await workflow.execute_activity_method(
            SubscriptionActivities.release_reminders,
            ReleaseReminders(subscription_id=self.context.command.subscription_id, now=workflow.now()),
            **policies.DATABASE,
        )

    # Signals and queries

    @workflow.signal
    async def payment_status_changed(self, outcome: PaymentOutcome) -> None:
        self.context.payments[outcome.payment_id] = outcome

    @workflow.signal
    async def funds_arrived(self, signal: FundsArrived) -> None:
        self.context.pending_funds.add(signal.kind)

    @workflow.query
    def clock_status(self) -> ClockStatus:
        context = self.context
        action = context.next_action() if context.state is not None else None
        is_busy = (
            self._is_acting
            or context.state_lock.locked()
            or context.collection_lock.locked()
            or context.should_collect_now
        )
        is_idle = not is_busy and (context.state is None or self.reconciler.is_settled)
        return ClockStatus(
            now=workflow.now(),
            next_action_at=action.at if action else None,
            is_idle=is_idle,
            is_changing=context.state_lock.locked(),
            state=context.status,
            reminders_at=billing_cycle.reminders_at(context),
        )

    # The loop

    async def _run_until_terminal(self) -> SubscriptionResult | None:
        """Run until a terminal status.

        Returns:
            The result. None requests continue-as-new: no handler, payment or operation is in flight.
        """
        context = self.context
        if context.state is None and not await self._fulfill_order():
            await workflow.wait_condition(workflow.all_handlers_finished)
            return self._result()
        reconcile_task = asyncio.create_task(self.reconciler.reconcile_forever())
        reconcile_task.add_done_callback(lambda _: context.notify_changed())
        try:
            while context.status not in TERMINAL_STATUSES:
                if reconcile_task.done():
                    reconcile_task.result()  # Ends only with an exception.
                await self._run_next_action()
                if self._should_continue_as_new():
                    return None
        finally:
            reconcile_task.cancel()
        self._is_acting = False
        await workflow.wait_condition(lambda: workflow.all_handlers_finished() and not self._tasks.has_unfinished)
        return self._result()

    def _should_continue_as_new(self) -> bool:
        """Whether a new run is due and nothing is in flight.

        Hazard: an evicted workflow is replayed from its whole history. After the start of a period a history longer
        than ``CONTINUE_AS_NEW_EVENTS`` is therefore cut. The new run also starts on the current deployment version.
        """
        info = workflow.info()
        is_due = (
            info.is_continue_as_new_suggested()
            or info.is_target_worker_deployment_version_changed()
            or self._has_long_history()
        )
        return is_due and not self._has_pending_work()

    def _has_long_history(self) -> bool:
        length = workflow.info().get_current_history_length()
        return self._has_started_period and length > policies.CONTINUE_AS_NEW_EVENTS

    def _has_pending_work(self) -> bool:
        is_pending = (
            self.reconciler.has_operation
            or self.context.should_collect_now
            or self._stop_requested
            or self._tasks.has_unfinished
        )
        return is_pending or not workflow.all_handlers_finished()

    def _request_stop(self) -> None:
        self._stop_requested = True
        context = self.context
        if context.is_pre_ready:
            context.cancel_request = context.cancel_request or OPERATOR_CANCELLATION
        context.notify_changed()

    async def _fulfill_order(self) -> bool:
        """Fulfill the order. Return False when it was aborted and every step is compensated."""
        try:
            return await OrderFulfillment(self.context).run()
        except (ActivityError, ApplicationError) as error:
            if self.context.state is not None:
                raise
            self._order_error = from_activity_error(error)
            self.context.publish_status()
            await workflow.wait_condition(workflow.all_handlers_finished)
            raise self._order_error from error

    async def _run_next_action(self) -> None:
        """Execute what is due now, or else wait until an action is due or the state changes."""
        context = self.context
        self._is_acting = True
        self._tasks.raise_failure()
        if context.recovery is not None:
            await recovery.settle(context)
            return
        if self._stop_requested:
            async with context.state_lock:
                await lifecycle.cancel(
                    context, OPERATOR_CANCELLATION.at, OPERATOR_CANCELLATION.actor, OPERATOR_CANCELLATION.reason
                )
            self._stop_requested = False
            return
        if context.cancel_request is not None:
            await execute_late_cancellation(context, context.cancel_request)
            return
        if context.should_collect_now:
            await billing_cycle.collect(context, scheduled=False, actor=PLATFORM_ACTOR)
            return
        action = context.next_action()
        if action is not None and workflow.now() >= action.at:
            await scheduled_actions.execute(context, self.reconciler, action)
            self._has_started_period = self._has_started_period or action.kind is ActionKind.START_PERIOD
            return
        last_change = context.change_count
        self._is_acting = False
        timeout = None if action is None else action.at - workflow.now()
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(
                lambda: (
                    context.change_count != last_change
                    or context.should_collect_now
                    # The renewal was followed by an update that has ended since.
                    or (self._has_long_history() and not self._has_pending_work())
                ),
                timeout=timeout,
            )

    async def _wait_for_order(self, reached: Callable[[], bool], timeout: timedelta | None = None) -> None:
        """Wait for a condition that only a recorded order can reach.

        Raises:
            ApplicationError: the order was refused.
            TimeoutError: the condition was not reached within ``timeout``.
        """
        await workflow.wait_condition(lambda: self._order_error is not None or reached(), timeout=timeout)
        if self._order_error is not None:
            raise self._order_error

    def _result(self) -> SubscriptionResult:
        return SubscriptionResult(subscription_id=self.context.command.subscription_id, state=self.context.status)
