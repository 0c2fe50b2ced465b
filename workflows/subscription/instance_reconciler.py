"""Reconciles the instance with the subscription's state, one operation at a time.

The workflow never commands "suspend" where it changes the status: the reconciler compares the desired state with the
last one that an operation reached, so a crash in between or an unavailable cluster only delays it. It runs beside the
schedule: a payment that is unknown for days must not delay a restart, and a slow cluster must not delay a renewal.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ChildWorkflowError
from temporalio.workflow import ParentClosePolicy

from workflows import names, policies
from workflows.attention import set_needs_attention
from workflows.ports.instances import (
    InstanceActivities,
    OperationInput,
    OperationKind,
    OperationOutcome,
    OperationStatus,
)
from workflows.ports.subscription import PLATFORM_ACTOR, Resources, StartOperation
from workflows.rules import ids
from workflows.rules.errors import ErrorCode
from workflows.rules.subscription import RUNNING_STATUSES, STOPPED_STATUSES
from workflows.subscription.bounded_tasks import BoundedTasks
from workflows.subscription.context import SubscriptionContext

PLATFORM_SCALING = (OperationKind.SUSPEND, OperationKind.RESUME)
CUSTOMER_SCALING = (OperationKind.STOP, OperationKind.START)


class InstanceReconciler:
    """Runs the instance's operations.

    Args:
        context: The subscription.
        tasks: Run the rollback of a plan change: the run waits for its end.
        on_resize_failed: Rolls the plan change back; receives the reason.
    """

    def __init__(
        self,
        context: SubscriptionContext,
        tasks: BoundedTasks,
        on_resize_failed: Callable[[SubscriptionContext, str], Coroutine[Any, Any, None]],
    ) -> None:
        self._context = context
        self._tasks = tasks
        self._on_resize_failed = on_resize_failed
        # Hazard: it waits for a card payment, which may have no outcome for days. An instance is suspended meanwhile.
        self._rollback: asyncio.Task[None] | None = None
        self._pending_operation: OperationInput | None = None
        # Held while an operation runs. A deletion waits for the one before it, and `has_operation` reads the lock.
        self._operation_lock = asyncio.Lock()

    @property
    def has_operation(self) -> bool:
        return self._operation_lock.locked() or self._pending_operation is not None

    @property
    def is_settled(self) -> bool:
        """Whether no operation is running, requested or due before its back-off ends, and no rollback running."""
        return not self.has_operation and not self._is_operation_due() and self._rollback is None

    async def enqueue_operation(self, command: StartOperation) -> None:
        """Record a customer's operation; ``reconcile_forever`` executes it."""
        operation = self._operation_input(OperationKind(command.kind), command.actor, command.operation_id)
        await workflow.execute_activity_method(InstanceActivities.create_operation, operation, **policies.DATABASE)
        self._pending_operation = operation
        self._context.notify_changed()

    async def reconcile_forever(self) -> None:
        """Keep the instance in its desired state until cancelled."""
        while True:
            last_change = self._context.change_count
            if self._rollback is not None and self._rollback.done():
                rollback, self._rollback = self._rollback, None
                rollback.result()
            if self.has_operation or self._is_operation_due():
                async with self._operation_lock:
                    await self._run_next_operation()
                continue
            retry_at = self._context.require_state().operation_retry_at
            pause = retry_at - workflow.now() if self._desired_operation() and retry_at else None
            with contextlib.suppress(TimeoutError):
                await workflow.wait_condition(lambda: self._context.change_count != last_change, timeout=pause)  # noqa: B023

    async def delete_instance(self) -> None:
        """Delete the instance and its data; returns when the cluster is verified clean."""
        async with self._operation_lock:
            delete, failure_count = OperationKind.DELETE, 0
            while (
                await self._execute_operation(self._operation_input(delete, PLATFORM_ACTOR, self._next_operation_id()))
            ).status is not OperationStatus.SUCCEEDED:
                failure_count += 1
                await workflow.sleep(policies.operation_backoff(failure_count))
            set_needs_attention(False)
            self._context.require_state().instance_desired_running = False

    async def _run_next_operation(self) -> None:
        """Run the requested operation, or else the one that the desired state needs."""
        if self._pending_operation is not None:
            await self._run_customer_operation(self._pending_operation)
        elif self._is_operation_due() and (kind := self._desired_operation()) is not None:
            await self._reconcile(kind)

    def _is_operation_due(self) -> bool:
        return self._desired_operation() is not None and not self._is_backing_off()

    def _is_backing_off(self) -> bool:
        """Whether the desired operation is the one that failed, and is not due again yet."""
        state = self._context.require_state()
        if state.operation_retry_at is None or self._desired_operation() != state.failed_operation:
            return False
        return workflow.now() < state.operation_retry_at

    def _desired_operation(self) -> OperationKind | None:
        state = self._context.require_state()
        if self._context.status in STOPPED_STATUSES:
            is_running = state.instance_desired_running or state.failed_operation == OperationKind.RESUME
            return OperationKind.SUSPEND if is_running else None
        if self._context.status not in RUNNING_STATUSES or state.is_stopped_by_customer:
            return None
        if not state.instance_desired_running or state.failed_operation in PLATFORM_SCALING:
            return OperationKind.RESUME
        # A plan change that is rolled back is not tried again meanwhile.
        needs_resize = state.instance_plan_id != state.terms.plan_id and self._rollback is None
        return OperationKind.RESIZE if needs_resize else None

    async def _reconcile(self, kind: OperationKind) -> None:
        state = self._context.require_state()
        terms, former_plan_id = state.terms, state.instance_plan_id
        resources = terms.resources if kind is OperationKind.RESIZE else None
        if kind is OperationKind.RESIZE:
            # Until it ends: a plan change that comes meanwhile needs its own resize, also back to the former plan.
            state.instance_plan_id = ""
        outcome = await self._execute_operation(
            self._operation_input(kind, PLATFORM_ACTOR, self._next_operation_id(), resources)
        )
        if outcome.status is OperationStatus.SUCCEEDED:
            self._clear_failure()
            if kind is OperationKind.RESIZE:
                self._record_resources(terms.plan_id)
            else:
                state.instance_desired_running = kind is OperationKind.RESUME
            return
        if kind is OperationKind.RESIZE:
            # Unknown also after the rollback of the plan change: the instance is resized again, to the plan that it
            # then has.
            self._record_resources(former_plan_id if outcome.has_known_resources else "")
            if state.terms.plan_id != terms.plan_id:
                # The plan was changed meanwhile: the resize to that one decides whether the change is rolled back.
                return
            if state.plan_change_rollback is not None:
                self._start_rollback(outcome.reason or "the instance could not be resized")
                return
        state.operation_failure_count = state.operation_failure_count + 1 if kind == state.failed_operation else 1
        state.failed_operation = kind
        state.operation_retry_at = workflow.now() + policies.operation_backoff(state.operation_failure_count)
        set_needs_attention(True)

    def _record_resources(self, plan_id: str) -> None:
        """Record whose resources the instance has; empty if unknown. A change to that plan is then carried out."""
        state = self._context.require_state()
        state.instance_plan_id = plan_id
        if state.terms.plan_id == plan_id:
            state.plan_change_rollback = None

    def _start_rollback(self, reason: str) -> None:
        """Roll the plan change back beside the operations: neither waits for the other."""
        self._rollback = self._tasks.start(self._on_resize_failed(self._context, reason))
        self._rollback.add_done_callback(lambda _: self._context.notify_changed())

    async def _run_customer_operation(self, operation: OperationInput) -> None:
        state = self._context.require_state()
        outcome = await self._execute_operation(operation)
        self._pending_operation = None
        if operation.kind not in CUSTOMER_SCALING or outcome.reason == ErrorCode.ILLEGAL_MOVE:
            return
        is_start, has_succeeded = operation.kind is OperationKind.START, outcome.status is OperationStatus.SUCCEEDED
        if has_succeeded or is_start:
            # A start that failed may have started a part of the instance, or all of it too late: it counts as running,
            # so that a subscription that is no longer paid for stops it.
            state.is_stopped_by_customer, state.instance_desired_running = not is_start, is_start
        if has_succeeded and state.failed_operation in PLATFORM_SCALING:
            self._clear_failure()
        elif not has_succeeded and not is_start:
            # It may have stopped a part: the instance is resumed, or suspended if the subscription stops meanwhile.
            state.failed_operation = OperationKind.SUSPEND

    def _clear_failure(self) -> None:
        state = self._context.require_state()
        state.operation_retry_at, state.operation_failure_count, state.failed_operation = None, 0, None
        set_needs_attention(False)

    async def _execute_operation(self, operation: OperationInput) -> OperationOutcome:
        try:
            outcome: OperationOutcome = await workflow.execute_child_workflow(
                names.INSTANCE_OPERATION,
                operation,
                id=names.operation_workflow_id(operation.instance_id, operation.operation_id),
                id_reuse_policy=policies.TAKE_OVER,
                parent_close_policy=ParentClosePolicy.ABANDON,
                result_type=OperationOutcome,
                search_attributes=names.search_attributes(
                    operation.organization_id,
                    "operation",
                    subscription=operation.subscription_id,
                    instance=operation.instance_id,
                ),
            )
            return outcome
        except ChildWorkflowError:
            # A manually terminated operation: the desired state is unchanged.
            return OperationOutcome(
                operation_id=operation.operation_id,
                status=OperationStatus.FAILED,
                reason="the operation was terminated",
                has_known_resources=operation.kind is not OperationKind.RESIZE,
            )
        finally:
            self._context.notify_changed()

    def _operation_input(
        self, kind: OperationKind, actor: str, operation_id: str, resources: Resources | None = None
    ) -> OperationInput:
        command = self._context.command
        return OperationInput(
            operation_id=operation_id,
            instance_id=command.instance_id,
            subscription_id=command.subscription_id,
            organization_id=command.organization_id,
            kind=kind,
            actor=actor,
            business_time=workflow.now(),
            resources=resources,
        )

    def _next_operation_id(self) -> str:
        state = self._context.require_state()
        state.operation_count += 1
        return ids.derive_id("op", self._context.command.subscription_id, f"{state.recovery_id}{state.operation_count}")
