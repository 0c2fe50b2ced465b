"""The account that drawn commands work on, and the steps that they consist of: each activity runs twice.

The activities run on a real database. The gateway is the only part that is replaced: it answers as drawn.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import count
from typing import Any, TypeVar, cast

import psycopg
from hypothesis.stateful import (
    RuleBasedStateMachine,
)
from sqlalchemy import text
from temporalio.exceptions import ApplicationError

from activities.billing import PostgresBillingActivities
from activities.gateways.protocol import GatewayCapabilities, GatewayRefund, PaymentGateway
from activities.refunds import GatewayRefundActivities
from activities.subscriptions import PostgresSubscriptionActivities
from db.queries import ledger as ledger_queries
from db.session import session_factory
from tests.support.billing_commands import usd
from tests.support.billing_fixture import (
    ORDERED_AT,
    ORGANIZATION,
    USER,
    BillingFixture,
    insert_card_payment,
    insert_coupon,
    seed_organization_and_catalogue,
)
from tests.support.databases import DatabaseFixture
from tests.support.other_organization import OtherOrganization, create_other_organization
from tests.support.payment_fixture import run_activity
from workflows.ports.billing import (
    ApplyCardPayment,
    BillingOutcome,
    RecordPaymentFailure,
    StartPeriod,
)
from workflows.ports.subscription import (
    ChangeStatus,
    CreateSubscription,
    PlanTerms,
)
from workflows.rules import ledger
from workflows.rules.errors import ErrorCode
from workflows.rules.funding import GatewayTerms
from workflows.rules.ids import derive_id
from workflows.rules.money import Money
from workflows.rules.payment import RefundStatus
from workflows.rules.renewal import PeriodKind
from workflows.rules.subscription import SubscriptionStatus

CommandT = TypeVar("CommandT")
ResultT = TypeVar("ResultT")

TABLES = (
    "subscriptions, payments, payment_methods, refunds, ledger_transactions, ledger_accounts, ledger_entries,"
    " customer_balances, notifications, invoices, holds, timeline_events"
)


SMALL_COUPON = "SMALL"
"""Leaves 0.25 USD of the price of ``starter``: less than the gateway's minimum."""


class AnsweringGateway:
    """Answers a refund as the test has set it."""

    name = "stripe"
    capabilities = GatewayCapabilities(refund=True)
    refund_status = RefundStatus.SUCCEEDED

    async def refund(self, reference: str, amount: Money, *, refund_id: str, key: str) -> GatewayRefund:
        return GatewayRefund(reference=f"re_{refund_id}", status=self.refund_status)

    async def is_disputed(self, reference: str) -> bool:
        return False

    async def find_refund(self, reference: str, refund_id: str) -> GatewayRefund | None:
        return None

    async def retrieve_refund(self, reference: str) -> GatewayRefund:
        return GatewayRefund(reference=reference, status=self.refund_status)


@dataclass
class MachineContext:
    """The database and the activities that all sequences share."""

    runner: asyncio.Runner
    database: DatabaseFixture
    rows: psycopg.Connection[dict[str, Any]]
    billing: BillingFixture
    gateway: AnsweringGateway
    refunds: GatewayRefundActivities
    other_organization: OtherOrganization
    numbers: count[int]
    outcomes: Counter[str]

    def clear(self) -> None:
        """Remove what the last sequence wrote. The catalogue and the other organization stay as they were."""
        self.rows.execute("SET session_replication_role = replica")
        self.rows.execute(f"TRUNCATE {TABLES} CASCADE")
        self.other_organization.restore(self.rows)
        self.rows.execute("SET session_replication_role = origin")


@dataclass
class TrackedSubscription:
    """A subscription as its workflow would hold it, with its own clock."""

    command: CreateSubscription
    terms: PlanTerms
    clock: datetime

    @property
    def id(self) -> str:
        return self.command.subscription_id


def build_account(
    runner: asyncio.Runner, database: DatabaseFixture, rows: psycopg.Connection[dict[str, Any]]
) -> MachineContext:
    runner.run(seed_organization_and_catalogue(session_factory(database.owner), "USD", "UTC"))
    sessions = session_factory(database.worker)
    terms = {"stripe": GatewayTerms(name="stripe", minimum_minor={"USD": 50})}
    gateway = AnsweringGateway()
    runner.run(insert_coupon(sessions, SMALL_COUPON, 95, "forever"))
    billing = BillingFixture(
        sessions,
        PostgresBillingActivities(sessions, terms),
        PostgresSubscriptionActivities(sessions, "apps.test", terms),
    )
    return MachineContext(
        runner=runner,
        database=database,
        rows=rows,
        billing=billing,
        gateway=gateway,
        other_organization=runner.run(create_other_organization(billing, rows, SMALL_COUPON)),
        refunds=GatewayRefundActivities(sessions, {"stripe": cast("PaymentGateway", gateway)}),
        numbers=count(1),
        outcomes=Counter(),
    )


