"""One account with its catalogue in a real database, and billing's activities on it without a workflow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, TypeVar

from sqlalchemy import text

from activities.billing import BillingActivities
from activities.subscriptions import SubscriptionActivities
from db.queries import ledger as ledger_rows
from db.session import Sessions, session_factory
from tests.support.databases import Database
from workflows.ports.billing import Activate, Bill, Renew
from workflows.ports.subscription import Opened, OpenSubscription, Subscribe, Terms
from workflows.rules import ledger
from workflows.rules.ids import derived
from workflows.rules.money import Money
from workflows.rules.periods import Period, nth_period

ORGANIZATION, USER = "org_test", "usr_test"
PLANS = {"starter": 500, "pro": 2000, "pro-yearly": 20000, "trial": 500}
ORDERED = datetime(2026, 1, 1, tzinfo=UTC)

Command = TypeVar("Command")
Answer = TypeVar("Answer")

_names = count(1)


async def seed(sessions: Sessions, currency: str = "USD", timezone: str = "UTC") -> None:
    """Write one account and one service with four plans."""
    at = datetime(2020, 1, 1, tzinfo=UTC)
    async with sessions.begin() as session:
        await session.execute(
            text(
                "INSERT INTO organizations (id, name, currency, timezone, created_at, updated_at)"
                " VALUES (:id, 'Test', :currency, :timezone, :at, :at)"
            ),
            {"id": ORGANIZATION, "currency": currency, "timezone": timezone, "at": at},
        )
        await session.execute(
            text(
                "INSERT INTO services (id, slug, name, description, category, template, version, icon)"
                " VALUES ('svc_app', 'app', 'App', 'An app', 'tools', 'app', '1', '')"
            )
        )
        for name, amount in PLANS.items():
            await session.execute(
                text(
                    'INSERT INTO plans (id, service_id, code, name, "interval", trial_days, cpu_millicores,'
                    " memory_mib, storage_gib, replicas) VALUES (:id, 'svc_app', :code, :code, :interval, :trial, 500,"
                    " 512, 5, 1)"
                ),
                {
                    "id": f"pln_{name}",
                    "code": name,
                    "interval": "year" if "yearly" in name else "month",
                    "trial": 14 if name == "trial" else 0,
                },
            )
            await session.execute(
                text(
                    "INSERT INTO prices (id, plan_id, currency, amount_minor, effective_from)"
                    " VALUES (:id, :plan, :currency, :amount, :at)"
                ),
                {"id": f"prc_{name}", "plan": f"pln_{name}", "currency": currency, "amount": amount, "at": at},
            )


async def top_up(sessions: Sessions, amount: Money) -> str:
    """Money arrives in the wallet; returns the top-up's id."""
    key = f"top-up-{next(_names)}"
    async with sessions.begin() as session:
        await ledger_rows.post(
            session,
            ledger.top_up("stripe", amount),
            transaction_id=derived("tx", key),
            organization_id=ORGANIZATION,
            at=ORDERED,
            ref=key,
            description="top up",
            idempotency_key=key,
        )
    return key


async def card_paid(sessions: Sessions, payment_id: str, subscription_id: str | None, amount: Money) -> None:
    """A card's payment has succeeded at the gateway and is kept apart for whoever asked for it."""
    async with sessions.begin() as session:
        await session.execute(
            text(
                "INSERT INTO payments (id, organization_id, subscription_id, purpose, gateway, amount_minor,"
                " currency, captured_minor, status, idempotency_key, workflow_id, created_at, updated_at)"
                " VALUES (:id, :org, :sub, 'invoice', 'stripe', :amount, :currency, :amount, 'succeeded', :id,"
                " :id, :at, :at)"
            ),
            {
                "id": payment_id,
                "org": ORGANIZATION,
                "sub": subscription_id,
                "amount": amount.amount_minor,
                "currency": amount.currency,
                "at": ORDERED,
            },
        )
        await ledger_rows.post(
            session,
            ledger.received_for_invoice("stripe", amount),
            transaction_id=derived("tx", payment_id),
            organization_id=ORGANIZATION,
            at=ORDERED,
            ref=payment_id,
            description="scripted",
            idempotency_key=f"received/{payment_id}",
        )


async def add_card(sessions: Sessions) -> str:
    payment_method_id = f"pm_{next(_names)}"
    async with sessions.begin() as session:
        await session.execute(
            text(
                "INSERT INTO payment_methods (id, organization_id, gateway, reference, customer_reference, brand,"
                " last4, exp_month, exp_year, is_default, position, created_at)"
                " VALUES (:id, :org, 'stripe', :id, 'cus', 'visa', '4242', 12, 2040, true, 0, :at)"
            ),
            {"id": payment_method_id, "org": ORGANIZATION, "at": ORDERED},
        )
    return payment_method_id


