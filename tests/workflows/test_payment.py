"""The payment workflow on the time-skipping server, with scripted activities under the real names."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from temporalio.client import (
    WorkflowFailureError,
    WorkflowUpdateFailedError,
)
from temporalio.exceptions import ApplicationError

from tests.support.fake_payments import MINUTE, PastDueSubscription, S, gateway_event, run_payment_fixture
from tests.support.temporal import TemporalFixture
from tests.support.wait import wait_until
from workflows import names
from workflows.errors import non_retryable_error
from workflows.ports.subscription import FundsArrived
from workflows.rules.dunning import FundsKind
from workflows.rules.errors import ErrorCode
from workflows.rules.payment import PaymentStatus


async def test_a_top_up_returns_its_outcome_and_signals_every_past_due_subscription(temporal: TemporalFixture) -> None:
    debtors = [TemporalFixture.unique_id("sub") for _ in range(2)]
    async with run_payment_fixture(
        temporal,
        scripted_responses={"charge": [S.SUCCEEDED]},
        past_due_subscription_ids=[*debtors, "sub_ended_long_ago"],
    ) as fixture:
        handles = [
            await temporal.client.start_workflow(
                PastDueSubscription.run, id=names.subscription_workflow_id(debtor), task_queue=fixture.queue
            )
            for debtor in debtors
        ]
        pay = fixture.payment_input()
        handle = await fixture.start(pay)
        assert (await (await fixture.start_await_outcome(handle)).result()).status is S.SUCCEEDED
        assert (await handle.result()).status is S.SUCCEEDED
        assert [await debtor.result() for debtor in handles] == [
            FundsArrived(source=pay.payment_id, kind=FundsKind.CREDIT)
        ] * 2


async def test_a_declined_top_up_fails_with_its_decline_code_and_completes(temporal: TemporalFixture) -> None:
    async with run_payment_fixture(
        temporal, scripted_responses={"charge": [S.FAILED]}, decline_code="lost_card", charge_gate=asyncio.Event()
    ) as fixture:
        handle = await fixture.start(fixture.payment_input())
        update = await fixture.start_await_outcome(handle)
        assert fixture.payments.charge_gate is not None
        fixture.payments.charge_gate.set()
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await update.result()
        cause = refused.value.cause
        assert isinstance(cause, ApplicationError)
        assert cause.type == ErrorCode.PAYMENT_DECLINED
        assert cause.details[0]["decline_code"] == "lost_card"
        assert (await handle.result()).status is S.FAILED


@pytest.mark.scenario("B22")
async def test_a_lost_response_is_unknown_and_is_polled_without_another_charge(temporal: TemporalFixture) -> None:
    async with run_payment_fixture(temporal) as fixture:
        handle = await fixture.start(fixture.payment_input())
        assert (await (await fixture.start_await_outcome(handle)).result()).status is S.UNKNOWN
        assert fixture.payments.calls == ["charge", "mark_unknown"]
        for step, polls in ((MINUTE, 1), (4 * MINUTE, 2), (10 * MINUTE, 3), (45 * MINUTE, 4), (24 * 60 * MINUTE, 5)):
            await temporal.fast_forward(handle, step + timedelta(seconds=1))
            await wait_until(lambda polls=polls: fixture.payments.calls.count("poll") == polls)  # type: ignore[misc]  # bound now
        assert fixture.payments.calls.count("charge") == 1
        fixture.payments.scripted_responses["poll"] = [S.SUCCEEDED]
        await temporal.fast_forward(handle, timedelta(days=1))
        assert (await handle.result()).status is S.SUCCEEDED


@pytest.mark.scenario("B22", "B20")
async def test_a_webhook_resolves_what_is_unknown(temporal: TemporalFixture) -> None:
    async with run_payment_fixture(temporal) as fixture:
        handle = await fixture.start(fixture.payment_input())
        await fixture.wait_for_status(S.UNKNOWN)
        await handle.signal("gateway_event", gateway_event(1, S.SUCCEEDED))
        assert (await handle.result()).status is S.SUCCEEDED


@pytest.mark.scenario("B20")
async def test_a_webhook_that_arrives_before_the_gateways_response_completes_the_payment(
    temporal: TemporalFixture,
) -> None:
    async with run_payment_fixture(
        temporal, charge_gate=asyncio.Event(), scripted_responses={"charge": [S.SUCCEEDED]}
    ) as fixture:
        handle = await fixture.start(fixture.payment_input())
        await handle.signal("gateway_event", gateway_event(1, S.SUCCEEDED))
        assert (await handle.result()).status is S.SUCCEEDED
        assert fixture.payments.calls == []
        assert fixture.payments.charge_gate is not None
        fixture.payments.charge_gate.set()


@pytest.mark.scenario("B19", "B21")
@pytest.mark.parametrize("order", [(S.SUCCEEDED, S.SUCCEEDED, S.FAILED), (S.FAILED, S.SUCCEEDED, S.FAILED)])
async def test_events_in_any_order_and_number_give_one_result(
    temporal: TemporalFixture, order: tuple[PaymentStatus, ...]
) -> None:
    async with run_payment_fixture(temporal) as fixture:
        pay = fixture.payment_input()
        for number, status in enumerate(order):
            handle = await fixture.start(pay, gateway_event(number, status))
            await handle.result()
        assert fixture.payments.status is S.SUCCEEDED
        assert fixture.payments.applied_event_ids == ["evt_0", "evt_1", "evt_2"]
        assert fixture.payments.calls == [], "a payment that is only resumed is not charged"


@pytest.mark.scenario("B24")
async def test_a_customer_authenticates_in_time(temporal: TemporalFixture) -> None:
    async with run_payment_fixture(
        temporal, scripted_responses={"charge": [S.PENDING]}, redirect_url="https://bank"
    ) as fixture:
        handle = await fixture.start(fixture.payment_input())
        first = await (await fixture.start_await_outcome(handle)).result()
        assert (first.status, first.redirect_url) == (S.PENDING, "https://bank")
        replayed = await (await fixture.start_await_outcome(handle)).result()
        assert replayed == first
        assert fixture.payments.calls == ["charge"]
        await handle.signal("gateway_event", gateway_event(1, S.SUCCEEDED))
        assert (await handle.result()).status is S.SUCCEEDED


async def test_a_payment_expires_when_the_customer_does_not_return(temporal: TemporalFixture) -> None:
    scripted_responses = {"charge": [S.PENDING], "poll": [S.PENDING], "cancel": [S.CANCELLED]}
    async with run_payment_fixture(
        temporal, scripted_responses=scripted_responses, redirect_url="https://bank"
    ) as fixture:
        handle = await fixture.start(fixture.payment_input())
        await (await fixture.start_await_outcome(handle)).result()
        await temporal.fast_forward(handle, timedelta(hours=23))
        assert fixture.payments.status is S.PENDING
        await temporal.fast_forward(handle, timedelta(hours=2))
        assert (await handle.result()).status is S.EXPIRED


async def test_an_authorization_waits_and_is_captured(temporal: TemporalFixture) -> None:
    async with run_payment_fixture(
        temporal, scripted_responses={"charge": [S.AUTHORIZED], "capture": [S.SUCCEEDED]}
    ) as fixture:
        parent, payment = await fixture.start_as_child(fixture.order_payment_input())
        await fixture.wait_for_parent_signals(parent, S.AUTHORIZED)
        await payment.signal("capture")
        assert (await parent.result()).status is S.SUCCEEDED
        assert fixture.payments.calls == ["charge", "capture"]
        assert await parent.query("received_statuses") == ["authorized", "succeeded"]


@pytest.mark.scenario("B18")
async def test_an_authorization_is_released(temporal: TemporalFixture) -> None:
    async with run_payment_fixture(
        temporal, scripted_responses={"charge": [S.AUTHORIZED], "cancel": [S.CANCELLED]}
    ) as fixture:
        parent, payment = await fixture.start_as_child(fixture.order_payment_input())
        await fixture.wait_for_parent_signals(parent, S.AUTHORIZED)
        await payment.signal("cancel_authorization")
        await payment.signal("cancel_authorization")
        await payment.signal("capture")
        assert (await parent.result()).status is S.CANCELLED
        assert fixture.payments.calls == ["charge", "cancel"]


@pytest.mark.scenario("B22")
async def test_a_capture_whose_answer_is_lost_is_followed_and_not_taken_for_a_failure(
    temporal: TemporalFixture,
) -> None:
    async with run_payment_fixture(temporal, scripted_responses={"charge": [S.AUTHORIZED]}) as fixture:
        parent, payment = await fixture.start_as_child(fixture.order_payment_input())
        await fixture.wait_for_parent_signals(parent, S.AUTHORIZED)
        await payment.signal("capture")
        await fixture.wait_for_parent_signals(parent, S.AUTHORIZED, S.UNKNOWN)
        fixture.payments.scripted_responses["poll"] = [S.AUTHORIZED]
        fixture.payments.scripted_responses["capture"] = [S.SUCCEEDED]
        await temporal.fast_forward(payment, MINUTE + timedelta(seconds=1))
        assert (await parent.result()).status is S.SUCCEEDED
        assert fixture.payments.calls == ["charge", "capture", "mark_unknown", "poll", "capture"]


@pytest.mark.scenario("B27")
async def test_money_that_arrives_before_the_release_is_credited_to_the_wallet(temporal: TemporalFixture) -> None:
    async with run_payment_fixture(
        temporal, scripted_responses={"charge": [S.AUTHORIZED], "cancel": [S.SUCCEEDED]}
    ) as fixture:
        parent, payment = await fixture.start_as_child(fixture.order_payment_input())
        await fixture.wait_for_parent_signals(parent, S.AUTHORIZED)
        await payment.signal("cancel_authorization")
        assert (await parent.result()).status is S.CANCELLED, "the money is credited to the wallet"
        assert fixture.payments.is_late


@pytest.mark.scenario("B27")
async def test_money_after_the_close_resumes_the_payment_without_a_charge(temporal: TemporalFixture) -> None:
    debtor = TemporalFixture.unique_id("sub")
    async with run_payment_fixture(
        temporal, scripted_responses={"charge": [S.FAILED]}, past_due_subscription_ids=[debtor]
    ) as fixture:
        pay = fixture.order_payment_input()
        parent, _ = await fixture.start_as_child(pay)
        assert (await parent.result()).status is S.FAILED
        subscription = await temporal.client.start_workflow(
            PastDueSubscription.run, id=names.subscription_workflow_id(debtor), task_queue=fixture.queue
        )
        resumed = await fixture.start(pay, gateway_event(1, S.SUCCEEDED))
        await resumed.result()
        assert await subscription.result() == FundsArrived(source=pay.payment_id, kind=FundsKind.CREDIT)
        assert fixture.payments.calls == ["charge"]


async def test_an_authorization_after_the_close_is_cancelled(temporal: TemporalFixture) -> None:
    async with run_payment_fixture(
        temporal, status=S.CANCELLED, scripted_responses={"cancel": [S.CANCELLED]}
    ) as fixture:
        resumed = await fixture.start(fixture.order_payment_input(), gateway_event(1, S.AUTHORIZED))
        assert (await resumed.result()).status is S.CANCELLED
        assert fixture.payments.calls == ["cancel"]


async def test_a_rejected_payment_is_an_outcome_for_its_parent_and_an_error_for_a_client(
    temporal: TemporalFixture,
) -> None:
    error = non_retryable_error(ErrorCode.NOT_FOUND, "There is no such payment method.")
    async with run_payment_fixture(temporal, scripted_responses={"charge": [error]}) as fixture:
        parent, _ = await fixture.start_as_child(fixture.order_payment_input())
        outcome = await parent.result()
        assert (outcome.status, outcome.decline_code) == (S.FAILED, "not_found")
        alone = await fixture.start(fixture.payment_input())
        update = await fixture.start_await_outcome(alone)
        with pytest.raises(WorkflowUpdateFailedError):
            await update.result()
        with pytest.raises(WorkflowFailureError) as failed:
            await alone.result()
        assert isinstance(failed.value.cause, ApplicationError)
        assert failed.value.cause.type == ErrorCode.NOT_FOUND


async def test_money_is_dated_by_the_subscriptions_clock(temporal: TemporalFixture) -> None:
    ahead = datetime(2099, 1, 1, tzinfo=UTC)
    async with run_payment_fixture(temporal, scripted_responses={"charge": [S.SUCCEEDED]}) as fixture:
        await (await fixture.start(fixture.payment_input(business_time=ahead))).result()
        await (await fixture.start(fixture.payment_input(business_time=ahead - timedelta(days=40_000)))).result()
    first, second = (command.now for command in fixture.payments.commands)
    assert first == ahead
    assert second > datetime(2025, 1, 1, tzinfo=UTC), "the time is never before the workflow's clock"
