"""Reading and locking instances and their operations."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.catalogue import Plan
from db.models.identity import User
from db.models.instances import Installation, Instance, InstanceOperation
from db.models.subscriptions import Subscription
from workflows.rules.instance import InstanceStatus

UNFINISHED_STATUSES = ("pending", "running")
"""Of an operation whose workflow runs or was lost."""


async def get_instance(session: AsyncSession, instance_id: str, *, lock: bool = False) -> Instance | None:
    """Return an instance; ``lock`` keeps its row until the transaction ends."""
    query = select(Instance).where(Instance.id == instance_id)
    instance: Instance | None = await session.scalar(query.with_for_update() if lock else query)
    return instance


async def get_plan_entitlements(session: AsyncSession, subscription_id: str) -> dict[str, Any]:
    """Return the entitlements of the subscription's present plan."""
    query = select(Plan.entitlements).join(Subscription, Subscription.plan_id == Plan.id)
    entitlements: dict[str, Any] = (await session.scalars(query.where(Subscription.id == subscription_id))).one()
    return entitlements


async def get_customer_email(session: AsyncSession, subscription_id: str) -> str:
    """Return the address of the user who ordered; empty when the user does not exist."""
    query = select(User.email).join(Subscription, Subscription.user_id == User.id)
    return (await session.scalar(query.where(Subscription.id == subscription_id))) or ""


async def installation_id(session: AsyncSession) -> str:
    """Return the id that was created with this database."""
    identifier: UUID = (await session.scalars(select(Installation.id))).one()
    return str(identifier)


async def get_statuses(session: AsyncSession, instance_ids: Collection[str]) -> dict[tuple[str, str], InstanceStatus]:
    """Return statuses by instance id and namespace; unknown ids are left out."""
    query = select(Instance.id, Instance.namespace, Instance.status).where(Instance.id.in_(instance_ids))
    rows = await session.execute(query)
    return {(instance_id, namespace): InstanceStatus(status) for instance_id, namespace, status in rows}


async def get_operation(session: AsyncSession, instance_id: str, operation_id: str) -> InstanceOperation | None:
    operation: InstanceOperation | None = await session.scalar(
        select(InstanceOperation).where(
            InstanceOperation.instance_id == instance_id, InstanceOperation.id == operation_id
        )
    )
    return operation


async def list_operations(session: AsyncSession, instance_id: str, *, limit: int = 50) -> Sequence[InstanceOperation]:
    """Return the latest operations, newest first."""
    operations = await session.scalars(
        select(InstanceOperation)
        .where(InstanceOperation.instance_id == instance_id)
        .order_by(InstanceOperation.created_at.desc(), InstanceOperation.id.desc())
        .limit(limit)
    )
    return operations.all()


async def insert_operation(session: AsyncSession, **values: Any) -> None:
    """Insert an operation; one with that id stays as it is."""
    await session.execute(insert(InstanceOperation).values(**values).on_conflict_do_nothing(index_elements=["id"]))


async def cancel_unfinished_operations(
    session: AsyncSession, instance_id: str, *, except_id: str, message: str, at: datetime
) -> None:
    """Cancel the operations of an instance that have not ended, except one."""
    await session.execute(
        update(InstanceOperation)
        .where(
            InstanceOperation.instance_id == instance_id,
            InstanceOperation.id != except_id,
            InstanceOperation.status.in_(UNFINISHED_STATUSES),
        )
        .values(status="cancelled", message=message, finished_at=at)
    )


async def list_unfinished_operations(
    session: AsyncSession, *, after: str, limit: int, minimum_age: timedelta
) -> Sequence[InstanceOperation]:
    """Return operations that have not ended, but deletions, by id, from the first id above ``after``.

    Args:
        minimum_age: How long ago, by the database's clock, they were ordered at least.
    """
    operations = await session.scalars(
        select(InstanceOperation)
        .where(
            InstanceOperation.id > after,
            InstanceOperation.status.in_(UNFINISHED_STATUSES),
            InstanceOperation.kind != "delete",
            InstanceOperation.created_at < func.now() - minimum_age,
        )
        .order_by(InstanceOperation.id)
        .limit(limit)
    )
    return operations.all()


async def list_unfinished_deletions(
    session: AsyncSession, *, after: str, limit: int, minimum_age: timedelta
) -> list[tuple[InstanceOperation, str]]:
    """Return deletions that have not ended, each with the id of its subscription; as ``list_unfinished_operations``."""
    rows = await session.execute(
        select(InstanceOperation, Instance.subscription_id)
        .join(Instance, Instance.id == InstanceOperation.instance_id)
        .where(
            InstanceOperation.id > after,
            InstanceOperation.status.in_(UNFINISHED_STATUSES),
            InstanceOperation.kind == "delete",
            InstanceOperation.created_at < func.now() - minimum_age,
        )
        .order_by(InstanceOperation.id)
        .limit(limit)
    )
    return [(operation, subscription_id) for operation, subscription_id in rows]


async def unfinished_operations_among(session: AsyncSession, ids: Collection[str]) -> set[str]:
    """Return those of the operations ``ids`` that have not ended."""
    query = select(InstanceOperation.id).where(
        InstanceOperation.id.in_(ids), InstanceOperation.status.in_(UNFINISHED_STATUSES)
    )
    return set((await session.scalars(query)).all())


async def cancel_operations(session: AsyncSession, ids: Collection[str], *, message: str, at: datetime) -> None:
    """Cancel those of the operations ``ids`` that have not ended."""
    await session.execute(
        update(InstanceOperation)
        .where(InstanceOperation.id.in_(ids), InstanceOperation.status.in_(UNFINISHED_STATUSES))
        .values(status="cancelled", message=message, finished_at=at)
    )


async def mark_requested_deleted(session: AsyncSession, subscription_id: str, at: datetime) -> None:
    """Mark the instance of a subscription as deleted, if its provisioning has not started."""
    await session.execute(
        update(Instance)
        .where(Instance.subscription_id == subscription_id, Instance.status == InstanceStatus.REQUESTED.value)
        .values(status=InstanceStatus.DELETED.value, deleted_at=at)
    )


def build_condition(type_: str, status: str, reason: str, message: str, at: datetime) -> dict[str, Any]:
    return {"type": type_, "status": status, "reason": reason, "message": message, "at": at.isoformat()}


def replace_condition(conditions: Sequence[dict[str, Any]], condition: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the conditions with ``condition`` in place of the one of its type."""
    return [other for other in conditions if other["type"] != condition["type"]] + [condition]
