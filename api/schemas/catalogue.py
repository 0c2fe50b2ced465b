"""What is sold, as the API shows it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from typing_extensions import TypedDict

from api.response_envelope import Amount, Instant, ResponseModel
from db.models.catalogue import Coupon, Plan, Service
from db.queries import catalogue


class ResourcesOut(TypedDict):
    """The envelope of an instance."""

    cpu_millicores: int
    memory_mib: int
    storage_gib: int
    replicas: int


class PlanOut(ResponseModel):
    """``prices`` are those in force now, one per currency."""

    id: str
    code: str
    name: str
    interval: Literal["month", "year"]
    trial_days: int
    resources: ResourcesOut
    entitlements: dict[str, Any]
    prices: list[Amount]


class PlanWithServiceOut(PlanOut):
    service: str


class ServiceOut(ResponseModel):
    id: str
    slug: str
    name: str
    description: str
    category: str
    version: str
    icon: str
    parameters: dict[str, Any]
    """JSON Schema of what an order may say about its instance."""
    plans: list[PlanOut]


class PlanDifferenceOut(ResponseModel):
    """What ``plan_id`` has more (or, negative, less) than the first plan of the comparison."""

    plan_id: str
    resources: dict[str, int]
    entitlements: dict[str, dict[str, Any]]
    prices: list[Amount]


class PlanComparisonOut(ResponseModel):
    plans: list[PlanWithServiceOut]
    differences: list[PlanDifferenceOut]


class CouponOut(ResponseModel):
    """``valid`` says whether an order may use it now."""

    code: str
    kind: Literal["percent", "fixed"]
    percent: int | None
    amount: Amount | None
    duration: Literal["once", "periods", "forever"]
    periods: int | None
    expires_at: Instant | None
    valid: bool


def _plan(plan: Plan, at: datetime) -> dict[str, Any]:
    return {
        "id": plan.id,
        "code": plan.code,
        "name": plan.name,
        "interval": plan.interval,
        "trial_days": plan.trial_days,
        "resources": resources_of(plan),
        "entitlements": plan.entitlements,
        "prices": [
            Amount(amount_minor=price.amount_minor, currency=price.currency)
            for price in catalogue.current_prices(plan, at)
        ],
    }


def resources_of(row: Any) -> ResourcesOut:
    """From a plan or an instance."""
    return ResourcesOut(
        cpu_millicores=row.cpu_millicores,
        memory_mib=row.memory_mib,
        storage_gib=row.storage_gib,
        replicas=row.replicas,
    )


def plan_out(plan: Plan, at: datetime) -> PlanWithServiceOut:
    """``plan.service`` and ``plan.prices`` are loaded."""
    return PlanWithServiceOut(service=plan.service.slug, **_plan(plan, at))


def service_out(service: Service, at: datetime) -> ServiceOut:
    """With the plans on sale, the cheapest first; plans and prices are loaded."""
    plans = [PlanOut(**_plan(plan, at)) for plan in service.plans if plan.is_public and not plan.is_retired]
    return ServiceOut(
        id=service.id,
        slug=service.slug,
        name=service.name,
        description=service.description,
        category=service.category,
        version=service.version,
        icon=service.icon,
        parameters=service.parameters_schema,
        plans=sorted(plans, key=_cheapest_first),
    )


def _cheapest_first(plan: PlanOut) -> tuple[str, int, str]:
    prices = {price["currency"]: price["amount_minor"] for price in plan.prices}
    return plan.interval, prices.get("USD", min(prices.values(), default=0)), plan.code


def coupon_out(coupon: Coupon, at: datetime) -> CouponOut:
    amount = None
    if coupon.amount_minor is not None and coupon.currency is not None:
        amount = Amount(amount_minor=coupon.amount_minor, currency=coupon.currency)
    return CouponOut(
        code=coupon.code,
        kind=coupon.discount_type,  # type: ignore[arg-type] # the table's check admits only these
        percent=coupon.percent,
        amount=amount,
        duration=coupon.duration,  # type: ignore[arg-type] # the table's check admits only these
        periods=coupon.duration_periods,
        expires_at=coupon.expires_at,
        valid=catalogue.is_redeemable(coupon, at),
    )


def comparison(plans: list[PlanWithServiceOut]) -> PlanComparisonOut:
    """Each plan against the first: resources, entitlements, and prices of the same interval and currency."""
    first, others = plans[0], plans[1:]
    return PlanComparisonOut(plans=plans, differences=[_difference(first, plan) for plan in others])


def _difference(first: PlanWithServiceOut, plan: PlanWithServiceOut) -> PlanDifferenceOut:
    before, after = first.resources, plan.resources
    names = sorted(first.entitlements.keys() | plan.entitlements.keys())
    base = {price["currency"]: price["amount_minor"] for price in first.prices}
    return PlanDifferenceOut(
        plan_id=plan.id,
        resources={
            "cpu_millicores": after["cpu_millicores"] - before["cpu_millicores"],
            "memory_mib": after["memory_mib"] - before["memory_mib"],
            "storage_gib": after["storage_gib"] - before["storage_gib"],
            "replicas": after["replicas"] - before["replicas"],
        },
        entitlements={
            name: {"from": first.entitlements.get(name), "to": plan.entitlements.get(name)}
            for name in names
            if first.entitlements.get(name) != plan.entitlements.get(name)
        },
        prices=[
            Amount(amount_minor=price["amount_minor"] - base[price["currency"]], currency=price["currency"])
            for price in plan.prices
            if price["currency"] in base and plan.interval == first.interval
        ],
    )
