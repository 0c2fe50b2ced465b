"""The API with a workflow client that records the commands and returns scripted results.

Rows that a worker would have written are inserted directly, without row-level security.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg

from db.queries import catalogue
from db.session import session_factory
from tests.support.api import ApiFixture, RegisteredUser, serve_api, settings
from tests.support.databases import DatabaseFixture
from tests.support.inserts import with_payment_in_full
from worker.seed_catalogue import load_catalogue, upsert_catalogue
from workflows import names
from workflows.client import UpdateResult
from workflows.ports.payments import PaymentInput, PaymentMethodAdded, PaymentOutcome
from workflows.ports.refunds import RefundInput, RefundOutcome
from workflows.ports.subscription import CreateSubscription, RecordedOrder, SubscriptionResult
from workflows.rules.ids import derive_id, to_dns_label
from workflows.rules.money import Money
from workflows.rules.payment import PaymentStatus, RefundStatus
from workflows.rules.subscription import SubscriptionStatus

STARTER, PRO, YEARLY = "n8n-starter", "n8n-pro", "n8n-pro-yearly"
NOW = datetime(2026, 4, 1, 12, tzinfo=UTC)
PERIOD_END = datetime(2026, 5, 1, 12, tzinfo=UTC)


@dataclass
class FakeWorkflowClient:
    """Replaces `WorkflowClient`. Commands raise ``raises`` if it is set; with ``times_out`` they return no result."""

    api: ApiFixture
    calls: list[tuple[str, Any]] = field(default_factory=list)
    raises: Exception | None = None
    times_out: bool = False
    inserts_subscription: bool = True
    running: bool = True
    payment: PaymentOutcome | None = None
    refund_status: RefundStatus = RefundStatus.SUCCEEDED
    in_flight: int = 0
    max_in_flight: int = 0

    def commands_of(self, name: str) -> list[Any]:
        return [command for called, command in self.calls if called == name]

    async def create_subscription(self, order: CreateSubscription) -> UpdateResult[SubscriptionResult]:
        self._record_call("create_subscription", order)
        if self.inserts_subscription and not self.times_out:
            insert_subscription_with_instance(
                self.api,
                order.organization_id,
                order.plan_id,
                order.subscription_id,
                "provisioning",
                instance_id=order.instance_id,
                name=order.name,
                coupon=order.coupon,
            )
            return self._result(order.subscription_id, self._recorded_order(order.subscription_id))
        return self._result(order.subscription_id)

    async def is_running(self, workflow_id: str) -> bool:
        self._record_call("is_running", workflow_id)
        return self.running

    async def start_top_up(self, order: PaymentInput) -> UpdateResult[PaymentOutcome]:
        self._record_call("start_top_up", order)
        outcome = self.payment or PaymentOutcome(payment_id=order.payment_id, status=PaymentStatus.SUCCEEDED)
        return UpdateResult(workflow_id=f"payment/{order.payment_id}", result=None if self.times_out else outcome)

    async def add_payment_method(self, order: Any) -> PaymentMethodAdded:
        self._record_call("add_payment_method", order)
        return PaymentMethodAdded(
            payment_method_id=order.payment_method_id, brand="visa", last4="4242", expires="12/2040", default=True
        )

    async def make_payment_method_default(self, order: Any) -> None:
        self._record_call("make_payment_method_default", order)

    async def remove_payment_method(self, order: Any) -> None:
        self._record_call("remove_payment_method", order)

    async def adjust_wallet(self, order: Any) -> str:
        self._record_call("adjust_wallet", order)
        return insert_ledger_transaction(
            self.api, order.organization_id, "adjustment", order.amount.amount_minor, order.amount.currency
        )

    async def refund_payment(self, order: Any) -> UpdateResult[RefundOutcome]:
        self._record_call("refund_payment", order)
        amount = order.amount or Money(amount_minor=1500, currency="USD")
        failure_code = "charge_already_refunded" if self.refund_status is RefundStatus.FAILED else None
        outcome = RefundOutcome(
            refund_id=order.refund_id, status=self.refund_status, amount=amount, failure_code=failure_code
        )
        return UpdateResult(
            workflow_id=names.refund_workflow_id(order.refund_id), result=None if self.times_out else outcome
        )

    async def deliver_gateway_event(self, event: Any, resume: PaymentInput) -> None:
        self._record_call("deliver_gateway_event", (event, resume))

    async def deliver_refund_event(self, event_id: str, resume: RefundInput) -> None:
        self._record_call("deliver_refund_event", (event_id, resume))

    async def cancel(self, subscription_id: str, order: Any) -> UpdateResult[SubscriptionResult]:
        return await self._record_update("cancel", subscription_id, order)

    async def resume(self, subscription_id: str, order: Any) -> UpdateResult[SubscriptionResult]:
        return await self._record_update("resume", subscription_id, order)

    async def pause(self, subscription_id: str, order: Any) -> UpdateResult[SubscriptionResult]:
        return await self._record_update("pause", subscription_id, order)

    async def retry_payment(self, subscription_id: str, order: Any) -> UpdateResult[SubscriptionResult]:
        return await self._record_update("retry_payment", subscription_id, order)

    async def change_plan(self, subscription_id: str, order: Any) -> UpdateResult[SubscriptionResult]:
        return await self._record_update("change_plan", subscription_id, order)

    async def start_operation(self, subscription_id: str, order: Any) -> UpdateResult[SubscriptionResult]:
        return await self._record_update("start_operation", subscription_id, order)

    async def _record_update(self, name: str, subscription_id: str, order: Any) -> UpdateResult[SubscriptionResult]:
        self._record_call(name, (subscription_id, order))
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        # Other requests run here, as they do while an update is in flight.
        for _ in range(5):
            await asyncio.sleep(0)
        self.in_flight -= 1
        return self._result(subscription_id)

    def _record_call(self, name: str, command: Any) -> None:
        self.calls.append((name, command))
        if self.raises is not None:
            raise self.raises

    def _recorded_order(self, subscription_id: str) -> RecordedOrder:
        (row,) = self.api.query_as_superuser(
            "SELECT i.hostname, s.price_minor, s.currency, s.created_at FROM subscriptions s"
            " JOIN instances i ON i.subscription_id = s.id WHERE s.id = %s",
            subscription_id,
        )
        price = Money(amount_minor=row["price_minor"], currency=row["currency"])
        return RecordedOrder(hostname=row["hostname"], price=price, created_at=row["created_at"])

    def _result(self, subscription_id: str, order: RecordedOrder | None = None) -> UpdateResult[SubscriptionResult]:
        view = SubscriptionResult(subscription_id=subscription_id, state=SubscriptionStatus.PROVISIONING, order=order)
        workflow_id = names.subscription_workflow_id(subscription_id)
        return UpdateResult(workflow_id=workflow_id, result=None if self.times_out else view)


@dataclass
class ApiWithCatalogue:
    """An API with the seeded catalogue, its fake workflow client, and a signed-in customer."""

    api: ApiFixture
    workflows: FakeWorkflowClient
    customer: RegisteredUser

    def insert_subscription(
        self, *, status: str = "active", plan: str = STARTER, account: RegisteredUser | None = None
    ) -> str:
        """Insert a subscription with a current period and an instance; return its id."""
        owner = account or self.customer
        identifier = derive_id(
            "sub", owner.organization_id, str(len(self.api.query_as_superuser("SELECT 1 FROM subscriptions")))
        )
        insert_subscription_with_instance(self.api, owner.organization_id, catalogue.plan_id(plan), identifier, status)
        return identifier


@asynccontextmanager
async def serve_api_with_catalogue(database: DatabaseFixture, **overrides: Any) -> AsyncIterator[ApiWithCatalogue]:
    """Serve the API; `overrides` are its settings."""
    async with session_factory(database.owner).begin() as session:
        await upsert_catalogue(session, load_catalogue(), NOW)
    async with serve_api(settings(database.api_url, **overrides), database.superuser_dsn()) as api:
        workflow_client = FakeWorkflowClient(api)
        api.use_workflow_client(workflow_client)
        yield ApiWithCatalogue(api, workflow_client, await api.register_verified_user())


def insert_subscription_with_instance(
    api: ApiFixture,
    organization_id: str,
    plan_id: str,
    identifier: str,
    status: str,
    *,
    instance_id: str | None = None,
    name: str | None = None,
    coupon: str | None = None,
) -> None:
    """Insert the columns that ``subscriptions.record_order`` and later activities write and the API shows."""
    live = status not in ("pending", "provisioning")
    (plan,) = api.query_as_superuser(
        "SELECT p.*, s.slug, s.version, r.id AS price_id, r.amount_minor FROM plans p JOIN services s ON"
        " s.id = p.service_id JOIN prices r ON r.plan_id = p.id AND r.currency = 'USD' WHERE p.id = %s",
        plan_id,
    )
    api.execute(
        "INSERT INTO subscriptions (id, organization_id, user_id, plan_id, price_id, service_id, status, currency,"
        " price_minor, timezone, billing_anchor, current_period_start, current_period_end, workflow_id, created_at,"
        " updated_at, name, coupon_code)"
        " VALUES (%s, %s, 'usr_1', %s, %s, %s, %s, 'USD', %s, 'UTC', %s, %s, %s, %s, %s, %s, %s, %s)",
        *(identifier, organization_id, plan_id, plan["price_id"], plan["service_id"], status, plan["amount_minor"]),
        *((NOW, NOW, PERIOD_END) if live else (None, None, None)),
        *(names.subscription_workflow_id(identifier), NOW, NOW, name, coupon),
    )
    instance = instance_id or instance_id_for(identifier)
    api.execute(
        "INSERT INTO instances (id, organization_id, subscription_id, service_slug, version, hostname, namespace,"
        " status, cpu_millicores, memory_mib, storage_gib, url, created_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        *(instance, organization_id, identifier, plan["slug"], plan["version"], f"{to_dns_label(instance)}.apps.test"),
        *(to_dns_label(instance), "ready" if live else "requested"),
        *(plan["cpu_millicores"], plan["memory_mib"], plan["storage_gib"]),
        *(f"https://{to_dns_label(instance)}.apps.test" if live else None, NOW),
    )


def instance_id_for(subscription_id: str) -> str:
    return derive_id("ins", subscription_id)


_INSERT_INVOICE = (
    "INSERT INTO invoices (id, organization_id, subscription_id, billing_reason, number, status, currency,"
    " period_start, period_end, subtotal_minor, tax_minor, total_minor, amount_due_minor, finalized_at, paid_at,"
    " created_at, explanation) VALUES (%s, %s, %s, 'renewal', %s, %s, 'USD', %s, %s, %s, 0, %s, %s, %s, %s, %s,"
    """ '{"a": 1}')"""
)
_INSERT_INVOICE_LINE = (
    "INSERT INTO invoice_lines (invoice_id, position, organization_id, description, quantity, unit_price_minor,"
    " discount_minor, tax_minor, amount_minor, period_start, period_end)"
    " VALUES (%s, 1, %s, 'Starter', 1, %s, 0, 0, %s, %s, %s)"
)


def insert_invoice(
    api: ApiFixture, account: RegisteredUser, subscription_id: str, *, total: int = 1500, status: str = "paid"
) -> str:
    """Insert an invoice of the current period with one line; return its id."""
    identifier = derive_id("inv", subscription_id, status, str(total))
    number = (
        None if status == "draft" else f"BERTH-2026-{len(api.query_as_superuser('SELECT 1 FROM invoices')) + 1:06d}"
    )
    due = total if status in ("open", "draft") else 0
    # One transaction: an issued invoice takes no lines later.
    with psycopg.connect(api.superuser_dsn) as connection:
        connection.execute(
            with_payment_in_full(_INSERT_INVOICE).encode(),
            (
                *(identifier, account.organization_id, subscription_id, number, status, NOW, PERIOD_END, total, total),
                *(due, NOW, NOW if status == "paid" else None, NOW),
            ),
        )
        connection.execute(
            _INSERT_INVOICE_LINE.encode(), (identifier, account.organization_id, total, total, NOW, PERIOD_END)
        )
    return identifier


def insert_ledger_transaction(
    api: ApiFixture, organization_id: str, kind: str, effect: int, currency: str = "USD", account: str = "wallet"
) -> str:
    """Post a balanced transaction between the account's wallet (or ``held``) and the platform; return its id."""
    number = len(api.query_as_superuser("SELECT 1 FROM ledger_transactions"))
    identifier = derive_id("tx", organization_id, str(number))
    with psycopg.connect(api.superuser_dsn) as connection:
        connection.execute(
            "INSERT INTO ledger_transactions (id, organization_id, kind, currency, customer_delta_minor,"
            " entry_count, posted_at, reference_id,"
            " description, idempotency_key) VALUES (%s, %s, %s, %s, %s, 2, %s, 'ref', 'posted by a test', %s)",
            (identifier, organization_id, kind, currency, effect, NOW, identifier),
        )
        for owner, name, amount in ((organization_id, account, effect), (None, "adjustments", -effect)):
            connection.execute(
                "INSERT INTO ledger_entries (transaction_id, organization_id, account, currency, amount_minor)"
                " VALUES (%s, %s, %s, %s, %s)",
                (identifier, owner, name, currency, amount),
            )
    return identifier


