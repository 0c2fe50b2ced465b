"""A database, the card gateway's sandbox and the payment activities on both, for one test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import httpx
from sqlalchemy import text
from temporalio.testing import ActivityEnvironment

from activities.gateways.protocol import PaymentGateway
from activities.gateways.stripe import StripeGateway
from activities.payment_methods import GatewayPaymentMethodActivities
from activities.payments import GatewayPaymentActivities
from activities.refunds import GatewayRefundActivities
from db.queries import ledger
from db.session import SessionFactory, session_factory
from tests.support.databases import DatabaseFixture
from tests.support.inserts import NOW, insert_open_invoice, insert_organization, insert_subscription
from tests.support.sandboxes import StripeEndpoint
from tests.support.temporal import TemporalFixture
from workflows.ports.payments import ApplyGatewayEvent, GatewayEvent, PaymentInput, Purpose, Requester
from workflows.rules.money import Money
from workflows.rules.payment import PaymentStatus

T = TypeVar("T")
FIVE_MINUTES_LATER = NOW + timedelta(minutes=5)


def money(amount: int, currency: str = "USD") -> Money:
    return Money(amount_minor=amount, currency=currency)


@dataclass
class PaymentFixture:
    """The real payment activities on a database and the gateway's sandbox, with queries for their effects."""

    database: DatabaseFixture
    stripe: StripeEndpoint
    sessions: SessionFactory
    organization: str
    payment_activities: GatewayPaymentActivities
    gateways: Mapping[str, PaymentGateway]
    method_activities: GatewayPaymentMethodActivities
    refund_activities: GatewayRefundActivities

    def payment_input(self, amount: int = 1500, **changes: Any) -> PaymentInput:
        top_up = PaymentInput(
            payment_id=TemporalFixture.unique_id("pay"),
            organization_id=self.organization,
            amount=money(amount),
            gateway="stripe",
            purpose=Purpose.TOP_UP,
            gateway_token="pm_card_visa",
        )
        return replace(top_up, **changes)

    async def invoice_payment_input(self, amount: int = 1500, **changes: Any) -> PaymentInput:
        """Return the input of a payment of a new open invoice of this amount, of a new subscription."""
        owed = await insert_subscription(self.database.owner, self.organization)
        invoice_id = await insert_open_invoice(self.database.owner, self.organization, owed, amount_minor=amount)
        return self.payment_input(
            amount, purpose=Purpose.INVOICE, invoice_id=invoice_id, subscription_id=owed, **changes
        )

    def inject_fault(self, kind: str, *, count: int | None = 1, **more: Any) -> None:
        request = {"fault": kind, **({"count": count} if count else {}), **more}
        httpx.post(f"{self.stripe.url}/sandbox/faults", json=request).raise_for_status()

    def charges(self, pay: PaymentInput) -> list[dict[str, Any]]:
        all_charges = httpx.get(f"{self.stripe.url}/sandbox/charges").json()
        return [charge for charge in all_charges if (charge["idempotency_key"] or "").startswith(pay.payment_id)]

    def refunds_at_gateway(self, pay: PaymentInput) -> list[dict[str, Any]]:
        """Return the refunds of the payment as the gateway knows them, oldest first."""
        intents = {charge["payment_intent"] for charge in self.charges(pay)}
        refunds = httpx.get(f"{self.stripe.url}/sandbox/refunds").json()
        return [refund for refund in refunds if refund["payment_intent"] in intents]

    def fail_refund(self, reference: str, failure_reason: str = "lost_or_stolen_card") -> None:
        """The bank rejects a refund that the gateway has sent."""
        body = {"failure_reason": failure_reason}
        httpx.post(f"{self.stripe.url}/sandbox/refunds/{reference}/fail", json=body).raise_for_status()

    async def balances(self, currency: str = "USD") -> tuple[int, int]:
        """Return the wallet and held balances in minor units. Asserts that the ledger is balanced."""
        async with self.sessions.begin() as session:
            balances = await ledger.get_balances(session, self.organization, currency)
            assert await ledger.find_balance_mismatches(session) == []
            assert await ledger.count_unbalanced_transactions(session) == 0
        return balances.wallet.amount_minor, balances.held.amount_minor

    async def rows(self, query: str, **values: Any) -> list[dict[str, Any]]:
        async with self.database.worker.begin() as connection:
            return [dict(row) for row in (await connection.execute(text(query), values)).mappings()]

    async def payment(self, payment_id: str) -> dict[str, Any]:
        (row,) = await self.rows("SELECT * FROM payments WHERE id = :id", id=payment_id)
        return row

    async def gateway_event_command(
        self, pay: PaymentInput, status: PaymentStatus, *, number: int = 1, amount: Money | None = None
    ) -> ApplyGatewayEvent:
        """Return the command that delivers a webhook about the payment."""
        reference = (await self.payment(pay.payment_id))["gateway_reference"] or "pi_unknown"
        event = GatewayEvent(
            event_id=f"evt_{pay.payment_id}_{number}",
            gateway="stripe",
            gateway_reference=reference,
            status=status,
            amount=amount or pay.amount,
        )
        return ApplyGatewayEvent(
            payment_id=pay.payment_id, event=event, requester=Requester.WAITING, now=FIVE_MINUTES_LATER
        )

    async def notifications(self, kind: str) -> list[dict[str, Any]]:
        return await self.rows("SELECT * FROM notifications WHERE kind = :kind ORDER BY occurred_at", kind=kind)


@asynccontextmanager
async def create_payment_fixture(
    database: DatabaseFixture, stripe: StripeEndpoint, *, currency: str = "USD"
) -> AsyncIterator[PaymentFixture]:
    sessions = session_factory(database.worker)
    gateway = StripeGateway(api_key=stripe.api_key, base_url=stripe.url)
    gateways: dict[str, PaymentGateway] = {gateway.name: gateway}
    try:
        yield PaymentFixture(
            database=database,
            stripe=stripe,
            sessions=sessions,
            organization=await insert_organization(database.owner, currency=currency),
            payment_activities=GatewayPaymentActivities(sessions, gateways),
            gateways=gateways,
            method_activities=GatewayPaymentMethodActivities(sessions, gateways),
            refund_activities=GatewayRefundActivities(sessions, gateways),
        )
    finally:
        await gateway.close()


async def run_activity(method: Callable[[Any], Awaitable[T]], command: object, *, run_id: str = "run-1") -> T:
    """Run an activity as the workflow run `run_id` does."""
    environment = ActivityEnvironment()
    environment.info = replace(environment.info, workflow_run_id=run_id)
    return await environment.run(method, command)
