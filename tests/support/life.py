"""A subscription's real workflow on real billing activities and a real database; what lies beyond is scripted.

``World`` runs one worker for one test. Provisioning, operations and payments are workflows registered under the real
names that ask ``Outside`` what to do, so that a test decides whether a card pays or an instance becomes ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text
from temporalio import activity
from temporalio.client import WorkflowHandle
from temporalio.worker import Worker

from activities.billing import BillingActivities
from activities.subscriptions import SubscriptionActivities
from db.queries import ledger as ledger_rows
from db.session import Sessions, session_factory
from tests.support import books
from tests.support.books import ORGANIZATION, USER
from tests.support.databases import Database
from tests.support.scripted import ScriptedOperation, ScriptedPayment, ScriptedProvisioning
from tests.support.temporal import Temporal
from tests.support.wait import eventually
from workflows import names
from workflows.client import NotSeenYet, Orchestrator
from workflows.clock import SubscriptionClock
from workflows.ports.instances import Operate, OperationOutcome, OperationStatus, Provision, Provisioned
from workflows.ports.payments import Pay, PaymentOutcome
from workflows.ports.subscription import (
    Cancel,
    CancelAt,
    ChangePlanOrder,
    Collection,
    FundsArrived,
    Order,
    Subscribe,
    View,
)
from workflows.rules.ids import derived
from workflows.rules.money import Money
from workflows.rules.payment import PaymentStatus
from workflows.rules.proration import Mode
from workflows.subscription import Subscription


@dataclass
class Outside:
    """What a test decides, and what it saw being asked for."""

    sessions: Sessions
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    provisioned: Provisioned = field(default_factory=lambda: Provisioned(ready=True))
    decline: str | None = None
    answer: asyncio.Event = field(default_factory=asyncio.Event)
    operating: asyncio.Event = field(default_factory=asyncio.Event)
    operation_fails: set[str] = field(default_factory=set)
    asked: list[tuple[str, str]] = field(default_factory=list)
    paid: list[Pay] = field(default_factory=list)

    def operations(self) -> list[str]:
        return [what for verb, what in self.asked if verb == "operate"]

    @activity.defn(name="outside.provision")
    async def provision(self, command: Provision) -> Provisioned:
        self.asked.append(("provision", command.instance_id))
        while not self.ready.is_set():
            activity.heartbeat()
            await asyncio.wait([asyncio.ensure_future(self.ready.wait())], timeout=0.1)
        return self.provisioned

    @activity.defn(name="outside.undo_provision")
    async def undo_provision(self, command: Provision) -> None:
        self.asked.append(("undo_provision", command.instance_id))

    @activity.defn(name="instances.open_operation")
    async def open_operation(self, command: Operate) -> None:
        self.asked.append(("open_operation", command.kind))

    @activity.defn(name="outside.operate")
    async def operate(self, command: Operate) -> OperationOutcome:
        self.asked.append(("operate", command.kind))
        await self.operating.wait()
        failed = command.kind in self.operation_fails
        status = OperationStatus.FAILED if failed else OperationStatus.SUCCEEDED
        return OperationOutcome(operation_id=command.operation_id, status=status, reason="scripted" if failed else None)

    @activity.defn(name="outside.authorize")
    async def authorize(self, command: Pay) -> PaymentOutcome:
        self.asked.append(("authorize", command.payment_id))
        return self._outcome(command, PaymentStatus.FAILED if self.decline else PaymentStatus.AUTHORIZED)

    @activity.defn(name="outside.release")
    async def release(self, command: Pay) -> PaymentOutcome:
        self.asked.append(("release", command.payment_id))
        return self._outcome(command, PaymentStatus.CANCELLED)

    @activity.defn(name="outside.capture")
    async def capture(self, command: Pay) -> PaymentOutcome:
        return await self.charge(command)

    @activity.defn(name="outside.charge")
    async def charge(self, command: Pay) -> PaymentOutcome:
        self.asked.append(("charge", command.payment_id))
        await self.answer.wait()
        if self.decline:
            return self._outcome(command, PaymentStatus.FAILED)
        await self._receive(command)
        return self._outcome(command, PaymentStatus.SUCCEEDED)

    def _outcome(self, command: Pay, status: PaymentStatus) -> PaymentOutcome:
        failed = status is PaymentStatus.FAILED
        return PaymentOutcome(
            payment_id=command.payment_id, status=status, decline_code=self.decline if failed else None
        )

    async def _receive(self, command: Pay) -> None:
        self.paid.append(command)
        await books.card_paid(self.sessions, command.payment_id, command.subscription_id, command.amount)


@dataclass
class World:
    """One account, one worker, and the means to move one subscription's clock."""

    temporal: Temporal
    sessions: Sessions
    outside: Outside
    orchestrator: Orchestrator
    currency: str
    owner: Sessions
    orders: int = 0

    def plan(self, name: str) -> str:
        return f"pln_{name}"

    def order(self, plan: str = "starter", **more: Any) -> Subscribe:
        self.orders += 1
        unique = Temporal.unique("order")
        return Subscribe(
            subscription_id=derived("sub", unique),
            instance_id=derived("ins", unique),
            organization_id=ORGANIZATION,
            user_id=USER,
            plan_id=self.plan(plan),
            **more,
        )

    async def subscribe(self, plan: str = "starter", **more: Any) -> str:
        """Order a plan and return the subscription's id; raises ``RuleBroken`` when refused."""
        order = self.order(plan, **more)
        await self.orchestrator.subscribe(order)
        return order.subscription_id

    async def active(self, plan: str = "starter", **more: Any) -> str:
        """Order a plan and wait until it is ready."""
        self.outside.ready.set()
        subscription_id = await self.subscribe(plan, **more)
        await self.until(subscription_id, "active", "trialing", "past_due")
        return subscription_id

    async def until(self, subscription_id: str, *statuses: str) -> None:
        async def there() -> bool:
            row = await self.subscription(subscription_id)
            return row["status"] in statuses and await self._idle(subscription_id)

        await eventually(there)

    async def settled(self, subscription_id: str) -> None:
        """Wait until the entity does nothing."""
        await eventually(lambda: self._idle(subscription_id))

    async def _idle(self, subscription_id: str) -> bool:
        with contextlib.suppress(NotSeenYet):
            return (await self.orchestrator.clock(subscription_id)).idle
        return False

    def handle(self, subscription_id: str) -> WorkflowHandle[Any, Any]:
        return self.temporal.client.get_workflow_handle(names.subscription_workflow(subscription_id))

    async def now(self, subscription_id: str) -> datetime:
        return await self._clock.now(subscription_id)

    async def advance(self, subscription_id: str, by: timedelta) -> None:
        """Move the clock; returns when all that fell due is done."""
        await self._clock.advance(subscription_id, by=by)

    async def advance_to(self, subscription_id: str, target: datetime) -> None:
        await self._clock.advance(subscription_id, until=target)

    @property
    def _clock(self) -> SubscriptionClock:
        return SubscriptionClock(self.orchestrator, timedelta(seconds=30))

    # Orders

    async def cancel(self, subscription_id: str, at: CancelAt = CancelAt.NOW, order: str = "cancel") -> View | None:
        command = Cancel(order_id=f"{order}/{subscription_id}", actor=USER, at=at)
        return (await self.orchestrator.cancel(subscription_id, command)).outcome

    async def change_plan(self, subscription_id: str, plan: str, mode: Mode | None = None, order: str = "c1") -> None:
        command = ChangePlanOrder(order_id=f"{order}/{subscription_id}", actor=USER, plan_id=self.plan(plan), mode=mode)
        await self.orchestrator.change_plan(subscription_id, command)

    def simple(self, name: str) -> Order:
        return Order(order_id=Temporal.unique(name), actor=USER)

    async def top_up(self, amount_minor: int, *subscriptions: str) -> None:
        """Money arrives in the wallet, and the subscriptions hear of it."""
        key = await books.top_up(self.sessions, Money(amount_minor=amount_minor, currency=self.currency))
        for subscription_id in subscriptions:
            await self.orchestrator.funds_arrived(subscription_id, FundsArrived(source=key))

    async def add_card(self) -> None:
        await books.add_card(self.sessions)

    # What stands in the database

    async def rows(self, statement: str, **parameters: Any) -> list[Mapping[str, Any]]:
        async with self.sessions() as session:
            return [dict(row) for row in (await session.execute(text(statement), parameters)).mappings()]

    async def rows_written(self, statement: str, **parameters: Any) -> None:
        async with self.sessions.begin() as session:
            await session.execute(text(statement), parameters)

    async def furnished(self, statement: str, **parameters: Any) -> None:
        """Change the catalogue, as an administrator does."""
        async with self.owner.begin() as session:
            await session.execute(text(statement), parameters)

    async def price_rises(self, plan: str, amount_minor: int, effective_from: datetime) -> None:
        await self.furnished(
            "INSERT INTO prices (id, plan_id, currency, amount_minor, effective_from)"
            " VALUES (:id, :plan, :currency, :amount, :at)",
            id=Temporal.unique("prc"),
            plan=self.plan(plan),
            currency=self.currency,
            amount=amount_minor,
            at=effective_from,
        )

    async def dunning(self, plan: str, **calendar: Any) -> None:
        """Give a plan a calendar of its own."""
        await self.furnished(
            "UPDATE plans SET dunning = CAST(:dunning AS jsonb) WHERE id = :id",
            dunning=json.dumps(calendar),
            id=self.plan(plan),
        )

    async def charging(self, times: int) -> None:
        """Wait until a card has been asked so many times."""
        await eventually(lambda: [verb for verb, _ in self.outside.asked].count("charge") >= times)

    async def subscription(self, subscription_id: str) -> Mapping[str, Any]:
        rows = await self.rows("SELECT * FROM subscriptions WHERE id = :id", id=subscription_id)
        return rows[0] if rows else {"status": "absent"}

    async def invoices(self, subscription_id: str) -> list[Mapping[str, Any]]:
        return await self.rows(
            "SELECT * FROM invoices WHERE subscription_id = :id ORDER BY created_at, period_start", id=subscription_id
        )

    async def timeline(self, subscription_id: str) -> list[str]:
        rows = await self.rows(
            "SELECT kind FROM timeline_events WHERE subscription_id = :id AND kind <> 'notification.sent' ORDER BY id",
            id=subscription_id,
        )
        return [row["kind"] for row in rows]

    async def notices(self) -> list[str]:
        return [row["kind"] for row in await self.rows("SELECT kind FROM notifications ORDER BY business_at, id")]

    async def balance(self, account: str = "wallet") -> int:
        rows = await self.rows(
            "SELECT balance_minor FROM ledger_accounts WHERE id = :id", id=f"{ORGANIZATION}/{account}/{self.currency}"
        )
        return rows[0]["balance_minor"] if rows else 0

    async def ledger_is_sound(self) -> None:
        """Assert what must always hold: every transaction sums to zero and kept balances are what was posted."""
        async with self.sessions() as session:
            assert await ledger_rows.unbalanced(session) == 0
            assert await ledger_rows.drift(session) == []


