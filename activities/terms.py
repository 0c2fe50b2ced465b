"""From the catalogue's rows to what was agreed with a customer."""

from __future__ import annotations

from db.queries.records import PlanRecord
from workflows.ports.subscription import Resources, Terms
from workflows.rules.dunning import Calendar
from workflows.rules.periods import Interval


def terms_of(plan: PlanRecord, timezone: str) -> Terms:
    """Return the terms of ``plan`` for an account in ``timezone``."""
    override = plan.dunning or {}
    default = Calendar()
    return Terms(
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
        calendar=Calendar(
            retry_days=tuple(override.get("retry_days", default.retry_days)),
            cancel_day=override.get("cancel_day", default.cancel_day),
            retention_days=override.get("retention_days", default.retention_days),
        ),
    )