class MoneySteps(RuleBasedStateMachine):
    """The steps of a machine whose rules are commands on one account."""

    def __init__(self, account: MachineContext) -> None:
        super().__init__()
        self.account = account
        self.subscriptions: list[TrackedSubscription] = []

    def start_period(self, ordered: TrackedSubscription, kind: PeriodKind, start: datetime, result: str) -> None:
        command = StartPeriod(
            subscription_id=ordered.id,
            kind=kind,
            period_start=start,
            anchor=start,
            terms=ordered.terms,
            actor="platform",
            now=ordered.clock,
        )
        self.settle(ordered, self.perform(self.account.billing.billing_activities.start_period, command), result)

    def settle(self, ordered: TrackedSubscription, outcome: BillingOutcome | None, result: str) -> None:
        """Answer the card charge that an outcome requires, as drawn."""
        if outcome is None or outcome.card_charge is None:
            return
        assert outcome.invoice_id is not None
        payment_id = self.unique("pay")
        self.note(f"a card payment is {result}")
        if result == "declined":
            self.fail_payment(ordered, outcome.invoice_id, payment_id)
            return
        self.run(insert_card_payment(self.account.billing.sessions, payment_id, ordered.id, outcome.card_charge.amount))
        if result == "cancelled_then_paid":
            self.change_status(ordered, SubscriptionStatus.CANCELLED)
        self.perform(
            self.account.billing.billing_activities.apply_card_payment,
            ApplyCardPayment(
                subscription_id=ordered.id,
                invoice_id=outcome.invoice_id,
                payment_id=payment_id,
                now=ordered.clock,
            ),
        )

    def fail_payment(self, ordered: TrackedSubscription, invoice_id: str, payment_id: str) -> None:
        self.perform(
            self.account.billing.billing_activities.record_payment_failure,
            RecordPaymentFailure(
                subscription_id=ordered.id,
                invoice_id=invoice_id,
                payment_id=payment_id,
                decline_code="generic_decline",
                next_retry_at=None,
                now=ordered.clock,
            ),
        )

    def change_status(self, ordered: TrackedSubscription, status: SubscriptionStatus) -> None:
        cancelled = status is SubscriptionStatus.CANCELLED
        self.perform(
            self.account.billing.subscription_activities.change_status,
            ChangeStatus(
                subscription_id=ordered.id,
                status=status,
                reason="because",
                actor=USER,
                now=ordered.clock,
                data_deletion_at=ordered.clock + timedelta(days=30) if cancelled else None,
                void_invoice=cancelled,
            ),
        )
        self.note(f"a subscription is {status}")

    def perform(self, method: Callable[[CommandT], Awaitable[ResultT]], command: CommandT) -> ResultT | None:
        """Run an activity twice, as Temporal does when the first result is lost; None when the command is refused."""
        try:
            first = self.run(method(command))
        except ApplicationError as error:
            if error.type not in ErrorCode.__members__:
                raise
            self.note(f"refused: {error.type}")
            return None
        second = self.run(method(command))
        assert without_debtors(second) == without_debtors(first)
        assert not set(debtors(second)) & self.account.other_organization.subscription_ids
        assert set(debtors(first)) <= set(debtors(second)), "the repeated activity signals fewer subscriptions"
        return first

    def in_activity(self, method: Callable[[CommandT], Awaitable[ResultT]]) -> Callable[[CommandT], Awaitable[ResultT]]:
        return lambda command: run_activity(method, command)

    def run(self, awaitable: Awaitable[ResultT]) -> ResultT:
        async def await_it() -> ResultT:
            return await awaitable

        return self.account.runner.run(await_it())

    def query(self, statement: str, *parameters: object) -> list[dict[str, Any]]:
        return self.account.rows.execute(statement, parameters or None).fetchall()

    def row(self, ordered: TrackedSubscription) -> dict[str, Any]:
        (row,) = self.query("SELECT * FROM subscriptions WHERE id = %s", ordered.id)
        return row

    def choose(self, position: int, *statuses: SubscriptionStatus) -> TrackedSubscription | None:
        eligible = [ordered for ordered in self.subscriptions if self.row(ordered)["status"] in statuses]
        return eligible[position % len(eligible)] if eligible else None

    def unique(self, prefix: str) -> str:
        return f"{prefix}_{next(self.account.numbers)}"

    def note(self, outcome: str) -> None:
        self.account.outcomes[outcome] += 1

    async def insert_top_up(self, payment_id: str, amount_minor: int) -> None:
        async with self.account.billing.sessions.begin() as session:
            await session.execute(
                text(
                    "INSERT INTO payments (id, organization_id, purpose, gateway, gateway_reference, amount_minor,"
                    " currency, captured_minor, status, idempotency_key, workflow_id, created_at, updated_at,"
                    " succeeded_at)"
                    " VALUES (:id, :org, 'top_up', 'stripe', :id, :amount, 'USD', :amount, 'succeeded', :id, :id,"
                    " :at, :at, :at)"
                ),
                {"id": payment_id, "org": ORGANIZATION, "amount": amount_minor, "at": ORDERED_AT},
            )
        await self.post(ledger.top_up_transaction("stripe", usd(amount_minor)), f"received/{payment_id}")

    async def post(self, posting: ledger.LedgerTransaction, key: str) -> None:
        async with self.account.billing.sessions.begin() as session:
            await ledger_queries.post_transaction(
                session,
                posting,
                transaction_id=derive_id("tx", key),
                organization_id=ORGANIZATION,
                at=ORDERED_AT,
                ref=None,
                description="test",
                idempotency_key=key,
            )


def debtors(result: object) -> list[str]:
    """Return the subscriptions that a result has signaled."""
    if isinstance(result, list):
        return result
    listed: list[str] = getattr(result, "past_due_subscription_ids", [])
    return listed


def without_debtors(result: Any) -> Any:
    """Return a result that two runs of one activity have in common: the debtors may become more."""
    if isinstance(result, list):
        return None
    return replace(result, past_due_subscription_ids=[]) if hasattr(result, "past_due_subscription_ids") else result
