"""Reading and locking instances and their operations."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.instances import Instance, InstanceOperation
from workflows.rules.instance import InstanceStatus


async def instance(session: AsyncSession, instance_id: str, *, lock: bool = False) -> Instance | None:
    """Return an instance; ``lock`` keeps its row until the transaction ends."""
    query = select(Instance).where(Instance.id == instance_id)
    found: Instance | None = await session.scalar(query.with_for_update() if lock else query)
    return found


async def of_subscriptions(session: AsyncSession, subscription_ids: Collection[str]) -> dict[str, Instance]:
    """Return instances by the subscription that owns them."""
    found = await session.scalars(select(Instance).where(Instance.subscription_id.in_(subscription_ids)))
    return {one.subscription_id: one for one in found}


async def statuses(session: AsyncSession, instance_ids: Collection[str]) -> dict[str, InstanceStatus]:
    """Return the status of each known instance; ids that nobody knows are left out."""
    rows = await session.execute(select(Instance.id, Instance.status).where(Instance.id.in_(instance_ids)))
    return {found_id: InstanceStatus(status) for found_id, status in rows}


async def operation(session: AsyncSession, instance_id: str, operation_id: str) -> InstanceOperation | None:
    found: InstanceOperation | None = await session.scalar(
        select(InstanceOperation).where(
            InstanceOperation.instance_id == instance_id, InstanceOperation.id == operation_id
        )
    )
    return found


async def operations(session: AsyncSession, instance_id: str, *, limit: int = 50) -> Sequence[InstanceOperation]:
    """Return the latest operations, newest first."""
    found = await session.scalars(
        select(InstanceOperation)
        .where(InstanceOperation.instance_id == instance_id)
        .order_by(InstanceOperation.created_at.desc(), InstanceOperation.id.desc())
        .limit(limit)
    )
    return found.all()


async def open_operation(session: AsyncSession, **values: Any) -> None:
    """Insert an operation; one with that id stays as it is."""
    await session.execute(insert(InstanceOperation).values(**values).on_conflict_do_nothing(index_elements=["id"]))


def condition(type_: str, status: str, reason: str, message: str, at: datetime) -> dict[str, Any]:
    return {"type": type_, "status": status, "reason": reason, "message": message, "at": at.isoformat()}


def with_condition(conditions: Sequence[dict[str, Any]], made: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the conditions with ``made`` in the place of the one of its type."""
    return [one for one in conditions if one["type"] != made["type"]] + [made]
