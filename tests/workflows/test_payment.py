"""The payment's workflow on the time-skipping server; its activities are a script under the real names."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from temporalio.client import (
    WorkflowFailureError,
    WorkflowUpdateFailedError,
)
from temporalio.exceptions import ApplicationError

from tests.support.payment_script import MINUTE, Debtor, S, event, stage
from tests.support.temporal import Temporal
from tests.support.wait import eventually
from workflows import names
from workflows.refusals import refuse
from workflows.rules.errors import Refusal
from workflows.rules.payment import PaymentStatus


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