def insert_payment_method(api: ApiFixture, account: RegisteredUser, *, default: bool = True) -> str:
    """Insert a saved card; return its id."""
    number = len(api.query_as_superuser("SELECT 1 FROM payment_methods"))
    identifier = derive_id("pm", account.organization_id, str(number))
    api.execute(
        "INSERT INTO payment_methods (id, organization_id, gateway, gateway_reference, gateway_customer_reference,"
        " brand, last4, exp_month, exp_year, is_default, charge_order, created_at)"
        " VALUES (%s, %s, 'stripe', %s, 'cus_1', 'visa', '4242', 4, 2041, %s, %s, %s)",
        *(identifier, account.organization_id, f"pm_{number}", default, number, NOW),
    )
    return identifier


def insert_refund(
    api: ApiFixture, account: RegisteredUser, payment_id: str, refund_id: str, *, status: str = "succeeded"
) -> str:
    """Insert a refund of 5.00 to the source; return its id."""
    api.execute(
        "WITH payment AS (UPDATE payments SET refunded_minor = refunded_minor + %s WHERE id = %s)"
        " INSERT INTO refunds (id, organization_id, payment_id, amount_minor, from_wallet_minor, currency, destination,"
        " status, reason, actor, idempotency_key, created_at, updated_at)"
        " VALUES (%s, %s, %s, 500, 0, 'USD', 'source', %s, 'late', 'usr_1', %s, %s, %s)",
        *(0 if status == "failed" else 500, payment_id),
        *(refund_id, account.organization_id, payment_id, status, refund_id, NOW, NOW),
    )
    return refund_id


def insert_payment(
    api: ApiFixture,
    account: RegisteredUser,
    *,
    status: str = "succeeded",
    amount: int = 1500,
    payment_id: str | None = None,
) -> str:
    """Insert a top-up payment; return its id."""
    number = len(api.query_as_superuser("SELECT 1 FROM payments"))
    identifier = payment_id or derive_id("pay", account.organization_id, f"row-{number}")
    api.execute(
        "INSERT INTO payments (id, organization_id, purpose, gateway, gateway_reference, amount_minor, currency,"
        " captured_minor, status, idempotency_key, workflow_id, created_at, updated_at, succeeded_at)"
        " VALUES (%s, %s, 'top_up', 'stripe', %s, %s, 'USD', %s, %s, %s, %s, %s, %s, %s)",
        *(identifier, account.organization_id, f"pi_{number}", amount, amount if status == "succeeded" else 0, status),
        *(identifier, f"payment/{identifier}", NOW, NOW, NOW if status == "succeeded" else None),
    )
    return identifier
