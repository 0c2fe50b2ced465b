"""The catalogue as the service templates describe it, written to the database. Doing it twice changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy.ext.asyncio import AsyncSession

import worker
from db.queries import catalogue
from db.queries.catalogue import CouponFacts, PlanFacts, ServiceFacts
from workflows.rules.money import Money
from workflows.rules.pricing import CouponDuration, CouponKind

SERVICES = Path(str(worker.__file__)).resolve().parents[1] / "templates" / "services"

FROM_THE_BEGINNING = datetime(2000, 1, 1, tzinfo=UTC)
"""First prices hold at every business time, also for a life that is simulated in the past."""

WELCOME = CouponFacts(code="WELCOME10", kind=CouponKind.PERCENT, percent=10, duration=CouponDuration.ONCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedPlan:
    """``example``: the one to show the product with, where nobody names one."""

    facts: PlanFacts
    prices: tuple[Money, ...]
    example: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    service: ServiceFacts
    plans: tuple[PricedPlan, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a seed found and did; ``prices`` counts the rows that are new."""

    services: int
    plans: int
    prices: int


def offers(folder: Path = SERVICES) -> list[Offer]:
    """Read every ``<folder>/<name>/service.yaml``; folders that begin with an underscore are shared parts."""
    return [
        _offer(path.parent.name, yaml.safe_load(path.read_text(encoding="utf-8")))
        for path in sorted(folder.glob("[!_]*/service.yaml"))
    ]


def _offer(folder: str, described: dict[str, Any]) -> Offer:
    return Offer(
        service=ServiceFacts(
            slug=described["slug"],
            name=described["name"],
            description=described["description"],
            category=described["category"],
            template=folder,
            version=str(described["version"]),
            icon=described["icon"],
            published=described.get("published", True),
            parameters_schema=described.get("parameters", {}),
        ),
        plans=tuple(_plan(plan) for plan in described.get("plans", ())),
    )


def _plan(described: dict[str, Any]) -> PricedPlan:
    resources = described["resources"]
    return PricedPlan(
        facts=PlanFacts(
            code=described["code"],
            name=described["name"],
            interval=described["interval"],
            trial_days=described.get("trial_days", 0),
            cpu_millicores=resources["cpu_millicores"],
            memory_mib=resources["memory_mib"],
            storage_gib=resources["storage_gib"],
            replicas=resources.get("replicas", 1),
            entitlements=described.get("entitlements", {}),
            dunning=described.get("dunning"),
            public=described.get("public", True),
            retired=described.get("retired", False),
        ),
        prices=tuple(
            Money(amount_minor=price["amount_minor"], currency=price["currency"]) for price in described["prices"]
        ),
        example=described.get("example", False),
    )


async def write(session: AsyncSession, offered: list[Offer], now: datetime) -> Written:
    """Write what is offered. An amount that changed is a new price from ``now`` on.

    What administrators decide (published, public, retired) stays as they left it.
    """
    plans = prices = 0
    for offer in offered:
        service = await catalogue.put_service(session, offer.service, keep=("published",))
        for plan in offer.plans:
            plans += 1
            identifier = await catalogue.put_plan(session, service, plan.facts, keep=("public", "retired"))
            prices += await _write_prices(session, identifier, plan.prices, now)
    await catalogue.add_coupon(session, WELCOME)
    return Written(services=len(offered), plans=plans, prices=prices)


async def _write_prices(session: AsyncSession, plan: str, amounts: tuple[Money, ...], now: datetime) -> int:
    latest = await catalogue.latest_prices(session, plan)
    written = 0
    for amount in amounts:
        known = latest.get(amount.currency)
        if known is not None and known.amount_minor == amount.amount_minor:
            continue
        since = FROM_THE_BEGINNING if known is None else now
        written += await catalogue.put_price(session, plan, amount, since) is not None
    return written
