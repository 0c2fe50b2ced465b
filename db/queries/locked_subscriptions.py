"""A subscription, a plan and the funds of an organization, as billing reads them.

Locked reads lock the subscription's row and the organization's balances until the transaction ends, in that order, so
that two activities of one organization decide one after the other. ``NO KEY``: a payment's transaction refers to the
row of the subscription, and may hold a balance that is waited for here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncSession

from db.driver import DriverStatement, begin_and_fetch_one, driver_sql, fetch_one
from db.models.payments import CHARGE_ORDER
from db.queries.catalogue import IS_ORDERABLE, build_discount
from workflows.rules.errors import ErrorCode, RuleViolation
from workflows.rules.funding import CollectionMethod, PaymentMethodReference
from workflows.rules.money import Money
from workflows.rules.pricing import Discount
from workflows.rules.subscription import SubscriptionStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanWithPrice:
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
    dunning_policy: dict[str, Any] | None
    is_orderable: bool
    price_id: str
    price: Money
    service_id: str
    service_slug: str
    service_name: str
    service_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AvailableFunds:
    """What the organization can spend, what it owes from before, and its saved payment methods in charging order."""

    wallet: Money
    promotional: Money
    debt: Money
    payment_methods: tuple[PaymentMethodReference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedSubscription:
    """A subscription as it is now, locked."""

    id: str
    organization_id: str
    user_id: str
    name: str | None
    status: SubscriptionStatus
    collection_method: CollectionMethod
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
    billing_anchor: datetime | None
    period_start: datetime | None
    period_end: datetime | None
    trial_end: datetime | None
    cancel_at_period_end: bool
    pending_plan_id: str | None
    past_due_since: datetime | None
    cancelled_at: datetime | None
    data_deletion_at: datetime | None
    created_at: datetime
    instance_id: str | None
    hostname: str | None
    url: str | None
    funds: AvailableFunds

    @property
    def currency(self) -> str:
        return self.price.currency


FUNDS_COLUMNS = f"""
    COALESCE((SELECT balance_minor FROM kept WHERE account = 'wallet'), 0) AS wallet_minor,
    COALESCE((SELECT balance_minor FROM kept WHERE account = 'promotional'), 0) AS promotional_minor,
    -COALESCE((SELECT balance_minor FROM kept WHERE account = 'debt'), 0) AS debt_minor,
    (SELECT jsonb_agg(jsonb_build_object('payment_method_id', m.id, 'gateway', m.gateway) ORDER BY {CHARGE_ORDER})
        FROM payment_methods m WHERE m.organization_id = {{organization}} AND m.detached_at IS NULL) AS payment_methods
"""

HAS_WAITED = """
    EXISTS (SELECT FROM customer_balances b JOIN total t USING (organization_id, currency) WHERE b.ctid <> t.version)
"""
"""Whether the locked balance (``total``) is another version than the one that the statement began with.

Hazard: PostgreSQL reads a row that it waited for again, but does not see a row that the awaited transaction inserted,
its first posting to an account. The same statement, executed again under the locks, sees it.
"""

_SUBSCRIPTION_COLUMNS = (
    "id", "organization_id", "user_id", "name", "status", "collection_method", "plan_id", "price_id", "price_minor",
    "currency", "service_id", "coupon_code", "coupon_remaining_periods", "timezone", "billing_anchor",
    "current_period_start", "current_period_end", "trial_end", "cancel_at_period_end", "pending_plan_id",
    "past_due_since", "cancelled_at", "data_deletion_at", "created_at",
)  # fmt: skip

_LOCK_SUBSCRIPTION = driver_sql(
    f"""
WITH locked AS MATERIALIZED (
    SELECT {", ".join(_SUBSCRIPTION_COLUMNS)} FROM subscriptions WHERE id = :id FOR NO KEY UPDATE),
total AS MATERIALIZED (
    SELECT b.organization_id, b.currency, b.ctid AS version FROM customer_balances b
    JOIN locked USING (organization_id, currency)
    FOR NO KEY UPDATE OF b),
kept AS MATERIALIZED (
    SELECT a.account, a.balance_minor FROM ledger_accounts a
    WHERE (SELECT count(*) FROM total) >= 0 AND a.id IN (
        SELECT organization_id || '/' || account || '/' || currency
        FROM locked, (VALUES ('wallet'), ('promotional'), ('debt')) AS named(account)
    )
    ORDER BY a.account DESC FOR UPDATE
)
SELECT {", ".join(f"s.{name}" for name in _SUBSCRIPTION_COLUMNS)},
    p.code AS plan_code, p.name AS plan_name, p.interval, v.name AS service_name,
    i.id AS instance_id, i.hostname, i.url,
    c.discount_type AS coupon_kind, c.percent AS coupon_percent, c.amount_minor AS coupon_amount_minor,
    c.currency AS coupon_currency, c.duration AS coupon_duration,
    {FUNDS_COLUMNS.format(organization="s.organization_id")},
    {HAS_WAITED} AS has_waited
