"""Card payments that are in flight while workflows are lost: real workflows, activities, database and gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from temporalio.client import WorkflowHandle

from activities.gateways.stripe import StripeGateway
from activities.payment_methods import GatewayPaymentMethodActivities
from activities.reconciliation import PostgresReconciliationActivities
from tests.support.billing_fixture import ORGANIZATION, USER
from tests.support.databases import DatabaseFixture
from tests.support.payment_fixture import run_activity
from tests.support.sandboxes import StripeEndpoint
from tests.support.subscription_fixture import SubscriptionFixture, run_subscription_fixture
from tests.support.temporal import TemporalFixture
from tests.support.wait import wait_until
from workflows import names
from workflows.lost_workflows import find_lost
from workflows.ports.payments import (
    AddPaymentMethod,
    AttachPaymentMethod,
    DetachPaymentMethod,
    GatewayEvent,
    MakePaymentMethodDefault,
    PaymentInput,
    Purpose,
    RemovePaymentMethod,
    SetDefault,
)
from workflows.ports.reconciliation import RestartLostWorkflows
from workflows.rules.money import Money
from workflows.rules.payment import PaymentStatus

STALL_SECONDS = 3
"""How long the gateway holds a response that it has executed: the workflow is lost meanwhile."""


@dataclass
class LostPayments:
    subscriptions: SubscriptionFixture
    stripe: StripeEndpoint
    methods: GatewayPaymentMethodActivities

    async def add_card(self, token: str = "pm_card_visa", *, default: bool = True) -> str:
        """Save a card, as its workflow does without the signals, and return its id."""
        command = AddPaymentMethod(
            payment_method_id=TemporalFixture.unique_id("pm"),
            organization_id=ORGANIZATION,
            gateway="stripe",
            token=token,
            default=default,
            actor=USER,
        )
        await run_activity(self.methods.attach, AttachPaymentMethod(command=command, now=datetime.now(UTC)))
        return command.payment_method_id

    async def set_default_payment_method(self, payment_method_id: str) -> None:
        command = MakePaymentMethodDefault(
            default_change_id=TemporalFixture.unique_id("default"),
            payment_method_id=payment_method_id,
            organization_id=ORGANIZATION,
            actor=USER,
        )
        await run_activity(self.methods.set_default, SetDefault(command=command, now=datetime.now(UTC)))

    async def remove_card(self, payment_method_id: str) -> None:
        command = RemovePaymentMethod(payment_method_id=payment_method_id, organization_id=ORGANIZATION, actor=USER)
        removal = DetachPaymentMethod(command=command, now=datetime.now(UTC))
        await run_activity(self.methods.remove, removal)
        await run_activity(self.methods.detach, removal)

    def stall_gateway(self, path: str = "/v1/payment_intents", *, seconds: float = STALL_SECONDS) -> None:
        """Let the gateway execute the next request without responding for a while."""
        fault = {"fault": "stall", "count": 1, "seconds": seconds, "path": path}
        httpx.post(f"{self.stripe.url}/sandbox/faults", json=fault).raise_for_status()

    async def payments(self, subscription: str) -> list[Mapping[str, Any]]:
        return await self.subscriptions.rows(
            "SELECT * FROM payments WHERE subscription_id = :id ORDER BY created_at, id", id=subscription
        )

    async def gateway_charges(self, subscription: str) -> list[dict[str, Any]]:
        """Return what the gateway was asked to charge for the subscription, by payment."""
        ids = {row["id"] for row in await self.payments(subscription)}
        charges = httpx.get(f"{self.stripe.url}/sandbox/charges").json()
        return [charge for charge in charges if (charge["idempotency_key"] or "").partition(":")[0] in ids]

    async def deliver_webhook(self, subscription: str, status: PaymentStatus) -> WorkflowHandle[Any, Any]:
        """Deliver what the gateway says of the subscription's one payment, and return the handle of its workflow."""
        (row,) = await self.payments(subscription)
        (charge,) = await self.gateway_charges(subscription)
        amount = Money(amount_minor=row["amount_minor"], currency=row["currency"])
        payment = PaymentInput(
            payment_id=row["id"],
            organization_id=ORGANIZATION,
            amount=amount,
            gateway="stripe",
            purpose=Purpose(row["purpose"]),
            payment_method_id=row["payment_method_id"],
            subscription_id=subscription,
            invoice_id=row["invoice_id"],
            business_time=row["created_at"],
            manual_capture=row["purpose"] == Purpose.ORDER,
            is_recorded=True,
        )
        event = GatewayEvent(
            event_id=TemporalFixture.unique_id("evt"),
            gateway="stripe",
            gateway_reference=row["gateway_reference"] or charge["id"],
            status=status,
            amount=amount,
        )
        await self.subscriptions.workflows.deliver_gateway_event(event, payment)
        return self.handle(row["id"])

    async def wait_for_activity(self, handle: WorkflowHandle[Any, Any], name: str) -> None:
        """Wait until the present run of a workflow has completed an activity."""

        async def completed() -> bool:
            scheduled = set()
            async for event in handle.fetch_history_events():
                if event.activity_task_scheduled_event_attributes.activity_type.name == name:
                    scheduled.add(event.event_id)
                if event.activity_task_completed_event_attributes.scheduled_event_id in scheduled:
                    return True
            return False

        await wait_until(completed, description=f"{name} has completed")

    async def wait_for_charge(self, subscription: str) -> None:
        """Wait until the gateway has captured the last charge."""

        async def captured() -> bool:
            return [charge["captured"] for charge in await self.gateway_charges(subscription)][-1:] == [True]

        await wait_until(captured, description="the gateway has captured the charge")

    async def wait_for_charge_of(self, payment_id: str) -> dict[str, Any]:
        """Wait until the gateway has charged a payment, and return its one charge."""

        def charge() -> dict[str, Any] | None:
            charges = httpx.get(f"{self.stripe.url}/sandbox/charges").json()
            own = [charge for charge in charges if (charge["idempotency_key"] or "").startswith(payment_id)]
            assert len(own) <= 1
            return own[0] if own else None

        own_charge = await wait_until(charge, description="the gateway has charged")
        assert own_charge is not None
        return own_charge

    async def lose(self, subscription: str, *, payments: bool = False) -> None:
        """Terminate the subscription's workflow, with ``payments`` also those of its payments."""
        await self.subscriptions.handle(subscription).terminate()
        for row in await self.payments(subscription) if payments else ():
            if (await self.handle(row["id"]).describe()).close_time is None:
                await self.handle(row["id"]).terminate()
        workflow_id = names.subscription_workflow_id(subscription)

        async def listed() -> bool:
            return await find_lost(self.subscriptions.workflows, [workflow_id]) == [workflow_id]

        await wait_until(listed, description="the server's list shows the termination")

    async def restart(self) -> None:
        outcome = await run_activity(self._reconciliation.restart_subscriptions, self._restart_command())
        assert outcome.restarted == 1

    async def restart_payments(self, *, age: str = "20 minutes") -> int:
        """Let the payments be older than `age`, and return how many workflows were started again."""
        await self.subscriptions.execute(f"UPDATE payments SET gateway_requested_at = now() - interval '{age}'")
        outcome = await run_activity(self._reconciliation.restart_payments, self._restart_command())
        return int(outcome.restarted)

    def handle(self, payment_id: str) -> WorkflowHandle[Any, Any]:
        return self.subscriptions.temporal.client.get_workflow_handle(names.payment_workflow_id(payment_id))

    async def terminate_payment(self, payment_id: str) -> None:
        workflow_id = names.payment_workflow_id(payment_id)
        await self.handle(payment_id).terminate()

        async def listed() -> bool:
            return await find_lost(self.subscriptions.workflows, [workflow_id]) == [workflow_id]

        await wait_until(listed, description="the server's list shows the termination")

    @property
    def _reconciliation(self) -> PostgresReconciliationActivities:
        return PostgresReconciliationActivities(self.subscriptions.sessions, self.subscriptions.temporal.client)

    @staticmethod
    def _restart_command() -> RestartLostWorkflows:
        return RestartLostWorkflows(after="", max_restarts=10, now=datetime.now(UTC))

    async def wait_until_paid(self, subscription: str) -> None:
        async def paid() -> bool:
            statuses = {row["status"] for row in await self.subscriptions.invoices(subscription)}
            return statuses == {"paid"}

        await wait_until(paid, description="every invoice is paid")
        await self.subscriptions.wait_until_idle(subscription)

    async def assert_collected_once(self, subscription: str, *amounts: int) -> None:
        """Assert one charge at the gateway and one allocation for each amount, and nothing left over."""
        charges = await self.gateway_charges(subscription)
        assert [charge["amount"] for charge in charges] == list(amounts)
        rows = await self.payments(subscription)
        assert [(row["status"], row["captured_minor"]) for row in rows] == [("succeeded", amount) for amount in amounts]
        allocations = await self.subscriptions.rows(
            "SELECT amount_minor FROM invoice_allocations WHERE source = 'payment' ORDER BY allocated_at"
        )
        assert [row["amount_minor"] for row in allocations] == list(amounts)
        assert (await self.subscriptions.balance("held"), await self.subscriptions.balance()) == (0, 0)
        await self.subscriptions.assert_ledger_balanced()

    async def start_renewal(self) -> str:
        """Return a subscription whose renewal the gateway has charged without responding; the wallet pays a part."""
        await self.subscriptions.top_up(600)
        subscription = await self.subscriptions.create_active_subscription("starter")
        await self.add_card()
        end = (await self.subscriptions.subscription(subscription))["current_period_end"]
        self.stall_gateway()
        await self.subscriptions.advance_to(subscription, end - timedelta(seconds=1))
        await self.wait_for_charge(subscription)
        return subscription

    async def start_order(self) -> str:
        """Return a subscription that is being provisioned, and whose card is authorized."""
        await self.add_card()
        subscription = await self.subscriptions.create_subscription("starter")
        await wait_until(lambda: "provision" in [verb for verb, _ in self.subscriptions.external.calls])
        return subscription

    async def start_order_with_terminated_payment(self) -> str:
        """Return a subscription that is being provisioned and whose payment's workflow an operator has terminated."""
        subscription = await self.start_order()
        (payment,) = await self.payments(subscription)
        await self.terminate_payment(payment["id"])
        return subscription

    async def lose_order_during_capture(self) -> str:
        """Return a subscription whose first payment the gateway has captured while both workflows were lost."""
        await self.add_card()
        self.stall_gateway("/v1/payment_intents/*/capture")
        self.subscriptions.external.provisioning_done.set()
        subscription = await self.subscriptions.create_subscription("starter")
        await self.wait_for_charge(subscription)
        await self.lose(subscription, payments=True)
        return subscription


@asynccontextmanager
async def lost_payments(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> AsyncIterator[LostPayments]:
    gateway = StripeGateway(api_key=stripe.api_key, base_url=stripe.url)
    try:
        async with run_subscription_fixture(temporal, database, gateway=gateway) as subscriptions:
            methods = GatewayPaymentMethodActivities(subscriptions.sessions, {gateway.name: gateway})
            yield LostPayments(subscriptions, stripe, methods)
    finally:
        await gateway.close()
