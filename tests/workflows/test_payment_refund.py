"""Workflows of refunds and payment methods, with scripted activities under the real names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import (
    WithStartWorkflowOperation,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowUpdateFailedError,
)
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.exceptions import ApplicationError

from tests.support.fake_payments import USD, PastDueSubscription, gateway_unavailable_error
from tests.support.temporal import TemporalFixture
from tests.support.wait import wait_until
from tests.support.workers import build_worker
from workflows import names
from workflows.errors import non_retryable_error
from workflows.payment_methods import PaymentMethodDefault, PaymentMethodRemoval, PaymentMethodSetup
from workflows.ports.payments import (
    AddPaymentMethod,
    AttachOutcome,
    AttachPaymentMethod,
    DetachPaymentMethod,
    MakePaymentMethodDefault,
    PaymentMethodActivities,
    PaymentMethodAdded,
    RemovePaymentMethod,
    SetDefault,
)
from workflows.ports.refunds import (
    RecheckRefund,
    RefundActivities,
    RefundDestination,
    RefundInput,
    RefundOutcome,
    ReserveRefund,
    SendRefund,
)
from workflows.ports.subscription import FundsArrived
from workflows.refund import Refund
from workflows.rules.dunning import FundsKind
from workflows.rules.errors import ErrorCode


@dataclass
class FakeRefundsAndMethods(RefundActivities, PaymentMethodActivities):
    responses: list[str] = field(default_factory=list)
    sends: int = 0
    rechecks: int = 0
    recheck_responses: list[str] = field(default_factory=list)
    while_sending: Callable[[], Awaitable[None]] | None = None
    past_due_subscription_ids: list[str] = field(default_factory=list)
    make_error: Callable[[], Exception] | None = None

    @activity.defn(name="refunds.reserve")
    async def reserve(self, command: ReserveRefund) -> RefundOutcome:
        if self.make_error is not None:
            raise self.make_error()
        return RefundOutcome(refund_id=command.command.refund_id, status="pending", amount=USD)

    @activity.defn(name="refunds.send")
    async def send(self, command: SendRefund) -> RefundOutcome:
        self.sends += 1
        if self.while_sending is not None:
            await self.while_sending()
        return self._respond(command.refund_id, self.responses.pop(0))

    @activity.defn(name="refunds.recheck")
    async def recheck(self, command: RecheckRefund) -> RefundOutcome:
        self.rechecks += 1
        return self._respond(command.refund_id, self.recheck_responses.pop(0))

    def _respond(self, refund_id: str, status: str) -> RefundOutcome:
        if status == "silent":
            raise gateway_unavailable_error()
        # A refund to the source adds to the wallet when it fails.
        debtors = self.past_due_subscription_ids if status == "failed" else []
        return RefundOutcome(refund_id=refund_id, status=status, amount=USD, past_due_subscription_ids=debtors)

    @activity.defn(name="payment_methods.attach")
    async def attach(self, command: AttachPaymentMethod) -> AttachOutcome:
        if self.make_error is not None:
            raise self.make_error()
        added = PaymentMethodAdded(
            payment_method_id=command.command.payment_method_id,
            brand="visa",
            last4="4242",
            expires="12/2030",
            default=True,
        )
        return AttachOutcome(added=added, past_due_subscription_ids=self.past_due_subscription_ids)

    @activity.defn(name="payment_methods.set_default")
    async def set_default(self, command: SetDefault) -> list[str]:
        return self.past_due_subscription_ids

    @activity.defn(name="payment_methods.remove")
    async def remove(self, command: DetachPaymentMethod) -> list[str]:
        if self.make_error is not None:
            raise self.make_error()
        return self.past_due_subscription_ids

    @activity.defn(name="payment_methods.detach")
    async def detach(self, command: DetachPaymentMethod) -> None:
        return None


@asynccontextmanager
async def run_fakes(temporal: TemporalFixture, **script: Any) -> AsyncIterator[tuple[FakeRefundsAndMethods, str]]:
    fakes, queue = FakeRefundsAndMethods(**script), TemporalFixture.unique_id("counter")
    async with build_worker(
        temporal,
        queue,
        fakes,
        workflows=[Refund, PaymentMethodSetup, PaymentMethodDefault, PaymentMethodRemoval, PastDueSubscription],
    ):
        yield fakes, queue


REFUND = RefundInput(
    refund_id="re_1",
    payment_id="pay_1",
    organization_id="org_1",
    amount=None,
    destination=RefundDestination.SOURCE,
    reason="goodwill",
    actor="usr_1",
)


@pytest.mark.scenario("B35")
async def test_a_refund_is_polled_after_a_lost_response_until_it_is_final(temporal: TemporalFixture) -> None:
    async with run_fakes(temporal, responses=["silent", "pending", "succeeded"]) as (fakes, queue):
        handle = await temporal.client.start_workflow(
            Refund.run, REFUND, id=TemporalFixture.unique_id("refund"), task_queue=queue
        )
        await wait_until(lambda: fakes.sends == 1)
        await temporal.fast_forward(handle, timedelta(minutes=6))
        assert (await handle.result()).status == "succeeded"
        assert fakes.sends == 3


async def test_a_refund_that_the_gateway_calls_pending_is_answered_at_once(temporal: TemporalFixture) -> None:
    async with run_fakes(temporal, responses=["pending"]) as (fakes, queue):
        handle = await temporal.client.start_workflow(
            Refund.run, REFUND, id=TemporalFixture.unique_id("refund"), task_queue=queue
        )
        assert (await handle.execute_update(Refund.await_outcome)).status == "pending"
        assert (await handle.describe()).status is WorkflowExecutionStatus.RUNNING
        assert fakes.sends == 1
        await handle.terminate()


@pytest.mark.scenario("B35")
async def test_an_event_about_a_pending_refund_asks_the_gateway_at_once(temporal: TemporalFixture) -> None:
    async with run_fakes(temporal, responses=["pending", "succeeded"], recheck_responses=["succeeded"]) as (
        fakes,
        queue,
    ):
        handle = await temporal.client.start_workflow(
            Refund.run, REFUND, id=TemporalFixture.unique_id("refund"), task_queue=queue
        )
        assert (await handle.execute_update(Refund.await_outcome)).status == "pending"
        await handle.signal(Refund.gateway_event, "evt_1")
        assert (await handle.result()).status == "succeeded"
        assert (fakes.sends, fakes.rechecks) == (2, 1)


@pytest.mark.scenario("B35")
async def test_a_refund_that_its_bank_rejects_while_the_gateway_answers_that_it_was_sent_is_rechecked(
    temporal: TemporalFixture,
) -> None:
    """The response to the request is older than the event."""
    debtor = TemporalFixture.unique_id("sub")
    async with run_fakes(
        temporal, responses=["succeeded"], recheck_responses=["failed"], past_due_subscription_ids=[debtor]
    ) as (fakes, queue):
        subscription = await temporal.client.start_workflow(
            PastDueSubscription.run, id=names.subscription_workflow_id(debtor), task_queue=queue
        )
        workflow_id = TemporalFixture.unique_id("refund")
        handle = temporal.client.get_workflow_handle(workflow_id, result_type=RefundOutcome)
        fakes.while_sending = lambda: handle.signal(Refund.gateway_event, "evt_1")
        await temporal.client.start_workflow(Refund.run, REFUND, id=workflow_id, task_queue=queue)
        assert (await handle.result()).status == "failed"
        assert (fakes.sends, fakes.rechecks) == (1, 1)
        assert await subscription.result() == FundsArrived(source="re_1", kind=FundsKind.CREDIT)


@pytest.mark.scenario("B35")
async def test_an_event_is_looked_into_once_the_gateway_answers_again(temporal: TemporalFixture) -> None:
    async with run_fakes(temporal, responses=["succeeded"], recheck_responses=["silent", "silent", "failed"]) as (
        fakes,
        queue,
    ):
        workflow_id = TemporalFixture.unique_id("refund")
        handle = temporal.client.get_workflow_handle(workflow_id, result_type=RefundOutcome)
        fakes.while_sending = lambda: handle.signal(Refund.gateway_event, "evt_1")
        await temporal.client.start_workflow(Refund.run, REFUND, id=workflow_id, task_queue=queue)
        await wait_until(lambda: fakes.rechecks == 1)
        assert (await handle.execute_update(Refund.await_outcome)).status == "succeeded"
        await temporal.fast_forward(handle, timedelta(minutes=6))
        assert (await handle.result()).status == "failed"
        assert (fakes.sends, fakes.rechecks) == (1, 3)


async def test_a_rejected_refund_refuses_its_caller(temporal: TemporalFixture) -> None:
    too_much = lambda: non_retryable_error(ErrorCode.REFUND_EXCEEDS_PAYMENT, "Too much.")  # noqa: E731 - one expression
    async with run_fakes(temporal, make_error=too_much) as (_, queue):
        start: WithStartWorkflowOperation[Any, Any] = WithStartWorkflowOperation(
            Refund.run,
            REFUND,
            id=TemporalFixture.unique_id("refund"),
            task_queue=queue,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        )
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await temporal.client.execute_update_with_start_workflow(
                Refund.await_outcome, start_workflow_operation=start
            )
        assert isinstance(refused.value.cause, ApplicationError)
        assert refused.value.cause.type == ErrorCode.REFUND_EXCEEDS_PAYMENT


@pytest.mark.scenario("B34")
async def test_a_rejected_refund_fails_with_the_error_code_of_the_rule(temporal: TemporalFixture) -> None:
    too_much = lambda: non_retryable_error(ErrorCode.REFUND_EXCEEDS_PAYMENT, "Too much.")  # noqa: E731 - one expression
    async with run_fakes(temporal, make_error=too_much) as (fakes, queue):
        with pytest.raises(WorkflowFailureError) as failed:
            await temporal.client.execute_workflow(
                Refund.run, REFUND, id=TemporalFixture.unique_id("refund"), task_queue=queue
            )
        assert isinstance(failed.value.cause, ApplicationError)
        assert failed.value.cause.type == ErrorCode.REFUND_EXCEEDS_PAYMENT
        assert fakes.sends == 0


@pytest.mark.scenario("B42")
async def test_a_new_card_is_tried_at_once(temporal: TemporalFixture) -> None:
    debtor = TemporalFixture.unique_id("sub")
    async with run_fakes(temporal, past_due_subscription_ids=[debtor, "sub_gone"]) as (_, queue):
        subscription = await temporal.client.start_workflow(
            PastDueSubscription.run, id=names.subscription_workflow_id(debtor), task_queue=queue
        )
        order = AddPaymentMethod(
            payment_method_id="pm_1", organization_id="org_1", gateway="stripe", token="t", default=False, actor="u"
        )
        added = await temporal.client.execute_workflow(
            PaymentMethodSetup.run, order, id=TemporalFixture.unique_id("method"), task_queue=queue
        )
        assert added.last4 == "4242"
        assert await subscription.result() == FundsArrived(source="pm_1", kind=FundsKind.PAYMENT_METHOD)


async def test_another_default_card_is_tried_at_once(temporal: TemporalFixture) -> None:
    debtor = TemporalFixture.unique_id("sub")
    async with run_fakes(temporal, past_due_subscription_ids=[debtor, "sub_gone"]) as (_, queue):
        subscription = await temporal.client.start_workflow(
            PastDueSubscription.run, id=names.subscription_workflow_id(debtor), task_queue=queue
        )
        order = MakePaymentMethodDefault(
            default_change_id="default_1", payment_method_id="pm_2", organization_id="org_1", actor="u"
        )
        await temporal.client.execute_workflow(
            PaymentMethodDefault.run, order, id=TemporalFixture.unique_id("default"), task_queue=queue
        )
        assert await subscription.result() == FundsArrived(source="pm_2", kind=FundsKind.PAYMENT_METHOD)


async def test_the_backup_of_a_removed_default_card_is_tried_at_once(temporal: TemporalFixture) -> None:
    debtor = TemporalFixture.unique_id("sub")
    async with run_fakes(temporal, past_due_subscription_ids=[debtor, "sub_gone"]) as (_, queue):
        subscription = await temporal.client.start_workflow(
            PastDueSubscription.run, id=names.subscription_workflow_id(debtor), task_queue=queue
        )
        order = RemovePaymentMethod(payment_method_id="pm_1", organization_id="org_1", actor="u")
        await temporal.client.execute_workflow(
            PaymentMethodRemoval.run, order, id=TemporalFixture.unique_id("removal"), task_queue=queue
        )
        assert await subscription.result() == FundsArrived(source="pm_1", kind=FundsKind.PROMOTED_PAYMENT_METHOD)


@pytest.mark.scenario("B45")
async def test_a_card_in_use_is_not_removed(temporal: TemporalFixture) -> None:
    in_use = lambda: non_retryable_error(ErrorCode.PAYMENT_METHOD_IN_USE, "In use.")  # noqa: E731 - one expression
    async with run_fakes(temporal, make_error=in_use) as (_, queue):
        order = RemovePaymentMethod(payment_method_id="pm_1", organization_id="org_1", actor="u")
        with pytest.raises(WorkflowFailureError) as failed:
            await temporal.client.execute_workflow(
                PaymentMethodRemoval.run, order, id=TemporalFixture.unique_id("removal"), task_queue=queue
            )
        assert isinstance(failed.value.cause, ApplicationError)
        assert failed.value.cause.type == ErrorCode.PAYMENT_METHOD_IN_USE
