"""Orders that were accepted and that no worker has recorded yet: the workflow exists, its rows do not."""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from api.errors import not_found_error
from db.queries import idempotency
from workflows import names
from workflows.client import WorkflowClient
from workflows.rpc_errors import TemporalUnavailable
from workflows.rules.subscription import SubscriptionStatus

CREATE_ROUTE = "POST /api/v1/subscriptions"


async def get_accepted_order(session: AsyncSession, subscription_id: str, organization_id: str) -> dict[str, Any]:
    """Return the organization's order as its 202 showed it, for a subscription that has no row.

    Raises:
        ApiError: 404: the organization has no such order.
    """
    order = await idempotency.find_accepted_response(session, organization_id, CREATE_ROUTE, subscription_id)
    if order is None:
        raise not_found_error("subscription")
    return order


async def with_present_status(order: dict[str, Any], workflows: WorkflowClient) -> dict[str, Any]:
    """Return an accepted order that has no row: expired once its workflow has ended without one.

    Its reason is the response to a repetition under its key.
    """
    try:
        is_running = await workflows.is_running(names.subscription_workflow_id(order["id"]))
    except TemporalUnavailable:
        is_running = True
    return order if is_running else order | {"status": SubscriptionStatus.EXPIRED}
