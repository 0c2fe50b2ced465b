"""What the database is told about instances and operations: one transaction each, by business time of the command."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession
from temporalio import activity
from temporalio.exceptions import ApplicationError

from db.models.instances import Instance
from db.queries import instances as queries
from db.session import Sessions
from workflows.ports.instances import (
    FinishOperation,
    Instances,
    Operate,
    OperationKind,
    OperationStatus,
    RecordBlocked,
    RecordReady,
    RecordUndone,
)
from workflows.rules.errors import Refusal, RuleBroken
from workflows.rules.instance import GONE, InstanceStatus, move, require_operable, settle

UNFINISHED = (OperationStatus.PENDING, OperationStatus.RUNNING)


def refused(broken: RuleBroken) -> ApplicationError:
    """A rule's refusal, as workflows tell it from a failure."""
    return ApplicationError(broken.message, dict(broken.details), type=broken.code, non_retryable=True)


async def locked(session: AsyncSession, instance_id: str) -> Instance:
    """Raises: ``RuleBroken`` ``NOT_FOUND``."""
    found = await queries.instance(session, instance_id, lock=True)
    if found is None:
        raise RuleBroken(Refusal.NOT_FOUND, f"There is no instance {instance_id}.")
    return found


async def begin(session: AsyncSession, order: Operate) -> Instance:
    """Mark the operation as running, if the instance takes it now; return the locked instance.

    Raises:
        RuleBroken: ``ILLEGAL_MOVE``, ``NOT_FOUND``.
    """
    found = await locked(session, order.instance_id)
    require_operable(order.kind, InstanceStatus(found.status))
    await queries.open_operation(session, **_opened(order))
    row = await queries.operation(session, order.instance_id, order.operation_id)
    if row is not None and row.status == OperationStatus.PENDING:
        row.status = OperationStatus.RUNNING
        row.started_at = order.business_time
    return found


class InstanceActivities(Instances):
    """Implements ``Instances``."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    @activity.defn(name="instances.open_operation")
    async def open_operation(self, command: Operate) -> None:
        async with self._sessions.begin() as session:
            await queries.open_operation(session, **_opened(command))

    @activity.defn(name="instances.record_ready")
    async def record_ready(self, command: RecordReady) -> None:
        try:
            async with self._sessions.begin() as session:
                found = await locked(session, command.instance_id)
                found.status = settle(InstanceStatus(found.status), InstanceStatus.READY)
                found.ready_at = found.ready_at or command.now
                found.url = f"https://{found.hostname}"
                _is_well(found, command.now)
                for told in command.conditions:
                    made = queries.condition(told.type, told.status, told.reason, told.message, command.now)
                    found.conditions = queries.with_condition(found.conditions, made)
        except RuleBroken as broken:
            raise refused(broken) from broken

    @activity.defn(name="instances.record_undone")
    async def record_undone(self, command: RecordUndone) -> None:
        async with self._sessions.begin() as session:
            found = await queries.instance(session, command.instance_id, lock=True)
            if found is None:
                return
            status = InstanceStatus(found.status)
            if status is InstanceStatus.DELETING or status in GONE:
                # A deletion came in between: it wins, and it has its own way of telling how it ended.
                return
            if not command.clean:
                _blocked(found, command.reason or "CleanupPending", command.message or "", command.now)
            elif command.cancelled or status not in (InstanceStatus.REQUESTED, InstanceStatus.PROVISIONING):
                _deleted(found, command.now)
            else:
                found.status = settle(status, InstanceStatus.FAILED)
                _is_ill(found, command.reason or "Failed", command.message or "", command.now)
                found.deleted_at = command.now

    @activity.defn(name="instances.begin_removal")
    async def begin_removal(self, command: Operate) -> None:
        async with self._sessions.begin() as session:
            found = await begin(session, command)
            if found.status not in GONE and found.status != InstanceStatus.CLEANUP_PENDING:
                found.status = settle(InstanceStatus(found.status), InstanceStatus.DELETING)

    @activity.defn(name="instances.record_blocked")
    async def record_blocked(self, command: RecordBlocked) -> None:
        async with self._sessions.begin() as session:
            found = await locked(session, command.operation.instance_id)
            if found.status not in GONE:
                _blocked(found, command.reason, command.message, command.now)
            row = await queries.operation(session, found.id, command.operation.operation_id)
            if row is not None and row.status in UNFINISHED:
                row.reason = command.reason

    @activity.defn(name="instances.finish_operation")
    async def finish_operation(self, command: FinishOperation) -> None:
        order = command.operation
        async with self._sessions.begin() as session:
            found = await locked(session, order.instance_id)
            await queries.open_operation(session, **_opened(order))
            row = await queries.operation(session, order.instance_id, order.operation_id)
            if row is None or row.status not in UNFINISHED:
                return
            row.status = command.status
            row.reason = command.reason
            row.started_at = row.started_at or order.business_time
            row.finished_at = command.now
            self._settle(found, command)

    @staticmethod
    def _settle(found: Instance, command: FinishOperation) -> None:
        order = command.operation
        if command.instance is InstanceStatus.DELETED:
            if found.status not in GONE:
                _deleted(found, command.now)
            return
        if found.status in GONE or found.status == InstanceStatus.DELETING:
            return
        if command.status is OperationStatus.SUCCEEDED and order.kind is OperationKind.RESIZE and order.resources:
            found.cpu_millicores = order.resources.cpu_millicores
            found.memory_mib = order.resources.memory_mib
            found.storage_gib = order.resources.storage_gib
            found.replicas = order.resources.replicas
        if command.instance is None:
            return
        found.status = settle(InstanceStatus(found.status), command.instance)
        if command.instance is InstanceStatus.READY:
            found.restore_replicas = None
            _is_well(found, command.now)
        else:
            _is_ill(found, command.reason or command.instance.title(), command.message or "", command.now)


def _opened(order: Operate) -> dict[str, object]:
    return {
        "id": order.operation_id,
        "organization_id": order.organization_id,
        "instance_id": order.instance_id,
        "kind": order.kind,
        "status": OperationStatus.PENDING,
        "actor": order.actor,
        "created_at": order.business_time,
    }


def _is_well(found: Instance, now: datetime) -> None:
    found.reason = None
    found.conditions = queries.with_condition(found.conditions, queries.condition("Ready", "True", "Ready", "", now))


def _is_ill(found: Instance, reason: str, message: str, now: datetime) -> None:
    found.reason = reason
    made = queries.condition("Ready", "False", reason, message, now)
    found.conditions = queries.with_condition(found.conditions, made)


def _blocked(found: Instance, reason: str, message: str, now: datetime) -> None:
    status = InstanceStatus(found.status)
    if status is not InstanceStatus.CLEANUP_PENDING:
        through = (
            status if status in (InstanceStatus.REQUESTED, InstanceStatus.PROVISIONING) else InstanceStatus.DELETING
        )
        found.status = move(settle(status, through), InstanceStatus.CLEANUP_PENDING)
    found.reason = reason
    made = queries.condition("Removed", "False", reason, message, now)
    found.conditions = queries.with_condition(found.conditions, made)


def _deleted(found: Instance, now: datetime) -> None:
    status = settle(InstanceStatus(found.status), InstanceStatus.DELETING)
    found.status = move(status, InstanceStatus.DELETED)
    found.deleted_at = now
    found.url = None
    found.reason = None
    found.conditions = [queries.condition("Removed", "True", "Removed", "", now)]
