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
class Provision:
    """Start input of the ``Provisioning`` workflow. The instance's row and host name exist already."""

    instance_id: str
    subscription_id: str
    organization_id: str
    business_time: datetime
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provisioned:
    """``ready`` false means that it gave up with ``reason`` and that what it made was undone.

    ``clean`` false means that the undo itself has not been verified: the instance is ``cleanup_pending``.
    """

    ready: bool
    reason: str | None = None
    message: str | None = None
    clean: bool = True


class OperationKind(StrEnum):
    """``suspend`` and ``resume`` are the platform's stop and start; they do not count as the customer's wish."""

    RESTART = "restart"
    STOP = "stop"
    START = "start"
    SUSPEND = "suspend"
    RESUME = "resume"
    RESIZE = "resize"
    BACKUP = "backup"
    DELETE = "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operate:
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
    operation_id: str
    status: OperationStatus
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRef:
    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """``settled`` means that the instance is there already and that nothing was done."""

    settled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One aspect of an instance, e.g. ``Certificate`` ``False`` ``Pending``."""

    type: str
    status: str
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitReady:
    """``started``: the instance was just started. Otherwise one that is stopped or suspended has nothing to await."""

    instance_id: str
    started: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """``clean`` was verified by asking. ``blocking`` names what holds the removal up, as ``Kind/name`` or a reason."""

    clean: bool
    blocking: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectOrphans:
    """Start input of ``OrphanCollection``. ``grace`` is how long a namespace may exist before anybody judges it."""

    grace_seconds: float
    limit: int = 20

    @property
    def grace(self) -> timedelta:
        return timedelta(seconds=self.grace_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    removed: tuple[str, ...]
    pending: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordReady:
    instance_id: str
    conditions: tuple[Condition, ...]
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordUndone:
    """A provisioning gave up, or was cancelled (``cancelled``), and was undone as far as ``clean`` says."""

    instance_id: str
    clean: bool
    cancelled: bool
    reason: str | None
    message: str | None
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordBlocked:
    """A deletion does not get on; it goes on trying."""

    operation: Operate
    reason: str
    message: str
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishOperation:
    """``instance`` is what the instance is from now on, None leaves it as it is."""

    operation: Operate
    status: OperationStatus
    now: datetime
    instance: InstanceStatus | None = None
    reason: str | None = None
    message: str | None = None


class Instances(Protocol):
    """What the database is told. Implemented in ``activities/instances.py``."""

    @activity.defn(name="instances.open_operation")
    async def open_operation(self, command: Operate) -> None:
        """Write the operation as ``pending``; one that exists is left alone."""
        ...

    @activity.defn(name="instances.record_ready")
    async def record_ready(self, command: RecordReady) -> None:
        """The instance is ``ready`` under its URL.

        Refuses: ``ILLEGAL_MOVE`` when it is being deleted, or gone, by now.
        """
        ...

    @activity.defn(name="instances.record_undone")
    async def record_undone(self, command: RecordUndone) -> None:
        """The instance is ``failed`` (or ``deleted`` when cancelled), or ``cleanup_pending`` while not clean."""
        ...

    @activity.defn(name="instances.begin_removal")
    async def begin_removal(self, command: Operate) -> None:
        """Mark the operation ``running`` and the instance ``deleting``: from here on nobody provisions or starts it."""
        ...

    @activity.defn(name="instances.record_blocked")
    async def record_blocked(self, command: RecordBlocked) -> None:
        """The instance is ``cleanup_pending``, with what is in the way."""
        ...

    @activity.defn(name="instances.finish_operation")
    async def finish_operation(self, command: FinishOperation) -> None:
        """End the operation and say what the instance is now. A finished operation is left alone."""
        ...


class Cluster(Protocol):
    """What the cluster is told. Implemented in ``activities/cluster.py``.

    Every refusal is an ``ApplicationError`` whose type is a ``Trouble``; those that no retry helps are non-retryable.
    """

    @activity.defn(name="cluster.apply")
    async def apply(self, command: InstanceRef) -> Applied:
        """Mark the instance ``provisioning`` and apply its objects. Applying twice is applying once.

        Refuses: ``ILLEGAL_MOVE`` when the instance is being deleted or is gone; ``ForeignOwner``, ``Invalid``,
        ``QuotaExceeded``, ``PodSecurity``.
        """
        ...

    @activity.defn(name="cluster.await_ready")
    async def await_ready(self, command: AwaitReady) -> Ready:
        """Wait until every workload runs and the application answers through its Service.

        Refuses with the reason that stayed the same for longer than the patience, or with ``DeadlineExceeded``.
        """
        ...

    @activity.defn(name="cluster.remove")
    async def remove(self, command: InstanceRef) -> Removed:
        """Delete the instance's namespace and verify that nothing of it is left. What is not ours is not touched."""
        ...

    @activity.defn(name="cluster.restart")
    async def restart(self, command: Operate) -> None:
        """Roll every workload once; repeating the operation does not roll again."""
        ...

    @activity.defn(name="cluster.scale_down")
    async def scale_down(self, command: Operate) -> None:
        """Remember the replicas, scale to zero, suspend backups, and return when no pod is left. Data is kept."""
        ...

    @activity.defn(name="cluster.scale_up")
    async def scale_up(self, command: Operate) -> None:
        """Go back to the remembered replicas."""
        ...

    @activity.defn(name="cluster.resize")
    async def resize(self, command: Operate) -> None:
        """Apply ``resources`` (None: the recorded ones) to quota, claims and containers. Claims only grow."""
        ...

    @activity.defn(name="cluster.backup")
    async def backup(self, command: Operate) -> None:
        """Make a backup now and wait for it. Refuses: ``JobFailed`` with the last log lines."""
        ...

    @activity.defn(name="cluster.collect_orphans")
    async def collect_orphans(self, command: CollectOrphans) -> Collected:
        """Remove namespaces that bear our labels and that no instance in the database owns."""
        ...
