"""What provisioning and operations are started with and how they end."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from workflows.ports.subscription import Resources


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
