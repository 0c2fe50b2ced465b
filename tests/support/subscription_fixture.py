"""The real subscription workflow on the real billing activities and a real database; its child workflows are fakes.

`SubscriptionFixture` runs one worker for one test. The fakes of provisioning, operations and payments take their
outcomes from `ExternalFakes`, so that a test decides whether a card pays or an instance becomes ready.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text
from temporalio.client import WorkflowHandle
from temporalio.worker import Interceptor, Worker

from activities.attempt_time import AttemptTimeInterceptor
from activities.billing import PostgresBillingActivities
from activities.gateways.protocol import PaymentGateway
from activities.payments import GatewayPaymentActivities
from activities.recovery import PostgresRecoveryActivities
from activities.subscriptions import PostgresSubscriptionActivities
from db.queries import ledger as ledger_rows
from db.session import SessionFactory, session_factory
from tests.support import billing_fixture
from tests.support.billing_fixture import ORGANIZATION, USER
from tests.support.databases import DatabaseFixture
from tests.support.external_fakes import ExternalFakes
from tests.support.fake_workflows import FakeInstanceOperation, FakePayment, FakeProvisioning
from tests.support.temporal import TemporalFixture
from tests.support.wait import wait_until
from worker.workflow_runner import sandboxed_runner
from workflows import names
from workflows.client import WorkflowClient
from workflows.payment import Payment
from workflows.ports.subscription import (
    CancelAt,
    CancelSubscription,
    ChangePlan,
    CreateSubscription,
    FundsArrived,
    LifecycleCommand,
    SubscriptionResult,
)
from workflows.rpc_errors import WorkflowTaskPending
from workflows.rules.dunning import FundsKind
from workflows.rules.funding import CollectionMethod, GatewayTerms
from workflows.rules.ids import derive_id
from workflows.rules.money import Money
from workflows.rules.proration import PlanChangeMode
from workflows.subscription.test_clock import SubscriptionClock
from workflows.subscription.workflow import Subscription


@dataclass
class SubscriptionFixture:
    """One organization, one worker, and the virtual clock of each subscription."""

    temporal: TemporalFixture
    sessions: SessionFactory
    external: ExternalFakes
    workflows: WorkflowClient
    currency: str
    owner: SessionFactory
    order_count: int = 0

    def plan(self, name: str) -> str:
        return f"pln_{name}"

    def create_command(self, plan: str = "starter", **more: Any) -> CreateSubscription:
        self.order_count += 1
        unique = TemporalFixture.unique_id("order")
        return CreateSubscription(
            subscription_id=derive_id("sub", unique),
            instance_id=derive_id("ins", unique),
            organization_id=ORGANIZATION,
            user_id=USER,
            plan_id=self.plan(plan),
            **more,
        )

    async def create_subscription(self, plan: str = "starter", **more: Any) -> str:
        """Order a plan and return the subscription's id. Raises `RuleViolation` if the order is rejected."""
        order = self.create_command(plan, **more)
        await self.workflows.create_subscription(order)
        return order.subscription_id

    async def create_active_subscription(self, plan: str = "starter", **more: Any) -> str:
        """Order a plan, wait until it is ready, and return the subscription's id."""
        self.external.provisioning_done.set()
        subscription_id = await self.create_subscription(plan, **more)
        await self.wait_for_status(subscription_id, "active", "trialing", "past_due")
        return subscription_id

    async def status(self, subscription_id: str) -> str:
        return str((await self.subscription(subscription_id))["status"])

    async def wait_for_status(self, subscription_id: str, *statuses: str) -> None:
        async def has_status() -> bool:
            row = await self.subscription(subscription_id)
            return row["status"] in statuses and await self._idle(subscription_id)

        await wait_until(has_status)

    async def start_charged_renewal(self) -> str:
        """Return a subscription whose renewal waits for its card, with 100 of the wallet held."""
        await self.top_up(600)
        await self.add_card()
        subscription_id = await self.create_active_subscription("starter")
        end = (await self.subscription(subscription_id))["current_period_end"]
        self.external.gateway_responses.clear()
        await self.advance_to(subscription_id, end - timedelta(seconds=1))
        await self.wait_for_charges(1)
        assert await self.balance("held") == 100
        return subscription_id

    async def wait_until_idle(self, subscription_id: str) -> None:
        """Wait until the workflow is idle."""
        await wait_until(lambda: self._idle(subscription_id))

    async def _idle(self, subscription_id: str) -> bool:
        with contextlib.suppress(WorkflowTaskPending):
            return (await self.workflows.get_clock_status(subscription_id)).is_idle
        return False

    def handle(self, subscription_id: str) -> WorkflowHandle[Any, Any]:
        return self.temporal.client.get_workflow_handle(names.subscription_workflow_id(subscription_id))

    async def now(self, subscription_id: str) -> datetime:
        return await self._clock.now(subscription_id)

    async def advance(self, subscription_id: str, by: timedelta) -> None:
        """Advance the clock and wait until every action that became due is done."""
        await self._clock.advance(subscription_id, by=by)

    async def advance_to(self, subscription_id: str, target: datetime) -> None:
        await self._clock.advance(subscription_id, until=target)

    @property
    def _clock(self) -> SubscriptionClock:
        return SubscriptionClock(self.workflows, timedelta(seconds=30))

    # Commands

    async def cancel(
        self, subscription_id: str, at: CancelAt = CancelAt.NOW, order: str = "cancel"
    ) -> SubscriptionResult | None:
        command = CancelSubscription(update_id=f"{order}/{subscription_id}", actor=USER, at=at)
        return (await self.workflows.cancel(subscription_id, command)).result

    async def change_plan(
        self, subscription_id: str, plan: str, mode: PlanChangeMode | None = None, order: str = "c1"
    ) -> None:
        command = ChangePlan(update_id=f"{order}/{subscription_id}", actor=USER, plan_id=self.plan(plan), mode=mode)
        await self.workflows.change_plan(subscription_id, command)

    def lifecycle_command(self, name: str) -> LifecycleCommand:
        return LifecycleCommand(update_id=TemporalFixture.unique_id(name), actor=USER)

    async def top_up(self, amount_minor: int, *subscriptions: str) -> None:
        """Credit the wallet and signal the subscriptions."""
        key = await billing_fixture.credit_wallet(
            self.sessions, Money(amount_minor=amount_minor, currency=self.currency)
        )
        for subscription_id in subscriptions:
            await self.workflows.signal_funds_arrived(subscription_id, FundsArrived(source=key, kind=FundsKind.CREDIT))

    async def add_card(self, **more: Any) -> str:
        """Save a card, the default unless ``default=False``, and return its id."""
        return await billing_fixture.insert_payment_method(self.sessions, **more)

    # Rows of the database

    async def rows(self, statement: str, **parameters: Any) -> list[Mapping[str, Any]]:
        async with self.sessions() as session:
            return [dict(row) for row in (await session.execute(text(statement), parameters)).mappings()]

    async def execute(self, statement: str, **parameters: Any) -> None:
        async with self.sessions.begin() as session:
            await session.execute(text(statement), parameters)

    async def execute_as_owner(self, statement: str, **parameters: Any) -> None:
        """Change the catalogue, as an administrator does."""
        async with self.owner.begin() as session:
            await session.execute(text(statement), parameters)

    async def insert_price(self, plan: str, amount_minor: int, effective_from: datetime) -> None:
        await self.execute_as_owner(
            "INSERT INTO prices (id, plan_id, currency, amount_minor, effective_from)"
            " VALUES (:id, :plan, :currency, :amount, :at)",
            id=TemporalFixture.unique_id("prc"),
            plan=self.plan(plan),
            currency=self.currency,
            amount=amount_minor,
            at=effective_from,
        )

    async def set_dunning_policy(self, plan: str, **policy: Any) -> None:
        """Set the dunning policy of a plan."""
        await self.execute_as_owner(
            "UPDATE plans SET dunning_policy = CAST(:dunning AS jsonb) WHERE id = :id",
            dunning=json.dumps(policy),
            id=self.plan(plan),
        )

    async def wait_for_charges(self, times: int) -> None:
        """Wait until a card was charged at least `times` times."""
        await wait_until(lambda: [verb for verb, _ in self.external.calls].count("charge") >= times)

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

    async def insert_timeline_event(self, subscription_id: str, kind: str, dedup_key: str, at: datetime) -> None:
        await self.execute(
            "INSERT INTO timeline_events (organization_id, subscription_id, occurred_at, kind, message, dedup_key)"
            " VALUES (:organization, :id, :at, :kind, '', :dedup_key) ON CONFLICT DO NOTHING",
            organization=ORGANIZATION,
            id=subscription_id,
            at=at,
            kind=kind,
            dedup_key=dedup_key,
        )

    async def notification_kinds(self) -> list[str]:
        return [row["kind"] for row in await self.rows("SELECT kind FROM notifications ORDER BY occurred_at, id")]

    async def balance(self, account: str = "wallet") -> int:
        rows = await self.rows(
            "SELECT balance_minor FROM ledger_accounts WHERE id = :id", id=f"{ORGANIZATION}/{account}/{self.currency}"
        )
        return rows[0]["balance_minor"] if rows else 0

    async def assert_ledger_balanced(self) -> None:
        """Assert that every transaction sums to zero and every stored balance equals the sum of its entries."""
        async with self.sessions() as session:
            assert await ledger_rows.count_unbalanced_transactions(session) == 0
            assert await ledger_rows.find_balance_mismatches(session) == []


