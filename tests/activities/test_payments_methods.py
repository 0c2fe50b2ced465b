"""Cards on file, on a real database and the card gateway's sandbox."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from temporalio.exceptions import ApplicationError

from activities.gateways.protocol import GatewayUnavailable
from tests.support.inserts import NOW, insert_organization, insert_subscription
from tests.support.payment_fixture import FIVE_MINUTES_LATER, PaymentFixture, run_activity
from tests.support.temporal import TemporalFixture
from workflows.ports.payments import (
    AddPaymentMethod,
    AttachPaymentMethod,
    ChargePayment,
    DetachPaymentMethod,
    RemovePaymentMethod,
)
from workflows.rules.errors import ErrorCode
from workflows.rules.payment import PaymentStatus

S = PaymentStatus


def _card(organization_id: str, token: str = "pm_card_visa", *, default: bool = False) -> AddPaymentMethod:
    return AddPaymentMethod(
        payment_method_id=TemporalFixture.unique_id("pm"),
        organization_id=organization_id,
        gateway="stripe",
        token=token,
        default=default,
        actor="usr_1",
    )


@pytest.mark.scenario("B42")
async def test_a_new_card_is_kept_and_names_the_debts_that_it_may_pay(payments: PaymentFixture) -> None:
    owed = await insert_subscription(
        payments.database.owner, payments.organization, status="past_due", past_due_for=timedelta(days=1)
    )
    order = _card(payments.organization)
    first = await run_activity(payments.method_activities.attach, AttachPaymentMethod(command=order, now=NOW))
    assert (first.added.brand, first.added.last4, first.added.default) == ("visa", "4242", True)
    assert first.past_due_subscription_ids == [owed]
    assert (
        await run_activity(
            payments.method_activities.attach, AttachPaymentMethod(command=order, now=FIVE_MINUTES_LATER)
        )
        == first
    )
    second = await run_activity(
        payments.method_activities.attach, AttachPaymentMethod(command=_card(payments.organization), now=NOW)
    )
    assert not second.added.default
    third = await run_activity(
        payments.method_activities.attach,
        AttachPaymentMethod(command=_card(payments.organization, default=True), now=NOW),
    )
    assert third.added.default
    defaults = await payments.rows("SELECT id FROM payment_methods WHERE is_default")
    assert defaults == [{"id": third.added.payment_method_id}]


async def test_a_card_that_is_on_file_already_is_returned(payments: PaymentFixture) -> None:
    attach = payments.method_activities.attach
    cards = [_card(payments.organization) for _ in range(2)]
    first, second = [(await run_activity(attach, AttachPaymentMethod(command=card, now=NOW))).added for card in cards]
    assert (first.default, second.default) == (True, False)
    saved = "SELECT id, gateway_reference FROM payment_methods ORDER BY charge_order"
    reference = (await payments.rows(saved))[1]["gateway_reference"]
    for default, is_default in ((False, False), (True, True), (False, True)):
        retry = _card(payments.organization, reference, default=default)
        repeated = await run_activity(attach, AttachPaymentMethod(command=retry, now=FIVE_MINUTES_LATER))
        assert repeated.added == replace(second, default=is_default)
    assert [row["id"] for row in await payments.rows(saved)] == [first.payment_method_id, second.payment_method_id]
    assert await payments.rows("SELECT id FROM payment_methods WHERE is_default") == [{"id": second.payment_method_id}]


async def test_a_card_that_another_organization_has_saved_is_refused(payments: PaymentFixture) -> None:
    attach = payments.method_activities.attach
    await run_activity(attach, AttachPaymentMethod(command=_card(payments.organization), now=NOW))
    ((reference,),) = [row.values() for row in await payments.rows("SELECT gateway_reference FROM payment_methods")]
    other = await insert_organization(payments.database.owner)
    with pytest.raises(ApplicationError) as refused:
        await run_activity(attach, AttachPaymentMethod(command=_card(other, reference), now=NOW))
    assert (refused.value.type, refused.value.non_retryable) == (ErrorCode.VALIDATION_ERROR, True)


async def test_a_card_on_file_pays_without_its_holder(payments: PaymentFixture) -> None:
    added = await run_activity(
        payments.method_activities.attach, AttachPaymentMethod(command=_card(payments.organization), now=NOW)
    )
    pay = await payments.invoice_payment_input(gateway_token=None, payment_method_id=added.added.payment_method_id)
    assert (
        await run_activity(payments.payment_activities.charge, ChargePayment(input=pay, now=NOW))
    ).outcome.status is S.SUCCEEDED
    assert await payments.balances() == (0, 1500)


async def test_a_refused_card_is_not_kept(payments: PaymentFixture) -> None:
    order = _card(payments.organization, "pm_card_chargeDeclinedStolenCard")
    with pytest.raises(ApplicationError) as refused:
        await run_activity(payments.method_activities.attach, AttachPaymentMethod(command=order, now=NOW))
    assert (refused.value.type, refused.value.non_retryable) == (ErrorCode.PAYMENT_DECLINED, True)
    assert refused.value.details[0]["decline_code"] == "stolen_card"
    with pytest.raises(ApplicationError) as unknown:
        await run_activity(
            payments.method_activities.attach,
            AttachPaymentMethod(command=_card(payments.organization, "pm_no_such"), now=NOW),
        )
    assert unknown.value.type == ErrorCode.VALIDATION_ERROR
    assert await payments.rows("SELECT id FROM payment_methods") == []


@pytest.mark.scenario("B45")
async def test_the_last_card_stays_while_a_debt_is_open(payments: PaymentFixture) -> None:
    first = (
        await run_activity(
            payments.method_activities.attach, AttachPaymentMethod(command=_card(payments.organization), now=NOW)
        )
    ).added
    second = (
        await run_activity(
            payments.method_activities.attach, AttachPaymentMethod(command=_card(payments.organization), now=NOW)
        )
    ).added
    await insert_subscription(
        payments.database.owner, payments.organization, status="past_due", past_due_for=timedelta(days=1)
    )
    await run_activity(payments.method_activities.remove, _removal(payments, first.payment_method_id))
    await run_activity(payments.method_activities.remove, _removal(payments, first.payment_method_id))
    defaults = "SELECT id FROM payment_methods WHERE is_default AND detached_at IS NULL"
    assert await payments.rows(defaults) == [{"id": second.payment_method_id}]
    with pytest.raises(ApplicationError) as refused:
        await run_activity(payments.method_activities.remove, _removal(payments, second.payment_method_id))
    assert refused.value.type == ErrorCode.PAYMENT_METHOD_IN_USE


def _removal(payments: PaymentFixture, payment_method_id: str) -> DetachPaymentMethod:
    order = RemovePaymentMethod(
        payment_method_id=payment_method_id, organization_id=payments.organization, actor="usr_1"
    )
    return DetachPaymentMethod(command=order, now=FIVE_MINUTES_LATER)


async def test_another_accounts_card_is_not_found(payments: PaymentFixture) -> None:
    other = await insert_organization(payments.database.owner)
    added = await run_activity(payments.method_activities.attach, AttachPaymentMethod(command=_card(other), now=NOW))
    pay = payments.payment_input(gateway_token=None, payment_method_id=added.added.payment_method_id)
    with pytest.raises(ApplicationError) as refused:
        await run_activity(payments.payment_activities.charge, ChargePayment(input=pay, now=NOW))
    assert refused.value.type == ErrorCode.NOT_FOUND
    assert await payments.rows("SELECT id FROM payments") == []


@pytest.mark.scenario("B22", "B23")
@pytest.mark.parametrize(
    ("fault", "status", "charges"), [("lost_reply", S.SUCCEEDED, 1), ("reset", S.FAILED, 0)], ids=["charged", "never"]
)
async def test_a_card_that_was_charged_and_then_removed_has_paid(
    payments: PaymentFixture, fault: str, status: PaymentStatus, charges: int
) -> None:
    """The response was lost. A failure would charge the backup, and dun for what the customer has paid."""
    order = _card(payments.organization)
    added = await run_activity(payments.method_activities.attach, AttachPaymentMethod(command=order, now=NOW))
    method_id = added.added.payment_method_id
    pay = await payments.invoice_payment_input(gateway_token=None, payment_method_id=method_id)
    payments.inject_fault(fault)
    with pytest.raises(GatewayUnavailable):
        await run_activity(payments.payment_activities.charge, ChargePayment(input=pay, now=NOW))
    removal = RemovePaymentMethod(payment_method_id=method_id, organization_id=payments.organization, actor="usr_1")
    detach = DetachPaymentMethod(command=removal, now=FIVE_MINUTES_LATER)
    await run_activity(payments.method_activities.remove, detach)
    await run_activity(payments.method_activities.detach, detach)
    repeated = await run_activity(payments.payment_activities.charge, ChargePayment(input=pay, now=NOW))
    assert repeated.outcome.status is status
    assert len(payments.charges(pay)) == charges
