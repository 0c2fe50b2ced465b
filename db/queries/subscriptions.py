"""Subscriptions as their owners see them. Read only: the rows belong to their workflows.

``organization_id`` None means every account's (administrators); row-level security stands below either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Select, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.billing import Subscription
from db.models.catalogue import Plan, Service
from db.models.instances import Instance


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionRow:
    """A subscription with what is shown beside it; its instance's row is written in the same statement."""

    subscription: Subscription
    plan: Plan
    service: Service
    instance: Instance


def _rows(organization_id: str | None) -> Select[Subscription, Plan, Service, Instance]:
    query = (
        select(Subscription, Plan, Service, Instance)
        .join(Plan, Plan.id == Subscription.plan_id)
        .join(Service, Service.id == Plan.service_id)
        .join(Instance, Instance.subscription_id == Subscription.id)
    )
    return query if organization_id is None else query.where(Subscription.organization_id == organization_id)


async def subscription(session: AsyncSession, identifier: str, organization_id: str | None) -> SubscriptionRow | None:
    """One subscription, read anew although the session may know an older state of it."""
    found = (
        await session.execute(
            _rows(organization_id).where(Subscription.id == identifier).execution_options(populate_existing=True)
        )
    ).one_or_none()
    if found is None:
        return None
    row, plan, service, instance = found
    return SubscriptionRow(subscription=row, plan=plan, service=service, instance=instance)


async def subscriptions(
    session: AsyncSession,
    organization_id: str | None,
    *,
    limit: int,
    after: tuple[datetime, str] | None = None,
    status: str | None = None,
) -> Sequence[SubscriptionRow]:
    """Newest first; ``after`` is the ``(created_at, id)`` of the last one seen."""
    query = _rows(organization_id).order_by(Subscription.created_at.desc(), Subscription.id.desc()).limit(limit)
    if after is not None:
        query = query.where(tuple_(Subscription.created_at, Subscription.id) < after)
    if status is not None:
        query = query.where(Subscription.status == status)
    return [
        SubscriptionRow(subscription=row, plan=plan, service=service, instance=instance)
        for row, plan, service, instance in await session.execute(query)
    ]
