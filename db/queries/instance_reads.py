"""Instances and their operations as their owners see them. Read only: the rows belong to their workflows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Integer, Select, and_, bindparam, select

from db.models.instances import Instance, InstanceOperation
from db.queries.pages import bind_place, follows_bound_place
from db.reads import PreparedQuery, RowReader, prepare


class InstanceDetails(NamedTuple):
    """An instance as far as the API returns it. Attributes: those of `Instance`."""

    id: str
    subscription_id: str
    status: str
    failure_reason: str | None
    url: str | None
    hostname: str
    namespace: str
    service_slug: str
    version: str
    cpu_millicores: int
    memory_mib: int
    storage_gib: int
    replicas: int
    parameters: dict[str, Any]
    conditions: list[dict[str, Any]]
    created_at: datetime
    ready_at: datetime | None
    deleted_at: datetime | None


class OperationDetails(NamedTuple):
    """An operation as far as the API returns it. Attributes: those of `InstanceOperation`."""

    id: str
    instance_id: str
    kind: str
    status: str
    failure_reason: str | None
    message: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


def _select_instance() -> Select[*tuple[Any, ...]]:
    return select(*(getattr(Instance, name) for name in InstanceDetails._fields)).where(
        Instance.organization_id == bindparam("organization_id")
    )


def _operation_columns() -> tuple[Any, ...]:
    return tuple(getattr(InstanceOperation, name) for name in OperationDetails._fields)


@cache
def _instance_by_id() -> PreparedQuery[InstanceDetails]:
    return prepare(_select_instance().where(Instance.id == bindparam("id")), InstanceDetails)


@cache
def _instances_page(*, is_after: bool, has_status: bool) -> PreparedQuery[InstanceDetails]:
    query = (
        _select_instance()
        .order_by(Instance.created_at.desc(), Instance.id.desc())
        .limit(bindparam("limit", type_=Integer))
    )
    if is_after:
        query = query.where(follows_bound_place(Instance.created_at, Instance.id))
    if has_status:
        query = query.where(Instance.status == bindparam("status"))
    return prepare(query, InstanceDetails)


@cache
def _operation_by_id() -> PreparedQuery[OperationDetails]:
    query = select(*_operation_columns()).where(
        InstanceOperation.id == bindparam("id"),
        InstanceOperation.instance_id == bindparam("instance_id"),
        InstanceOperation.organization_id == bindparam("organization_id"),
    )
    return prepare(query, OperationDetails)


@cache
def _operations_page(*, is_after: bool) -> PreparedQuery[OperationDetails]:
    """The outer join answers one row of nulls for an instance that has no operation."""
    is_operation = InstanceOperation.instance_id == Instance.id
    if is_after:
        is_operation = and_(is_operation, follows_bound_place(InstanceOperation.created_at, InstanceOperation.id))
    query = (
        select(*_operation_columns())
        .select_from(Instance)
        .outerjoin(InstanceOperation, is_operation)
        .where(Instance.id == bindparam("instance_id"), Instance.organization_id == bindparam("organization_id"))
        .order_by(InstanceOperation.created_at.desc(), InstanceOperation.id.desc())
        .limit(bindparam("limit", type_=Integer))
    )
    return prepare(query, OperationDetails)


async def get_instance(reader: RowReader, identifier: str, organization_id: str) -> InstanceDetails | None:
    """Return the organization's instance with this id."""
    rows = await reader.fetch(_instance_by_id(), {"id": identifier, "organization_id": organization_id})
    return rows[0] if rows else None


async def list_instances(
    reader: RowReader,
    organization_id: str,
    *,
    limit: int,
    after: tuple[datetime, str] | None = None,
    status: str | None = None,
) -> Sequence[InstanceDetails]:
    """Newest first; ``after`` is the ``(created_at, id)`` of the last one seen."""
    query = _instances_page(is_after=after is not None, has_status=status is not None)
    values = {"organization_id": organization_id, "limit": limit, **bind_place(after), "status": status}
    return await reader.fetch(query, values)


async def get_operation(
    reader: RowReader, instance_id: str, identifier: str, organization_id: str
) -> OperationDetails | None:
    """Return an operation of one of the organization's instances."""
    values = {"id": identifier, "instance_id": instance_id, "organization_id": organization_id}
    rows = await reader.fetch(_operation_by_id(), values)
    return rows[0] if rows else None


async def list_operations(
    reader: RowReader,
    instance_id: str,
    organization_id: str,
    *,
    limit: int,
    after: tuple[datetime, str] | None = None,
) -> Sequence[OperationDetails] | None:
    """Return the operations of an instance, newest first, or None if the organization has no such instance.

    Args:
        limit: The most operations to return.
        after: ``(created_at, id)`` of the last operation of the previous page.
    """
    query = _operations_page(is_after=after is not None)
    values = {"instance_id": instance_id, "organization_id": organization_id, "limit": limit, **bind_place(after)}
    rows = await reader.fetch(query, values)
    return [row for row in rows if row.id] if rows else None