async def add_coupon(sessions: Sessions, code: str, percent: int, duration: str, periods: int | None = None) -> None:
    async with sessions.begin() as session:
        await session.execute(
            text(
                "INSERT INTO coupons (code, kind, percent, duration, periods, redeemed)"
                " VALUES (:code, 'percent', :percent, :duration, :periods, 0)"
            ),
            {"code": code, "percent": percent, "duration": duration, "periods": periods},
        )


_TABLES = (
    "subscriptions",
    "instances",
    "subscription_changes",
    "timeline_events",
    "invoices",
    "invoice_lines",
    "invoice_series",
    "holds",
    "coupons",
    "coupon_redemptions",
    "ledger_accounts",
    "ledger_transactions",
    "ledger_entries",
    "notifications",
)


@dataclass(slots=True, kw_only=True)
class Ordered:
    """A subscription as a test holds it: what a workflow would carry in its ``Life``."""

    order: Subscribe
    opened: Opened
    period: Period

    @property
    def id(self) -> str:
        return self.order.subscription_id

    @property
    def terms(self) -> Terms:
        return self.opened.terms


@dataclass(slots=True)
class Books:
    sessions: Sessions
    billing: BillingActivities
    subscriptions: SubscriptionActivities

    async def twice(self, perform: Callable[[Command], Awaitable[Answer]], command: Command) -> Answer:
        """Run an activity as Temporal does when the first answer was lost: the second run says and changes nothing
        else."""
        first = await perform(command)
        before = await self.everything()
        second = await perform(command)
        assert second == first
        after = await self.everything()
        assert {table: rows for table, rows in after.items() if rows != before[table]} == {}
        return first

    async def everything(self) -> dict[str, list[str]]:
        async with self.sessions() as session:
            return {
                table: sorted((await session.scalars(text(f"SELECT to_jsonb(t)::text FROM {table} t"))).all())
                for table in _TABLES
            }

    async def rows(self, statement: str, **parameters: Any) -> list[Mapping[str, Any]]:
        async with self.sessions() as session:
            return [dict(row) for row in (await session.execute(text(statement), parameters)).mappings()]

    async def rows_written(self, statement: str) -> None:
        async with self.sessions.begin() as session:
            await session.execute(text(statement))

    async def balance(self, account: str = "wallet") -> int:
        rows = await self.rows("SELECT balance_minor FROM ledger_accounts WHERE account = :account", account=account)
        return sum(row["balance_minor"] for row in rows)

    async def invoices(self, subscription_id: str) -> list[Mapping[str, Any]]:
        statement = "SELECT * FROM invoices WHERE subscription_id = :id ORDER BY created_at, period_start, id"
        return await self.rows(statement, id=subscription_id)

    async def ledger_is_sound(self) -> None:
        async with self.sessions() as session:
            assert await ledger_rows.unbalanced(session) == 0
            assert await ledger_rows.drift(session) == []

    def order(self, plan: str = "starter", **more: Any) -> OpenSubscription:
        name = str(next(_names))
        order = Subscribe(
            subscription_id=derived("sub", name),
            instance_id=derived("ins", name),
            organization_id=ORGANIZATION,
            user_id=USER,
            plan_id=f"pln_{plan}",
            **more,
        )
        return OpenSubscription(order=order, workflow_id=name, run_id="run", now=ORDERED)

    def activation(self, command: OpenSubscription, opened: Opened) -> Activate:
        trial = opened.terms.trial_days
        period = nth_period(ORDERED, 0, opened.terms.interval, opened.terms.timezone)
        if trial:
            period = replace(period, end=ORDERED + timedelta(days=trial))
        return Activate(
            subscription_id=command.order.subscription_id,
            period_start=period.start,
            period_end=period.end,
            trial=trial > 0,
            now=ORDERED,
        )

    async def active(self, plan: str = "starter", **more: Any) -> Ordered:
        """A subscription in its first period, paid by the wallet, or in its trial."""
        command = self.order(plan, **more)
        opened = await self.subscriptions.open(command)
        activation = self.activation(command, opened)
        await self.billing.activate(activation)
        period = Period(start=activation.period_start, end=activation.period_end)
        return Ordered(order=command.order, opened=opened, period=period)

    def renewal(self, ordered: Ordered, *, restart: bool = False, start: datetime | None = None) -> Renew:
        """The command that begins the period after the first."""
        begins = start or ordered.period.end
        period = nth_period(begins, 0, ordered.terms.interval, ordered.terms.timezone)
        return Renew(
            subscription_id=ordered.id,
            period_start=period.start,
            period_end=period.end,
            terms=ordered.terms,
            restart=restart,
            actor="platform",
            now=begins,
        )

    async def past_due(self) -> tuple[Ordered, Bill]:
        """A subscription whose second period nothing pays."""
        await top_up(self.sessions, Money(amount_minor=500, currency="USD"))
        ordered = await self.active()
        return ordered, await self.billing.renew(self.renewal(ordered))


async def books_of(database: Database, timezone: str = "UTC") -> Books:
    await seed(session_factory(database.owner), "USD", timezone)
    sessions = session_factory(database.worker)
    return Books(sessions, BillingActivities(sessions), SubscriptionActivities(sessions, "apps.test"))
