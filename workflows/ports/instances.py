"""What provisioning and operations are started with, how they end, and what they ask of the cluster and the database.

Commands carry ids; the activities read the instance's data themselves, so that no history holds a customer's choices.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from temporalio import activity

from workflows.ports.subscription import Resources
from workflows.rules.instance import InstanceStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvisioningInput:
    """Start input of the ``Provisioning`` workflow. The instance's row and host name exist already."""

    instance_id: str
    subscription_id: str
    organization_id: str
    business_time: datetime
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvisioningOutcome:
    """``ready`` false means that it gave up with ``reason`` and that what it made was undone.

    ``rollback_verified`` false means that the undo itself has not been verified: the instance is ``cleanup_pending``.
    """

    ready: bool
    reason: str | None = None
    message: str | None = None
    rollback_verified: bool = True


class OperationKind(StrEnum):
    """``suspend`` and ``resume`` are the platform's stop and start; ``stop`` and ``start`` are the customer's."""

    RESTART = "restart"
    STOP = "stop"
    START = "start"
    SUSPEND = "suspend"
    RESUME = "resume"
    RESIZE = "resize"
    BACKUP = "backup"
    DELETE = "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationInput:
    """Start input of the ``InstanceOperation`` workflow."""

    operation_id: str
    instance_id: str
    subscription_id: str
    organization_id: str
    kind: OperationKind
    actor: str
    business_time: datetime
    resources: Resources | None = None


