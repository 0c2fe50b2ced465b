"""What an activity needs to know of a subscription, in one locked read.

The row of the subscription and the organisation's kept balances are locked until the transaction ends, in that order,
so that two activities of one account decide one after the other. ``NO KEY``: a payment that tells its part of the
story refers to the row, and may hold a balance that is waited for here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import column, text
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncSession

from workflows.rules.money import Money
from workflows.rules.pricing import CouponDuration, CouponKind, Discount
from workflows.rules.subscription import State


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRecord:
    """A plan with the price that is in force for one currency, and its service."""

    plan_id: str
    code: str
    name: str
    interval: str
    trial_days: int
    cpu_millicores: int
    memory_mib: int
    storage_gib: int
    replicas: int
    dunning: dict[str, Any] | None
    available: bool
    price_id: str
    price: Money
    service_id: str
    service_slug: str
    service_name: str
    service_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Funds:
    """What the organisation can spend, and the card that collects the rest (None: none on file)."""

    wallet: Money
    promotional: Money
    payment_method_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A subscription as it is now, locked."""

    id: str
    organization_id: str
    user_id: str
    name: str | None
    state: State
    collection: str | None
    plan_id: str
    plan_code: str
    plan_name: str
    interval: str
    price_id: str
    price: Money
    service_id: str
    service_name: str
    discount: Discount | None
    timezone: str
    anchor: datetime | None
    period_start: datetime | None
    period_end: datetime | None
    trial_end: datetime | None
    cancel_at_period_end: bool
    pending_plan_id: str | None
    first_failure: datetime | None
    cancelled_at: datetime | None
    delete_at: datetime | None
    instance_id: str | None
    hostname: str | None
    url: str | None
    funds: Funds

    @property
    def currency(self) -> str:
        return self.price.currency


_FUNDS = """
    COALESCE((SELECT balance_minor FROM kept WHERE account = 'wallet'), 0) AS wallet_minor,
    COALESCE((SELECT balance_minor FROM kept WHERE account = 'promotional'), 0) AS promotional_minor,
    (SELECT m.id FROM payment_methods m WHERE m.organization_id = {organization} AND m.detached_at IS NULL
        ORDER BY m.is_default DESC, m.created_at, m.id LIMIT 1) AS payment_method_id
"""

_OWN = (
    "id", "organization_id", "user_id", "name", "status", "collection", "plan_id", "price_id", "price_minor",
    "currency", "service_id", "coupon_code", "coupon_periods_left", "timezone", "anchor", "current_period_start",
    "current_period_end", "trial_end", "cancel_at_period_end", "pending_plan_id", "first_failure_at", "cancelled_at",
    "delete_at",
)  # fmt: skip
_JOINED = (
    "plan_code", "plan_name", "interval", "service_name", "instance_id", "hostname", "url", "coupon_kind",
    "coupon_percent", "coupon_amount_minor", "coupon_currency", "coupon_duration", "wallet_minor",
    "promotional_minor", "payment_method_id",
)  # fmt: skip

_LOAD = text(
    f"""
WITH locked AS MATERIALIZED (SELECT {", ".join(_OWN)} FROM subscriptions WHERE id = :id FOR NO KEY UPDATE),
kept AS MATERIALIZED (
    SELECT a.account, a.balance_minor FROM ledger_accounts a
    WHERE a.id IN (
        SELECT organization_id || '/' || account || '/' || currency
        FROM locked, (VALUES ('wallet'), ('promotional')) AS named(account)
    )
    ORDER BY a.account DESC FOR UPDATE
)
SELECT {", ".join(f"s.{name}" for name in _OWN)},
    p.code AS plan_code, p.name AS plan_name, p.interval, v.name AS service_name,
    i.id AS instance_id, i.hostname, i.url,
    c.kind AS coupon_kind, c.percent AS coupon_percent, c.amount_minor AS coupon_amount_minor,
    c.currency AS coupon_currency, c.duration AS coupon_duration,
    {_FUNDS.format(organization="s.organization_id")}
FROM locked s
JOIN plans p ON p.id = s.plan_id
JOIN services v ON v.id = s.service_id
LEFT JOIN instances i ON i.subscription_id = s.id
LEFT JOIN coupons c ON c.code = s.coupon_code
"""
).columns(*(column(name) for name in (*_OWN, *_JOINED)))
"""Named columns, so that what SQLAlchemy works out about the result is worked out once."""

