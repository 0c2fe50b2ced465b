"""Records of instances and their operations in the database.

Each activity is one transaction; its instants are the business time of the command.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from temporalio import activity

from activities.rule_errors import converts_rule_violations
from db.models.instances import Instance
from db.queries import credentials, locked_instances
from db.queries import instances as queries
from db.queries.outbox import build_operator_alert, enqueue
from db.session import SessionFactory
from workflows.ports.instances import (
    FinishOperation,
    InstanceActivities,
    OperationInput,
    OperationKind,
    OperationStatus,
    RecordDeletionBlocked,
    RecordProvisioningRollback,
    RecordReady,
)
from workflows.ports.subscription import PLATFORM_ACTOR
from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.ids import cleanup_operation_id
from workflows.rules.instance import (
    CAPACITY_REASONS,
    REMOVED_STATUSES,
    FailureReason,
    InstanceStatus,
    require_operation_allowed,
    transition,
    transition_idempotently,
)

CAPACITY_MESSAGE = "Waiting for capacity."
"""Shown to customers instead of the scheduler's message, which names the nodes of the cluster and their sizes."""

INTERRUPTED_MESSAGE = "It was interrupted, and another operation was started."


async def lock_instance(session: AsyncSession, instance_id: str) -> Instance:
    """Lock and return the instance.

    Raises:
        RuleViolation: ``NOT_FOUND``.
    """
    instance = await queries.get_instance(session, instance_id, lock=True)
    if instance is None:
        raise RuleViolation(ErrorCode.NOT_FOUND, f"There is no instance {instance_id}.")
    return instance


async def record_operation_start(session: AsyncSession, operation: OperationInput) -> Instance:
    """Mark the operation as running if the instance's status allows it, and return the locked instance.

    An earlier operation that has not ended is cancelled: the subscription's workflow starts one at a time, so a crash
    or a termination has left it.

    Raises:
        RuleViolation: ``NOT_FOUND``; ``ILLEGAL_MOVE``, also when a later operation has cancelled this one.
    """
    instance = await lock_instance(session, operation.instance_id)
    require_operation_allowed(operation.kind, InstanceStatus(instance.status))
    await queries.insert_operation(session, **_operation_row(operation))
    row = await queries.get_operation(session, operation.instance_id, operation.operation_id)
    if row is not None and row.status == OperationStatus.CANCELLED and operation.kind is not OperationKind.DELETE:
        raise RuleViolation(ErrorCode.ILLEGAL_MOVE, "A later operation has cancelled this one.")
    if row is not None and row.status == OperationStatus.PENDING:
        await queries.cancel_unfinished_operations(
            session,
            instance.id,
            except_id=operation.operation_id,
            message=INTERRUPTED_MESSAGE,
            at=operation.business_time,
        )
        row.status = OperationStatus.RUNNING
        row.started_at = operation.business_time
    return instance


