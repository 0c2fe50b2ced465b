"""Card payments that were in flight when the subscription's workflow was lost: each is collected once.

Real workflows of subscription and payment, real activities, database and gateway.
"""

from __future__ import annotations

import asyncio
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
from workflows.ports.payments import AddPaymentMethod, AttachPaymentMethod, GatewayEvent, PaymentInput, Purpose
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

    async def add_card(self, token: str = "pm_card_visa") -> None:
        command = AddPaymentMethod(
            payment_method_id=TemporalFixture.unique_id("pm"),
            organization_id=ORGANIZATION,
            gateway="stripe",
            token=token,
            default=True,
            actor=USER,
        )
        await run_activity(self.methods.attach, AttachPaymentMethod(command=command, now=datetime.now(UTC)))

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


async def _start_renewal(lost: LostPayments) -> str:
    """Return a subscription whose renewal the gateway has charged without having responded; the wallet pays a part."""
    await lost.subscriptions.top_up(600)
    subscription = await lost.subscriptions.create_active_subscription("starter")
    await lost.add_card()
    end = (await lost.subscriptions.subscription(subscription))["current_period_end"]
    lost.stall_gateway()
    await lost.subscriptions.advance_to(subscription, end - timedelta(seconds=1))
    await lost.wait_for_charge(subscription)
    return subscription


