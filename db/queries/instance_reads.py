"""Instances and their operations as their owners see them. Read only: the rows belong to their workflows.

Statements are built once per set of conditions: to build one takes longer than to execute it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache

from sqlalchemy import Integer, Select, and_, bindparam, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.instances import Instance, InstanceOperation
from db.queries.pages import bind_place, follows_bound_place


@cache
def _instance_by_id() -> Select[Instance]:
    return select(Instance).where(
        Instance.id == bindparam("id"), Instance.organization_id == bindparam("organization_id")
    )


@cache
def _instances_page(*, is_after: bool, has_status: bool) -> Select[Instance]:
    query = (
        select(Instance)
        .where(Instance.organization_id == bindparam("organization_id"))
        .order_by(Instance.created_at.desc(), Instance.id.desc())
        .limit(bindparam("limit", type_=Integer))
    )
    if is_after:
        query = query.where(follows_bound_place(Instance.created_at, Instance.id))
    if has_status:
        query = query.where(Instance.status == bindparam("status"))
    return query


async def get_instance(session: AsyncSession, identifier: str, organization_id: str) -> Instance | None:
    """Return the organization's instance with this id."""
    return await session.scalar(_instance_by_id(), {"id": identifier, "organization_id": organization_id})


async def list_instances(
    session: AsyncSession,
    organization_id: str,
    *,
    limit: int,
    after: tuple[datetime, str] | None = None,
    status: str | None = None,
) -> Sequence[Instance]:
    """Newest first; ``after`` is the ``(created_at, id)`` of the last one seen."""
    query = _instances_page(is_after=after is not None, has_status=status is not None)
    values = {
        "organization_id": organization_id,
        "limit": limit,
        **bind_place(after),
        "status": status,
    }
    return (await session.scalars(query, values)).all()


async def get_operation(
    session: AsyncSession, instance_id: str, identifier: str, organization_id: str
) -> InstanceOperation | None:
    """Return an operation of one of the organization's instances."""
    return await session.scalar(
        select(InstanceOperation)
        .where(
            InstanceOperation.id == identifier,
            InstanceOperation.instance_id == instance_id,
            InstanceOperation.organization_id == organization_id,
        )
        .execution_options(populate_existing=True)
    )


async def list_operations(
    session: AsyncSession,
    instance_id: str,
    organization_id: str,
    *,
    limit: int,
    after: tuple[datetime, str] | None = None,
) -> Sequence[InstanceOperation] | None:
    """Return the operations of an instance, newest first, or None if the organization has no such instance.

    Args:
        limit: The most operations to return.
        after: ``(created_at, id)`` of the last operation of the previous page.
    """
    is_operation = InstanceOperation.instance_id == Instance.id
    if after is not None:
        is_operation = and_(is_operation, tuple_(InstanceOperation.created_at, InstanceOperation.id) < after)
    query = (
        select(Instance.id, InstanceOperation)
        .outerjoin(InstanceOperation, is_operation)
        .where(Instance.id == instance_id, Instance.organization_id == organization_id)
        .order_by(InstanceOperation.created_at.desc(), InstanceOperation.id.desc())
        .limit(limit)
    )
    # The outer join answers one row without an operation for an instance that has none.
    operations: list[InstanceOperation | None] = [operation for _, operation in await session.execute(query)]
    return [operation for operation in operations if operation is not None] if operations else None
