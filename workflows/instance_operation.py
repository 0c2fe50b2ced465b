"""One operation on an instance: restart, stop, start, suspend, resume, resize, back up, delete."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from workflows import names, policies
    from workflows.attention import set_needs_attention
    from workflows.cancellation import raise_if_cancelled
    from workflows.failure_reasons import failure_reason
    from workflows.namespace_deletion import delete_namespace
    from workflows.ports.instances import (
        AwaitReady,
        ClusterActivities,
        FinishOperation,
        InstanceActivities,
        OperationInput,
        OperationKind,
        OperationOutcome,
        OperationStatus,
        RecordDeletionBlocked,
    )
    from workflows.rules.errors import ErrorCode
    from workflows.rules.instance import FailureReason, InstanceStatus

START_KINDS = frozenset({OperationKind.RESTART, OperationKind.START, OperationKind.RESUME})


class _OperationFailed(Exception):
    """An operation did not succeed.

    Attributes:
        reason: A ``FailureReason`` or ``ErrorCode``.
        message: For the customer.
        is_refused: Whether the instance does not take the operation, so that nothing was done.
        instance_status: What the instance is now; None if it is unchanged.
    """

    def __init__(self, error: ActivityError, instance_status: InstanceStatus | None) -> None:
        super().__init__(str(error))
        self.reason, self.message = failure_reason(error)
        self.is_refused = self.reason == ErrorCode.ILLEGAL_MOVE
        self.instance_status = None if self.is_refused else instance_status


@workflow.defn(name=names.INSTANCE_OPERATION)
class InstanceOperation:
    """Runs one operation and returns its outcome, also a failed one. A deletion ends only when it is verified.

    The ``Subscription`` starts one operation at a time; every step is idempotent all the same.
    """

    @workflow.init
    def __init__(self, command: OperationInput) -> None:
        self._input = command
        self._has_known_resources = True

    @workflow.run
    async def run(self, command: OperationInput) -> OperationOutcome:
        if command.kind is OperationKind.DELETE:
            return await self._run_to_completion(self._delete())
        try:
            instance_status = await self._execute()
        except _OperationFailed as failed:
            return await self._finish(OperationStatus.FAILED, failed.instance_status, failed.reason, failed.message)
        except asyncio.CancelledError:
            await self._run_to_completion(self._finish(OperationStatus.CANCELLED, None, None, None))
            raise
        return await self._finish(OperationStatus.SUCCEEDED, instance_status, None, None)

    async def _execute(self) -> InstanceStatus | None:
        """Execute the operation. Return the instance's status after it; None if that is unchanged."""
        command = self._input
        match command.kind:
            case OperationKind.RESTART:
                await self._run_cluster_activity(ClusterActivities.restart, command)
                await self._await_ready()
                return InstanceStatus.READY
            case OperationKind.START | OperationKind.RESUME:
                await self._scale(ClusterActivities.scale_up)
                await self._await_ready()
                return InstanceStatus.READY
            case OperationKind.STOP:
                await self._scale(ClusterActivities.scale_down)
                return InstanceStatus.STOPPED
            case OperationKind.SUSPEND:
                await self._scale(ClusterActivities.scale_down)
                return InstanceStatus.SUSPENDED
            case OperationKind.BACKUP:
                await self._run_cluster_activity(ClusterActivities.run_backup, command, policies.CLUSTER_WAIT)
                return None
            case OperationKind.RESIZE:
                await self._resize()
                return None
            case OperationKind.DELETE:
                raise AssertionError("a deletion does not run as an operation")

    async def _scale(self, step: Any) -> None:
        """Scale up or down; an instance of which only a part may have been started or stopped is ``DEGRADED``."""
        await self._run_cluster_activity(step, self._input, status_on_failure=InstanceStatus.DEGRADED)

    async def _resize(self) -> None:
        """Resize; an instance that does not get ready in its new envelope goes back to the former one."""
        try:
            await self._apply_resources(self._input)
        except _OperationFailed as failed:
            if failed.is_refused:
                raise
            failed.instance_status = await self._restore_resources()
            raise

    async def _restore_resources(self) -> InstanceStatus | None:
        """Apply the recorded resources again; return ``DEGRADED`` if the instance does not get ready with them."""
        try:
            await self._apply_resources(replace(self._input, resources=None))
        except _OperationFailed:
            self._has_known_resources = False
            return InstanceStatus.DEGRADED
        return None

    async def _apply_resources(self, command: OperationInput) -> None:
        """Apply the command's resources, or those on record if it names none, and wait until the instance is ready."""
        await self._run_cluster_activity(ClusterActivities.resize, command)
        await self._await_ready()

    async def _delete(self) -> OperationOutcome:
        await self._run_database_activity(InstanceActivities.start_deletion, self._input)
        failure_count = 0
        while not (removed := await delete_namespace(self._input.instance_id)).is_verified:
            reason, *blockers = removed.blockers or (FailureReason.TERMINATING.value,)
            blocked = RecordDeletionBlocked(
                operation=self._input,
                reason=reason,
                message=", ".join(blockers or removed.blockers),
                now=workflow.now(),
            )
            await self._run_database_activity(InstanceActivities.record_deletion_blocked, blocked)
            set_needs_attention(True)
            failure_count += 1
            await workflow.sleep(policies.deletion_backoff(failure_count))
            if workflow.info().is_continue_as_new_suggested():
                workflow.continue_as_new(self._input)
        # An earlier run of this deletion may have set it.
        set_needs_attention(False)
        return await self._finish(OperationStatus.SUCCEEDED, InstanceStatus.DELETED, None, None)

    async def _await_ready(self) -> None:
        raise_if_cancelled()
        command = AwaitReady(instance_id=self._input.instance_id, is_starting=self._input.kind in START_KINDS)
        await self._run_cluster_activity(
            ClusterActivities.await_ready, command, policies.CLUSTER_WAIT, status_on_failure=InstanceStatus.DEGRADED
        )

    async def _run_cluster_activity(
        self,
        step: Any,
        command: OperationInput | AwaitReady,
        policy: policies.ActivityOptions = policies.CLUSTER_CALL,
        *,
        status_on_failure: InstanceStatus | None = None,
    ) -> None:
        try:
            await workflow.execute_activity_method(step, command, task_queue=names.INFRASTRUCTURE_QUEUE, **policy)
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise asyncio.CancelledError from error
            raise _OperationFailed(error, status_on_failure) from error

    async def _finish(
        self, status: OperationStatus, instance_status: InstanceStatus | None, reason: str | None, message: str | None
    ) -> OperationOutcome:
        finish = FinishOperation(
            operation=self._input,
            status=status,
            instance_status=instance_status,
            reason=reason,
            message=message,
            now=workflow.now(),
        )
        await self._run_database_activity(InstanceActivities.finish_operation, finish)
        return OperationOutcome(
            operation_id=self._input.operation_id,
            status=status,
            reason=reason,
            has_known_resources=self._has_known_resources,
        )

    async def _run_database_activity(self, step: Any, command: Any) -> None:
        await workflow.execute_activity_method(step, command, task_queue=names.PLATFORM_QUEUE, **policies.DATABASE)

    async def _run_to_completion(self, work: Any) -> OperationOutcome:
        """Run ``work`` to its end, shielded from every cancellation of the workflow."""
        task: asyncio.Task[OperationOutcome] = asyncio.create_task(work)
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                continue
        return task.result()
