"""The PDF, the mails and ``GET …/explain`` of an invoice name what paid it, whatever was planned or came too late."""

from __future__ import annotations

from activities.billing import PostgresBillingActivities
from activities.subscriptions import PostgresSubscriptionActivities
from api.schemas.billing import ExplanationOut, explanation_out
from db.queries.invoice_documents import load_invoice_document_data
from db.queries.invoice_reads import get_invoice_with_payments
from tests.support.billing_commands import (
    card_payment_command,
    payment_failure_command,
    start_first_period_with_card,
    top_up,
)
from tests.support.billing_fixture import (
    ORGANIZATION,
    BillingFixture,
    OpenedSubscription,
    insert_coupon,
    insert_payment_method,
)
from workflows.ports.billing import BillingOutcome
from workflows.rules.funding import GatewayTerms

CARDS = {"stripe": GatewayTerms(name="stripe", minimum_minor={"USD": 50})}


async def payment_summary(billing: BillingFixture, invoice_id: str | None) -> str | None:
    async with billing.sessions() as session:
        invoice = await load_invoice_document_data(session, invoice_id or "")
    assert invoice is not None
    return invoice.payment_summary


async def explain(billing: BillingFixture, invoice_id: str | None) -> ExplanationOut:
    async with billing.sessions() as session:
        result = await get_invoice_with_payments(session, invoice_id or "", ORGANIZATION, limit=10)
    assert result is not None
    return explanation_out(result)


async def covered(billing: BillingFixture, invoice_id: str | None) -> dict[str, int]:
    """Return what ``explain`` says that each source covered, without zeros."""
    amounts = (await explain(billing, invoice_id)).explanation["covered"]
    return {name: amount["amount_minor"] for name, amount in amounts.items() if amount["amount_minor"]}


async def apply_order_payment(
    billing: BillingFixture, ordered: OpenedSubscription, outcome: BillingOutcome, payment_method_id: str
) -> None:
    """Pay the first invoice by the payment of the order, which was made before there was an invoice."""
    command = await card_payment_command(
        billing, ordered, outcome, purpose="order", payment_method_id=payment_method_id
    )
    assert (await billing.billing_activities.apply_card_payment(command)).paid


async def test_a_first_invoice_that_a_card_paid_names_the_card(billing: BillingFixture) -> None:
    payment_method_id = await insert_payment_method(billing.sessions)
    ordered, outcome = await start_first_period_with_card(billing)
    assert await covered(billing, outcome.invoice_id) == {}
    await apply_order_payment(billing, ordered, outcome, payment_method_id)
    assert await payment_summary(billing, outcome.invoice_id) == "Visa ending in 4242"
    assert await covered(billing, outcome.invoice_id) == {"card": 500}
    assert [payment.id for payment in (await explain(billing, outcome.invoice_id)).payments] == ["pay_1"]


async def test_a_first_invoice_that_credit_and_a_card_paid_names_both(billing: BillingFixture) -> None:
    await top_up(billing, 200)
    payment_method_id = await insert_payment_method(billing.sessions)
    ordered, outcome = await start_first_period_with_card(billing)
    await apply_order_payment(billing, ordered, outcome, payment_method_id)
    assert await payment_summary(billing, outcome.invoice_id) == "Wallet, Visa ending in 4242"
    assert await covered(billing, outcome.invoice_id) == {"wallet": 200, "card": 300}


async def test_an_invoice_that_the_wallet_paid_names_no_card_whose_money_came_too_late(billing: BillingFixture) -> None:
    await top_up(billing, 500)
    ordered = await billing.create_active_subscription()
    payment_method_id = await insert_payment_method(billing.sessions)
    outcome = await billing.billing_activities.start_period(billing.start_period_command(ordered))
    assert outcome.card_charge is not None
    await top_up(billing, 500)
    assert (await billing.billing_activities.record_payment_failure(payment_failure_command(ordered, outcome))).paid
    invoice_id = outcome.invoice_id or ""
    command = await card_payment_command(
        billing, ordered, outcome, invoice_id=invoice_id, payment_method_id=payment_method_id
    )
    await billing.billing_activities.apply_card_payment(command)
    assert await billing.balance() == 500
    assert await payment_summary(billing, outcome.invoice_id) == "Wallet"
    assert await covered(billing, outcome.invoice_id) == {"wallet": 500}
    assert [payment.id for payment in (await explain(billing, outcome.invoice_id)).payments] == ["pay_1"]


async def test_carried_debt_is_not_account_credit_until_credit_paid_it(billing: BillingFixture) -> None:
    billing.billing_activities = PostgresBillingActivities(billing.sessions, CARDS)
    billing.subscription_activities = PostgresSubscriptionActivities(billing.sessions, "apps.test", CARDS)
    await insert_payment_method(billing.sessions)
    await insert_coupon(billing.sessions, "SMALL", 96, "once")
    ordered = await billing.create_active_subscription(coupon="SMALL")
    (first,) = await billing.invoices(ordered.id)
    assert await payment_summary(billing, first["id"]) == "Carried to the next payment"
    assert await covered(billing, first["id"]) == {"debt": 20}
    await top_up(billing, 520)
    renewed = await billing.billing_activities.start_period(billing.start_period_command(ordered))
    assert await payment_summary(billing, first["id"]) == "Wallet"
    assert await covered(billing, first["id"]) == {"wallet": 20}
    assert await covered(billing, renewed.invoice_id) == {"wallet": 500}
