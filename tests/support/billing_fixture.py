"""An organization with its catalogue in a real database, and the billing activities without a workflow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any, TypeVar

from sqlalchemy import text

from activities.billing import PostgresBillingActivities
from activities.subscriptions import PostgresSubscriptionActivities
from db.queries import ledger as ledger_rows
from db.session import SessionFactory, session_factory
from tests.support.databases import DatabaseFixture
from workflows.ports.billing import BillingOutcome, StartFirstPeriod, StartPeriod
from workflows.ports.subscription import CreateSubscription, CreateSubscriptionOutcome, PlanTerms, RecordOrder
from workflows.rules import ledger
from workflows.rules.funding import GatewayTerms
from workflows.rules.ids import derive_id
from workflows.rules.money import Money
from workflows.rules.periods import BillingPeriod
from workflows.rules.renewal import PeriodKind

ORGANIZATION, USER = "org_test", "usr_test"
PLANS = {"starter": 500, "pro": 2000, "pro-yearly": 20000, "trial": 500}
ORDERED_AT = datetime(2026, 1, 1, tzinfo=UTC)

Command = TypeVar("Command")
Result = TypeVar("Result")

_sequence = count(1)


async def seed_organization_and_catalogue(
    sessions: SessionFactory, currency: str = "USD", timezone: str = "UTC"
) -> None:
    """Insert one organization and one service with four plans."""
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
                "INSERT INTO services (id, slug, name, description, category, template_directory, version, icon)"
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


async def credit_wallet(sessions: SessionFactory, amount: Money) -> str:
    """Credit the wallet with a top-up. Return the top-up's id."""
    key = f"top-up-{next(_sequence)}"
    async with sessions.begin() as session:
        await ledger_rows.post_transaction(
            session,
            ledger.top_up_transaction("stripe", amount),
            transaction_id=derive_id("tx", key),
            organization_id=ORGANIZATION,
            at=ORDERED_AT,
            ref=key,
            description="top up",
            idempotency_key=key,
        )
    return key


async def insert_card_payment(
    sessions: SessionFactory,
    payment_id: str,
    subscription_id: str | None,
    amount: Money,
    *,
    purpose: str = "invoice",
    invoice_id: str | None = None,
    payment_method_id: str | None = None,
) -> None:
    """Insert a succeeded card payment whose amount is not applied to an invoice yet."""
    async with sessions.begin() as session:
        await session.execute(
            text(
                "INSERT INTO payments (id, organization_id, subscription_id, purpose, invoice_id, payment_method_id,"
                " gateway, gateway_reference, amount_minor, currency, captured_minor, status, idempotency_key,"
                " workflow_id, created_at, updated_at, succeeded_at)"
                " VALUES (:id, :org, :sub, :purpose, :invoice, :method, 'stripe', :id, :amount, :currency, :amount,"
                " 'succeeded', :id, :id, :at, :at, :at)"
            ),
            {
                "purpose": purpose,
                "invoice": invoice_id,
                "method": payment_method_id,
                "id": payment_id,
                "org": ORGANIZATION,
                "sub": subscription_id,
                "amount": amount.amount_minor,
                "currency": amount.currency,
                "at": ORDERED_AT,
            },
        )
        await ledger_rows.post_transaction(
            session,
            ledger.card_payment_transaction("stripe", amount),
            transaction_id=derive_id("tx", payment_id),
            organization_id=ORGANIZATION,
            at=ORDERED_AT,
            ref=payment_id,
            description="scripted",
            idempotency_key=f"received/{payment_id}",
        )


async def insert_payment_method(
    sessions: SessionFactory,
    *,
    default: bool = True,
    charge_order: int = 0,
    gateway: str = "stripe",
    organization: str = ORGANIZATION,
) -> str:
    """Insert a card, which open debts were tried with already, and return its id."""
    payment_method_id = f"pm_{next(_sequence)}"
    async with sessions.begin() as session:
        await session.execute(
            text(
                "INSERT INTO payment_methods (id, organization_id, gateway, gateway_reference,"
                " gateway_customer_reference, brand, last4,"
                " exp_month, exp_year, is_default, charge_order, created_at, offered_at) VALUES"
                " (:id, :org, :gateway, :id, 'cus', 'visa', '4242', 12, 2040, :default, :charge_order, :at, NULL)"
            ),
            {
                "id": payment_method_id,
                "org": organization,
                "gateway": gateway,
                "default": default,
                "charge_order": charge_order,
                "at": ORDERED_AT,
            },
        )
    return payment_method_id