@asynccontextmanager
async def run_subscription_fixture(
    temporal: TemporalFixture,
    database: DatabaseFixture,
    *,
    currency: str = "USD",
    timezone: str = "UTC",
    gateway: PaymentGateway | None = None,
    interceptors: Sequence[Interceptor] = (),
) -> AsyncIterator[SubscriptionFixture]:
    """Seed an organization and run its worker; terminate every workflow of the test afterwards.

    Args:
        gateway: Runs the real payment workflow and its activities against this gateway instead of the fakes.
        interceptors: Those of the worker.
    """
    sessions = session_factory(database.worker)
    await billing_fixture.seed_organization_and_catalogue(session_factory(database.owner), currency, timezone)
    fakes = ExternalFakes(sessions)
    fakes.gateway_responses.set()
    fakes.operations_allowed.set()
    cards = {name: GatewayTerms(name=name) for name in ("stripe", "other")}
    billing, subscriptions = (
        PostgresBillingActivities(sessions, cards),
        PostgresSubscriptionActivities(sessions, "apps.test", cards),
    )
    recovery = PostgresRecoveryActivities(sessions, cards)
    payments = GatewayPaymentActivities(sessions, {gateway.name: gateway}) if gateway is not None else None
    worker = Worker(
        temporal.client,
        task_queue=names.PLATFORM_QUEUE,
        workflows=[Subscription, FakeProvisioning, FakeInstanceOperation, FakePayment if payments is None else Payment],
        workflow_runner=sandboxed_runner("tests"),
        activities=[
            *(getattr(payments, name) for name in _PAYMENTS if payments is not None),
            *(recovery.load, recovery.resume_collection),
            *(getattr(billing, name) for name in _BILLING),
            *(getattr(subscriptions, name) for name in _SUBSCRIPTIONS),
            *(getattr(fakes, name) for name in _EXTERNAL_FAKES),
        ],
        interceptors=[*interceptors, AttemptTimeInterceptor()],
        graceful_shutdown_timeout=timedelta(seconds=1),
    )
    owner = session_factory(database.owner)
    fixture = SubscriptionFixture(temporal, sessions, fakes, WorkflowClient(temporal.client), currency, owner)
    async with worker:
        try:
            yield fixture
        finally:
            fakes.provisioning_done.set()
            fakes.gateway_responses.set()
            fakes.operations_allowed.set()
            for row in await fixture.rows("SELECT workflow_id FROM subscriptions"):
                await _terminate(temporal.client.get_workflow_handle(row["workflow_id"]))


async def _terminate(handle: WorkflowHandle[Any, Any]) -> None:
    described = await handle.describe()
    if described.close_time is None:
        await handle.terminate()


_BILLING = (
    "start_first_period",
    "start_period",
    "collect_invoice",
    "apply_card_payment",
    "record_payment_failure",
    "change_plan",
    "complete_plan_change",
    "rollback_plan_change",
    "adjust_wallet",
)
_SUBSCRIPTIONS = (
    "record_order",
    "start_provisioning",
    "record_cancellation_request",
    "abort_order",
    "change_status",
    "set_cancel_at_period_end",
    "release_reminders",
)
_PAYMENTS = ("charge", "poll", "apply_gateway_event", "capture", "cancel", "mark_unknown")
_EXTERNAL_FAKES = (
    "provision",
    "compensate_provision",
    "create_operation",
    "operate",
    "authorize",
    "cancel_authorization",
    "capture",
    "charge",
)

__all__ = ["CancelAt", "CollectionMethod", "PlanChangeMode", "SubscriptionFixture", "run_subscription_fixture"]
