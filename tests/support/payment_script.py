"""A payment's activities as a script under the real names, and whoever waits for it."""

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
from temporalio.worker import Worker

from tests.support.temporal import Temporal
from tests.support.wait import eventually
from workflows import names
from workflows.payment import Payment
from workflows.ports.payments import (
    Capture,
    Charge,
    GatewayEvent,
    Hear,
    Inquire,
    Pay,
    PaymentOutcome,
    Payments,
    Progress,
    Purpose,
    Withdraw,
)
from workflows.ports.subscription import FundsArrived
from workflows.rules.money import Money
from workflows.rules.payment import CLOSED, PaymentStatus, observe

S = PaymentStatus
USD = Money(amount_minor=1500, currency="USD")
MINUTE = timedelta(minutes=1)


@dataclass
class Books(Payments):
    """One payment's record. ``answers`` says what the gateway answers to each call; the default is to stay silent."""

    status: PaymentStatus = S.PENDING
    redirect_url: str | None = None
    decline_code: str | None = None
    late: bool = False
    indebted: list[str] = field(default_factory=list)
    answers: dict[str, list[PaymentStatus | Exception]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    commands: list[Any] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)
    hang: asyncio.Event | None = None

    def _ask(self, name: str, command: object) -> PaymentStatus:
        self.asked.append(name)
        self.commands.append(command)
        script = self.answers.get(name)
        answer = (script.pop(0) if len(script) > 1 else script[0]) if script else silent()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _record(self, fact: PaymentStatus, *, abandoned: bool = False) -> Progress:
        before, self.status = self.status, observe(self.status, fact)
        if self.status is S.SUCCEEDED and before is not S.SUCCEEDED:
            self.late = before in CLOSED or abandoned
        if self.status is not S.PENDING:
            self.redirect_url = None
        money = self.status is S.SUCCEEDED and before is not S.SUCCEEDED
        return Progress(
            outcome=PaymentOutcome(
                payment_id="pay",
                status=self.status,
                redirect_url=self.redirect_url,
                decline_code=self.decline_code if self.status is S.FAILED else None,
            ),
            indebted=self.indebted if money else [],
            late=self.late,
            stray=fact is S.AUTHORIZED and self.status in CLOSED,
        )

    @activity.defn(name="payments.charge")
    async def charge(self, command: Charge) -> Progress:
        if self.hang is not None:
            await self.hang.wait()
        return self._record(self._ask("charge", command))

    @activity.defn(name="payments.inquire")
    async def inquire(self, command: Inquire) -> Progress:
        return self._record(self._ask("inquire", command), abandoned=command.abandoned)

    @activity.defn(name="payments.hear")
    async def hear(self, command: Hear) -> Progress:
        self.heard.append(command.event.event_id)
        return self._record(command.event.status, abandoned=command.abandoned)

    @activity.defn(name="payments.capture")
    async def capture(self, command: Capture) -> Progress:
        return self._record(self._ask("capture", command))

    @activity.defn(name="payments.withdraw")
    async def withdraw(self, command: Withdraw) -> Progress:
        answer = self._ask("withdraw", command)
        return self._record(command.ends_as if answer is S.CANCELLED else answer, abandoned=True)

    @activity.defn(name="payments.lose_sight")
    async def lose_sight(self, command: Charge) -> Progress:
        self.asked.append("lose_sight")
        return self._record(S.UNKNOWN)


def silent() -> Exception:
    return ApplicationError("the gateway is silent", type="Unavailable", non_retryable=True)


def event(number: int, status: PaymentStatus) -> GatewayEvent:
    return GatewayEvent(event_id=f"evt_{number}", gateway="stripe", reference="pi_1", status=status, amount=USD)


@workflow.defn(name="Waiting", sandboxed=False)
class Waiting:
    """Starts a payment as the subscription does, and passes on what it is told."""

    def __init__(self) -> None:
        self.moved: list[PaymentOutcome] = []

    @workflow.run
    async def run(self, pay: Pay) -> PaymentOutcome:
        outcome: PaymentOutcome = await workflow.execute_child_workflow(
            names.PAYMENT, pay, id=names.payment_workflow(pay.payment_id), result_type=PaymentOutcome
        )
        return outcome

    @workflow.signal
    async def payment_moved(self, outcome: PaymentOutcome) -> None:
        self.moved.append(outcome)

    @workflow.query
    def seen(self) -> list[str]:
        return [outcome.status.value for outcome in self.moved]


@workflow.defn(name="Debtor", sandboxed=False)
class Debtor:
    @workflow.init
    def __init__(self) -> None:
        self._fact: FundsArrived | None = None

    @workflow.run
    async def run(self) -> str:
        await workflow.wait_condition(lambda: self._fact is not None)
        assert self._fact is not None
        return self._fact.source

    @workflow.signal
    async def funds_arrived(self, fact: FundsArrived) -> None:
        self._fact = fact


@dataclass
class Stage:
    temporal: Temporal
    queue: str
    books: Books

    def pay(self, **changes: Any) -> Pay:
        top_up = Pay(
            payment_id=Temporal.unique("pay"),
            organization_id="org_1",
            amount=USD,
            gateway="stripe",
            purpose=Purpose.TOP_UP,
            token="pm_card_visa",
        )
        return replace(top_up, **changes)

    def order(self) -> Pay:
        return self.pay(purpose=Purpose.ORDER, subscription_id="sub_1", manual_capture=True)

    async def start(self, pay: Pay, *events: GatewayEvent) -> WorkflowHandle[Any, PaymentOutcome]:
        more: dict[str, Any] = {"start_signal": "gateway_event", "start_signal_args": [events[0]]} if events else {}
        return await self.temporal.client.start_workflow(
            names.PAYMENT,
            pay,
            id=names.payment_workflow(pay.payment_id),
            task_queue=self.queue,
            result_type=PaymentOutcome,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            **more,
        )

    async def wait_for(self, pay: Pay) -> tuple[WorkflowHandle[Any, PaymentOutcome], WorkflowHandle[Any, Any]]:
        """Start the payment as somebody's child; returns whoever waits, and the payment."""
        waiting = await self.temporal.client.start_workflow(
            Waiting.run, pay, id=Temporal.unique("waiting"), task_queue=self.queue
        )
        return waiting, self.temporal.client.get_workflow_handle(names.payment_workflow(pay.payment_id))

    async def answer(self, handle: WorkflowHandle[Any, Any]) -> WorkflowUpdateHandle[PaymentOutcome]:
        return await handle.start_update(
            "answered", wait_for_stage=WorkflowUpdateStage.ACCEPTED, result_type=PaymentOutcome
        )

    async def becomes(self, status: PaymentStatus) -> None:
        await eventually(lambda: self.books.status is status, what=f"the payment is {status}")

    async def told(self, waiting: WorkflowHandle[Any, Any], *statuses: PaymentStatus) -> None:
        async def seen() -> bool:
            return bool(await waiting.query("seen") == [status.value for status in statuses])

        await eventually(seen, what=f"told {statuses}")


@asynccontextmanager
async def stage(temporal: Temporal, **script: Any) -> AsyncIterator[Stage]:
    books, queue = Books(**script), Temporal.unique("payments")
    async with Worker(
        temporal.client,
        task_queue=queue,
        workflows=[Payment, Waiting, Debtor],
        activities=[
            books.charge, books.inquire, books.hear, books.capture, books.withdraw, books.lose_sight,
        ],
    ):  # fmt: skip
        yield Stage(temporal, queue, books)