async def insert_coupon(
    sessions: SessionFactory, code: str, percent: int, duration: str, periods: int | None = None
) -> None:
    async with sessions.begin() as session:
        await session.execute(
            text(
                "INSERT INTO coupons (code, discount_type, percent, duration, duration_periods, redemption_count)"
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
    "invoice_allocations",
    "plan_change_credits",
    "invoice_number_sequences",
    "holds",
    "coupons",
    "coupon_redemptions",
    "ledger_accounts",
    "customer_balances",
    "ledger_transactions",
    "ledger_entries",
    "notifications",
)


def current_period(outcome: BillingOutcome) -> BillingPeriod:
    """Return the period of the subscription after a billing step."""
    assert outcome.state.period_start is not None
    assert outcome.state.period_end is not None
    return BillingPeriod(start=outcome.state.period_start, end=outcome.state.period_end)


@dataclass(slots=True, kw_only=True)
class OpenedSubscription:
    """A subscription with the state that its workflow would carry."""

    command: CreateSubscription
    opened: CreateSubscriptionOutcome
    period: BillingPeriod

    @property
    def id(self) -> str:
        return self.command.subscription_id

    @property
    def terms(self) -> PlanTerms:
        return self.opened.terms


@dataclass(slots=True)
class BillingFixture:
    sessions: SessionFactory
    billing_activities: PostgresBillingActivities
    subscription_activities: PostgresSubscriptionActivities

    async def assert_idempotent(self, perform: Callable[[Command], Awaitable[Result]], command: Command) -> Result:
        """Run an activity twice, as Temporal does after a lost result, and return its result.

        Asserts that the second run returns the same result and changes no row.
        """
        first = await perform(command)
        before = await self.dump_tables()
        second = await perform(command)
        assert second == first
        after = await self.dump_tables()
        assert {table: rows for table, rows in after.items() if rows != before[table]} == {}
        return first

    async def dump_tables(self) -> dict[str, list[str]]:
        async with self.sessions() as session:
            return {
                table: sorted((await session.scalars(text(f"SELECT to_jsonb(t)::text FROM {table} t"))).all())
                for table in _TABLES
            }

    async def query(self, statement: str, **parameters: Any) -> list[Mapping[str, Any]]:
        async with self.sessions() as session:
            return [dict(row) for row in (await session.execute(text(statement), parameters)).mappings()]

    async def execute(self, statement: str) -> None:
        async with self.sessions.begin() as session:
            await session.execute(text(statement))

    async def balance(self, account: str = "wallet") -> int:
        rows = await self.query("SELECT balance_minor FROM ledger_accounts WHERE account = :account", account=account)
        return sum(row["balance_minor"] for row in rows)

    async def invoices(self, subscription_id: str) -> list[Mapping[str, Any]]:
        statement = "SELECT * FROM invoices WHERE subscription_id = :id ORDER BY created_at, period_start, id"
        return await self.query(statement, id=subscription_id)

    async def assert_ledger_balanced(self) -> None:
        async with self.sessions() as session:
            assert await ledger_rows.count_unbalanced_transactions(session) == 0
            assert await ledger_rows.find_balance_mismatches(session) == []

    async def assert_allocations_match_invoices(self) -> None:
        """Assert that the allocations of each invoice add up to what the invoice received."""
        rows = await self.query(
            "SELECT i.id FROM invoices i WHERE (SELECT COALESCE(sum(amount_minor), 0) FROM invoice_allocations a"
            " WHERE a.invoice_id = i.id) <> CASE WHEN status IN ('draft', 'void') THEN 0"
            " ELSE total_minor - amount_due_minor - refunded_minor END"
        )
        assert rows == []

    def create_command(self, plan: str = "starter", **more: Any) -> RecordOrder:
        name = str(next(_sequence))
        order = CreateSubscription(
            subscription_id=derive_id("sub", name),
            instance_id=derive_id("ins", name),
            organization_id=ORGANIZATION,
            user_id=USER,
            plan_id=f"pln_{plan}",
            **more,
        )
        return RecordOrder(order=order, workflow_id=name, run_id="run", now=ORDERED_AT)

    def start_first_period_command(self, command: RecordOrder, opened: CreateSubscriptionOutcome) -> StartFirstPeriod:
        return StartFirstPeriod(
            subscription_id=command.order.subscription_id,
            period_start=ORDERED_AT,
            trial_days=opened.terms.trial_days,
            now=ORDERED_AT,
        )

    async def create_active_subscription(self, plan: str = "starter", **more: Any) -> OpenedSubscription:
        """Return a subscription in its first period, paid by the wallet, or in its trial."""
        command = self.create_command(plan, **more)
        opened = await self.subscription_activities.record_order(command)
        outcome = await self.billing_activities.start_first_period(self.start_first_period_command(command, opened))
        return OpenedSubscription(command=command.order, opened=opened, period=current_period(outcome))

    def start_period_command(
        self, ordered: OpenedSubscription, *, kind: PeriodKind = PeriodKind.RENEWAL, start: datetime | None = None
    ) -> StartPeriod:
        """Return the command that starts the second period."""
        begins = start or ordered.period.end
        return StartPeriod(
            subscription_id=ordered.id,
            kind=kind,
            period_start=begins,
            anchor=begins,
            terms=ordered.terms,
            actor="platform",
            now=begins,
        )

    async def create_past_due_subscription(self) -> tuple[OpenedSubscription, BillingOutcome]:
        """Return a subscription whose second period is not paid, and the outcome of that renewal."""
        await credit_wallet(self.sessions, Money(amount_minor=500, currency="USD"))
        ordered = await self.create_active_subscription()
        return ordered, await self.billing_activities.start_period(self.start_period_command(ordered))


async def create_billing_fixture(database: DatabaseFixture, timezone: str = "UTC") -> BillingFixture:
    await seed_organization_and_catalogue(session_factory(database.owner), "USD", timezone)
    sessions = session_factory(database.worker)
    cards = {"stripe": GatewayTerms(name="stripe")}
    return BillingFixture(
        sessions,
        PostgresBillingActivities(sessions, cards),
        PostgresSubscriptionActivities(sessions, "apps.test", cards),
    )
