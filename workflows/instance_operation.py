"""One order on a running instance: restart, stop, start, suspend, resume, resize, back up, delete."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from workflows import names, policies
    from workflows.ports.instances import (
        AwaitReady,
        Cluster,
        FinishOperation,
        InstanceRef,
        Instances,
        Operate,
        OperationKind,
        OperationOutcome,
        OperationStatus,
        RecordBlocked,
        Removed,
    )
    from workflows.rules.errors import Refusal
    from workflows.rules.instance import InstanceStatus, Trouble
    from workflows.troubles import trouble_of

STARTING = frozenset({OperationKind.RESTART, OperationKind.START, OperationKind.RESUME})

FIRST_PAUSE = timedelta(seconds=15)
LONGEST_PAUSE = timedelta(minutes=10)


class _Failed(Exception):
    """An operation did not succeed; ``instance`` is what it left behind, None if it changed nothing."""

    def __init__(self, error: ActivityError, instance: InstanceStatus | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.instance = instance


@workflow.defn(name=names.INSTANCE_OPERATION)
class InstanceOperation:
    """Returns how it ended, failures included. A deletion ends only when the cluster was verified clean.

    The ``Subscription`` gives one order at a time; every step bears being repeated all the same.
    """

    @workflow.init
    def __init__(self, order: Operate) -> None:
        self._order = order

    @workflow.run
    async def run(self, order: Operate) -> OperationOutcome:
        if order.kind is OperationKind.DELETE:
            return await self._shielded(self._delete())
        try:
            instance = await self._perform()
        except _Failed as failed:
            reason, message = trouble_of(failed.error)
            return await self._finish(OperationStatus.FAILED, failed.instance, reason, message)
        except asyncio.CancelledError:
            await self._shielded(self._finish(OperationStatus.CANCELLED, None, None, None))
            raise
        return await self._finish(OperationStatus.SUCCEEDED, instance, None, None)

    async def _perform(self) -> InstanceStatus | None:
        """Do it and return what the instance is afterwards; None means unchanged."""
        match self._order.kind:
            case OperationKind.RESTART:
                await self._do(Cluster.restart)
                await self._await_ready()
                return InstanceStatus.READY
            case OperationKind.START | OperationKind.RESUME:
                await self._do(Cluster.scale_up)
                await self._await_ready()
                return InstanceStatus.READY
            case OperationKind.STOP:
                await self._do(Cluster.scale_down)
                return InstanceStatus.STOPPED
            case OperationKind.SUSPEND:
                await self._do(Cluster.scale_down)
                return InstanceStatus.SUSPENDED
            case OperationKind.BACKUP:
                await self._do(Cluster.backup)
                return None
            case OperationKind.RESIZE:
                await self._resize()
                return None
            case OperationKind.DELETE:
                raise AssertionError("a deletion has a path of its own")

    async def _resize(self) -> None:
        """Resize; an instance that does not get ready in its new envelope goes back to the former one."""
        try:
            await self._do(Cluster.resize)
            await self._await_ready()
        except _Failed as failed:
            if trouble_of(failed.error)[0] == Refusal.ILLEGAL_MOVE:
                raise
            try:
                await self._do(Cluster.resize, restoring=True)
                await self._await_ready()
            except _Failed as again:
                raise _Failed(failed.error, InstanceStatus.DEGRADED) from again
            raise _Failed(failed.error, None) from failed

    async def _delete(self) -> OperationOutcome:
        await self._record(Instances.begin_removal, self._order)
        pause = FIRST_PAUSE
        while not (removed := await self._removed()).clean:
            reason, *rest = removed.blocking or (Trouble.TERMINATING.value,)
            blocked = RecordBlocked(
                operation=self._order, reason=reason, message=", ".join(rest or removed.blocking), now=workflow.now()
            )
            await self._record(Instances.record_blocked, blocked)
            workflow.upsert_search_attributes([names.ATTENTION_KEY.value_set(True)])
            await workflow.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
            if workflow.info().is_continue_as_new_suggested():
                workflow.continue_as_new(self._order)
        if pause > FIRST_PAUSE:
            workflow.upsert_search_attributes([names.ATTENTION_KEY.value_set(False)])
        return await self._finish(OperationStatus.SUCCEEDED, InstanceStatus.DELETED, None, None)

    async def _removed(self) -> Removed:
        try:
            return await workflow.execute_activity_method(
                Cluster.remove,
                InstanceRef(instance_id=self._order.instance_id),
                task_queue=names.INFRASTRUCTURE,
                **policies.CLUSTER_CLEANUP,
            )
        except ActivityError as error:
            return Removed(clean=False, blocking=trouble_of(error))

    async def _do(self, step: Any, *, restoring: bool = False) -> None:
        order = self._order
        if restoring:
            order = Operate(
                operation_id=order.operation_id,
                instance_id=order.instance_id,
                subscription_id=order.subscription_id,
                organization_id=order.organization_id,
                kind=order.kind,
                actor=order.actor,
                business_time=order.business_time,
            )
        policy = policies.CLUSTER_WAIT if order.kind is OperationKind.BACKUP else policies.CLUSTER
        try:
            await workflow.execute_activity_method(step, order, task_queue=names.INFRASTRUCTURE, **policy)
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise asyncio.CancelledError from error
            raise _Failed(error, None) from error

    async def _await_ready(self) -> None:
        try:
            await workflow.execute_activity_method(
                Cluster.await_ready,
                AwaitReady(instance_id=self._order.instance_id, started=self._order.kind in STARTING),
                task_queue=names.INFRASTRUCTURE,
                **policies.CLUSTER_WAIT,
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise asyncio.CancelledError from error
            raise _Failed(error, InstanceStatus.DEGRADED) from error

    async def _finish(
        self, status: OperationStatus, instance: InstanceStatus | None, reason: str | None, message: str | None
    ) -> OperationOutcome:
        finish = FinishOperation(
            operation=self._order,
            status=status,
            instance=instance,
            reason=reason,
            message=message,
            now=workflow.now(),
        )
        await self._record(Instances.finish_operation, finish)
        return OperationOutcome(operation_id=self._order.operation_id, status=status, reason=reason)

    async def _record(self, step: Any, command: Any) -> None:
        await workflow.execute_activity_method(step, command, task_queue=names.PLATFORM, **policies.DATABASE)

    async def _shielded(self, work: Any) -> OperationOutcome:
        """Run ``work`` to its end whatever is cancelled."""
        task: asyncio.Task[OperationOutcome] = asyncio.create_task(work)
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                continue
        return task.result()
