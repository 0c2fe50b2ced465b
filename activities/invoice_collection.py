"""Collects an open invoice of a period from credit, or returns what a card has to pay."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy.ext.asyncio import AsyncSession

from activities.funding import (
    InvoiceFunding,
    card_charge_for,
    reserve_older_debts,
    split_funding_for,
    without_payment_methods,
)
from activities.holds import agreed_card_charge, place_hold, release_hold, with_released
from activities.invoice_allocations import allocate, credit_parts
from activities.invoicing import line_description
from activities.notification_context import notification_context
from activities.outcomes import billing_outcome, replay_result
from activities.subscription_transitions import new_change_set, record_period_paid
from db.queries import invoices, workflow_recovery
from db.queries.change_set import ChangeSet
from db.queries.invoices import InvoiceSummary
from db.queries.locked_subscriptions import LockedSubscription, begin_with_locked_subscription
from workflows.ports.billing import BillingOutcome, CollectInvoice
from workflows.rules import dunning, ledger
from workflows.rules.funding import FundingPurpose, GatewayTerms
from workflows.rules.hold_keys import collection_hold
from workflows.rules.invoice import InvoiceStatus
from workflows.rules.money import zero_money
from workflows.rules.notifications import NotificationKind
from workflows.rules.subscription import PAST_DUE_STATUSES


async def collect_invoice(
    session: AsyncSession, command: CollectInvoice, gateways: Mapping[str, GatewayTerms]
) -> BillingOutcome:
    subscription = await begin_with_locked_subscription(session, command.subscription_id)
    invoice = await invoices.lock_invoice(session, command.invoice_id)
    if invoice is None or invoice.status is not InvoiceStatus.OPEN or subscription.status not in PAST_DUE_STATUSES:
        return await replay_result(session, subscription, invoice)
    changes = new_change_set(subscription, command.now, command.actor)
    hold = await invoices.lock_open_hold(session, subscription.id)
    if hold is not None:
        return await billing_outcome(session, subscription, invoice, None, card=agreed_card_charge(hold))
    debts = await invoices.list_older_debts(session, subscription.id)
    chargeable = without_payment_methods(subscription, command.excluded_payment_method_ids)
    available = reserve_older_debts(chargeable, debts, gateways)
    funding = split_funding_for(available, invoice.due, FundingPurpose.DUNNING, gateways)
    if funding.is_settled_by_credit:
        return await pay_from_credit(session, changes, subscription, invoice, funding)
    card = None if command.credit_only else card_charge_for(funding)
    if card is not None:
        await place_hold(session, changes, subscription, funding, collection_hold(invoice.id, changes.keyed_at))
    else:
        changes.add_timeline_event(
            "payment.failed", "Payment failed: insufficient funds and no card to charge.", ref=invoice.id
        )
        if command.scheduled:
            next_retry_at, suspends_at = dunning.postpone_dates(command.next_retry_at, command.suspends_at, command.now)
            suspends_now = suspends_at is not None and suspends_at <= command.now
            context = notification_context(
                subscription,
                amount=invoice.due,
                invoice_id=invoice.id,
                next_retry_at=next_retry_at,
                suspends_at=None if suspends_now else suspends_at,
                suspends_now=suspends_now,
                status=subscription.status,
            )
            changes.enqueue_notification(NotificationKind.PAYMENT_FAILED, context)
    await changes.write(session)
    return await billing_outcome(session, subscription, invoice, changes, card=card)


async def pay_from_credit(
    session: AsyncSession,
    changes: ChangeSet,
    subscription: LockedSubscription,
    invoice: InvoiceSummary,
    funding: InvoiceFunding,
    *,
    as_billed: LockedSubscription | None = None,
) -> BillingOutcome:
    """Pay an open invoice or a draft of a period without a card.

    Args:
        funding: The parts that pay the invoice.
        as_billed: As of ``record_period_paid``.
    """
    draft = invoice.status is InvoiceStatus.DRAFT
    parts = {
        "promotional": funding.promotional,
        "wallet": funding.wallet,
        "held": zero_money(subscription.currency),
        "carried": funding.carried,
        "repaid": funding.repaid,
    }
    post = (
        ledger.paid_invoice_transaction(tax=invoice.tax, **parts) if draft else ledger.collection_transaction(**parts)
    )
    transaction_id = changes.add_ledger_transaction(
        post, key=f"paid/{invoice.id}", description=line_description(as_billed or subscription), ref=invoice.id
    )
    await allocate(
        session,
        changes,
        invoice.id,
        credit_parts(funding),
        invoice.due,
        transaction_id=transaction_id,
        repaid=funding.repaid,
    )
    return await record_period_paid(
        session, changes, subscription, invoice, as_billed=as_billed, carried=funding.carried
    )


async def pay_with_credited_payment(
    session: AsyncSession,
    changes: ChangeSet,
    subscription: LockedSubscription,
    invoice: InvoiceSummary | None,
    *,
    as_billed: LockedSubscription | None = None,
) -> BillingOutcome | None:
    """Pay an invoice from credit if a webhook completed its payment, which nothing awaited, as wallet credit.

    The card would be charged a second time. None: there is no such payment, or credit does not cover the invoice.

    Args:
        as_billed: As of ``record_period_paid``.
    """
    if invoice is None or not await workflow_recovery.was_payment_credited(session, invoice.id):
        return None
    return await pay_if_credit_covers(session, changes, subscription, invoice, as_billed=as_billed)


async def pay_if_credit_covers(
    session: AsyncSession,
    changes: ChangeSet,
    subscription: LockedSubscription,
    invoice: InvoiceSummary,
    *,
    as_billed: LockedSubscription | None = None,
) -> BillingOutcome | None:
    """Pay an invoice from credit, that of an open hold included; None, and nothing changes, if it does not cover it.

    Args:
        as_billed: As of ``record_period_paid``.
    """
    held = await invoices.lock_open_hold(session, subscription.id)
    debts = await invoices.list_older_debts(session, subscription.id)
    available = reserve_older_debts(with_released(subscription, held), debts, {})
    funding = split_funding_for(available, invoice.due, FundingPurpose.DUNNING, {})
    if not funding.is_settled_by_credit or funding.carried:
        return None
    await release_hold(session, changes, subscription)
    return await pay_from_credit(session, changes, subscription, invoice, funding, as_billed=as_billed)
