"""The catalogue. Public: whoever looks for something may look."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Depends, Path, Query
from starlette.responses import Response

from api.deps import PublicWork, limit_by_address
from api.envelope import Envelope, Page, listed, now, ok
from api.errors import COMMON, invalid, not_found
from api.families import family
from api.listing import LongPageOf
from api.schemas.catalogue import (
    ComparisonOut,
    CouponOut,
    ServiceOut,
    ServicePlanOut,
    comparison,
    coupon_out,
    plan_out,
    service_out,
)
from db.queries import catalogue

router = family("catalogue", dependencies=[Depends(limit_by_address)], responses=COMMON)

Name = Annotated[str, Path(max_length=100)]
MOST_COMPARED = 6


@router.get("/services", response_model=Page[ServiceOut])
async def services(
    session: PublicWork, page: LongPageOf, category: Annotated[str | None, Query(max_length=100)] = None
) -> Response:
    place = page.place(str)
    rows = await catalogue.services(session, limit=page.limit + 1, after=place[0] if place else None, category=category)
    shown, meta = page.cut(rows, "slug")
    at = now()
    return listed([service_out(service, at) for service in shown], meta, page.fields)


@router.get("/services/{slug}", response_model=Envelope[ServiceOut])
async def service(session: PublicWork, slug: Name) -> Envelope[ServiceOut]:
    found = await catalogue.service(session, slug)
    if found is None:
        raise not_found("service")
    return ok(service_out(found, now()))


@router.get("/plans", response_model=Page[ServicePlanOut])
async def plans(
    session: PublicWork,
    page: LongPageOf,
    service: Annotated[str | None, Query(max_length=100, examples=["an-application"])] = None,
    interval: Literal["month", "year"] | None = None,
) -> Response:
    place = page.place(str)
    rows = await catalogue.plans(
        session,
        limit=page.limit + 1,
        after=place[0] if place else None,
        service_slug=service,
        interval=interval,
    )
    shown, meta = page.cut(rows, "code")
    at = now()
    return listed([plan_out(plan, at) for plan in shown], meta, page.fields)


@router.get("/plans/compare", response_model=Envelope[ComparisonOut])
async def compare(
    session: PublicWork,
    plans: Annotated[
        str, Query(max_length=600, description="Ids or codes, by comma", examples=["small-monthly,large-monthly"])
    ],
) -> Envelope[ComparisonOut]:
    """Resources, entitlements and prices of two to six plans, each against the first."""
    wanted = list(dict.fromkeys(name.strip() for name in plans.split(",") if name.strip()))
    if not 2 <= len(wanted) <= MOST_COMPARED:
        raise invalid("plans", f"Name two to {MOST_COMPARED} different plans.")
    found = await catalogue.plans(session, limit=MOST_COMPARED, ids=wanted)
    at = now()
    by_name = {name: plan_out(plan, at) for plan in found for name in (plan.id, plan.code)}
    if any(name not in by_name for name in wanted):
        raise not_found("plan")
    return ok(comparison([by_name[name] for name in wanted]))


@router.get("/plans/{plan_id}", response_model=Envelope[ServicePlanOut])
async def plan(session: PublicWork, plan_id: Name) -> Envelope[ServicePlanOut]:
    found = await catalogue.plan(session, plan_id)
    if found is None or not catalogue.on_sale(found):
        raise not_found("plan")
    return ok(plan_out(found, now()))


@router.get("/coupons/{code}", response_model=Envelope[CouponOut])
async def coupon(session: PublicWork, code: Name) -> Envelope[CouponOut]:
    found = await catalogue.coupon(session, code)
    if found is None or not found.active:
        raise not_found("coupon")
    return ok(coupon_out(found, now()))
