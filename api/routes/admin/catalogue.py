"""Administrators write the catalogue. A price is added, never changed; what has subscribers is retired, not removed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from fastapi import Depends
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import Response

from api.dependencies.authentication import Administrator, get_administrator
from api.dependencies.context import Address, RequestId
from api.dependencies.transactions import AdminSession
from api.errors import AUTHENTICATED_RESPONSES, conflict_error, not_found_error, validation_error
from api.pagination import FullPage
from api.response_envelope import Envelope, JsonResponse, Page, list_response, now, success
from api.router_factory import PathId, api_router
from api.schemas.admin import CouponIn, PlanIn, PriceIn, PriceOut, ServiceIn
from api.schemas.catalogue import CouponOut, PlanWithServiceOut, ServiceOut, coupon_out, plan_out, service_out
from api.tokens import Caller
from db.models.catalogue import Service
from db.queries import audit, catalogue
from db.queries.catalogue import CouponDefinition, PlanDefinition, ServiceDefinition
from workflows.json_schema import find_schema_fault
from workflows.rules.money import Money

router = api_router(
    "admin", prefix="/admin", dependencies=[Depends(get_administrator)], responses=AUTHENTICATED_RESPONSES
)


class Audit:
    """Records what an administrator did, in the transaction that does it."""

    def __init__(self, session: AsyncSession, caller: Caller, request_id: str, address: str) -> None:
        self._session = session
        self._actor = caller.user_id
        self._request_id = request_id
        self._address = address

    async def append(
        self, action: str, object_id: str, after: Mapping[str, Any], *, before: Mapping[str, Any] | None = None
    ) -> None:
        """``before`` is None for what did not exist."""
        await audit.append_audit_entry(
            self._session,
            organization_id=None,
            actor=self._actor,
            action=action,
            at=now(),
            object=object_id,
            before=before,
            after=after,
            ip=self._address,
            request_id=self._request_id,
        )


async def get_audit(session: AdminSession, caller: Administrator, request_id: RequestId, address: Address) -> Audit:
    return Audit(session, caller, request_id, address)


AuditDep = Annotated[Audit, Depends(get_audit, scope="function")]


@router.get("/services", response_model=Page[ServiceOut])
async def services(session: AdminSession, page: FullPage) -> Response:
    """Also those that are not published."""
    place = page.cursor_as(str)
    rows = await catalogue.list_services(
        session, limit=page.limit + 1, after=place[0] if place else None, include_unpublished=True
    )
    items, meta = page.split_page(rows, "slug")
    at = now()
    return list_response([service_out(service, at) for service in items], meta, page.fields)


@router.get("/plans", response_model=Page[PlanWithServiceOut])
async def plans(session: AdminSession, page: FullPage) -> Response:
    """Also hidden and retired ones."""
    place = page.cursor_as(str)
    rows = await catalogue.list_plans(
        session, limit=page.limit + 1, after=place[0] if place else None, include_hidden=True
    )
    items, meta = page.split_page(rows, "code")
    at = now()
    return list_response([plan_out(plan, at) for plan in items], meta, page.fields)


@router.post("/services", response_model=Envelope[ServiceOut], status_code=201)
async def upsert_service(body: ServiceIn, session: AdminSession, audit: AuditDep) -> JsonResponse:
    """Create the service, or replace the one with this slug."""
    try:
        Draft202012Validator.check_schema(body.parameters_schema)
    except SchemaError as error:
        raise validation_error("parameters_schema", "Not a valid JSON Schema (draft 2020-12).") from error
    if (fault := find_schema_fault(body.parameters_schema)) is not None:
        raise validation_error("parameters_schema", fault)
    existing = next(
        iter(await catalogue.list_services(session, limit=1, slug=body.slug, include_unpublished=True)), None
    )
    before = _to_audited_service(existing) if existing is not None else None
    values = body.model_dump(exclude={"template", "published"})
    definition = ServiceDefinition(template_directory=body.template, is_published=body.published, **values)
    await catalogue.upsert_service(session, definition)
    await audit.append("catalogue.service_written", body.slug, body.model_dump(mode="json"), before=before)
    services = await catalogue.list_services(session, limit=1, slug=body.slug, include_unpublished=True)
    return success(service_out(services[0], now()), status=201)


@router.post("/plans", response_model=Envelope[PlanWithServiceOut], status_code=201)
async def add_plan(body: PlanIn, session: AdminSession, audit: AuditDep) -> JsonResponse:
    """Create a plan with its prices."""
    service = next(
        iter(await catalogue.list_services(session, limit=1, slug=body.service, include_unpublished=True)), None
    )
    if service is None:
        raise not_found_error("service")
    if await catalogue.get_plan(session, body.code) is not None:
        raise conflict_error("A plan with this code already exists.", {"code": body.code})
    values = body.model_dump(exclude={"service", "prices", "interval", "dunning", "public", "retired"})
    definition = PlanDefinition(
        interval=body.interval.value,
        dunning_policy=body.dunning.model_dump(exclude_none=True) if body.dunning else None,
        is_public=body.public,
        is_retired=body.retired,
        **values,
    )
    plan = await catalogue.upsert_plan(session, service.id, definition)
    at = now()
    for price in body.prices:
        amount = Money(amount_minor=price.amount_minor, currency=price.currency)
        await catalogue.insert_price(session, plan, amount, price.effective_from or at)
    await audit.append("catalogue.plan_added", plan, body.model_dump(mode="json"))
    created = await catalogue.get_plan(session, plan)
    if created is None:
        raise not_found_error("plan")
    return success(plan_out(created, now()), status=201)


@router.post("/plans/{plan_id}/prices", response_model=Envelope[PriceOut], status_code=201)
async def add_price(plan_id: PathId, body: PriceIn, session: AdminSession, audit: AuditDep) -> JsonResponse:
    """Declare a price from an instant on, not in the past. Prices that are there never change."""
    plan = await catalogue.get_plan(session, plan_id)
    if plan is None:
        raise not_found_error("plan")
    at = now()
    effective_from = body.effective_from or at
    if effective_from < at:
        raise validation_error("effective_from", "`effective_from` must be in the future.")
    amount = Money(amount_minor=body.amount_minor, currency=body.currency)
    last = (await catalogue.latest_declared_prices(session, plan.id)).get(body.currency)
    price_id = await catalogue.insert_price(session, plan.id, amount, effective_from)
    if price_id is None:
        raise conflict_error("The plan already has a price with this `effective_from`.")
    before = _price_facts(plan.code, last.amount_minor, last.currency, last.effective_from) if last else None
    after = _price_facts(plan.code, amount.amount_minor, amount.currency, effective_from)
    await audit.append("catalogue.price_added", price_id, after, before=before)
    return success(
        PriceOut(
            id=price_id,
            plan_id=plan.id,
            amount_minor=amount.amount_minor,
            currency=amount.currency,
            effective_from=effective_from,
        ),
        status=201,
    )


@router.post("/coupons", response_model=Envelope[CouponOut], status_code=201)
async def add_coupon(body: CouponIn, session: AdminSession, audit: AuditDep) -> JsonResponse:
    amount = None
    if body.amount_minor is not None and body.currency is not None:
        amount = Money(amount_minor=body.amount_minor, currency=body.currency)
    facts = CouponDefinition(
        code=body.code,
        kind=body.kind,
        percent=body.percent,
        amount=amount,
        duration=body.duration,
        periods=body.periods,
        max_redemptions=body.max_redemptions,
        expires_at=body.expires_at,
    )
    if not await catalogue.add_coupon(session, facts):
        raise conflict_error("A coupon with this code already exists.", {"code": body.code})
    await audit.append("catalogue.coupon_added", body.code, body.model_dump(mode="json"))
    created = await catalogue.get_coupon(session, body.code)
    if created is None:
        raise not_found_error("coupon")
    return success(coupon_out(created, now()), status=201)


def _to_audited_service(service: Service) -> dict[str, Any]:
    """Return a service under the names of the request that writes it."""
    return {
        "slug": service.slug,
        "name": service.name,
        "description": service.description,
        "category": service.category,
        "template": service.template_directory,
        "version": service.version,
        "icon": service.icon,
        "published": service.is_published,
        "parameters_schema": service.parameters_schema,
    }


def _price_facts(plan_code: str, amount_minor: int, currency: str, effective_from: datetime) -> dict[str, Any]:
    return {
        "plan": plan_code,
        "amount_minor": amount_minor,
        "currency": currency,
        "effective_from": effective_from.isoformat(),
    }