class PostgresInstanceActivities(InstanceActivities):
    def __init__(self, sessions: SessionFactory) -> None:
        self._sessions = sessions

    @activity.defn(name="instances.create_operation")
    @converts_rule_violations
    async def create_operation(self, command: OperationInput) -> None:
        async with self._sessions.begin() as session:
            await queries.insert_operation(session, **_operation_row(command))

    @activity.defn(name="instances.record_ready")
    @converts_rule_violations
    async def record_ready(self, command: RecordReady) -> None:
        async with self._sessions() as session:
            instance = (await locked_instances.begin_with_locked_instance(session, command.instance_id)).instance
            conditions = queries.replace_condition(instance.conditions, _ready_condition(command.now))
            for observed in command.conditions:
                condition = queries.build_condition(
                    observed.type, observed.status, observed.reason, observed.message, command.now
                )
                conditions = queries.replace_condition(conditions, condition)
            await locked_instances.write_and_commit(
                session,
                instance.id,
                status=transition_idempotently(InstanceStatus(instance.status), InstanceStatus.READY),
                ready_at=instance.ready_at or command.now,
                url=f"https://{instance.hostname}",
                failure_reason=None,
                conditions=conditions,
            )

    @activity.defn(name="instances.record_provisioning_rollback")
    @converts_rule_violations
    async def record_provisioning_rollback(self, command: RecordProvisioningRollback) -> None:
        async with self._sessions.begin() as session:
            instance = await queries.get_instance(session, command.instance_id, lock=True)
            if instance is None:
                return
            status = InstanceStatus(instance.status)
            if status is InstanceStatus.DELETING or status in REMOVED_STATUSES:
                # A deletion was started meanwhile: its own operation records the result.
                return
            if command.rollback_verified:
                await credentials.erase(session, instance.id)
            if not command.rollback_verified:
                _set_cleanup_pending(instance, command.reason or "CleanupPending", command.message or "", command.now)
                # Before its workflow starts: the reconciliation finds it if that is lost.
                await queries.insert_operation(session, **_operation_row(_cleanup_operation(instance, command.now)))
            elif command.cancelled or status not in (InstanceStatus.REQUESTED, InstanceStatus.PROVISIONING):
                _set_deleted(instance, command.now)
            else:
                instance.status = transition_idempotently(status, InstanceStatus.FAILED)
                set_failed_condition(instance, command.reason or "Failed", command.message or "", command.now)
                instance.deleted_at = command.now

    @activity.defn(name="instances.start_deletion")
    @converts_rule_violations
    async def start_deletion(self, command: OperationInput) -> None:
        async with self._sessions.begin() as session:
            instance = await record_operation_start(session, command)
            if instance.status not in REMOVED_STATUSES and instance.status != InstanceStatus.CLEANUP_PENDING:
                instance.status = transition_idempotently(InstanceStatus(instance.status), InstanceStatus.DELETING)

    @activity.defn(name="instances.record_deletion_blocked")
    @converts_rule_violations
    async def record_deletion_blocked(self, command: RecordDeletionBlocked) -> None:
        async with self._sessions.begin() as session:
            instance = await lock_instance(session, command.operation.instance_id)
            if instance.status not in REMOVED_STATUSES:
                _set_cleanup_pending(instance, command.reason, command.message, command.now)
            row = await queries.get_operation(session, instance.id, command.operation.operation_id)
            if row is not None and row.status in queries.UNFINISHED_STATUSES:
                row.failure_reason = command.reason

    @activity.defn(name="instances.finish_operation")
    @converts_rule_violations
    async def finish_operation(self, command: FinishOperation) -> None:
        operation = command.operation
        async with self._sessions.begin() as session:
            instance = await lock_instance(session, operation.instance_id)
            await queries.insert_operation(session, **_operation_row(operation))
            row = await queries.get_operation(session, operation.instance_id, operation.operation_id)
            if row is None or row.status not in queries.UNFINISHED_STATUSES:
                return
            row.status = command.status
            row.failure_reason = command.reason
            row.message = CAPACITY_MESSAGE if command.reason in CAPACITY_REASONS else command.message
            row.started_at = row.started_at or operation.business_time
            row.finished_at = command.now
            self._apply_operation_result(instance, command)
            if _is_resized(command):
                instance.entitlements = await queries.get_plan_entitlements(session, instance.subscription_id)
            if command.instance_status is InstanceStatus.DELETED:
                await credentials.erase(session, instance.id)
            if operation.kind is OperationKind.BACKUP:
                await _report_backup(session, instance, command)

    @staticmethod
    def _apply_operation_result(instance: Instance, command: FinishOperation) -> None:
        operation = command.operation
        if command.instance_status is InstanceStatus.DELETED:
            if instance.status not in REMOVED_STATUSES:
                _set_deleted(instance, command.now)
            return
        if instance.status in REMOVED_STATUSES or instance.status == InstanceStatus.DELETING:
            return
        if _is_resized(command) and operation.resources:
            instance.cpu_millicores = operation.resources.cpu_millicores
            instance.memory_mib = operation.resources.memory_mib
            instance.storage_gib = operation.resources.storage_gib
            instance.replicas = operation.resources.replicas
        if command.instance_status is None:
            if _was_awaited(command) and instance.status in (InstanceStatus.READY, InstanceStatus.DEGRADED):
                _set_ready(instance, command.now)
            return
        instance.status = transition_idempotently(InstanceStatus(instance.status), command.instance_status)
        if command.instance_status is InstanceStatus.READY:
            instance.saved_replicas = None
            _set_ready(instance, command.now)
        else:
            set_failed_condition(
                instance, command.reason or command.instance_status.title(), command.message or "", command.now
            )


