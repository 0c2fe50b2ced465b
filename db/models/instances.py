"""Instances and what was done to them."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, Index, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base, same_organization


class Installation(Base):
    """This installation of Berth: one row, created with the database.

    Attributes:
        id: On every object in the cluster as the label ``berth/installation``. A copy of a database that is to work
            beside the original needs a different id; the roles of the API and the worker cannot change it.
        singleton: Always true: the primary key that allows one row.
    """

    __tablename__ = "installation"
    __table_args__ = (CheckConstraint("singleton", name="singleton"),)

    singleton: Mapped[bool] = mapped_column(primary_key=True, default=True, server_default=text("true"))
    id: Mapped[UUID] = mapped_column(server_default=text("gen_random_uuid()"))
    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))


class Instance(Base):
    """One isolated application of one subscription. Written by its workflows alone.

    Attributes:
        hostname: Unique from the order until all objects of the instance are deleted.
        parameters: What the customer chose, validated against the service's schema; never a secret.
        entitlements: Those of the plan that was last applied to the cluster; a resize that failed leaves them.
        failure_reason: Why it is not ready: a stable code (``IMAGE_PULL``), its sentence is in ``conditions``.
        conditions: ``[{"type", "status", "reason", "message", "at"}]``, one per type.
        saved_replicas: Replicas by workload (``Deployment/app``) to go back to after a stop.
    """

    __tablename__ = "instances"
    __table_args__ = (
        CheckConstraint(
            "status IN ('requested', 'provisioning', 'ready', 'stopped', 'suspended', 'degraded', 'failed', 'deleting',"
            " 'deleted', 'cleanup_pending')",
            name="status",
        ),
        CheckConstraint(
            "cpu_millicores > 0 AND memory_mib > 0 AND storage_gib > 0 AND replicas > 0", name="positive_resources"
        ),
        Index("ix_instances_organization_id_created_at_id", "organization_id", "created_at", "id"),
        Index("uq_instances_hostname", "hostname", unique=True, postgresql_where=text("deleted_at IS NULL")),
        UniqueConstraint("organization_id", "id"),
        same_organization("instances", "subscription_id", "subscriptions"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str]
    subscription_id: Mapped[str] = mapped_column(unique=True)
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
    entitlements: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict, server_default=text("'{}'::jsonb"))
    failure_reason: Mapped[str | None]
    conditions: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, default=list, server_default=text("'[]'::jsonb"))
    url: Mapped[str | None]
    saved_replicas: Mapped[dict[str, int] | None] = mapped_column(JSONB(none_as_null=True))
    created_at: Mapped[datetime]
    ready_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]


class InstanceOperation(Base):
    """One order on an instance: restart, stop, start, backup … ``id`` is the caller's, so that a retry finds it.

    ``failure_reason`` is a stable code; ``message`` is its sentence (the last log lines of a failed Job). Per instance
    at most one operation is running.
    """

    __tablename__ = "instance_operations"
    __table_args__ = (
        CheckConstraint("status IN ('pending', 'running', 'succeeded', 'failed', 'cancelled')", name="status"),
        Index("ix_instance_operations_instance_id_created_at_id", "instance_id", "created_at", "id"),
        Index(
            "uq_instance_operations_one_running_per_instance",
            "instance_id",
            unique=True,
            postgresql_where=text("status = 'running'"),
        ),
        same_organization("instance_operations", "instance_id", "instances"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str]
    instance_id: Mapped[str]
    kind: Mapped[str]
    status: Mapped[str]
    failure_reason: Mapped[str | None]
    message: Mapped[str | None]
    actor: Mapped[str]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class InstanceCredentials(Base):
    """Credentials of an instance's first administrator. The worker writes them, the API hands them over once.

    Attributes:
        sealed: URL, user name and password (``db/encryption.py``); null once they were handed over.
        handed_over_at, handed_over_to: When, and to which user.
    """

    __tablename__ = "instance_credentials"
    __table_args__ = (
        CheckConstraint("(sealed IS NULL) = (handed_over_at IS NOT NULL)", name="once"),
        same_organization("instance_credentials", "instance_id", "instances", ondelete="CASCADE"),
    )

    instance_id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str]
    sealed: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    handed_over_at: Mapped[datetime | None]
    handed_over_to: Mapped[str | None]
