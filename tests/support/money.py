"""A database, the card gateway's sandbox and the payment activities on both, for one test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import httpx
from sqlalchemy import text
from temporalio.testing import ActivityEnvironment

from activities.gateways.stripe import StripeGateway
from activities.payment_methods import PaymentMethodActivities
from activities.payments import PaymentActivities
from activities.refunds import RefundActivities
from db.queries import ledger
from db.session import Sessions
from tests.support.accounts import NOW, account, sessions_of
from tests.support.databases import Database
from tests.support.sandboxes import Stripe
from tests.support.temporal import Temporal
from workflows.ports.payments import GatewayEvent, Hear, Pay, Purpose
from workflows.rules.money import Money
from workflows.rules.payment import PaymentStatus

T = TypeVar("T")
LATER = NOW + timedelta(minutes=5)


def money(amount: int, currency: str = "USD") -> Money:
    return Money(amount_minor=amount, currency=currency)


@dataclass
class Till:
    """Everything a payment touches, real, with questions that look past the code under test."""

    database: Database
    stripe: Stripe
    sessions: Sessions
    organization: str
    payments: PaymentActivities
    methods: PaymentMethodActivities
    refunds: RefundActivities

    def pay(self, amount: int = 1500, **changes: Any) -> Pay:
        top_up = Pay(
            payment_id=Temporal.unique("pay"),
            organization_id=self.organization,
            amount=money(amount),
            gateway="stripe",
            purpose=Purpose.TOP_UP,
            token="pm_card_visa",
        )
        return replace(top_up, **changes)

    def fault(self, kind: str, *, count: int | None = 1, **more: Any) -> None:
        wish = {"fault": kind, **({"count": count} if count else {}), **more}
        httpx.post(f"{self.stripe.url}/sandbox/faults", json=wish).raise_for_status()

    def charges(self, pay: Pay) -> list[dict[str, Any]]:
        every = httpx.get(f"{self.stripe.url}/sandbox/charges").json()
        return [charge for charge in every if (charge["idempotency_key"] or "").startswith(pay.payment_id)]

    async def balances(self, currency: str = "USD") -> tuple[int, int]:
        """Return wallet and held, in minor units, after proving the books right."""
        async with self.sessions.begin() as session:
            kept = await ledger.balances(session, self.organization, currency)
            assert await ledger.drift(session) == []
            assert await ledger.unbalanced(session) == 0
        return kept.wallet.amount_minor, kept.held.amount_minor

    async def rows(self, query: str, **values: Any) -> list[dict[str, Any]]:
        async with self.database.worker.begin() as connection:
            return [dict(row) for row in (await connection.execute(text(query), values)).mappings()]

    async def payment(self, payment_id: str) -> dict[str, Any]:
        (row,) = await self.rows("SELECT * FROM payments WHERE id = :id", id=payment_id)
        return row

    async def said(self, pay: Pay, status: PaymentStatus, *, number: int = 1, amount: Money | None = None) -> Hear:
        """Return the command that a webhook about the payment becomes."""
        reference = (await self.payment(pay.payment_id))["gateway_reference"] or "pi_unheard"
        event = GatewayEvent(
            event_id=f"evt_{pay.payment_id}_{number}",
            gateway="stripe",
            reference=reference,
            status=status,
            amount=amount or pay.amount,
        )
        return Hear(payment_id=pay.payment_id, event=event, abandoned=False, now=LATER)

    async def mails(self, kind: str) -> list[dict[str, Any]]:
        return await self.rows("SELECT * FROM notifications WHERE kind = :kind ORDER BY business_at", kind=kind)


@asynccontextmanager
async def open_till(database: Database, stripe: Stripe, *, currency: str = "USD") -> AsyncIterator[Till]:
    sessions = sessions_of(database.worker)
    gateway = StripeGateway(api_key=stripe.api_key, base_url=stripe.url)
    gateways = {gateway.name: gateway}
    try:
        yield Till(
            database=database,
            stripe=stripe,
            sessions=sessions,
            organization=await account(database.owner, currency=currency),
            payments=PaymentActivities(sessions, gateways),
            methods=PaymentMethodActivities(sessions, gateways),
            refunds=RefundActivities(sessions, gateways),
        )
    finally:
        await gateway.close()


async def run(method: Callable[[Any], Awaitable[T]], command: object, *, run_id: str = "run-1") -> T:
    """Run an activity as one workflow run would."""
    environment = ActivityEnvironment()
    environment.info = replace(environment.info, workflow_run_id=run_id)
    return await environment.run(method, command)
