"""Placement of an order: is the plan orderable, what pays the first period, and the rows that the order creates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncSession

from activities import coupons
from activities.attempt_time import scheduled_at
from activities.formatting import format_amount
from activities.funding import InvoiceFunding, card_charge_for, split_funding
from activities.holds import prepare_hold
from activities.notification_context import notification_context
from activities.order_records import build_order_insert, build_subscription
from activities.outcomes import committed_state
from activities.plan_terms import build_plan_terms
from activities.recorded_orders import replay_creation, to_recorded_order
from db.queries import orders
from db.queries.change_set import ChangeSet
from db.queries.locked_subscriptions import (
    AvailableFunds,
    PlanWithPrice,
    lock_subscription,
)
from workflows.errors import non_retryable_error
from workflows.ports.subscription import (
    CreateSubscription,
    CreateSubscriptionOutcome,
    RecordOrder,
)
from workflows.rules.errors import ErrorCode
from workflows.rules.funding import CollectionMethod, FundingPurpose, GatewayTerms
from workflows.rules.hold_keys import ORDER_HOLD
from workflows.rules.money import Money, zero_money
from workflows.rules.notifications import NotificationKind
from workflows.rules.pricing import discount_amount
from workflows.rules.subscription import SubscriptionStatus


async def place_order(
    session: AsyncSession, command: RecordOrder, gateways: Mapping[str, GatewayTerms], *, base_domain: str
) -> CreateSubscriptionOutcome:
    """Write an order: its subscription and instance, the hold that secures the first period, its mail. Commit it.

    A repeated command returns what an earlier run has written.

    Args:
        base_domain: Parent domain of the instances' host names.

    Raises:
        ApplicationError: ``NOT_FOUND``, ``PLAN_UNAVAILABLE``, ``DUPLICATE_SUBSCRIPTION``, ``COUPON_INVALID``,
            ``INSUFFICIENT_FUNDS``.
        IntegrityError: a second trial of the service, or a host name in use.
    """
    # The order counts from when it was placed: its price and its coupon are those of that time.
    command = replace(command, now=scheduled_at(command.now))
    order = command.order
    facts = await orders.begin_order(
        session,
        organization_id=order.organization_id,
        subscription_id=order.subscription_id,
        plan_id=order.plan_id,
        now=command.now,
    )
    if facts is None:
        raise non_retryable_error(ErrorCode.NOT_FOUND, "Organization not found.")
    if facts.is_recorded:
        recorded = await lock_subscription(session, order.subscription_id)
        return await replay_creation(session, recorded, command.now)
    plan = facts.plan
    if plan is None:
        raise non_retryable_error(
            ErrorCode.NOT_FOUND, "Plan not found, or it has no price in the currency of the organization."
        )
    terms = build_plan_terms(plan, facts.timezone)
    _require_orderable(plan, facts.past_due_subscription_id)
    # The balances were locked before the coupon, as the end of an order does: otherwise two orders could deadlock.
    discount = await coupons.reserve_coupon(session, order, plan.price.currency, command.now)
    trial = plan.trial_days > 0
    first_charge = plan.price - discount_amount(plan.price, discount)
    due = Money(amount_minor=0, currency=plan.price.currency) if trial else first_charge
    funding = _fund_first_period(order, due, facts.funds, gateways)
    state = SubscriptionStatus.PROVISIONING if funding.is_settled_by_credit else SubscriptionStatus.PENDING
    subscription = build_subscription(
        command, plan, facts.timezone, state, discount, facts.funds, base_domain=base_domain
    )
    inserts = [build_order_insert(command, plan, subscription)]
    changes = ChangeSet(
        organization_id=order.organization_id,
        subscription_id=order.subscription_id,
        occurred_at=command.now,
        keyed_at=command.now,
        actor=order.user_id,
        run_id=command.run_id,
    )
    changes.record_change("status", None, state.value, "ordered")
    changes.add_timeline_event(
        "subscription.created", f"Order received: {plan.service_name}, plan {plan.name}.", ref=order.plan_id
    )
    context = notification_context(
        subscription,
        amount=first_charge,
        price=plan.price,
        coupon_code=discount.code if discount else None,
        trial_days=plan.trial_days,
        carried=funding.carried or None,
        carried_debt=funding.repaid or None,
    )
    changes.enqueue_notification(NotificationKind.SUBSCRIPTION_CREATED, context)
    if due:
        inserts.append(prepare_hold(changes, subscription, funding, ORDER_HOLD))
    if funding.is_settled_by_credit:
        if reserved := due - funding.carried:
            message = f"{format_amount(reserved)} reserved for the first period."
            changes.add_timeline_event("payment.authorized", message)
        changes.add_timeline_event("instance.provisioning", f"Setting up {plan.service_name}.", ref=order.instance_id)
    # Reads nothing: the subscription is not past due.
    committed = await committed_state(session, subscription, changes)
    await changes.write_and_commit(session, *inserts)
    return CreateSubscriptionOutcome(
        state=committed, terms=terms, card_charge=card_charge_for(funding), order=to_recorded_order(subscription)
    )


def _fund_first_period(
    order: CreateSubscription, due: Money, funds: AvailableFunds, gateways: Mapping[str, GatewayTerms]
) -> InvoiceFunding:
    """Return the funding of the first period. Credit pays for this order only; a card pays earlier debt as well.

    Raises:
        ApplicationError: ``INSUFFICIENT_FUNDS``.
    """
    funding = split_funding(due, funds, method=order.collection_method, purpose=FundingPurpose.ORDER, gateways=gateways)
    if funding.is_settled_by_credit:
        without_debt = replace(funds, debt=zero_money(due.currency))
        funding = split_funding(
            due, without_debt, method=order.collection_method, purpose=FundingPurpose.ORDER, gateways=gateways
        )
    if funding.shortfall:
        remedy = "Top up" if order.collection_method is CollectionMethod.WALLET else "Top up or add a card"
        raise non_retryable_error(
            ErrorCode.INSUFFICIENT_FUNDS,
            f"Insufficient funds for the first period ({format_amount(due)}). {remedy}, then order again.",
            {"due_minor": due.amount_minor, "currency": due.currency},
        )
    return funding


def _require_orderable(plan: PlanWithPrice, past_due_subscription_id: str | None) -> None:
    """Raise ``PLAN_UNAVAILABLE``, or ``DUPLICATE_SUBSCRIPTION`` if one to the same service is past due."""
    if not plan.is_orderable:
        raise non_retryable_error(ErrorCode.PLAN_UNAVAILABLE, "This plan is no longer offered.")
    if past_due_subscription_id is not None:
        raise non_retryable_error(
            ErrorCode.DUPLICATE_SUBSCRIPTION,
            "Another subscription to this service has an unpaid invoice. Pay it first.",
            {"subscription_id": past_due_subscription_id},
        )
