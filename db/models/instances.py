"""Instances and what was done to them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base


class Instance(Base):
    """One isolated application of one subscription. Written by its workflows alone.

    Attributes:
        hostname: Unique before anything is applied to the cluster, and nobody else's until all of it is deleted.
        parameters: What the customer chose, validated against the service's schema; never a secret.
        reason: Why it is not ready: a stable code (``IMAGE_PULL``), its sentence is in ``conditions``.
        conditions: ``[{"type", "status", "reason", "message", "at"}]``, one per type.
        restore_replicas: Replicas by workload (``Deployment/app``) to go back to after a stop.
    """

    __tablename__ = "instances"
    __table_args__ = (
        CheckConstraint(
            "status IN ('requested', 'provisioning', 'ready', 'stopped', 'suspended', 'degraded', 'failed', 'deleting',"
            " 'deleted', 'cleanup_pending')",
            name="status",
        ),
        CheckConstraint(
            "cpu_millicores > 0 AND memory_mib > 0 AND storage_gib > 0 AND replicas > 0", name="positive_envelope"
        ),
        Index("ix_instances_organization_id_created_at_id", "organization_id", "created_at", "id"),
        Index("uq_instances_hostname", "hostname", unique=True, postgresql_where=text("deleted_at IS NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    subscription_id: Mapped[str] = mapped_column(ForeignKey("subscriptions.id"), unique=True)
    service_slug: Mapped[str]
    version: Mapped[str]
    hostname: Mapped[str]
    namespace: Mapped[str] = mapped_column(unique=True)
    status: Mapped[str] = mapped_column(default="requested", server_default=text("'requested'"), index=True)
    cpu_millicores: Mapped[int]
    memory_mib: Mapped[int]
    storage_gib: Mapped[int]
    replicas: Mapped[int] = mapped_column(default=1, server_default=text("1"))
    parameters: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict, server_default=text("'{}'::jsonb"))
    reason: Mapped[str | None]
    conditions: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, default=list, server_default=text("'[]'::jsonb"))
    url: Mapped[str | None]
    restore_replicas: Mapped[dict[str, int] | None] = mapped_column(JSONB(none_as_null=True))
    created_at: Mapped[datetime]
    ready_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]


class InstanceOperation(Base):
    """One order on an instance: restart, stop, start, backup … ``id`` is the caller's, so that a retry finds it."""

    __tablename__ = "instance_operations"
    __table_args__ = (
        CheckConstraint("status IN ('pending', 'running', 'succeeded', 'failed', 'cancelled')", name="status"),
        Index("ix_instance_operations_instance_id_created_at_id", "instance_id", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    instance_id: Mapped[str] = mapped_column(ForeignKey("instances.id"))
    kind: Mapped[str]
    status: Mapped[str]
    reason: Mapped[str | None]
    actor: Mapped[str]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
