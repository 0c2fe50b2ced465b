"""Builds the terms that a customer agrees to from the rows of the catalogue."""

from __future__ import annotations

from db.queries.locked_subscriptions import PlanWithPrice
from workflows.ports.subscription import PlanTerms, Resources
from workflows.rules.dunning import DunningPolicy
from workflows.rules.periods import Interval


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
