"""From an order to a running instance, or back to nothing."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from workflows import names, policies
    from workflows.ports.instances import (
        AwaitReady,
        Cluster,
        InstanceRef,
        Instances,
        Operate,
        OperationKind,
        Provision,
        Provisioned,
        RecordReady,
        RecordUndone,
        Removed,
    )
    from workflows.rules.instance import CAPACITY, Trouble
    from workflows.saga import Saga
    from workflows.troubles import trouble_of


@workflow.defn(name=names.PROVISIONING)
class Provisioning:
    """Three activities when all goes well: apply, wait until it answers, record.

    Returns instead of raising when it gives up. Cancelled, it undoes everything, verifies that, and then lets the
    cancellation go on. What cannot be removed at once is left to an ``InstanceOperation`` that never gives up.
    """

    @workflow.init
    def __init__(self, order: Provision) -> None:
        self._order = order
        self._saga = Saga()
        self._clean = True

    @workflow.run
    async def run(self, order: Provision) -> Provisioned:
        try:
            async with self._saga as saga:
                saga.on_failure(self._undo)
                await self._provision()
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            reason, message = trouble_of(error)
            return Provisioned(ready=False, reason=reason, message=message, clean=self._clean)
        return Provisioned(ready=True)

    async def _provision(self) -> None:
        instance_id = self._order.instance_id
        applied = await workflow.execute_activity_method(
            Cluster.apply,
            InstanceRef(instance_id=instance_id),
            task_queue=names.INFRASTRUCTURE,
            **policies.CLUSTER_APPLY,
        )
        if applied.settled:
            return
        ready = await workflow.execute_activity_method(
            Cluster.await_ready,
            AwaitReady(instance_id=instance_id, started=True),
            task_queue=names.INFRASTRUCTURE,
            **policies.CLUSTER_WAIT,
        )
        await workflow.execute_activity_method(
            Instances.record_ready,
            RecordReady(instance_id=instance_id, conditions=ready.conditions, now=workflow.now()),
            task_queue=names.PLATFORM,
            **policies.DATABASE,
        )

    async def _undo(self) -> None:
        """Remove whatever was made and record how it ended. One undo: everything of an instance is in its namespace."""
        removed = await self._removed()
        self._clean = removed.clean
        cancelled = self._saga.cause is None or is_cancelled_exception(self._saga.cause)
        reason, message = (None, None) if cancelled else trouble_of(self._saga.cause)
        if not removed.clean:
            message = ", ".join(removed.blocking) or message
        await workflow.execute_activity_method(
            Instances.record_undone,
            RecordUndone(
                instance_id=self._order.instance_id,
                clean=removed.clean,
                cancelled=cancelled,
                reason=reason,
                message=message,
                now=workflow.now(),
            ),
            task_queue=names.PLATFORM,
            **policies.DATABASE,
        )
        if not removed.clean or reason in (*CAPACITY, Trouble.POD_SECURITY):
            workflow.upsert_search_attributes([names.ATTENTION_KEY.value_set(True)])
        if not removed.clean:
            await self._leave_to_cleanup()

    async def _removed(self) -> Removed:
        try:
            return await workflow.execute_activity_method(
                Cluster.remove,
                InstanceRef(instance_id=self._order.instance_id),
                task_queue=names.INFRASTRUCTURE,
                **policies.CLUSTER_CLEANUP,
            )
        except ActivityError as error:
            reason, message = trouble_of(error)
            return Removed(clean=False, blocking=(reason or Trouble.UNAVAILABLE, message or ""))

    async def _leave_to_cleanup(self) -> None:
        operation = Operate(
            operation_id=f"{self._order.instance_id}-cleanup",
            instance_id=self._order.instance_id,
            subscription_id=self._order.subscription_id,
            organization_id=self._order.organization_id,
            kind=OperationKind.DELETE,
            actor="platform",
            business_time=self._order.business_time,
        )
        await workflow.start_child_workflow(
            names.INSTANCE_OPERATION,
            operation,
            id=names.operation_workflow(operation.instance_id, operation.operation_id),
            parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            search_attributes=names.attributes(
                operation.organization_id,
                "operation",
                subscription=operation.subscription_id,
                instance=operation.instance_id,
            ),
        )