def _is_resized(command: FinishOperation) -> bool:
    return command.status is OperationStatus.SUCCEEDED and command.operation.kind is OperationKind.RESIZE


def _was_awaited(command: FinishOperation) -> bool:
    """Return whether the instance became ready at the end of a resize, or of its rollback, that set no status.

    Failure reasons that the wait has recorded have passed. A resize that was rejected has awaited nothing.
    """
    if command.operation.kind is not OperationKind.RESIZE:
        return False
    is_rolled_back = command.status is OperationStatus.FAILED and command.reason != ErrorCode.ILLEGAL_MOVE
    return command.status is OperationStatus.SUCCEEDED or is_rolled_back


async def _report_backup(session: AsyncSession, instance: Instance, command: FinishOperation) -> None:
    """Set the instance's ``Backup`` condition, and alert the operators if the backup failed.

    A backup that was rejected (the instance is stopped) or cancelled changes no condition.
    """
    if command.status is OperationStatus.SUCCEEDED:
        condition = queries.build_condition("Backup", "True", "Succeeded", "", command.now)
    elif command.status is OperationStatus.FAILED and command.reason in set(FailureReason):
        reason, message = command.reason or "", command.message or ""
        condition = queries.build_condition("Backup", "False", reason, message, command.now)
        alert = build_operator_alert(
            f"operation/{command.operation.operation_id}/failed",
            command.now,
            f"Backup of instance {instance.id} failed",
            f"{reason}: {message}",
            severity="critical",
            instance_id=instance.id,
            subscription_id=instance.subscription_id,
        )
        await enqueue(session, alert)
    else:
        return
    if instance.status not in REMOVED_STATUSES:
        instance.conditions = queries.replace_condition(instance.conditions, condition)


def _operation_row(operation: OperationInput) -> dict[str, object]:
    return {
        "id": operation.operation_id,
        "organization_id": operation.organization_id,
        "instance_id": operation.instance_id,
        "kind": operation.kind,
        "status": OperationStatus.PENDING,
        "actor": operation.actor,
        "created_at": operation.business_time,
    }


def _cleanup_operation(instance: Instance, now: datetime) -> OperationInput:
    return OperationInput(
        operation_id=cleanup_operation_id(instance.id),
        instance_id=instance.id,
        subscription_id=instance.subscription_id,
        organization_id=instance.organization_id,
        kind=OperationKind.DELETE,
        actor=PLATFORM_ACTOR,
        business_time=now,
    )


def _ready_condition(now: datetime) -> dict[str, Any]:
    return queries.build_condition("Ready", "True", "Ready", "", now)


def _set_ready(instance: Instance, now: datetime) -> None:
    instance.status = transition_idempotently(InstanceStatus(instance.status), InstanceStatus.READY)
    instance.failure_reason = None
    instance.conditions = queries.replace_condition(instance.conditions, _ready_condition(now))


def set_failed_condition(instance: Instance, reason: str, message: str, now: datetime) -> None:
    """Set the failure reason and the ``Ready`` condition of an instance that is not ready."""
    instance.failure_reason = reason
    condition = queries.build_condition("Ready", "False", reason, message, now)
    instance.conditions = queries.replace_condition(instance.conditions, condition)


def _set_cleanup_pending(instance: Instance, reason: str, message: str, now: datetime) -> None:
    status = InstanceStatus(instance.status)
    if status is not InstanceStatus.CLEANUP_PENDING:
        intermediate_status = (
            status if status in (InstanceStatus.REQUESTED, InstanceStatus.PROVISIONING) else InstanceStatus.DELETING
        )
        instance.status = transition(
            transition_idempotently(status, intermediate_status), InstanceStatus.CLEANUP_PENDING
        )
    instance.failure_reason = reason
    condition = queries.build_condition("Removed", "False", reason, message, now)
    instance.conditions = queries.replace_condition(instance.conditions, condition)


def _set_deleted(instance: Instance, now: datetime) -> None:
    status = transition_idempotently(InstanceStatus(instance.status), InstanceStatus.DELETING)
    instance.status = transition(status, InstanceStatus.DELETED)
    instance.deleted_at = now
    instance.url = None
    instance.failure_reason = None
    instance.conditions = [queries.build_condition("Removed", "True", "Removed", "", now)]
