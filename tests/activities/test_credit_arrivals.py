"""Credit from every source signals the past-due and suspended subscriptions, the oldest debt first."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from activities.credit_arrivals import list_debtors
from activities.gateways.stripe import StripeGateway
from activities.payment_methods import GatewayPaymentMethodActivities
from activities.payments import GatewayPaymentActivities
from activities.refunds import GatewayRefundActivities
from tests.support.billing_commands import (
    DAY,
    card_payment_command,
    change_status_command,
    create_past_due_subscriptions,
    plan_change_command,
    remove_cards,
    rollback_command,
    start_first_period_with_card,
    top_up,
    usd,
)
from tests.support.billing_fixture import (
    ORDERED_AT,
    ORGANIZATION,
    USER,
    BillingFixture,
    OpenedSubscription,
    insert_card_payment,
    insert_payment_method,
)
from tests.support.payment_fixture import run_activity
from tests.support.sandboxes import StripeEndpoint
from workflows.ports.billing import AdjustWallet, ApplyCardPayment, RecordPaymentFailure
from workflows.ports.payments import (
    AddPaymentMethod,
    AttachPaymentMethod,
    ChargePayment,
    DetachPaymentMethod,
    MakePaymentMethodDefault,
    PaymentInput,
    Purpose,
    RemovePaymentMethod,
    SetDefault,
)
from workflows.ports.refunds import RefundDestination, RefundInput, ReserveRefund, SendRefund
from workflows.ports.subscription import AbortOrder
from workflows.rules.proration import PlanChangeMode
from workflows.rules.subscription import SubscriptionStatus

Arrival = Callable[[], Awaitable[list[str]]]
Prepare = Callable[[BillingFixture, StripeGateway], Awaitable[Arrival]]


@pytest_asyncio.fixture
async def gateway(stripe: StripeEndpoint) -> AsyncIterator[StripeGateway]:
    opened = StripeGateway(api_key=stripe.api_key, base_url=stripe.url)
    yield opened
    await opened.close()


async def pay_first_invoice_by_card(billing: BillingFixture, plan: str) -> OpenedSubscription:
    """Order a plan that a card pays by the payment ``pay_1``, and remove the card from the organization."""
    await insert_payment_method(billing.sessions)
    ordered, outcome = await start_first_period_with_card(billing, plan)
    await billing.billing_activities.apply_card_payment(await card_payment_command(billing, ordered, outcome))
    await remove_cards(billing)
    return ordered


def adjustment_command(amount_minor: int) -> AdjustWallet:
    return AdjustWallet(
        adjustment_id="adj_1",
        organization_id=ORGANIZATION,
        amount=usd(amount_minor),
        reason="goodwill",
        actor=USER,
        request_id="req_1",
        now=ORDERED_AT,
    )


def refund_input(payment_id: str, destination: RefundDestination) -> RefundInput:
    return RefundInput(
        refund_id="re_1",
        payment_id=payment_id,
        organization_id=ORGANIZATION,
        amount=usd(300),
        destination=destination,
        reason="goodwill",
        actor=USER,
    )


def top_up_command() -> ChargePayment:
    command = PaymentInput(
        payment_id="pay_top_up",
        organization_id=ORGANIZATION,
        amount=usd(1_500),
        gateway="stripe",
        purpose=Purpose.TOP_UP,
        gateway_token="pm_card_visa",
    )
    return ChargePayment(input=command, now=ORDERED_AT)


async def top_up_by_card(billing: BillingFixture, gateway: StripeGateway) -> Arrival:
    payments = GatewayPaymentActivities(billing.sessions, {"stripe": gateway})

    async def arrive() -> list[str]:
        return (await run_activity(payments.charge, top_up_command())).past_due_subscription_ids

    return arrive


async def adjustment(billing: BillingFixture, gateway: StripeGateway) -> Arrival:
    async def arrive() -> list[str]:
        return (await billing.billing_activities.adjust_wallet(adjustment_command(500))).past_due_subscription_ids

    return arrive


async def wallet_refund(billing: BillingFixture, gateway: StripeGateway) -> Arrival:
    await pay_first_invoice_by_card(billing, "pro")
    refunds = GatewayRefundActivities(billing.sessions, {"stripe": gateway})
    command = ReserveRefund(command=refund_input("pay_1", RefundDestination.WALLET), now=ORDERED_AT)

    async def arrive() -> list[str]:
        return (await run_activity(refunds.reserve, command)).past_due_subscription_ids

    return arrive


async def refund_that_the_gateway_refuses(billing: BillingFixture, gateway: StripeGateway) -> Arrival:
    await pay_first_invoice_by_card(billing, "pro")
    refunds = GatewayRefundActivities(billing.sessions, {})
    command = ReserveRefund(command=refund_input("pay_1", RefundDestination.SOURCE), now=ORDERED_AT)
    await run_activity(refunds.reserve, command)

    async def arrive() -> list[str]:
        return (
            await run_activity(refunds.send, SendRefund(refund_id="re_1", now=ORDERED_AT))
        ).past_due_subscription_ids

    return arrive


async def plan_change_credit(billing: BillingFixture, gateway: StripeGateway) -> Arrival:
    ordered = await pay_first_invoice_by_card(billing, "pro")
    command = plan_change_command(ordered, "starter", PlanChangeMode.IMMEDIATE)

    async def arrive() -> list[str]:
        return (await billing.billing_activities.change_plan(command)).past_due_subscription_ids

    return arrive


async def plan_change_rollback(billing: BillingFixture, gateway: StripeGateway) -> Arrival:
    await top_up(billing, 2_500)
    ordered = await billing.create_active_subscription()
    await billing.billing_activities.change_plan(plan_change_command(ordered, "pro"))
    await billing.billing_activities.adjust_wallet(adjustment_command(-(await billing.balance())))

    async def arrive() -> list[str]:
        return (
            await billing.billing_activities.rollback_plan_change(rollback_command(ordered))
        ).past_due_subscription_ids

    return arrive


async def plan_change_that_the_card_declines(billing: BillingFixture, gateway: StripeGateway) -> Arrival:
    await top_up(billing, 600)
    ordered = await billing.create_active_subscription()
    await insert_payment_method(billing.sessions)
    changed = await billing.billing_activities.change_plan(plan_change_command(ordered, "pro"))
    assert changed.invoice_id is not None
    assert await billing.balance("held") == 100
    await remove_cards(billing)
    command = RecordPaymentFailure(
        subscription_id=ordered.id,
        invoice_id=changed.invoice_id,
        payment_id="pay_1",
        decline_code="generic_decline",
        next_retry_at=None,
        now=ORDERED_AT + 10 * DAY,
    )

    async def arrive() -> list[str]:
        return (await billing.billing_activities.record_payment_failure(command)).past_due_subscription_ids

    return arrive


async def money_kept_after_a_cancellation(billing: BillingFixture, gateway: StripeGateway) -> Arrival:
    await insert_payment_method(billing.sessions)
    ordered, outcome = await start_first_period_with_card(billing)
    await remove_cards(billing)
    cancelled = change_status_command(ordered, SubscriptionStatus.CANCELLED)
    await billing.subscription_activities.change_status(cancelled)
    await insert_card_payment(billing.sessions, "pay_1", ordered.id, usd(500))
    command = ApplyCardPayment(
        subscription_id=ordered.id, invoice_id=outcome.invoice_id or "", payment_id="pay_1", now=ORDERED_AT
    )

    async def arrive() -> list[str]:
        return (await billing.billing_activities.apply_card_payment(command)).past_due_subscription_ids

    return arrive


async def voided_invoice(billing: BillingFixture, gateway: StripeGateway) -> Arrival:
    await top_up(billing, 100)
    await insert_payment_method(billing.sessions)
    ordered, _ = await start_first_period_with_card(billing)
    await remove_cards(billing)

    async def arrive() -> list[str]:
        return (
            await billing.subscription_activities.change_status(
                change_status_command(ordered, SubscriptionStatus.CANCELLED)
            )
        ).past_due_subscription_ids

    return arrive


async def aborted_order(billing: BillingFixture, gateway: StripeGateway) -> Arrival:
    await top_up(billing, 100)
    await insert_payment_method(billing.sessions)
    command = billing.create_command()
    await billing.subscription_activities.record_order(command)
    await remove_cards(billing)
    abort = AbortOrder(
        subscription_id=command.order.subscription_id,
        status=SubscriptionStatus.EXPIRED,
        reason="declined",
        actor="platform",
        now=ORDERED_AT,
    )

    async def arrive() -> list[str]:
        return (await billing.subscription_activities.abort_order(abort)).past_due_subscription_ids

    return arrive


async def aborted_order_whose_payment_was_captured(billing: BillingFixture, gateway: StripeGateway) -> Arrival:
    await insert_payment_method(billing.sessions)
    command = billing.create_command()
    opened = await billing.subscription_activities.record_order(command)
    assert opened.card_charge is not None
    await remove_cards(billing)
    await insert_card_payment(billing.sessions, "pay_1", command.order.subscription_id, opened.card_charge.amount)
    abort = AbortOrder(
        subscription_id=command.order.subscription_id,
        status=SubscriptionStatus.CANCELLED,
        reason="cancelled",
        actor=USER,
        now=ORDERED_AT,
    )

    async def arrive() -> list[str]:
        return (await billing.subscription_activities.abort_order(abort)).past_due_subscription_ids

    return arrive


def attach_command(payment_method_id: str = "pm_new", *, default: bool = True) -> AttachPaymentMethod:
    command = AddPaymentMethod(
        payment_method_id=payment_method_id,
        organization_id=ORGANIZATION,
        gateway="stripe",
        token="pm_card_visa",
        default=default,
        actor=USER,
    )
    return AttachPaymentMethod(command=command, now=ORDERED_AT)


async def new_card(billing: BillingFixture, gateway: StripeGateway) -> Arrival:
    methods = GatewayPaymentMethodActivities(billing.sessions, {"stripe": gateway})

    async def arrive() -> list[str]:
        return (await run_activity(methods.attach, attach_command())).past_due_subscription_ids

    return arrive


SOURCES: tuple[Prepare, ...] = (
    top_up_by_card,
    adjustment,
    wallet_refund,
    refund_that_the_gateway_refuses,
    plan_change_credit,
    plan_change_rollback,
    plan_change_that_the_card_declines,
    money_kept_after_a_cancellation,
    voided_invoice,
    aborted_order,
    aborted_order_whose_payment_was_captured,
    new_card,
)


@pytest.mark.scenario("B30")
@pytest.mark.parametrize("prepare", SOURCES, ids=lambda prepare: prepare.__name__)
async def test_every_source_signals_each_debtor_oldest_debt_first_and_again_when_the_result_is_lost(
    billing: BillingFixture, gateway: StripeGateway, prepare: Prepare
) -> None:
    arrive = await prepare(billing, gateway)
    debtors = [ordered.id for ordered in await create_past_due_subscriptions(billing, "starter", "starter", "starter")]
    await billing.execute(f"UPDATE subscriptions SET status = 'suspended' WHERE id = '{debtors[1]}'")
    assert await arrive() == debtors
    assert await arrive() == debtors


@pytest.mark.scenario("S1")
async def test_credit_of_an_organization_signals_no_debtor_of_another(billing: BillingFixture) -> None:
    await create_past_due_subscriptions(billing, "starter")
    async with billing.sessions() as session:
        assert await list_debtors(session, "org_other") == []


@pytest.mark.scenario("B30")
async def test_another_default_card_signals_each_debtor_oldest_debt_first(
    billing: BillingFixture, gateway: StripeGateway
) -> None:
    debtors = [ordered.id for ordered in await create_past_due_subscriptions(billing, "starter", "starter")]
    backup = await insert_payment_method(billing.sessions)
    await billing.execute("UPDATE payment_methods SET is_default = false")
    await insert_payment_method(billing.sessions)
    command = MakePaymentMethodDefault(
        default_change_id="default", organization_id=ORGANIZATION, payment_method_id=backup, actor=USER
    )
    methods = GatewayPaymentMethodActivities(billing.sessions, {"stripe": gateway})
    assert await run_activity(methods.set_default, SetDefault(command=command, now=ORDERED_AT)) == debtors


@pytest.mark.parametrize("removes_default", [True, False])
async def test_only_the_removal_of_the_default_card_signals_the_debtors_and_again_when_the_result_is_lost(
    billing: BillingFixture, gateway: StripeGateway, removes_default: bool
) -> None:
    methods = GatewayPaymentMethodActivities(billing.sessions, {"stripe": gateway})
    debtors = [ordered.id for ordered in await create_past_due_subscriptions(billing, "starter", "starter")]
    (first, second) = [
        (await run_activity(methods.attach, attach_command(method_id, default=False))).added
        for method_id in ("pm_first", "pm_second")
    ]
    assert (first.default, second.default) == (True, False)
    removed = first if removes_default else second
    command = RemovePaymentMethod(payment_method_id=removed.payment_method_id, organization_id=ORGANIZATION, actor=USER)
    for _ in range(2):
        listed = await run_activity(methods.remove, DetachPaymentMethod(command=command, now=ORDERED_AT))
        assert listed == (debtors if removes_default else [])
