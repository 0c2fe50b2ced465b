"""Cards on file, on a real database and the card gateway's sandbox."""

from __future__ import annotations

from datetime import timedelta

import pytest
from temporalio.exceptions import ApplicationError

from tests.support.accounts import NOW, account, subscription
from tests.support.money import LATER, Till, run
from tests.support.temporal import Temporal
from workflows.ports.payments import (
    AddPaymentMethod,
    Attach,
    Charge,
    Detach,
    Purpose,
    RemovePaymentMethod,
)
from workflows.rules.errors import Refusal
from workflows.rules.payment import PaymentStatus

S = PaymentStatus


def _card(organization_id: str, token: str = "pm_card_visa", *, default: bool = False) -> AddPaymentMethod:
    return AddPaymentMethod(
        payment_method_id=Temporal.unique("pm"),
        organization_id=organization_id,
        gateway="stripe",
        token=token,
        default=default,
        actor="usr_1",
    )


@pytest.mark.scenario("B42")
async def test_a_new_card_is_kept_and_names_the_debts_that_it_may_pay(till: Till) -> None:
    owed = await subscription(till.database.owner, till.organization, status="past_due", behind=timedelta(days=1))
    order = _card(till.organization)
    first = await run(till.methods.attach, Attach(order=order, now=NOW))
    assert (first.added.brand, first.added.last4, first.added.default) == ("visa", "4242", True)
    assert first.indebted == [owed]
    assert await run(till.methods.attach, Attach(order=order, now=LATER)) == first
    second = await run(till.methods.attach, Attach(order=_card(till.organization), now=NOW))
    assert not second.added.default
    third = await run(till.methods.attach, Attach(order=_card(till.organization, default=True), now=NOW))
    assert third.added.default
    defaults = await till.rows("SELECT id FROM payment_methods WHERE is_default")
    assert defaults == [{"id": third.added.payment_method_id}]


async def test_a_card_on_file_pays_without_its_holder(till: Till) -> None:
    added = await run(till.methods.attach, Attach(order=_card(till.organization), now=NOW))
    owed = await subscription(till.database.owner, till.organization)
    pay = till.pay(
        token=None,
        payment_method_id=added.added.payment_method_id,
        purpose=Purpose.INVOICE,
        invoice_id="inv_1",
        subscription_id=owed,
    )
    assert (await run(till.payments.charge, Charge(pay=pay, now=NOW))).outcome.status is S.SUCCEEDED
    assert await till.balances() == (0, 1500)


async def test_a_refused_card_is_not_kept(till: Till) -> None:
    order = _card(till.organization, "pm_card_chargeDeclinedStolenCard")
    with pytest.raises(ApplicationError) as refused:
        await run(till.methods.attach, Attach(order=order, now=NOW))
    assert (refused.value.type, refused.value.non_retryable) == (Refusal.PAYMENT_DECLINED, True)
    assert refused.value.details[0]["decline_code"] == "stolen_card"
    with pytest.raises(ApplicationError) as unknown:
        await run(till.methods.attach, Attach(order=_card(till.organization, "pm_no_such"), now=NOW))
    assert unknown.value.type == Refusal.VALIDATION_ERROR
    assert await till.rows("SELECT id FROM payment_methods") == []


@pytest.mark.scenario("B45")
async def test_the_last_card_stays_while_a_debt_is_open(till: Till) -> None:
    first = (await run(till.methods.attach, Attach(order=_card(till.organization), now=NOW))).added
    second = (await run(till.methods.attach, Attach(order=_card(till.organization), now=NOW))).added
    await subscription(till.database.owner, till.organization, status="past_due", behind=timedelta(days=1))
    await run(till.methods.detach, _removal(till, first.payment_method_id))
    await run(till.methods.detach, _removal(till, first.payment_method_id))
    assert await till.rows("SELECT id FROM payment_methods WHERE is_default") == [{"id": second.payment_method_id}]
    with pytest.raises(ApplicationError) as refused:
        await run(till.methods.detach, _removal(till, second.payment_method_id))
    assert refused.value.type == Refusal.PAYMENT_METHOD_IN_USE


def _removal(till: Till, payment_method_id: str) -> Detach:
    order = RemovePaymentMethod(payment_method_id=payment_method_id, organization_id=till.organization, actor="usr_1")
    return Detach(order=order, now=LATER)


async def test_another_accounts_card_is_not_found(till: Till) -> None:
    other = await account(till.database.owner)
    added = await run(till.methods.attach, Attach(order=_card(other), now=NOW))
    pay = till.pay(token=None, payment_method_id=added.added.payment_method_id)
    with pytest.raises(ApplicationError) as refused:
        await run(till.payments.charge, Charge(pay=pay, now=NOW))
    assert refused.value.type == Refusal.NOT_FOUND
    assert await till.rows("SELECT id FROM payments") == []