@asynccontextmanager
async def world(
    temporal: Temporal, database: Database, *, currency: str = "USD", timezone: str = "UTC"
) -> AsyncIterator[World]:
    """Seed an account and run its worker; every workflow of the test is ended afterwards."""
    sessions = session_factory(database.worker)
    await books.seed(session_factory(database.owner), currency, timezone)
    outside = Outside(sessions)
    outside.answer.set()
    outside.operating.set()
    billing, subscriptions = BillingActivities(sessions), SubscriptionActivities(sessions, "apps.test")
    worker = Worker(
        temporal.client,
        task_queue=names.PLATFORM,
        workflows=[Subscription, ScriptedProvisioning, ScriptedOperation, ScriptedPayment],
        activities=[
            *(getattr(billing, name) for name in _BILLING),
            *(getattr(subscriptions, name) for name in _SUBSCRIPTIONS),
            *(getattr(outside, name) for name in _OUTSIDE),
        ],
        graceful_shutdown_timeout=timedelta(seconds=1),
    )
    owner = session_factory(database.owner)
    made = World(temporal, sessions, outside, Orchestrator(temporal.client), currency, owner)
    async with worker:
        try:
            yield made
        finally:
            outside.ready.set()
            outside.answer.set()
            outside.operating.set()
            for row in await made.rows("SELECT workflow_id FROM subscriptions"):
                await _end(temporal.client.get_workflow_handle(row["workflow_id"]))


async def _end(handle: WorkflowHandle[Any, Any]) -> None:
    described = await handle.describe()
    if described.close_time is None:
        await handle.terminate()


_BILLING = (
    "activate",
    "renew",
    "collect",
    "settle",
    "unpaid",
    "change_plan",
    "complete_change",
    "revert_change",
    "adjust",
)
_SUBSCRIPTIONS = ("open", "secured", "close_order", "record_state", "record_intent", "remind")
_OUTSIDE = (
    "provision",
    "undo_provision",
    "open_operation",
    "operate",
    "authorize",
    "release",
    "capture",
    "charge",
)

__all__ = ["CancelAt", "Collection", "Mode", "World", "world"]
