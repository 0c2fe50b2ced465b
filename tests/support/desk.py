"""The API in front of a desk that only takes notes: what was ordered, and what a test lets the workflows answer.

Rows that a worker would have written are put into the database directly, past row-level security.
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
from tests.support.api import Account, Api, serving, settings
from tests.support.databases import Database
from worker.catalogue import offers, write
from workflows import names
from workflows.client import Accepted
from workflows.ports.payments import Pay, PaymentMethodAdded, PaymentOutcome, RefundOutcome
from workflows.ports.subscription import Subscribe, View
from workflows.rules.ids import derived, dns_label
from workflows.rules.money import Money
from workflows.rules.payment import PaymentStatus
from workflows.rules.subscription import State

STARTER, PRO, YEARLY = "n8n-starter", "n8n-pro", "n8n-pro-yearly"
AT = datetime(2026, 4, 1, 12, tzinfo=UTC)
PERIOD_END = datetime(2026, 5, 1, 12, tzinfo=UTC)


@dataclass
class Desk:
    """Stands where the Orchestrator stands. ``refuses`` is raised by the next orders, ``silent`` answers nothing."""

    api: Api
    calls: list[tuple[str, Any]] = field(default_factory=list)
    refuses: Exception | None = None
    silent: bool = False
    opens: bool = True
    running: bool = True
    payment: PaymentOutcome | None = None
    open_at_once: int = 0
    most_at_once: int = 0

    def ordered(self, name: str) -> list[Any]:
        return [command for called, command in self.calls if called == name]

    async def subscribe(self, order: Subscribe) -> Accepted[View]:
        self._hear("subscribe", order)
        if self.opens and not self.silent:
            open_subscription(self.api, order.organization_id, order.plan_id, order.subscription_id, "provisioning")
        return self._view(order.subscription_id)

    async def is_running(self, workflow_id: str) -> bool:
        self._hear("is_running", workflow_id)
        return self.running

    async def top_up(self, order: Pay) -> Accepted[PaymentOutcome]:
        self._hear("top_up", order)
        outcome = self.payment or PaymentOutcome(payment_id=order.payment_id, status=PaymentStatus.SUCCEEDED)
        return Accepted(workflow_id=f"payment/{order.payment_id}", outcome=None if self.silent else outcome)

    async def add_payment_method(self, order: Any) -> PaymentMethodAdded:
        self._hear("add_payment_method", order)
        return PaymentMethodAdded(
            payment_method_id=order.payment_method_id, brand="visa", last4="4242", expires="12/2040", default=True
        )

    async def remove_payment_method(self, order: Any) -> None:
        self._hear("remove_payment_method", order)

    async def adjust(self, order: Any) -> str:
        self._hear("adjust", order)
        return post(self.api, order.organization_id, "adjustment", order.amount.amount_minor, order.amount.currency)

    async def refund(self, order: Any) -> RefundOutcome:
        self._hear("refund", order)
        amount = order.amount or Money(amount_minor=1500, currency="USD")
        return RefundOutcome(refund_id=order.refund_id, status="succeeded", amount=amount)

    async def payment_event(self, event: Any, resume: Pay) -> None:
        self._hear("payment_event", (event, resume))

    async def cancel(self, subscription_id: str, order: Any) -> Accepted[View]:
        return await self._order("cancel", subscription_id, order)

    async def resume(self, subscription_id: str, order: Any) -> Accepted[View]:
        return await self._order("resume", subscription_id, order)

    async def pause(self, subscription_id: str, order: Any) -> Accepted[View]:
        return await self._order("pause", subscription_id, order)

    async def retry_payment(self, subscription_id: str, order: Any) -> Accepted[View]:
        return await self._order("retry_payment", subscription_id, order)

    async def change_plan(self, subscription_id: str, order: Any) -> Accepted[View]:
        return await self._order("change_plan", subscription_id, order)

    async def operate(self, subscription_id: str, order: Any) -> Accepted[View]:
        return await self._order("operate", subscription_id, order)

    async def _order(self, name: str, subscription_id: str, order: Any) -> Accepted[View]:
        self._hear(name, (subscription_id, order))
        self.open_at_once += 1
        self.most_at_once = max(self.most_at_once, self.open_at_once)
        # Others get their turn here, as while an update is on its way.
        for _ in range(5):
            await asyncio.sleep(0)
        self.open_at_once -= 1
        return self._view(subscription_id)

    def _hear(self, name: str, command: Any) -> None:
        self.calls.append((name, command))
        if self.refuses is not None:
            raise self.refuses

    def _view(self, subscription_id: str) -> Accepted[View]:
        view = View(subscription_id=subscription_id, state=State.PROVISIONING)
        workflow_id = names.subscription_workflow(subscription_id)
        return Accepted(workflow_id=workflow_id, outcome=None if self.silent else view)


@dataclass
class Shop:
    """An API with the seeded catalogue, its desk, and somebody signed in."""

    api: Api
    desk: Desk
    customer: Account

    def subscription(self, *, status: str = "active", plan: str = STARTER, account: Account | None = None) -> str:
        """Put a subscription with a current period and an instance in place; return its id."""
        owner = account or self.customer
        identifier = derived("sub", owner.organization_id, str(len(self.api.rows("SELECT 1 FROM subscriptions"))))
        open_subscription(self.api, owner.organization_id, catalogue.plan_id(plan), identifier, status)
        return identifier


@asynccontextmanager
async def shop(database: Database, **given: Any) -> AsyncIterator[Shop]:
    """``given`` are settings of the API."""
    async with session_factory(database.owner).begin() as session:
        await write(session, offers(), AT)
    async with serving(settings(database.api_url, **given), database.superuser_dsn()) as api:
        desk = Desk(api)
        api.give_orders_to(desk)
        yield Shop(api, desk, await api.customer())


def open_subscription(api: Api, organization_id: str, plan_id: str, identifier: str, status: str) -> None:
    """What ``subscriptions.open`` and later steps write, as far as it is shown."""
    live = status not in ("pending", "provisioning")
    (plan,) = api.rows(
        "SELECT p.*, s.slug, s.version, r.id AS price_id, r.amount_minor FROM plans p JOIN services s ON"
        " s.id = p.service_id JOIN prices r ON r.plan_id = p.id AND r.currency = 'USD' WHERE p.id = %s",
        plan_id,
    )
    api.execute(
        "INSERT INTO subscriptions (id, organization_id, user_id, plan_id, price_id, service_id, status, currency,"
        " price_minor, timezone, anchor, current_period_start, current_period_end, workflow_id, created_at, updated_at)"
        " VALUES (%s, %s, 'usr_1', %s, %s, %s, %s, 'USD', %s, 'UTC', %s, %s, %s, %s, %s, %s)",
        *(identifier, organization_id, plan_id, plan["price_id"], plan["service_id"], status, plan["amount_minor"]),
        *((AT, AT, PERIOD_END) if live else (None, None, None)),
        *(names.subscription_workflow(identifier), AT, AT),
    )
    instance = instance_of(identifier)
    api.execute(
        "INSERT INTO instances (id, organization_id, subscription_id, service_slug, version, hostname, namespace,"
        " status, cpu_millicores, memory_mib, storage_gib, url, created_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        *(instance, organization_id, identifier, plan["slug"], plan["version"], f"{dns_label(instance)}.apps.test"),
        *(dns_label(instance), "ready" if live else "requested"),
        *(plan["cpu_millicores"], plan["memory_mib"], plan["storage_gib"]),
        *(f"https://{dns_label(instance)}.apps.test" if live else None, AT),
    )


def instance_of(subscription_id: str) -> str:
    return derived("ins", subscription_id)


def invoice(api: Api, account: Account, subscription_id: str, *, total: int = 1500, status: str = "paid") -> str:
    """Put an invoice of the current period with one line in place; return its id."""
    identifier = derived("inv", subscription_id, status, str(total))
    number = None if status == "draft" else f"BERTH-2026-{len(api.rows('SELECT 1 FROM invoices')) + 1:06d}"
    due = total if status in ("open", "draft") else 0
    api.execute(
        "INSERT INTO invoices (id, organization_id, subscription_id, kind, number, status, currency, period_start,"
        " period_end, subtotal_minor, tax_minor, total_minor, amount_due_minor, issued_at, paid_at, created_at,"
        """ explanation) VALUES (%s, %s, %s, 'period', %s, %s, 'USD', %s, %s, %s, 0, %s, %s, %s, %s, %s, '{"a": 1}')""",
        *(identifier, account.organization_id, subscription_id, number, status, AT, PERIOD_END, total, total, due),
        *(AT, AT if status == "paid" else None, AT),
    )
    api.execute(
        "INSERT INTO invoice_lines (invoice_id, position, organization_id, description, quantity, unit_price_minor,"
        " discount_minor, tax_minor, amount_minor, period_start, period_end)"
        " VALUES (%s, 1, %s, 'Starter', 1, %s, 0, 0, %s, %s, %s)",
        *(identifier, account.organization_id, total, total, AT, PERIOD_END),
    )
    return identifier


def post(api: Api, organization_id: str, kind: str, effect: int, currency: str = "USD", account: str = "wallet") -> str:
    """Post a balanced transaction between the account's wallet (or ``held``) and the platform; return its id."""
    number = len(api.rows("SELECT 1 FROM ledger_transactions"))
    identifier = derived("tx", organization_id, str(number))
    with psycopg.connect(api.superuser_dsn) as connection:
        connection.execute(
            "INSERT INTO ledger_transactions (id, organization_id, kind, currency, effect_minor, at, ref, description,"
            " idempotency_key) VALUES (%s, %s, %s, %s, %s, %s, 'ref', 'posted by a test', %s)",
            (identifier, organization_id, kind, currency, effect, AT, identifier),
        )
        for owner, name, amount in ((organization_id, account, effect), (None, "adjustments", -effect)):
            connection.execute(
                "INSERT INTO ledger_entries (transaction_id, organization_id, account, currency, amount_minor)"
                " VALUES (%s, %s, %s, %s, %s)",
                (identifier, owner, name, currency, amount),
            )
    return identifier