class OperationStatus(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationOutcome:
    """How an operation ended.

    Attributes:
        has_known_resources: Whether the instance has the resources on record. False after a resize that failed and
            could not be undone.
    """

    operation_id: str
    status: OperationStatus
    reason: str | None = None
    has_known_resources: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceId:
    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyOutcome:
    """``already_provisioned`` means that the instance is provisioned and that nothing was done."""

    already_provisioned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One aspect of an instance, e.g. ``Certificate`` ``False`` ``Pending``."""

    type: str
    status: str
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitReady:
    """``is_starting``: the instance was just started. Otherwise a stopped or suspended one has nothing to await."""

    instance_id: str
    is_starting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadinessOutcome:
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletionOutcome:
    """``is_verified``: the cluster has nothing left. ``blockers`` block the deletion: ``Kind/name`` or a reason."""

    is_verified: bool
    blockers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanUpOrphans:
    """Start input of ``OrphanCleanup``.

    Attributes:
        grace_seconds: Minimum age of a namespace that is judged.
        limit: How many namespaces one sweep deletes at most.
        max_orphans, max_orphan_share: With more orphans than both allow, nothing is deleted and operators are alerted.
            To approve the deletion, start the workflow by hand with a larger ``max_orphans``.
    """

    grace_seconds: float
    limit: int = 20
    max_orphans: int = 3
    max_orphan_share: float = 0.05

    @property
    def minimum_age(self) -> timedelta:
        return timedelta(seconds=self.grace_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphanCleanupOutcome:
    """Namespaces by outcome.

    Attributes:
        removed: Deleted, and verified to be gone.
        pending: Still being deleted.
        unknown: They carry this installation's label, but the database has no such instance. Left alone.
        paused: The orphans of a sweep that deleted nothing because there were too many.
    """

    removed: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    paused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordReady:
    instance_id: str
    conditions: tuple[Condition, ...]
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordProvisioningRollback:
    """A provisioning gave up, or was cancelled (``cancelled``), and was undone as far as ``rollback_verified`` says."""

    instance_id: str
    rollback_verified: bool
    cancelled: bool
    reason: str | None
    message: str | None
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordDeletionBlocked:
    """A deletion does not get on; it goes on trying."""

    operation: OperationInput
    reason: str
    message: str
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishOperation:
    """``instance_status`` is what the instance is from now on; None leaves it as it is."""

    operation: OperationInput
    status: OperationStatus
    now: datetime
    instance_status: InstanceStatus | None = None
    reason: str | None = None
    message: str | None = None


class InstanceActivities(Protocol):
    """Writes instances and operations to the database. Implemented in ``activities/instances.py``."""

    @activity.defn(name="instances.create_operation")
    async def create_operation(self, command: OperationInput) -> None:
        """Write the operation as ``pending``; one that exists is left alone."""
        ...

    @activity.defn(name="instances.record_ready")
    async def record_ready(self, command: RecordReady) -> None:
        """The instance is ``ready`` under its URL.

        Refuses: ``ILLEGAL_MOVE`` when it is being deleted, or gone, by now.
        """
        ...

    @activity.defn(name="instances.record_provisioning_rollback")
    async def record_provisioning_rollback(self, command: RecordProvisioningRollback) -> None:
        """The instance is ``failed`` (or ``deleted`` when cancelled), or ``cleanup_pending`` if objects remain."""
        ...

    @activity.defn(name="instances.start_deletion")
    async def start_deletion(self, command: OperationInput) -> None:
        """Mark the operation ``running`` and the instance ``deleting``: no operation starts it from here on."""
        ...

    @activity.defn(name="instances.record_deletion_blocked")
    async def record_deletion_blocked(self, command: RecordDeletionBlocked) -> None:
        """The instance is ``cleanup_pending``, with what is in the way."""
        ...

    @activity.defn(name="instances.finish_operation")
    async def finish_operation(self, command: FinishOperation) -> None:
        """End the operation and say what the instance is now. A finished operation is left alone."""
        ...


class ClusterActivities(Protocol):
    """Commands to the cluster. Implemented in ``activities/cluster.py``.

    A refusal is an ``ApplicationError`` whose type is a ``FailureReason``; it is non-retryable where no retry can help.
    """

    @activity.defn(name="cluster.apply")
    async def apply(self, command: InstanceId) -> ApplyOutcome:
        """Mark the instance ``provisioning`` and apply its objects. Applying twice is applying once.

        Refuses: ``ILLEGAL_MOVE`` when the instance is being deleted or is gone; ``NameConflict``, ``Invalid``,
        ``QuotaExceeded``, ``PodSecurity``.
        """
        ...

    @activity.defn(name="cluster.await_ready")
    async def await_ready(self, command: AwaitReady) -> ReadinessOutcome:
        """Wait until every workload runs and the application answers through its Service.

        Refuses with the failure reason that persisted for longer than the limit, or with ``DeadlineExceeded``.
        """
        ...

    @activity.defn(name="cluster.delete_namespace")
    async def delete_namespace(self, command: InstanceId) -> DeletionOutcome:
        """Delete the instance's namespace and verify that nothing of it is left. What is not ours is not touched."""
        ...

    @activity.defn(name="cluster.restart")
    async def restart(self, command: OperationInput) -> None:
        """Apply the current revision of the template, and restart every pod once, also if the operation is repeated."""
        ...

    @activity.defn(name="cluster.scale_down")
    async def scale_down(self, command: OperationInput) -> None:
        """Save the replicas, scale every existing workload to zero, suspend the backups, and wait until no pod is left.

        It depends on no template. Data is kept.
        """
        ...

    @activity.defn(name="cluster.scale_up")
    async def scale_up(self, command: OperationInput) -> None:
        """Apply the current revision of the template with the saved replicas, and resume the backups."""
        ...

    @activity.defn(name="cluster.resize")
    async def resize(self, command: OperationInput) -> None:
        """Apply the current revision of the template with ``resources`` (None: the recorded ones). Claims only grow.

        A stopped or suspended instance gets quota and claims only; ``scale_up`` applies the rest.
        """
        ...

    @activity.defn(name="cluster.run_backup")
    async def run_backup(self, command: OperationInput) -> None:
        """Make a backup now and wait for it. Refuses: ``JobFailed`` with the last log lines."""
        ...

    @activity.defn(name="cluster.clean_up_orphans")
    async def clean_up_orphans(self, command: CleanUpOrphans) -> OrphanCleanupOutcome:
        """Delete namespaces of instances that the database knows as deleted or failed.

        Namespaces of other installations are not read. Instances that the database does not know are reported.
        """
        ...