async def test_a_renewal_whose_charge_is_in_flight_is_collected_once(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> None:
    async with lost_payments(temporal, database, stripe) as lost:
        subscription = await _start_renewal(lost)
        await lost.lose(subscription)
        assert [row["status"] for row in await lost.subscriptions.invoices(subscription)] == ["paid", "open"]
        await lost.restart()
        await lost.wait_until_paid(subscription)
        await lost.assert_collected_once(subscription, 400)


async def test_a_renewal_whose_payment_was_lost_as_well_is_collected_once(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> None:
    async with lost_payments(temporal, database, stripe) as lost:
        subscription = await _start_renewal(lost)
        await lost.lose(subscription, payments=True)
        assert [row["status"] for row in await lost.subscriptions.invoices(subscription)] == ["paid", "open"]
        await lost.restart()
        await lost.wait_until_paid(subscription)
        await lost.assert_collected_once(subscription, 400)


async def test_a_payment_that_succeeded_while_the_subscription_was_lost_pays_its_invoice(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> None:
    async with lost_payments(temporal, database, stripe) as lost:
        subscription = await _start_renewal(lost)
        await lost.lose(subscription)

        async def succeeded() -> bool:
            return [row["status"] for row in await lost.payments(subscription)] == ["succeeded"]

        await wait_until(succeeded, description="the payment has succeeded")
        assert [row["status"] for row in await lost.subscriptions.invoices(subscription)] == ["paid", "open"]
        await lost.restart()
        await lost.wait_until_paid(subscription)
        await lost.assert_collected_once(subscription, 400)


async def test_a_payment_that_a_webhook_completed_while_everything_was_lost_is_not_made_again(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> None:
    async with lost_payments(temporal, database, stripe) as lost:
        subscription = await _start_renewal(lost)
        await lost.lose(subscription, payments=True)
        handle = await lost.deliver_webhook(subscription, PaymentStatus.SUCCEEDED)
        await handle.result()
        await lost.restart()
        await lost.wait_until_paid(subscription)
        assert [charged["amount"] for charged in await lost.gateway_charges(subscription)] == [400]
        assert (await lost.subscriptions.balance("held"), await lost.subscriptions.balance()) == (0, 0)
        await lost.subscriptions.assert_ledger_balanced()


async def test_the_end_of_a_trial_that_a_webhook_completed_while_everything_was_lost_is_not_charged_again(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> None:
    async with lost_payments(temporal, database, stripe) as lost:
        subscription = await lost.subscriptions.create_active_subscription("trial")
        await lost.add_card()
        end = (await lost.subscriptions.subscription(subscription))["trial_end"]
        lost.stall_gateway()
        await lost.subscriptions.advance_to(subscription, end - timedelta(seconds=1))
        await lost.wait_for_charge(subscription)
        await lost.lose(subscription, payments=True)
        handle = await lost.deliver_webhook(subscription, PaymentStatus.SUCCEEDED)
        await handle.result()
        await lost.restart()
        await lost.subscriptions.advance_to(subscription, end + timedelta(minutes=1))
        await lost.wait_until_paid(subscription)
        assert [charged["amount"] for charged in await lost.gateway_charges(subscription)] == [500]
        assert (await lost.subscriptions.balance("held"), await lost.subscriptions.balance()) == (0, 0)
        await lost.subscriptions.assert_ledger_balanced()


async def test_an_order_with_an_authorized_card_is_captured_once(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> None:
    async with lost_payments(temporal, database, stripe) as lost:
        await lost.add_card()
        subscription = await lost.subscriptions.create_subscription("starter")
        await wait_until(lambda: "provision" in [verb for verb, _ in lost.subscriptions.external.calls])
        await lost.lose(subscription)
        await lost.restart()
        lost.subscriptions.external.provisioning_done.set()
        await lost.subscriptions.wait_for_status(subscription, "active")
        await lost.wait_until_paid(subscription)
        await lost.assert_collected_once(subscription, 500)


async def test_an_order_that_is_lost_during_the_capture_is_captured_once(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> None:
    async with lost_payments(temporal, database, stripe) as lost:
        await lost.add_card()
        lost.stall_gateway("/v1/payment_intents/*/capture")
        lost.subscriptions.external.provisioning_done.set()
        subscription = await lost.subscriptions.create_subscription("starter")
        await lost.wait_for_charge(subscription)
        await lost.lose(subscription, payments=True)
        assert [row["status"] for row in await lost.subscriptions.invoices(subscription)] == ["open"]
        await lost.restart()
        await lost.wait_until_paid(subscription)
        await lost.assert_collected_once(subscription, 500)


async def test_an_order_that_is_cancelled_after_its_workflow_was_lost_voids_the_authorization(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> None:
    async with lost_payments(temporal, database, stripe) as lost:
        await lost.add_card()
        subscription = await lost.subscriptions.create_subscription("starter")
        await wait_until(lambda: "provision" in [verb for verb, _ in lost.subscriptions.external.calls])
        await lost.lose(subscription)
        await lost.restart()
        await lost.subscriptions.cancel(subscription)
        assert (await lost.subscriptions.subscription(subscription))["status"] == "cancelled"
        assert [row["status"] for row in await lost.payments(subscription)] == ["cancelled"]


async def test_a_card_that_paid_for_a_lost_plan_change_is_credited_to_the_wallet(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> None:
    async with lost_payments(temporal, database, stripe) as lost:
        await lost.subscriptions.top_up(500)
        subscription = await lost.subscriptions.create_active_subscription("starter")
        await lost.add_card()
        lost.stall_gateway()
        changing = asyncio.ensure_future(lost.subscriptions.change_plan(subscription, "pro"))
        await lost.wait_for_charge(subscription)
        await lost.lose(subscription)
        await asyncio.gather(changing, return_exceptions=True)
        await lost.restart()
        (charge,) = await lost.gateway_charges(subscription)

        async def credited() -> bool:
            return bool(await lost.subscriptions.balance() == charge["amount"])

        await wait_until(credited, description="the payment is wallet credit")
        await lost.subscriptions.wait_until_idle(subscription)
        row = await lost.subscriptions.subscription(subscription)
        assert (row["status"], row["plan_id"]) == ("active", lost.subscriptions.plan("starter"))
        assert sorted(row["status"] for row in await lost.subscriptions.invoices(subscription)) == ["paid", "void"]
        assert await lost.subscriptions.balance("held") == 0
        await lost.subscriptions.assert_ledger_balanced()


async def test_a_top_up_whose_workflow_was_lost_is_credited_once(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> None:
    async with lost_payments(temporal, database, stripe) as lost:
        top_up = PaymentInput(
            payment_id=temporal.unique_id("pay"),
            organization_id=ORGANIZATION,
            amount=Money(amount_minor=1500, currency="USD"),
            gateway="stripe",
            purpose=Purpose.TOP_UP,
            gateway_token="pm_card_visa",
        )
        lost.stall_gateway(seconds=20)
        ordering = asyncio.ensure_future(lost.subscriptions.workflows.start_top_up(top_up))
        charge = await lost.wait_for_charge_of(top_up.payment_id)
        await lost.terminate_payment(top_up.payment_id)
        await asyncio.gather(ordering, return_exceptions=True)
        assert await lost.restart_payments(age="10 minutes") == 0
        assert await lost.restart_payments() == 1

        async def credited() -> bool:
            return bool(await lost.subscriptions.balance() == charge["amount"] == 1500)

        await wait_until(credited, description="the top-up is wallet credit")
        assert await lost.wait_for_charge_of(top_up.payment_id) == charge
        assert await lost.restart_payments() == 0
        await lost.subscriptions.assert_ledger_balanced()


async def test_a_renewal_whose_payment_is_terminated_is_collected_once(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> None:
    async with lost_payments(temporal, database, stripe) as lost:
        subscription = await _start_renewal(lost)
        (payment,) = await lost.payments(subscription)
        await lost.handle(payment["id"]).terminate()
        await lost.wait_until_paid(subscription)
        await lost.assert_collected_once(subscription, 400)


async def test_an_authorization_whose_workflow_is_terminated_is_captured(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> None:
    async with lost_payments(temporal, database, stripe) as lost:
        await lost.add_card()
        subscription = await lost.subscriptions.create_subscription("starter")
        await wait_until(lambda: "provision" in [verb for verb, _ in lost.subscriptions.external.calls])
        (payment,) = await lost.payments(subscription)
        await lost.handle(payment["id"]).terminate()
        lost.subscriptions.external.provisioning_done.set()
        await lost.wait_until_paid(subscription)
        await lost.assert_collected_once(subscription, 500)


async def test_an_authorization_is_left_to_the_order_that_is_being_fulfilled(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> None:
    async with lost_payments(temporal, database, stripe) as lost:
        await lost.add_card()
        subscription = await lost.subscriptions.create_subscription("starter")
        await wait_until(lambda: "provision" in [verb for verb, _ in lost.subscriptions.external.calls])
        (payment,) = await lost.payments(subscription)
        await lost.terminate_payment(payment["id"])
        if await lost.restart_payments():
            await lost.handle(payment["id"]).result()
        lost.subscriptions.external.provisioning_done.set()
        await lost.wait_until_paid(subscription)
        await lost.assert_collected_once(subscription, 500)


async def _start_order_with_terminated_payment(lost: LostPayments) -> str:
    """Return a subscription that is being provisioned and whose payment's workflow an operator has terminated."""
    await lost.add_card()
    subscription = await lost.subscriptions.create_subscription("starter")
    await wait_until(lambda: "provision" in [verb for verb, _ in lost.subscriptions.external.calls])
    (payment,) = await lost.payments(subscription)
    await lost.terminate_payment(payment["id"])
    return subscription


async def test_a_webhook_does_not_void_the_authorization_of_an_order_that_is_being_fulfilled(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> None:
    async with lost_payments(temporal, database, stripe) as lost:
        subscription = await _start_order_with_terminated_payment(lost)
        handle = await lost.deliver_webhook(subscription, PaymentStatus.AUTHORIZED)
        await lost.wait_for_activity(handle, "payments.cancel")
        assert [row["status"] for row in await lost.payments(subscription)] == ["authorized"]
        lost.subscriptions.external.provisioning_done.set()
        await lost.wait_until_paid(subscription)
        await lost.assert_collected_once(subscription, 500)


async def test_a_webhook_voids_the_authorization_once_its_order_has_ended(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> None:
    async with lost_payments(temporal, database, stripe) as lost:
        subscription = await _start_order_with_terminated_payment(lost)
        handle = await lost.deliver_webhook(subscription, PaymentStatus.AUTHORIZED)
        await lost.wait_for_activity(handle, "payments.cancel")
        # The answer does not wait for the end of the compensation.
        await lost.subscriptions.cancel(subscription)
        await lost.subscriptions.handle(subscription).result()
        assert (await lost.subscriptions.subscription(subscription))["status"] == "cancelled"
        await lost.subscriptions.temporal.fast_forward(handle, timedelta(minutes=1, seconds=1))
        await handle.result()
        assert [row["status"] for row in await lost.payments(subscription)] == ["cancelled"]
        (charge,) = await lost.gateway_charges(subscription)
        assert not charge["captured"]


async def test_a_capture_that_a_webhook_completes_pays_the_order(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> None:
    """The subscription's workflow is started again after the webhook. The card was charged a second time."""
    async with lost_payments(temporal, database, stripe) as lost:
        await lost.add_card()
        lost.stall_gateway("/v1/payment_intents/*/capture")
        lost.subscriptions.external.provisioning_done.set()
        subscription = await lost.subscriptions.create_subscription("starter")
        await lost.wait_for_charge(subscription)
        await lost.lose(subscription, payments=True)
        handle = await lost.deliver_webhook(subscription, PaymentStatus.SUCCEEDED)
        await handle.result()
        await lost.restart()
        await lost.wait_until_paid(subscription)
        await lost.assert_collected_once(subscription, 500)


async def test_a_capture_that_a_poll_finds_pays_the_order(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> None:
    """A late webhook of the authorization starts the payment again; the webhook of the capture is delayed."""
    async with lost_payments(temporal, database, stripe) as lost:
        await lost.add_card()
        lost.stall_gateway("/v1/payment_intents/*/capture")
        lost.subscriptions.external.provisioning_done.set()
        subscription = await lost.subscriptions.create_subscription("starter")
        await lost.wait_for_charge(subscription)
        await lost.lose(subscription, payments=True)
        handle = await lost.deliver_webhook(subscription, PaymentStatus.AUTHORIZED)
        await lost.wait_for_activity(handle, "payments.cancel")
        await lost.subscriptions.temporal.fast_forward(handle, timedelta(minutes=1, seconds=1))
        await handle.result()
        await lost.restart()
        await lost.wait_until_paid(subscription)
        await lost.assert_collected_once(subscription, 500)


async def test_an_authorization_of_an_order_that_has_ended_is_voided(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> None:
    async with lost_payments(temporal, database, stripe) as lost:
        await lost.add_card()
        subscription = await lost.subscriptions.create_subscription("starter")
        await wait_until(lambda: "provision" in [verb for verb, _ in lost.subscriptions.external.calls])
        (payment,) = await lost.payments(subscription)
        await lost.terminate_payment(payment["id"])
        await lost.subscriptions.cancel(subscription)
        assert [row["status"] for row in await lost.payments(subscription)] == ["authorized"]
        assert await lost.restart_payments() == 1

        async def voided() -> bool:
            return [row["status"] for row in await lost.payments(subscription)] == ["cancelled"]

        await wait_until(voided, description="the authorization is void")


async def test_a_payment_of_a_lost_subscription_is_left_to_its_next_run(
    temporal: TemporalFixture, database: DatabaseFixture, stripe: StripeEndpoint
) -> None:
    async with lost_payments(temporal, database, stripe) as lost:
        subscription = await _start_renewal(lost)
        await lost.lose(subscription, payments=True)
        assert await lost.restart_payments() == 0
        await lost.restart()
        await lost.wait_until_paid(subscription)
        await lost.assert_collected_once(subscription, 400)
