"""What is sold: reads for the API and for the activities, and the writes that administrators and the seed make.

Functions take a session and never commit. ``at`` decides which price of a plan is in force.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Text, and_, bindparam, cast, or_, select
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased, joinedload

from db.models.catalogue import Coupon, Plan, Price, Service
from db.reads import PreparedQuery, PreparedRead, prepare
from workflows.rules.ids import derive_id
from workflows.rules.money import Money
from workflows.rules.pricing import CouponDuration, CouponKind, Discount, is_effective


def service_id(slug: str) -> str:
    return derive_id("svc", slug)


def plan_id(code: str) -> str:
    return derive_id("pln", code)


def price_id(plan: str, currency: str, effective_from: datetime) -> str:
    return derive_id("prc", plan, currency, effective_from.isoformat())


def current_prices(plan: Plan, at: datetime) -> list[Price]:
    """Return the price in force at ``at`` of each currency, by currency. ``plan.prices`` is loaded."""
    current: dict[str, Price] = {}
    for price in plan.prices:
        latest = current.get(price.currency)
        if is_effective(price.effective_from, at) and (latest is None or latest.effective_from < price.effective_from):
            current[price.currency] = price
    return [current[currency] for currency in sorted(current)]


def current_price(plan: Plan, currency: str, at: datetime) -> Price | None:
    """Return what one interval of ``plan`` costs in ``currency`` at ``at``; None when it is not sold in it."""
    return next((price for price in current_prices(plan, at) if price.currency == currency), None)


def is_orderable(plan: Plan) -> bool:
    """Return whether new subscribers may order the plan. ``plan.service`` is loaded."""
    return bool(_is_orderable(plan, plan.service))


def _is_orderable(plan: Any, service: Any) -> Any:
    """Return the condition on a plan and its service: on two rows as a boolean, on two tables as an SQL expression."""
    return plan.is_public & (plan.is_retired == False) & service.is_published  # noqa: E712 - ``not`` has no SQL form


IS_ORDERABLE = str(_is_orderable(aliased(Plan, name="p"), aliased(Service, name="v")))
"""The condition of ``is_orderable`` as SQL text, for statements that name the plan ``p`` and its service ``v``."""


async def list_services(
    session: AsyncSession,
    *,
    limit: int,
    after: str | None = None,
    category: str | None = None,
    slug: str | None = None,
    include_unpublished: bool = False,
) -> Sequence[Service]:
    """Return published services by slug, with plans and prices. ``include_unpublished`` adds all others."""
    query = (
        select(Service)
        .options(joinedload(Service.plans).joinedload(Plan.prices))
        .order_by(Service.slug)
        .limit(limit)
        .execution_options(populate_existing=True)
    )
    if not include_unpublished:
        query = query.where(Service.is_published)
    if category is not None:
        query = query.where(Service.category == category)
    if slug is not None:
        query = query.where(Service.slug == slug)
    if after is not None:
        query = query.where(Service.slug > after)
    return (await session.scalars(query)).unique().all()


async def get_published_service(session: AsyncSession, slug: str) -> Service | None:
    """The published service called ``slug``, with plans and prices."""
    query = (
        select(Service)
        .options(joinedload(Service.plans).joinedload(Plan.prices))
        .where(Service.slug == slug, Service.is_published)
    )
    return (await session.scalars(query)).unique().one_or_none()


async def list_plans(
    session: AsyncSession,
    *,
    limit: int,
    after: str | None = None,
    service_slug: str | None = None,
    interval: str | None = None,
    ids: Sequence[str] | None = None,
    include_hidden: bool = False,
) -> Sequence[Plan]:
    """Return orderable plans by code, with service and prices. ``include_hidden`` adds all others."""
    query = (
        select(Plan)
        .join(Plan.service)
        .options(joinedload(Plan.service), joinedload(Plan.prices))
        .order_by(Plan.code)
        .limit(limit)
    )
    if not include_hidden:
        query = query.where(_is_orderable(Plan, Service))
    if after is not None:
        query = query.where(Plan.code > after)
    if service_slug is not None:
        query = query.where(Service.slug == service_slug)
    if interval is not None:
        query = query.where(Plan.interval == interval)
    if ids is not None:
        query = query.where(Plan.id.in_(ids) | Plan.code.in_(ids))
    return (await session.scalars(query)).unique().all()


async def get_plan(session: AsyncSession, identifier: str) -> Plan | None:
    """Return the plan with this id or code, published or not, with its service and prices."""
    query = (
        select(Plan)
        .options(joinedload(Plan.service), joinedload(Plan.prices))
        .where((Plan.id == identifier) | (Plan.code == identifier))
        .limit(1)
    )
    return (await session.scalars(query)).unique().first()


class PlanToOrder(NamedTuple):
    """A plan as far as the request of an order needs it.

    Attributes:
        service: The service's slug.
        is_published: The plan is public and its service is published.
        parameters_schema: JSON Schema as text of what the order may say about its instance.
    """

    id: str
    code: str
    service: str
    is_published: bool
    parameters_schema: str
    trial_days: int


@cache
def _plan_to_order() -> PreparedQuery[PlanToOrder]:
    query = (
        select(
            Plan.id,
            Plan.code,
            Service.slug.label("service"),
            and_(Plan.is_public, Service.is_published).label("is_published"),
            cast(Service.parameters_schema, Text).label("parameters_schema"),
            Plan.trial_days,
        )
        .join(Service, Service.id == Plan.service_id)
        .where(or_(Plan.id == bindparam("plan"), Plan.code == bindparam("plan")))
        .limit(1)
    )
    return prepare(query, PlanToOrder)


def read_plan_to_order(identifier: str) -> PreparedRead[PlanToOrder]:
    """Return the read of the plan with this id or code, whether or not it is for sale."""
    return PreparedRead(_plan_to_order(), {"plan": identifier})


async def find_plan_id(session: AsyncSession, identifier: str) -> str | None:
    """Return the id of the plan with this id or code, published or not."""
    plan: str | None = await session.scalar(
        select(Plan.id).where((Plan.id == identifier) | (Plan.code == identifier)).limit(1)
    )
    return plan


async def get_coupon(session: AsyncSession, code: str) -> Coupon | None:
    return await session.get(Coupon, code.upper())


def is_redeemable(coupon: Coupon, at: datetime) -> bool:
    """Whether another subscription may use it at ``at``."""
    return (
        coupon.is_active
        and (coupon.expires_at is None or at < coupon.expires_at)
        and (coupon.max_redemptions is None or coupon.redemption_count < coupon.max_redemptions)
    )


def build_discount(row: Mapping[str, Any] | RowMapping, *, code: str, periods_left: int | None) -> Discount:
    """Build a discount from the columns ``coupon_kind``, ``coupon_percent``, ``coupon_amount_minor`` …"""
    fixed = row["coupon_amount_minor"] is not None
    return Discount(
        code=code,
        kind=CouponKind(row["coupon_kind"]),
        percent=row["coupon_percent"] or 0,
        amount=Money(amount_minor=row["coupon_amount_minor"], currency=row["coupon_currency"]) if fixed else None,
        remaining_periods=periods_left,
    )


def coupon_discount(coupon: Coupon, periods_left: int | None) -> Discount:
    """Return the coupon as one subscription has it; ``periods_left`` None is for ever."""
    row = {
        "coupon_kind": coupon.discount_type,
        "coupon_percent": coupon.percent,
        "coupon_amount_minor": coupon.amount_minor,
        "coupon_currency": coupon.currency,
    }
    return build_discount(row, code=coupon.code, periods_left=periods_left)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceDefinition:
    """A service as its template or an administrator describes it."""

    slug: str
    name: str
    description: str
    category: str
    template_directory: str
    version: str
    icon: str
    is_published: bool
    parameters_schema: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanDefinition:
    """A plan without its prices. CPU in millicores, memory in MiB, storage in GiB."""

    code: str
    name: str
    interval: str
    trial_days: int
    cpu_millicores: int
    memory_mib: int
    storage_gib: int
    replicas: int
    entitlements: dict[str, Any]
    dunning_policy: dict[str, Any] | None
    is_public: bool
    is_retired: bool


def _values(facts: ServiceDefinition | PlanDefinition) -> dict[str, Any]:
    return {name: getattr(facts, name) for name in facts.__slots__}


async def upsert_service(session: AsyncSession, facts: ServiceDefinition, *, preserve: Collection[str] = ()) -> str:
    """Insert or update a service and return its id. An update leaves the columns in ``preserve`` unchanged."""
    values = _values(facts)
    row = insert(Service).values(id=service_id(facts.slug), **values)
    await session.execute(row.on_conflict_do_update(index_elements=[Service.slug], set_=_without(values, preserve)))
    return service_id(facts.slug)


async def upsert_plan(
    session: AsyncSession, service: str, facts: PlanDefinition, *, preserve: Collection[str] = ()
) -> str:
    """Insert or update a plan of the service with the id ``service`` and return its id; ``preserve`` as above."""
    values = _values(facts) | {"service_id": service}
    row = insert(Plan).values(id=plan_id(facts.code), **values)
    await session.execute(row.on_conflict_do_update(index_elements=[Plan.code], set_=_without(values, preserve)))
    return plan_id(facts.code)


def _without(values: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


async def insert_price(session: AsyncSession, plan: str, amount: Money, effective_from: datetime) -> str | None:
    """Insert a price of the plan of id ``plan``; None when that plan has one in force from that instant already."""
    identifier = price_id(plan, amount.currency, effective_from)
    row = insert(Price).values(
        id=identifier,
        plan_id=plan,
        currency=amount.currency,
        amount_minor=amount.amount_minor,
        effective_from=effective_from,
    )
    return await session.scalar(row.on_conflict_do_nothing().returning(Price.id))


async def latest_declared_prices(session: AsyncSession, plan: str) -> dict[str, Price]:
    """The last declared price of each currency, also one that is not in force yet."""
    rows = await session.scalars(
        select(Price)
        .where(Price.plan_id == plan)
        .ext(distinct_on(Price.currency))
        .order_by(Price.currency, Price.effective_from.desc())
    )
    return {price.currency: price for price in rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class CouponDefinition:
    """A coupon as an administrator describes it; ``code`` is upper-case."""

    code: str
    kind: CouponKind
    percent: int | None = None
    amount: Money | None = None
    duration: CouponDuration
    periods: int | None = None
    max_redemptions: int | None = None
    expires_at: datetime | None = None


async def add_coupon(session: AsyncSession, facts: CouponDefinition) -> bool:
    """Insert a coupon; return False when the code is taken, because a redeemed coupon must not change."""
    row = insert(Coupon).values(
        code=facts.code,
        discount_type=facts.kind.value,
        percent=facts.percent,
        amount_minor=facts.amount.amount_minor if facts.amount else None,
        currency=facts.amount.currency if facts.amount else None,
        duration=facts.duration.value,
        duration_periods=facts.periods,
        max_redemptions=facts.max_redemptions,
        expires_at=facts.expires_at,
    )
    return await session.scalar(row.on_conflict_do_nothing().returning(Coupon.code)) is not None
