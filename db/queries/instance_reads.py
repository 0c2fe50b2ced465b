"""Instances and their operations as their owners see them. Read only: the rows belong to their workflows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.instances import Instance, InstanceOperation


async def instance(session: AsyncSession, identifier: str, organization_id: str | None) -> Instance | None:
    query = select(Instance).where(Instance.id == identifier)
    if organization_id is not None:
        query = query.where(Instance.organization_id == organization_id)
    return await session.scalar(query)


async def instances(
    session: AsyncSession,
    organization_id: str | None,
    *,
    limit: int,
    after: tuple[datetime, str] | None = None,
    status: str | None = None,
) -> Sequence[Instance]:
    """Newest first; ``after`` is the ``(created_at, id)`` of the last one seen."""
    query = select(Instance).order_by(Instance.created_at.desc(), Instance.id.desc()).limit(limit)
    if organization_id is not None:
        query = query.where(Instance.organization_id == organization_id)
    if after is not None:
        query = query.where(tuple_(Instance.created_at, Instance.id) < after)
    if status is not None:
        query = query.where(Instance.status == status)
    return (await session.scalars(query)).all()


async def operation(session: AsyncSession, instance_id: str, identifier: str) -> InstanceOperation | None:
    """An operation of an instance that the caller was already found to own."""
    return await session.scalar(
        select(InstanceOperation)
        .where(InstanceOperation.id == identifier, InstanceOperation.instance_id == instance_id)
        .execution_options(populate_existing=True)
    )


async def operations(
    session: AsyncSession, instance_id: str, *, limit: int, after: tuple[datetime, str] | None = None
) -> Sequence[InstanceOperation]:
    """Newest first; ``after`` is the ``(created_at, id)`` of the last one seen."""
    query = (
        select(InstanceOperation)
        .where(InstanceOperation.instance_id == instance_id)
        .order_by(InstanceOperation.created_at.desc(), InstanceOperation.id.desc())
        .limit(limit)
    )
    if after is not None:
        query = query.where(tuple_(InstanceOperation.created_at, InstanceOperation.id) < after)
    return (await session.scalars(query)).all()
