"""Subscriptions as their owners see them. Read only: the rows belong to their workflows.

``organization_id`` None means every account's (administrators); row-level security stands below either way.
Statements are built once per set of conditions: to build one takes longer than to execute it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Integer, Select, bindparam, literal, select
from sqlalchemy.ext.asyncio import AsyncSession

from db.models.catalogue import Plan, Service
from db.models.instances import Instance
from db.models.subscriptions import Subscription
from db.queries.pages import bind_place, follows_bound_place
from db.reads import PreparedQuery, RowReader, prepare


class SubscriptionDetails(NamedTuple):
    """A subscription with its plan, service and instance, as far as the API returns them.

    Attributes:
        service: The service's slug.
    """

    id: str
    organization_id: str
    status: str
    name: str | None
    service: str
    plan_id: str
    plan_code: str
    pending_plan_id: str | None
    price_minor: int
    currency: str
    instance_id: str
    instance_status: str
    instance_url: str | None
    instance_hostname: str
    current_period_start: datetime | None
    current_period_end: datetime | None
    trial_end: datetime | None
    cancel_at_period_end: bool
    cancelled_at: datetime | None
    data_deletion_at: datetime | None
    coupon_code: str | None
    created_at: datetime
    workflow_id: str


_COLUMNS = (
    Subscription.id,
    Subscription.organization_id,
    Subscription.status,
    Subscription.name,
    Service.slug.label("service"),
    Plan.id.label("plan_id"),
    Plan.code.label("plan_code"),
    Subscription.pending_plan_id,
    Subscription.price_minor,
    Subscription.currency,
    Instance.id.label("instance_id"),
    Instance.status.label("instance_status"),
    Instance.url.label("instance_url"),
    Instance.hostname.label("instance_hostname"),
    Subscription.current_period_start,
    Subscription.current_period_end,
    Subscription.trial_end,
    Subscription.cancel_at_period_end,
    Subscription.cancelled_at,
    Subscription.data_deletion_at,
    Subscription.coupon_code,
    Subscription.created_at,
    Subscription.workflow_id,
)


def _select_details(*, is_own: bool) -> Select[*tuple[Any, ...]]:
    query = (
        select(*_COLUMNS)
        .join(Plan, Plan.id == Subscription.plan_id)
        .join(Service, Service.id == Plan.service_id)
        .join(Instance, Instance.subscription_id == Subscription.id)
    )
    return query.where(Subscription.organization_id == bindparam("organization_id")) if is_own else query


@cache
def _details_by_id(*, is_own: bool) -> PreparedQuery[SubscriptionDetails]:
    return prepare(_select_details(is_own=is_own).where(Subscription.id == bindparam("id")), SubscriptionDetails)


@cache
def _details_page(*, is_own: bool, is_after: bool, has_status: bool) -> PreparedQuery[SubscriptionDetails]:
    query = _select_details(is_own=is_own) if is_own else select(Subscription.id)
    newest_first = (Subscription.created_at.desc(), Subscription.id.desc())
    query = query.order_by(*newest_first).limit(bindparam("limit", type_=Integer))
    if is_after:
        query = query.where(follows_bound_place(Subscription.created_at, Subscription.id))
    if has_status:
        query = query.where(Subscription.status == bindparam("status"))
    if not is_own:
        # PostgreSQL expects the policies of the joined tables to admit one row of 200: it would expect fewer rows than
        # a page has, and sort all subscriptions. A page that is read first makes it walk the index.
        page = query.cte("page").prefix_with("MATERIALIZED")
        query = _select_details(is_own=False).join(page, page.c.id == Subscription.id).order_by(*newest_first)
    return prepare(query, SubscriptionDetails)


async def get_subscription(
    reader: RowReader, identifier: str, organization_id: str | None
) -> SubscriptionDetails | None:
    """Return the subscription with this id as it is stored now."""
    query = _details_by_id(is_own=organization_id is not None)
    rows = await reader.fetch(query, {"id": identifier, "organization_id": organization_id})
    return rows[0] if rows else None


async def get_subscription_row(session: AsyncSession, identifier: str, organization_id: str) -> Subscription | None:
    """Return the row of the organization's subscription with this id."""
    return await session.scalar(
        select(Subscription).where(Subscription.id == identifier, Subscription.organization_id == organization_id)
    )


async def subscription_exists(session: AsyncSession, identifier: str, organization_id: str) -> bool:
    """Return whether the organization has a subscription with this id."""
    query = select(literal(1)).where(Subscription.id == identifier, Subscription.organization_id == organization_id)
    return await session.scalar(query) is not None


async def list_subscriptions(
    reader: RowReader,
    organization_id: str | None,
    *,
    limit: int,
    after: tuple[datetime, str] | None = None,
    status: str | None = None,
) -> Sequence[SubscriptionDetails]:
    """Newest first; ``after`` is the ``(created_at, id)`` of the last one seen."""
    query = _details_page(is_own=organization_id is not None, is_after=after is not None, has_status=status is not None)
    values = {
        "organization_id": organization_id,
        "limit": limit,
        **bind_place(after),
        "status": status,
    }
    return await reader.fetch(query, values)
