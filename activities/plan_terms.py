"""Builds the terms that a customer agrees to from the rows of the catalogue."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from db.queries.locked_subscriptions import LockedSubscription, PlanWithPrice, get_plan_with_price
from workflows.errors import non_retryable_error
from workflows.ports.subscription import PlanTerms, Resources
from workflows.rules.dunning import DunningPolicy
from workflows.rules.errors import ErrorCode
from workflows.rules.periods import Interval


async def load_plan_terms(
    session: AsyncSession, subscription: LockedSubscription, plan_id: str, at: datetime
) -> PlanTerms:
    """Return the terms of a plan with the price that is in force at ``at``.

    Raises:
        ApplicationError: ``NOT_FOUND``: there is no such plan, or no price in the subscription's currency.
    """
    plan = await get_plan_with_price(session, plan_id, subscription.currency, at)
    if plan is None:
        raise non_retryable_error(
            ErrorCode.NOT_FOUND, "Plan not found, or it has no price in the currency of the organization."
        )
    return build_plan_terms(plan, subscription.timezone)


def build_plan_terms(plan: PlanWithPrice, timezone: str) -> PlanTerms:
    """Return the terms of ``plan`` for an organization in ``timezone``."""
    override = plan.dunning_policy or {}
    default = DunningPolicy()
    return PlanTerms(
        plan_id=plan.plan_id,
        plan_code=plan.code,
        price_id=plan.price_id,
        price=plan.price,
        interval=Interval(plan.interval),
        trial_days=plan.trial_days,
        timezone=timezone,
        resources=Resources(
            cpu_millicores=plan.cpu_millicores,
            memory_mib=plan.memory_mib,
            storage_gib=plan.storage_gib,
            replicas=plan.replicas,
        ),
        dunning_policy=DunningPolicy(
            retry_days=tuple(override.get("retry_days", default.retry_days)),
            cancel_day=override.get("cancel_day", default.cancel_day),
            retention_days=override.get("retention_days", default.retention_days),
        ),
    )
