"""One operation on an instance: restart, stop, start, suspend, resume, resize, back up, delete."""

from __future__ import annotations

import asyncio
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from workflows import names, policies
    from workflows.attention import set_needs_attention
    from workflows.failure_reasons import failure_reason
    from workflows.ports.instances import (
        AwaitReady,
        ClusterActivities,
        DeletionOutcome,
        FinishOperation,
        InstanceActivities,
        InstanceId,
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
    """An operation did not succeed; ``instance`` is what it left behind, None if it changed nothing."""

    def __init__(self, error: ActivityError, instance: InstanceStatus | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.instance_status = instance


@workflow.defn(name=names.INSTANCE_OPERATION)
class InstanceOperation:
    """Returns how it ended, failures included. A deletion ends only when the cluster was verified clean.

    The ``Subscription`` starts one operation at a time; every step is idempotent all the same.
    """

    @workflow.init
    def __init__(self, command: OperationInput) -> None:
        self._input = command

    @workflow.run
    async def run(self, command: OperationInput) -> OperationOutcome:
        if command.kind is OperationKind.DELETE:
            return await self._run_to_completion(self._delete())
        try:
            instance = await self._execute()
        except _OperationFailed as failed:
            reason, message = failure_reason(failed.error)
            return await self._finish(OperationStatus.FAILED, failed.instance_status, reason, message)
        except asyncio.CancelledError:
            await self._run_to_completion(self._finish(OperationStatus.CANCELLED, None, None, None))
            raise
        return await self._finish(OperationStatus.SUCCEEDED, instance, None, None)

    async def _execute(self) -> InstanceStatus | None:
        """Do it and return what the instance is afterwards; None means unchanged."""
        match self._input.kind:
            case OperationKind.RESTART:
                await self._run_cluster_activity(ClusterActivities.restart)
                await self._await_ready()
                return InstanceStatus.READY
            case OperationKind.START | OperationKind.RESUME:
                await self._run_cluster_activity(ClusterActivities.scale_up)
                await self._await_ready()
                return InstanceStatus.READY
            case OperationKind.STOP:
                await self._run_cluster_activity(ClusterActivities.scale_down)
                return InstanceStatus.STOPPED
            case OperationKind.SUSPEND:
                await self._run_cluster_activity(ClusterActivities.scale_down)
                return InstanceStatus.SUSPENDED
            case OperationKind.BACKUP:
                await self._run_cluster_activity(ClusterActivities.run_backup)
                return None
            case OperationKind.RESIZE:
                await self._resize()
                return None
            case OperationKind.DELETE:
                raise AssertionError("a deletion does not run as an operation")

    async def _resize(self) -> None:
        """Resize; an instance that does not get ready in its new envelope goes back to the former one."""
        try:
            await self._run_cluster_activity(ClusterActivities.resize)
            await self._await_ready()
        except _OperationFailed as failed:
            if failure_reason(failed.error)[0] == ErrorCode.ILLEGAL_MOVE:
                raise
            try:
                await self._run_cluster_activity(ClusterActivities.resize, use_recorded_resources=True)
                await self._await_ready()
            except _OperationFailed as again:
                raise _OperationFailed(failed.error, InstanceStatus.DEGRADED) from again
            raise _OperationFailed(failed.error, None) from failed

    async def _delete(self) -> OperationOutcome:
        await self._run_database_activity(InstanceActivities.start_deletion, self._input)
        failure_count = 0
        while not (removed := await self._delete_namespace()).is_verified:
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

    async def _delete_namespace(self) -> DeletionOutcome:
        try:
            return await workflow.execute_activity_method(
                ClusterActivities.delete_namespace,
                InstanceId(instance_id=self._input.instance_id),
                task_queue=names.INFRASTRUCTURE_QUEUE,
                **policies.CLUSTER_CLEANUP,
            )
        except ActivityError as error:
            return DeletionOutcome(is_verified=False, blockers=failure_reason(error))

    async def _run_cluster_activity(self, step: Any, *, use_recorded_resources: bool = False) -> None:
        command = self._input
        if use_recorded_resources:
            command = OperationInput(
                operation_id=command.operation_id,
                instance_id=command.instance_id,
                subscription_id=command.subscription_id,
                organization_id=command.organization_id,
                kind=command.kind,
                actor=command.actor,
                business_time=command.business_time,
            )
        policy = policies.CLUSTER_WAIT if command.kind is OperationKind.BACKUP else policies.CLUSTER_CALL
        try:
            await workflow.execute_activity_method(step, command, task_queue=names.INFRASTRUCTURE_QUEUE, **policy)
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise asyncio.CancelledError from error
            raise _OperationFailed(error, None) from error

    async def _await_ready(self) -> None:
        try:
            await workflow.execute_activity_method(
                ClusterActivities.await_ready,
                AwaitReady(instance_id=self._input.instance_id, is_starting=self._input.kind in START_KINDS),
                task_queue=names.INFRASTRUCTURE_QUEUE,
                **policies.CLUSTER_WAIT,
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise asyncio.CancelledError from error
            raise _OperationFailed(error, InstanceStatus.DEGRADED) from error

    async def _finish(
        self, status: OperationStatus, instance: InstanceStatus | None, reason: str | None, message: str | None
    ) -> OperationOutcome:
        finish = FinishOperation(
            operation=self._input,
            status=status,
            instance_status=instance,
            reason=reason,
            message=message,
            now=workflow.now(),
        )
        await self._run_database_activity(InstanceActivities.finish_operation, finish)
        return OperationOutcome(operation_id=self._input.operation_id, status=status, reason=reason)

    async def _run_database_activity(self, step: Any, command: Any) -> None:
        await workflow.execute_activity_method(step, command, task_queue=names.PLATFORM_QUEUE, **policies.DATABASE)

    async def _run_to_completion(self, work: Any) -> OperationOutcome:
        """Run ``work`` to its end whatever is cancelled."""
        task: asyncio.Task[OperationOutcome] = asyncio.create_task(work)
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                continue
        return task.result()
