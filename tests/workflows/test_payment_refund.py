"""Refunds and cards on file as workflows; their activities are a script under the real names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import (
    WorkflowFailureError,
)
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from tests.support.payment_script import USD, Debtor, silent
from tests.support.temporal import Temporal
from tests.support.wait import eventually
from workflows import names
from workflows.payment_method import PaymentMethodRemoval, PaymentMethodSetup
from workflows.ports.payments import (
    AddPaymentMethod,
    Attach,
    Attached,
    Detach,
    GiveBack,
    PaymentMethodAdded,
    PaymentMethods,
    RefundOrder,
    RefundOutcome,
    Refunds,
    RefundTo,
    RemovePaymentMethod,
    Reserve,
)
from workflows.refund import Refund
from workflows.refusals import refuse
from workflows.rules.errors import Refusal


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
            raise silent()
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
