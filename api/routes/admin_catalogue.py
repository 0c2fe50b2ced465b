"""Administrators write the catalogue. A price is added, never changed; what has subscribers is retired, not removed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Path
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import Response

from api.deps import Address, Administrator, AdminWork, RequestId, administrator
from api.envelope import Envelope, Page, listed, now, ok
from api.errors import SIGNED_IN, conflict, invalid, not_found
from api.families import family
from api.listing import LongPageOf
from api.schemas.admin import CouponIn, PlanIn, PriceIn, PriceOut, ServiceIn
from api.schemas.catalogue import CouponOut, ServiceOut, ServicePlanOut, coupon_out, plan_out, service_out
from db.queries import catalogue, identity
from db.queries.catalogue import CouponFacts, PlanFacts, ServiceFacts
from workflows.rules.money import Money

router = family("admin", prefix="/admin", dependencies=[Depends(administrator)], responses=SIGNED_IN)

Name = Annotated[str, Path(max_length=100)]


class Audit:
    """Records what an administrator did, in the transaction that does it."""

    def __init__(self, session: AdminWork, caller: Administrator, request_id: RequestId, address: Address) -> None:
        self._session: AsyncSession = session
        self._actor = caller.user_id
        self._request_id = request_id
        self._address = address

    async def record(self, action: str, what: str, after: Mapping[str, Any]) -> None:
        await identity.record(
            self._session,
            organization_id=None,
            actor=self._actor,
            action=action,
            at=now(),
            object=what,
            after=after,
            ip=self._address,
            request_id=self._request_id,
        )


Audited = Annotated[Audit, Depends(Audit, scope="function")]


@router.get("/services", response_model=Page[ServiceOut])
async def services(session: AdminWork, page: LongPageOf) -> Response:
    """Also those that are not published."""
    place = page.place(str)
    rows = await catalogue.services(session, limit=page.limit + 1, after=place[0] if place else None, every=True)
    shown, meta = page.cut(rows, "slug")
    at = now()
    return listed([service_out(service, at) for service in shown], meta, page.fields)


@router.get("/plans", response_model=Page[ServicePlanOut])
async def plans(session: AdminWork, page: LongPageOf) -> Response:
    """Also hidden and retired ones."""
    place = page.place(str)
    rows = await catalogue.plans(session, limit=page.limit + 1, after=place[0] if place else None, every=True)
    shown, meta = page.cut(rows, "code")
    at = now()
    return listed([plan_out(plan, at) for plan in shown], meta, page.fields)


@router.post("/services", response_model=Envelope[ServiceOut], status_code=201)
async def put_service(body: ServiceIn, session: AdminWork, audit: Audited) -> Envelope[ServiceOut]:
    """Create a service, or write one anew that has this slug."""
    try:
        Draft202012Validator.check_schema(body.parameters_schema)
    except SchemaError as error:
        raise invalid("parameters_schema", "This is not a JSON Schema (draft 2020-12).") from error
    await catalogue.put_service(session, ServiceFacts(**body.model_dump()))
    await audit.record("catalogue.service_written", body.slug, body.model_dump(mode="json"))
    found = await catalogue.services(session, limit=1, slug=body.slug, every=True)
    return ok(service_out(found[0], now()))


@router.post("/plans", response_model=Envelope[ServicePlanOut], status_code=201)
async def add_plan(body: PlanIn, session: AdminWork, audit: Audited) -> Envelope[ServicePlanOut]:
    """Create a plan with its prices."""
    service = next(iter(await catalogue.services(session, limit=1, slug=body.service, every=True)), None)
    if service is None:
        raise not_found("service")
    if await catalogue.plan(session, body.code) is not None:
        raise conflict("There is a plan of this code.", {"code": body.code})
    values = body.model_dump(exclude={"service", "prices"})
    values["interval"] = body.interval.value
    values["dunning"] = body.dunning.model_dump(exclude_none=True) if body.dunning else None
    plan = await catalogue.put_plan(session, service.id, PlanFacts(**values))
    at = now()
    for price in body.prices:
        amount = Money(amount_minor=price.amount_minor, currency=price.currency)
        await catalogue.put_price(session, plan, amount, price.effective_from or at)
    await audit.record("catalogue.plan_added", plan, body.model_dump(mode="json"))
    found = await catalogue.plan(session, plan)
    if found is None:
        raise not_found("plan")
    return ok(plan_out(found, now()))


@router.post("/plans/{plan_id}/prices", response_model=Envelope[PriceOut], status_code=201)
async def add_price(plan_id: Name, body: PriceIn, session: AdminWork, audit: Audited) -> Envelope[PriceOut]:
    """Declare a price from an instant on, not in the past. Prices that are there never change."""
    plan = await catalogue.plan(session, plan_id)
    if plan is None:
        raise not_found("plan")
    at = now()
    since = body.effective_from or at
    if since < at:
        raise invalid("effective_from", "A price is declared for the future.")
    amount = Money(amount_minor=body.amount_minor, currency=body.currency)
    made = await catalogue.put_price(session, plan.id, amount, since)
    if made is None:
        raise conflict("The plan has another price from that instant on.")
    await audit.record("catalogue.price_added", made, body.model_dump(mode="json"))
    return ok(
        PriceOut(
            id=made,
            plan_id=plan.id,
            amount_minor=amount.amount_minor,
            currency=amount.currency,
            effective_from=since,
        )
    )


@router.post("/coupons", response_model=Envelope[CouponOut], status_code=201)
async def add_coupon(body: CouponIn, session: AdminWork, audit: Audited) -> Envelope[CouponOut]:
    amount = None
    if body.amount_minor is not None and body.currency is not None:
        amount = Money(amount_minor=body.amount_minor, currency=body.currency)
    facts = CouponFacts(
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
        raise conflict("There is a coupon of this code.", {"code": body.code})
    await audit.record("catalogue.coupon_added", body.code, body.model_dump(mode="json"))
    found = await catalogue.coupon(session, body.code)
    if found is None:
        raise not_found("coupon")
    return ok(coupon_out(found, now()))
