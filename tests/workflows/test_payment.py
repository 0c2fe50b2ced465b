"""The payment's workflow on the time-skipping server; its activities are a script under the real names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from temporalio import activity, workflow
from temporalio.client import (
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowUpdateFailedError,
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
from workflows.payment_method import PaymentMethodRemoval, PaymentMethodSetup
from workflows.ports.payments import (
    AddPaymentMethod,
    Attach,
    Attached,
    Capture,
    Charge,
    Detach,
    GatewayEvent,
    GiveBack,
    Hear,
    Inquire,
    Pay,
    PaymentMethodAdded,
    PaymentMethods,
    PaymentOutcome,
    Payments,
    Progress,
    Purpose,
    RefundOrder,
    RefundOutcome,
    Refunds,
    RefundTo,
    RemovePaymentMethod,
    Reserve,
    Withdraw,
)
from workflows.ports.subscription import FundsArrived
from workflows.refund import Refund
from workflows.refusals import refuse
from workflows.rules.errors import Refusal
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
        answer = (script.pop(0) if len(script) > 1 else script[0]) if script else _silent()
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


def _silent() -> Exception:
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


async def test_a_top_up_answers_and_tells_every_debtor(temporal: Temporal) -> None:
    debtors = [Temporal.unique("sub") for _ in range(2)]
    async with stage(temporal, answers={"charge": [S.SUCCEEDED]}, indebted=[*debtors, "sub_ended_long_ago"]) as on:
        handles = [
            await temporal.client.start_workflow(
                Debtor.run, id=names.subscription_workflow(debtor), task_queue=on.queue
            )
            for debtor in debtors
        ]
        pay = on.pay()
        handle = await on.start(pay)
        assert (await (await on.answer(handle)).result()).status is S.SUCCEEDED
        assert (await handle.result()).status is S.SUCCEEDED
        assert [await debtor.result() for debtor in handles] == [pay.payment_id] * 2


async def test_a_declined_top_up_is_refused_with_its_code_and_ends_in_order(temporal: Temporal) -> None:
    async with stage(temporal, answers={"charge": [S.FAILED]}, decline_code="lost_card", hang=asyncio.Event()) as on:
        handle = await on.start(on.pay())
        answer = await on.answer(handle)
        assert on.books.hang is not None
        on.books.hang.set()
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await answer.result()
        cause = refused.value.cause
        assert isinstance(cause, ApplicationError)
        assert cause.type == Refusal.PAYMENT_DECLINED
        assert cause.details[0]["decline_code"] == "lost_card"
        assert (await handle.result()).status is S.FAILED


@pytest.mark.scenario("B22")
async def test_silence_is_unknown_and_nothing_new_is_charged_until_it_is_resolved(temporal: Temporal) -> None:
    async with stage(temporal) as on:
        handle = await on.start(on.pay())
        assert (await (await on.answer(handle)).result()).status is S.UNKNOWN
        assert on.books.asked == ["charge", "lose_sight"]
        for step, polls in ((MINUTE, 1), (4 * MINUTE, 2), (10 * MINUTE, 3), (45 * MINUTE, 4), (24 * 60 * MINUTE, 5)):
            await temporal.fast_forward(handle, step + timedelta(seconds=1))
            await eventually(lambda polls=polls: on.books.asked.count("inquire") == polls)  # type: ignore[misc]  # bound now
        assert on.books.asked.count("charge") == 1
        on.books.answers["inquire"] = [S.SUCCEEDED]
        await temporal.fast_forward(handle, timedelta(days=1))
        assert (await handle.result()).status is S.SUCCEEDED


@pytest.mark.scenario("B22", "B20")
async def test_a_webhook_resolves_what_is_unknown(temporal: Temporal) -> None:
    async with stage(temporal) as on:
        handle = await on.start(on.pay())
        await on.becomes(S.UNKNOWN)
        await handle.signal("gateway_event", event(1, S.SUCCEEDED))
        assert (await handle.result()).status is S.SUCCEEDED


@pytest.mark.scenario("B20")
async def test_a_webhook_that_is_faster_than_the_gateways_answer_settles(temporal: Temporal) -> None:
    async with stage(temporal, hang=asyncio.Event(), answers={"charge": [S.SUCCEEDED]}) as on:
        handle = await on.start(on.pay())
        await handle.signal("gateway_event", event(1, S.SUCCEEDED))
        assert (await handle.result()).status is S.SUCCEEDED
        assert on.books.asked == []
        assert on.books.hang is not None
        on.books.hang.set()


@pytest.mark.scenario("B19", "B21")
@pytest.mark.parametrize("order", [(S.SUCCEEDED, S.SUCCEEDED, S.FAILED), (S.FAILED, S.SUCCEEDED, S.FAILED)])
async def test_facts_in_any_order_and_number_give_one_result(
    temporal: Temporal, order: tuple[PaymentStatus, ...]
) -> None:
    async with stage(temporal) as on:
        pay = on.pay()
        for number, status in enumerate(order):
            handle = await on.start(pay, event(number, status))
            await handle.result()
        assert on.books.status is S.SUCCEEDED
        assert on.books.heard == ["evt_0", "evt_1", "evt_2"]
        assert on.books.asked == [], "a payment that is only resumed is not charged"


@pytest.mark.scenario("B24")
async def test_a_customer_authenticates_in_time(temporal: Temporal) -> None:
    async with stage(temporal, answers={"charge": [S.PENDING]}, redirect_url="https://bank") as on:
        handle = await on.start(on.pay())
        first = await (await on.answer(handle)).result()
        assert (first.status, first.redirect_url) == (S.PENDING, "https://bank")
        again = await (await on.answer(handle)).result()
        assert again == first
        assert on.books.asked == ["charge"]
        await handle.signal("gateway_event", event(1, S.SUCCEEDED))
        assert (await handle.result()).status is S.SUCCEEDED


async def test_a_customer_who_does_not_come_back_lets_it_expire(temporal: Temporal) -> None:
    answers = {"charge": [S.PENDING], "inquire": [S.PENDING], "withdraw": [S.CANCELLED]}
    async with stage(temporal, answers=answers, redirect_url="https://bank") as on:
        handle = await on.start(on.pay())
        await (await on.answer(handle)).result()
        await temporal.fast_forward(handle, timedelta(hours=23))
        assert on.books.status is S.PENDING
        await temporal.fast_forward(handle, timedelta(hours=2))
        assert (await handle.result()).status is S.EXPIRED


async def test_an_authorisation_waits_and_is_captured(temporal: Temporal) -> None:
    async with stage(temporal, answers={"charge": [S.AUTHORIZED], "capture": [S.SUCCEEDED]}) as on:
        waiting, payment = await on.wait_for(on.order())
        await on.told(waiting, S.AUTHORIZED)
        await payment.signal("capture")
        assert (await waiting.result()).status is S.SUCCEEDED
        assert on.books.asked == ["charge", "capture"]
        assert await waiting.query("seen") == ["authorized", "succeeded"]


@pytest.mark.scenario("B18")
async def test_an_authorisation_is_released(temporal: Temporal) -> None:
    async with stage(temporal, answers={"charge": [S.AUTHORIZED], "withdraw": [S.CANCELLED]}) as on:
        waiting, payment = await on.wait_for(on.order())
        await on.told(waiting, S.AUTHORIZED)
        await payment.signal("release")
        await payment.signal("release")
        await payment.signal("capture")
        assert (await waiting.result()).status is S.CANCELLED
        assert on.books.asked == ["charge", "withdraw"]


@pytest.mark.scenario("B22")
async def test_a_capture_whose_answer_is_lost_is_followed_and_not_taken_for_a_failure(temporal: Temporal) -> None:
    async with stage(temporal, answers={"charge": [S.AUTHORIZED]}) as on:
        waiting, payment = await on.wait_for(on.order())
        await on.told(waiting, S.AUTHORIZED)
        await payment.signal("capture")
        await on.told(waiting, S.AUTHORIZED, S.UNKNOWN)
        on.books.answers["inquire"] = [S.AUTHORIZED]
        on.books.answers["capture"] = [S.SUCCEEDED]
        await temporal.fast_forward(payment, MINUTE + timedelta(seconds=1))
        assert (await waiting.result()).status is S.SUCCEEDED
        assert on.books.asked == ["charge", "capture", "lose_sight", "inquire", "capture"]


@pytest.mark.scenario("B27")
async def test_money_that_was_faster_than_the_release_is_not_handed_to_the_order(temporal: Temporal) -> None:
    async with stage(temporal, answers={"charge": [S.AUTHORIZED], "withdraw": [S.SUCCEEDED]}) as on:
        waiting, payment = await on.wait_for(on.order())
        await on.told(waiting, S.AUTHORIZED)
        await payment.signal("release")
        assert (await waiting.result()).status is S.CANCELLED, "its money is in the wallet"
        assert on.books.late


@pytest.mark.scenario("B27")
async def test_money_after_the_end_resumes_the_payment_without_charging(temporal: Temporal) -> None:
    debtor = Temporal.unique("sub")
    async with stage(temporal, answers={"charge": [S.FAILED]}, indebted=[debtor]) as on:
        pay = on.order()
        waiting, _ = await on.wait_for(pay)
        assert (await waiting.result()).status is S.FAILED
        hearing = await temporal.client.start_workflow(
            Debtor.run, id=names.subscription_workflow(debtor), task_queue=on.queue
        )
        resumed = await on.start(pay, event(1, S.SUCCEEDED))
        await resumed.result()
        assert await hearing.result() == pay.payment_id
        assert on.books.asked == ["charge"]


async def test_an_authorisation_that_comes_after_the_end_is_withdrawn(temporal: Temporal) -> None:
    async with stage(temporal, status=S.CANCELLED, answers={"withdraw": [S.CANCELLED]}) as on:
        resumed = await on.start(on.order(), event(1, S.AUTHORIZED))
        assert (await resumed.result()).status is S.CANCELLED
        assert on.books.asked == ["withdraw"]


async def test_a_refused_payment_is_an_outcome_for_whoever_waits(temporal: Temporal) -> None:
    refusal = refuse(Refusal.NOT_FOUND, "There is no such payment method.")
    async with stage(temporal, answers={"charge": [refusal]}) as on:
        waiting, _ = await on.wait_for(on.order())
        outcome = await waiting.result()
        assert (outcome.status, outcome.decline_code) == (S.FAILED, "not_found")
        alone = await on.start(on.pay())
        answer = await on.answer(alone)
        with pytest.raises(WorkflowUpdateFailedError):
            await answer.result()
        with pytest.raises(WorkflowFailureError) as failed:
            await alone.result()
        assert isinstance(failed.value.cause, ApplicationError)
        assert failed.value.cause.type == Refusal.NOT_FOUND


async def test_money_is_dated_by_the_subscriptions_clock(temporal: Temporal) -> None:
    ahead = datetime(2099, 1, 1, tzinfo=UTC)
    async with stage(temporal, answers={"charge": [S.SUCCEEDED]}) as on:
        await (await on.start(on.pay(business_time=ahead))).result()
        await (await on.start(on.pay(business_time=ahead - timedelta(days=40_000)))).result()
    first, second = (command.now for command in on.books.commands)
    assert first == ahead
    assert second > datetime(2025, 1, 1, tzinfo=UTC), "never before its own clock"


@dataclass
class Counter(Refunds, PaymentMethods):
    answers: list[str] = field(default_factory=list)
    asked: int = 0
    indebted: list[str] = field(default_factory=list)
    refusal: Callable[[], Exception] | None = None

    @activity.defn(name="refunds.reserve")
    async def reserve(self, command: Reserve) -> RefundOutcome:
        if self.refusal is not None:
            raise self.refusal()
        return RefundOutcome(refund_id=command.order.refund_id, status="pending", amount=USD)

    @activity.defn(name="refunds.give_back")
    async def give_back(self, command: GiveBack) -> RefundOutcome:
        self.asked += 1
        status = self.answers.pop(0)
        if status == "silent":
            raise _silent()
        return RefundOutcome(refund_id=command.refund_id, status=status, amount=USD)

    @activity.defn(name="payment_methods.attach")
    async def attach(self, command: Attach) -> Attached:
        if self.refusal is not None:
            raise self.refusal()
        added = PaymentMethodAdded(
            payment_method_id=command.order.payment_method_id,
            brand="visa",
            last4="4242",
            expires="12/2030",
            default=True,
        )
        return Attached(added=added, indebted=self.indebted)

    @activity.defn(name="payment_methods.detach")
    async def detach(self, command: Detach) -> None:
        if self.refusal is not None:
            raise self.refusal()


@asynccontextmanager
async def counter(temporal: Temporal, **script: Any) -> AsyncIterator[tuple[Counter, str]]:
    at, queue = Counter(**script), Temporal.unique("counter")
    async with Worker(
        temporal.client,
        task_queue=queue,
        workflows=[Refund, PaymentMethodSetup, PaymentMethodRemoval, Debtor],
        activities=[at.reserve, at.give_back, at.attach, at.detach],
    ):
        yield at, queue


REFUND = RefundOrder(
    refund_id="re_1",
    payment_id="pay_1",
    organization_id="org_1",
    amount=None,
    to=RefundTo.SOURCE,
    reason="goodwill",
    actor="usr_1",
)


@pytest.mark.scenario("B35")
async def test_a_refund_is_followed_through_silence_until_it_is_certain(temporal: Temporal) -> None:
    async with counter(temporal, answers=["silent", "pending", "succeeded"]) as (at, queue):
        handle = await temporal.client.start_workflow(
            Refund.run, REFUND, id=Temporal.unique("refund"), task_queue=queue
        )
        await eventually(lambda: at.asked == 1)
        await temporal.fast_forward(handle, timedelta(minutes=6))
        assert (await handle.result()).status == "succeeded"
        assert at.asked == 3


@pytest.mark.scenario("B34")
async def test_a_refused_refund_fails_with_the_rules_code(temporal: Temporal) -> None:
    too_much = lambda: refuse(Refusal.REFUND_EXCEEDS_PAYMENT, "Too much.")  # noqa: E731 - one expression
    async with counter(temporal, refusal=too_much) as (at, queue):
        with pytest.raises(WorkflowFailureError) as failed:
            await temporal.client.execute_workflow(Refund.run, REFUND, id=Temporal.unique("refund"), task_queue=queue)
        assert isinstance(failed.value.cause, ApplicationError)
        assert failed.value.cause.type == Refusal.REFUND_EXCEEDS_PAYMENT
        assert at.asked == 0


@pytest.mark.scenario("B42")
async def test_a_new_card_lets_a_debt_try_it_at_once(temporal: Temporal) -> None:
    debtor = Temporal.unique("sub")
    async with counter(temporal, indebted=[debtor, "sub_gone"]) as (_, queue):
        hearing = await temporal.client.start_workflow(
            Debtor.run, id=names.subscription_workflow(debtor), task_queue=queue
        )
        order = AddPaymentMethod(
            payment_method_id="pm_1", organization_id="org_1", gateway="stripe", token="t", default=False, actor="u"
        )
        added = await temporal.client.execute_workflow(
            PaymentMethodSetup.run, order, id=Temporal.unique("method"), task_queue=queue
        )
        assert added.last4 == "4242"
        assert await hearing.result() == "pm_1"


@pytest.mark.scenario("B45")
async def test_a_card_in_use_is_not_removed(temporal: Temporal) -> None:
    in_use = lambda: refuse(Refusal.PAYMENT_METHOD_IN_USE, "In use.")  # noqa: E731 - one expression
    async with counter(temporal, refusal=in_use) as (_, queue):
        order = RemovePaymentMethod(payment_method_id="pm_1", organization_id="org_1", actor="u")
        with pytest.raises(WorkflowFailureError) as failed:
            await temporal.client.execute_workflow(
                PaymentMethodRemoval.run, order, id=Temporal.unique("removal"), task_queue=queue
            )
        assert isinstance(failed.value.cause, ApplicationError)
        assert failed.value.cause.type == Refusal.PAYMENT_METHOD_IN_USE
