"""Scripted payment activities under the real names, and parent workflows of a payment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.client import (
    WorkflowHandle,
    WorkflowUpdateHandle,
    WorkflowUpdateStage,
)
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError

from tests.support.temporal import TemporalFixture
from tests.support.wait import wait_until
from tests.support.workers import build_worker
from workflows import names
from workflows.payment import Payment
from workflows.ports.payments import (
    ApplyGatewayEvent,
    CancelPayment,
    CapturePayment,
    ChargePayment,
    GatewayEvent,
    PaymentActivities,
    PaymentInput,
    PaymentOutcome,
    PaymentProgress,
    PollPayment,
    Purpose,
)
from workflows.ports.subscription import FundsArrived
from workflows.rules.money import Money
from workflows.rules.payment import UNPAID_FINAL_STATUSES, PaymentStatus, apply_gateway_status

S = PaymentStatus
USD = Money(amount_minor=1500, currency="USD")
MINUTE = timedelta(minutes=1)


@dataclass
class FakePayments(PaymentActivities):
    """The activities of one payment. A call without ``scripted_responses`` finds the gateway unavailable."""

    status: PaymentStatus = S.PENDING
    redirect_url: str | None = None
    decline_code: str | None = None
    is_late: bool = False
    past_due_subscription_ids: list[str] = field(default_factory=list)
    scripted_responses: dict[str, list[PaymentStatus | Exception]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    commands: list[Any] = field(default_factory=list)
    applied_event_ids: list[str] = field(default_factory=list)
    charge_gate: asyncio.Event | None = None

    def _next_response(self, name: str, command: object) -> PaymentStatus:
        self.calls.append(name)
        self.commands.append(command)
        script = self.scripted_responses.get(name)
        response = (script.pop(0) if len(script) > 1 else script[0]) if script else gateway_unavailable_error()
        if isinstance(response, Exception):
            raise response
        return response

    def _apply_status(self, fact: PaymentStatus, *, is_abandoned: bool = False) -> PaymentProgress:
        before, self.status = self.status, apply_gateway_status(self.status, fact)
        if self.status is S.SUCCEEDED and before is not S.SUCCEEDED:
            self.is_late = before in UNPAID_FINAL_STATUSES or is_abandoned
        if self.status is not S.PENDING:
            self.redirect_url = None
        money = self.status is S.SUCCEEDED and before is not S.SUCCEEDED
        return PaymentProgress(
            outcome=PaymentOutcome(
                payment_id="pay",
                status=self.status,
                redirect_url=self.redirect_url,
                decline_code=self.decline_code if self.status is S.FAILED else None,
            ),
            past_due_subscription_ids=self.past_due_subscription_ids if money else [],
            received_after_close=self.is_late,
            has_unwanted_authorization=fact is S.AUTHORIZED and self.status in UNPAID_FINAL_STATUSES,
        )

    @activity.defn(name="payments.charge")
    async def charge(self, command: ChargePayment) -> PaymentProgress:
        if self.charge_gate is not None:
            await self.charge_gate.wait()
        return self._apply_status(self._next_response("charge", command))

    @activity.defn(name="payments.poll")
    async def poll(self, command: PollPayment) -> PaymentProgress:
        return self._apply_status(self._next_response("poll", command), is_abandoned=command.requester.abandons_payment)

    @activity.defn(name="payments.apply_gateway_event")
    async def apply_gateway_event(self, command: ApplyGatewayEvent) -> PaymentProgress:
        self.applied_event_ids.append(command.event.event_id)
        return self._apply_status(command.event.status, is_abandoned=command.requester.abandons_payment)

    @activity.defn(name="payments.capture")
    async def capture(self, command: CapturePayment) -> PaymentProgress:
        return self._apply_status(self._next_response("capture", command))

    @activity.defn(name="payments.cancel")
    async def cancel(self, command: CancelPayment) -> PaymentProgress:
        response = self._next_response("cancel", command)
        return self._apply_status(command.final_status if response is S.CANCELLED else response, is_abandoned=True)

    @activity.defn(name="payments.mark_unknown")
    async def mark_unknown(self, command: ChargePayment) -> PaymentProgress:
        self.calls.append("mark_unknown")
        return self._apply_status(S.UNKNOWN)


def gateway_unavailable_error() -> Exception:
    return ApplicationError("the gateway is silent", type="Unavailable", non_retryable=True)


def gateway_event(number: int, status: PaymentStatus) -> GatewayEvent:
    return GatewayEvent(event_id=f"evt_{number}", gateway="stripe", gateway_reference="pi_1", status=status, amount=USD)


@workflow.defn(name="Waiting", sandboxed=False)
class ParentWorkflow:
    """Starts a payment as the subscription does, and collects the signalled statuses."""

    def __init__(self) -> None:
        self.statuses: list[PaymentOutcome] = []

    @workflow.run
    async def run(self, pay: PaymentInput) -> PaymentOutcome:
        outcome: PaymentOutcome = await workflow.execute_child_workflow(
            names.PAYMENT, pay, id=names.payment_workflow_id(pay.payment_id), result_type=PaymentOutcome
        )
        return outcome

    @workflow.signal
    async def payment_status_changed(self, outcome: PaymentOutcome) -> None:
        self.statuses.append(outcome)

    @workflow.query
    def received_statuses(self) -> list[str]:
        return [outcome.status.value for outcome in self.statuses]


@workflow.defn(name="Debtor", sandboxed=False)
class PastDueSubscription:
    @workflow.init
    def __init__(self) -> None:
        self._signal: FundsArrived | None = None

    @workflow.run
    async def run(self) -> FundsArrived:
        await workflow.wait_condition(lambda: self._signal is not None)
        assert self._signal is not None
        return self._signal

    @workflow.signal
    async def funds_arrived(self, fact: FundsArrived) -> None:
        self._signal = fact


@dataclass
class PaymentWorkflowFixture:
    temporal: TemporalFixture
    queue: str
    payments: FakePayments

    def payment_input(self, **changes: Any) -> PaymentInput:
        top_up = PaymentInput(
            payment_id=TemporalFixture.unique_id("pay"),
            organization_id="org_1",
            amount=USD,
            gateway="stripe",
            purpose=Purpose.TOP_UP,
            gateway_token="pm_card_visa",
        )
        return replace(top_up, **changes)

    def order_payment_input(self) -> PaymentInput:
        return self.payment_input(purpose=Purpose.ORDER, subscription_id="sub_1", manual_capture=True)

    async def start(self, pay: PaymentInput, *events: GatewayEvent) -> WorkflowHandle[Any, PaymentOutcome]:
        signal: dict[str, Any] = {"start_signal": "gateway_event", "start_signal_args": [events[0]]} if events else {}
        return await self.temporal.client.start_workflow(
            names.PAYMENT,
            pay,
            id=names.payment_workflow_id(pay.payment_id),
            task_queue=self.queue,
            result_type=PaymentOutcome,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            **signal,
        )

    async def start_as_child(
        self, pay: PaymentInput
    ) -> tuple[WorkflowHandle[Any, PaymentOutcome], WorkflowHandle[Any, Any]]:
        """Start the payment as a child workflow; return the handles of the parent and of the payment."""
        parent = await self.temporal.client.start_workflow(
            ParentWorkflow.run, pay, id=TemporalFixture.unique_id("waiting"), task_queue=self.queue
        )
        return parent, self.temporal.client.get_workflow_handle(names.payment_workflow_id(pay.payment_id))

    async def start_await_outcome(self, handle: WorkflowHandle[Any, Any]) -> WorkflowUpdateHandle[PaymentOutcome]:
        return await handle.start_update(
            "await_outcome", wait_for_stage=WorkflowUpdateStage.ACCEPTED, result_type=PaymentOutcome
        )

    async def wait_for_status(self, status: PaymentStatus) -> None:
        await wait_until(lambda: self.payments.status is status, description=f"the payment is {status}")

    async def wait_for_parent_signals(self, parent: WorkflowHandle[Any, Any], *statuses: PaymentStatus) -> None:
        async def statuses_received() -> bool:
            return bool(await parent.query("received_statuses") == [status.value for status in statuses])

        await wait_until(statuses_received, description=f"the parent received {statuses}")


@asynccontextmanager
async def run_payment_fixture(temporal: TemporalFixture, **script: Any) -> AsyncIterator[PaymentWorkflowFixture]:
    payments, queue = FakePayments(**script), TemporalFixture.unique_id("payments")
    async with build_worker(temporal, queue, payments, workflows=[Payment, ParentWorkflow, PastDueSubscription]):
        yield PaymentWorkflowFixture(temporal, queue, payments)
