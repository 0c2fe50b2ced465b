"""The catalogue as the service templates describe it, written to the database. Doing it twice changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy.ext.asyncio import AsyncSession

import worker
from api.startup_errors import CannotStart
from db.queries import catalogue
from db.queries.catalogue import CouponDefinition, PlanDefinition, ServiceDefinition
from workflows.rules.money import Money
from workflows.rules.pricing import CouponDuration, CouponKind

SERVICES_DIRECTORY = Path(str(worker.__file__)).resolve().parents[1] / "templates" / "services"

FIRST_PRICE_EFFECTIVE_FROM = datetime(2000, 1, 1, tzinfo=UTC)
"""First prices hold at every business time, also for a life that is simulated in the past."""

WELCOME_COUPON = CouponDefinition(code="WELCOME10", kind=CouponKind.PERCENT, percent=10, duration=CouponDuration.ONCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class CataloguePlan:
    """``is_example``: the plan that the first order of a stack uses when no plan is named."""

    definition: PlanDefinition
    prices: tuple[Money, ...]
    is_example: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    service: ServiceDefinition
    plans: tuple[CataloguePlan, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedResult:
    """What a seed found and did; ``prices`` counts the rows that are new."""

    services: int
    plans: int
    prices: int


def load_catalogue(folder: Path = SERVICES_DIRECTORY) -> list[CatalogueEntry]:
    """Read every ``<folder>/<name>/service.yaml``; folders that begin with an underscore are shared parts.

    Raises:
        CannotStart: a file cannot be read or lacks a field, or there is none.
    """
    paths = sorted(folder.glob("[!_]*/service.yaml"))
    if not paths:
        raise CannotStart(f"{folder} has no service templates: no <service>/service.yaml can be read there.")
    return [_read_service(path) for path in paths]


def _read_service(path: Path) -> CatalogueEntry:
    try:
        return _parse_service(path.parent.name, yaml.safe_load(path.read_text(encoding="utf-8")))
    except KeyError as error:
        raise CannotStart(f"{path} lacks the field {error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise CannotStart(f"{path} is not a service template: {' '.join(str(error).split())}.") from error


def _parse_service(folder: str, described: dict[str, Any]) -> CatalogueEntry:
    return CatalogueEntry(
        service=ServiceDefinition(
            slug=described["slug"],
            name=described["name"],
            description=described["description"],
            category=described["category"],
            template_directory=folder,
            version=str(described["version"]),
            icon=described["icon"],
            is_published=described.get("published", True),
            parameters_schema=described.get("parameters", {}),
        ),
        plans=tuple(_parse_plan(plan) for plan in described.get("plans", ())),
    )


def _parse_plan(described: dict[str, Any]) -> CataloguePlan:
    resources = described["resources"]
    return CataloguePlan(
        definition=PlanDefinition(
            code=described["code"],
            name=described["name"],
            interval=described["interval"],
            trial_days=described.get("trial_days", 0),
            cpu_millicores=resources["cpu_millicores"],
            memory_mib=resources["memory_mib"],
            storage_gib=resources["storage_gib"],
            replicas=resources.get("replicas", 1),
            entitlements=described.get("entitlements", {}),
            dunning_policy=described.get("dunning"),
            is_public=described.get("public", True),
            is_retired=described.get("retired", False),
        ),
        prices=tuple(
            Money(amount_minor=price["amount_minor"], currency=price["currency"]) for price in described["prices"]
        ),
        is_example=described.get("example", False),
    )


async def upsert_catalogue(session: AsyncSession, offered: list[CatalogueEntry], now: datetime) -> SeedResult:
    """Write what is offered. An amount that changed is a new price from ``now`` on.

    What administrators decide (published, public, retired) stays as they left it.
    """
    plans = prices = 0
    for offer in offered:
        service = await catalogue.upsert_service(session, offer.service, preserve=("is_published",))
        for plan in offer.plans:
            plans += 1
            identifier = await catalogue.upsert_plan(
                session, service, plan.definition, preserve=("is_public", "is_retired")
            )
            prices += await _insert_changed_prices(session, identifier, plan.prices, now)
    await catalogue.add_coupon(session, WELCOME_COUPON)
    return SeedResult(services=len(offered), plans=plans, prices=prices)


async def _insert_changed_prices(session: AsyncSession, plan: str, amounts: tuple[Money, ...], now: datetime) -> int:
    latest = await catalogue.latest_declared_prices(session, plan)
    written = 0
    for amount in amounts:
        latest_price = latest.get(amount.currency)
        if latest_price is not None and latest_price.amount_minor == amount.amount_minor:
            continue
        since = FIRST_PRICE_EFFECTIVE_FROM if latest_price is None else now
        written += await catalogue.insert_price(session, plan, amount, since) is not None
    return written