def card(api: Api, account: Account, *, default: bool = True) -> str:
    """Put a card on file; return its id."""
    number = len(api.rows("SELECT 1 FROM payment_methods"))
    identifier = derived("pm", account.organization_id, str(number))
    api.execute(
        "INSERT INTO payment_methods (id, organization_id, gateway, reference, customer_reference, brand, last4,"
        " exp_month, exp_year, is_default, position, created_at)"
        " VALUES (%s, %s, 'stripe', %s, 'cus_1', 'visa', '4242', 4, 2041, %s, %s, %s)",
        *(identifier, account.organization_id, f"pm_{number}", default, number, AT),
    )
    return identifier


def payment(api: Api, account: Account, *, status: str = "succeeded", amount: int = 1500) -> str:
    """Put a top-up in place; return its id."""
    number = len(api.rows("SELECT 1 FROM payments"))
    identifier = derived("pay", account.organization_id, f"row-{number}")
    api.execute(
        "INSERT INTO payments (id, organization_id, purpose, gateway, gateway_reference, amount_minor, currency,"
        " captured_minor, status, idempotency_key, workflow_id, created_at, updated_at)"
        " VALUES (%s, %s, 'top_up', 'stripe', %s, %s, 'USD', %s, %s, %s, %s, %s, %s)",
        *(identifier, account.organization_id, f"pi_{number}", amount, amount if status == "succeeded" else 0, status),
        *(identifier, f"payment/{identifier}", AT, AT),
    )
    return identifier