_PLAN = text(
    """
SELECT p.id AS plan_id, p.code, p.name, p.interval, p.trial_days, p.cpu_millicores, p.memory_mib, p.storage_gib,
    p.replicas, p.dunning, (NOT p.retired AND v.published) AS available,
    v.id AS service_id, v.slug AS service_slug, v.name AS service_name, v.version AS service_version,
    r.id AS price_id, r.amount_minor, r.currency
FROM plans p
JOIN services v ON v.id = p.service_id
LEFT JOIN LATERAL (
    SELECT * FROM prices WHERE plan_id = p.id AND currency = :currency AND effective_from <= :now
    ORDER BY effective_from DESC LIMIT 1
) r ON true
WHERE p.id = :plan_id
"""
)

_ACCOUNT = text(
    """
WITH kept AS MATERIALIZED (
    SELECT a.account, a.balance_minor FROM ledger_accounts a
    WHERE a.id IN (:wallet, :promotional) ORDER BY a.account DESC FOR UPDATE
)
SELECT """
    + _FUNDS.format(organization=":organization_id")
)


async def load(session: AsyncSession, subscription_id: str) -> Record | None:
    """Lock and return a subscription with everything that billing it needs; None when there is none."""
    row = (await session.execute(_LOAD, {"id": subscription_id})).mappings().one_or_none()
    return None if row is None else _record(row)


async def load_plan(session: AsyncSession, plan_id: str, currency: str, now: datetime) -> PlanRecord | None:
    """Return a plan with its price in ``currency`` at ``now``; None when either is missing."""
    row = (
        (await session.execute(_PLAN, {"plan_id": plan_id, "currency": currency, "now": now})).mappings().one_or_none()
    )
    if row is None or row["price_id"] is None:
        return None
    values = {name: row[name] for name in PlanRecord.__dataclass_fields__ if name != "price"}
    return PlanRecord(**values, price=Money(amount_minor=row["amount_minor"], currency=row["currency"]))


async def lock_funds(session: AsyncSession, organization_id: str, currency: str) -> Funds:
    """Lock and return what an organisation can spend in one currency."""
    parameters = {
        "organization_id": organization_id,
        "wallet": f"{organization_id}/wallet/{currency}",
        "promotional": f"{organization_id}/promotional/{currency}",
    }
    return _funds((await session.execute(_ACCOUNT, parameters)).mappings().one(), currency)


def _funds(row: RowMapping, currency: str) -> Funds:
    return Funds(
        wallet=Money(amount_minor=row["wallet_minor"], currency=currency),
        promotional=Money(amount_minor=row["promotional_minor"], currency=currency),
        payment_method_id=row["payment_method_id"],
    )


def _record(row: RowMapping) -> Record:
    return Record(
        id=row["id"],
        organization_id=row["organization_id"],
        user_id=row["user_id"],
        name=row["name"],
        state=State(row["status"]),
        collection=row["collection"],
        plan_id=row["plan_id"],
        plan_code=row["plan_code"],
        plan_name=row["plan_name"],
        interval=row["interval"],
        price_id=row["price_id"],
        price=Money(amount_minor=row["price_minor"], currency=row["currency"]),
        service_id=row["service_id"],
        service_name=row["service_name"],
        discount=_discount(row),
        timezone=row["timezone"],
        anchor=row["anchor"],
        period_start=row["current_period_start"],
        period_end=row["current_period_end"],
        trial_end=row["trial_end"],
        cancel_at_period_end=row["cancel_at_period_end"],
        pending_plan_id=row["pending_plan_id"],
        first_failure=row["first_failure_at"],
        cancelled_at=row["cancelled_at"],
        delete_at=row["delete_at"],
        instance_id=row["instance_id"],
        hostname=row["hostname"],
        url=row["url"],
        funds=_funds(row, row["currency"]),
    )


def _discount(row: RowMapping) -> Discount | None:
    if row["coupon_code"] is None or row["coupon_kind"] is None:
        return None
    return discount_of(row, code=row["coupon_code"], periods_left=row["coupon_periods_left"])


def discount_of(row: RowMapping, *, code: str, periods_left: int | None) -> Discount:
    """Build a discount from the columns ``coupon_kind``, ``coupon_percent``, ``coupon_amount_minor`` …"""
    fixed = row["coupon_amount_minor"] is not None
    return Discount(
        code=code,
        kind=CouponKind(row["coupon_kind"]),
        percent=row["coupon_percent"] or 0,
        amount=Money(amount_minor=row["coupon_amount_minor"], currency=row["coupon_currency"]) if fixed else None,
        periods_left=periods_left,
    )


def periods_of(duration: CouponDuration, periods: int | None) -> int | None:
    """Return how many periods a coupon reduces, None for ever."""
    match duration:
        case CouponDuration.ONCE:
            return 1
        case CouponDuration.PERIODS:
            return periods
        case CouponDuration.FOREVER:
            return None
