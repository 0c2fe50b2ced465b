"""The public catalogue."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Depends, Query
from starlette.responses import Response

from api.dependencies.rate_limits import rate_limit_by_address
from api.dependencies.transactions import AnonymousSession
from api.errors import PUBLIC_RESPONSES, not_found_error, validation_error
from api.pagination import FullPage
from api.response_envelope import Envelope, JsonResponse, Page, list_response, now, success
from api.router_factory import PathId, api_router
from api.schemas.catalogue import (
    CouponOut,
    PlanComparisonOut,
    PlanWithServiceOut,
    ServiceOut,
    comparison,
    coupon_out,
    plan_out,
    service_out,
)
from db.queries import catalogue

router = api_router("catalogue", dependencies=[Depends(rate_limit_by_address)], responses=PUBLIC_RESPONSES)

MAX_COMPARED_PLANS = 6


@router.get("/services", response_model=Page[ServiceOut])
async def services(
    session: AnonymousSession, page: FullPage, category: Annotated[str | None, Query(max_length=100)] = None
) -> Response:
    place = page.cursor_as(str)
    rows = await catalogue.list_services(
        session, limit=page.limit + 1, after=place[0] if place else None, category=category
    )
    items, meta = page.split_page(rows, "slug")
    at = now()
    return list_response([service_out(service, at) for service in items], meta, page.fields)


@router.get("/services/{slug}", response_model=Envelope[ServiceOut])
async def service(session: AnonymousSession, slug: PathId) -> JsonResponse:
    row = await catalogue.get_published_service(session, slug)
    if row is None:
        raise not_found_error("service")
    return success(service_out(row, now()))


@router.get("/plans", response_model=Page[PlanWithServiceOut])
async def plans(
    session: AnonymousSession,
    page: FullPage,
    service: Annotated[str | None, Query(max_length=100, examples=["an-application"])] = None,
    interval: Literal["month", "year"] | None = None,
) -> Response:
    place = page.cursor_as(str)
    rows = await catalogue.list_plans(
        session,
        limit=page.limit + 1,
        after=place[0] if place else None,
        service_slug=service,
        interval=interval,
    )
    items, meta = page.split_page(rows, "code")
    at = now()
    return list_response([plan_out(plan, at) for plan in items], meta, page.fields)


@router.get("/plans/compare", response_model=Envelope[PlanComparisonOut])
async def compare(
    session: AnonymousSession,
    plans: Annotated[
        str,
        Query(
            max_length=600, description="Comma-separated plan ids or codes", examples=["small-monthly,large-monthly"]
        ),
    ],
) -> JsonResponse:
    """Resources, entitlements and prices of two to six plans, each against the first."""
    names = list(dict.fromkeys(name.strip() for name in plans.split(",") if name.strip()))
    if not 2 <= len(names) <= MAX_COMPARED_PLANS:
        raise validation_error("plans", f"`plans` must list 2 to {MAX_COMPARED_PLANS} different plans.")
    rows = await catalogue.list_plans(session, limit=MAX_COMPARED_PLANS, ids=names)
    at = now()
    by_name = {name: plan_out(plan, at) for plan in rows for name in (plan.id, plan.code)}
    if any(name not in by_name for name in names):
        raise not_found_error("plan")
    return success(comparison([by_name[name] for name in names]))


@router.get("/plans/{plan_id}", response_model=Envelope[PlanWithServiceOut])
async def plan(session: AnonymousSession, plan_id: PathId) -> JsonResponse:
    row = await catalogue.get_plan(session, plan_id)
    if row is None or not catalogue.is_orderable(row):
        raise not_found_error("plan")
    return success(plan_out(row, now()))


@router.get("/coupons/{code}", response_model=Envelope[CouponOut])
async def coupon(session: AnonymousSession, code: PathId) -> JsonResponse:
    row = await catalogue.get_coupon(session, code)
    if row is None or not row.is_active:
        raise not_found_error("coupon")
    return success(coupon_out(row, now()))