FROM locked s
JOIN plans p ON p.id = s.plan_id
JOIN services v ON v.id = s.service_id
LEFT JOIN instances i ON i.subscription_id = s.id
LEFT JOIN coupons c ON c.code = s.coupon_code
"""
)

PLAN_COLUMNS = f"""
    p.id AS plan_id, p.code, p.name, p.interval, p.trial_days, p.cpu_millicores, p.memory_mib, p.storage_gib,
    p.replicas, p.dunning_policy, ({IS_ORDERABLE}) AS is_orderable,
    v.id AS service_id, v.slug AS service_slug, v.name AS service_name, v.version AS service_version,
    r.id AS price_id, r.amount_minor, r.currency
"""
PRICE_JOIN = """
LEFT JOIN LATERAL (
    SELECT * FROM prices WHERE plan_id = p.id AND currency = {currency} AND effective_from <= :now
    ORDER BY effective_from DESC LIMIT 1
) r ON true
"""

_PLAN = text(
    f"SELECT {PLAN_COLUMNS} FROM plans p JOIN services v ON v.id = p.service_id"
    f" {PRICE_JOIN.format(currency=':currency')} WHERE p.id = :plan_id"
)


async def begin_with_locked_subscription(session: AsyncSession, subscription_id: str) -> LockedSubscription:
    """Begin a transaction, and lock and return a subscription with everything that billing it needs.

    One round trip, and a second one if another transaction held the balance.

    Raises:
        RuleViolation: ``NOT_FOUND``.
    """
    row = await begin_and_fetch_one(session, DriverStatement(_LOCK_SUBSCRIPTION, {"id": subscription_id}))
    if row is not None and row["has_waited"]:
        return await lock_subscription(session, subscription_id)
    return _to_locked_subscription(row)


async def lock_subscription(session: AsyncSession, subscription_id: str) -> LockedSubscription:
    """Lock and return a subscription as ``begin_with_locked_subscription``, in a transaction that has begun."""
    row = await fetch_one(session, DriverStatement(_LOCK_SUBSCRIPTION, {"id": subscription_id}))
    while row is not None and row["has_waited"]:
        row = await fetch_one(session, DriverStatement(_LOCK_SUBSCRIPTION, {"id": subscription_id}))
    return _to_locked_subscription(row)


async def get_plan_with_price(
    session: AsyncSession, plan_id: str, currency: str, now: datetime
) -> PlanWithPrice | None:
    """Return a plan with its price in ``currency`` at ``now``; None when either is missing."""
    row = (
        (await session.execute(_PLAN, {"plan_id": plan_id, "currency": currency, "now": now})).mappings().one_or_none()
    )
    return None if row is None else to_plan_with_price(row)


def to_plan_with_price(row: RowMapping | Mapping[str, Any]) -> PlanWithPrice | None:
    if row["price_id"] is None:
        return None
    values = {name: row[name] for name in PlanWithPrice.__dataclass_fields__ if name != "price"}
    return PlanWithPrice(**values, price=Money(amount_minor=row["amount_minor"], currency=row["currency"]))


def to_funds(row: RowMapping | Mapping[str, Any], currency: str) -> AvailableFunds:
    return AvailableFunds(
        wallet=Money(amount_minor=row["wallet_minor"], currency=currency),
        promotional=Money(amount_minor=row["promotional_minor"], currency=currency),
        debt=Money(amount_minor=row["debt_minor"], currency=currency),
        payment_methods=tuple(PaymentMethodReference(**method) for method in row["payment_methods"] or ()),
    )


def _to_locked_subscription(row: Mapping[str, Any] | None) -> LockedSubscription:
    if row is None:
        raise RuleViolation(ErrorCode.NOT_FOUND, "Subscription not found.")
    return LockedSubscription(
        id=row["id"],
        organization_id=row["organization_id"],
        user_id=row["user_id"],
        name=row["name"],
        status=SubscriptionStatus(row["status"]),
        collection_method=CollectionMethod(row["collection_method"]),
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
        billing_anchor=row["billing_anchor"],
        period_start=row["current_period_start"],
        period_end=row["current_period_end"],
        trial_end=row["trial_end"],
        cancel_at_period_end=row["cancel_at_period_end"],
        pending_plan_id=row["pending_plan_id"],
        past_due_since=row["past_due_since"],
        cancelled_at=row["cancelled_at"],
        data_deletion_at=row["data_deletion_at"],
        created_at=row["created_at"],
        instance_id=row["instance_id"],
        hostname=row["hostname"],
        url=row["url"],
        funds=to_funds(row, row["currency"]),
    )


def _discount(row: RowMapping | Mapping[str, Any]) -> Discount | None:
    if row["coupon_code"] is None or row["coupon_kind"] is None:
        return None
    return build_discount(row, code=row["coupon_code"], periods_left=row["coupon_remaining_periods"])
