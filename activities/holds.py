"""Holds: what was agreed to pay an order or an invoice, kept during a card charge or the provisioning of an instance.

What is agreed is decided once, by the funding rule, and read from the hold afterwards: neither debt that is carried
meanwhile nor other terms of the gateway change it.
"""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncSession

from activities.funding import InvoiceFunding
from db.driver import DriverStatement, execute_together
from db.queries import invoices
from db.queries.change_set import ChangeSet
from db.queries.invoices import Hold
from db.queries.locked_subscriptions import LockedSubscription
from workflows.ports.subscription import CardCharge
from workflows.rules import ledger
from workflows.rules.hold_keys import HoldKey
from workflows.rules.money import Money, zero_money


async def place_hold(
    session: AsyncSession, changes: ChangeSet, subscription: LockedSubscription, funding: InvoiceFunding, key: HoldKey
) -> None:
    """Insert a hold of what credit contributes and a card is charged, and add its ledger transaction to ``changes``."""
    await execute_together(session, prepare_hold(changes, subscription, funding, key))


def prepare_hold(
    changes: ChangeSet, subscription: LockedSubscription, funding: InvoiceFunding, key: HoldKey
) -> DriverStatement:
    """Add the ledger transaction of a hold to ``changes``, and return the statement that inserts the hold.

    Nothing is executed: the caller sends the statement together with others, before it writes ``changes``.
    """
    statement = invoices.hold_insert(
        organization_id=subscription.organization_id,
        subscription_id=subscription.id,
        key=key,
        wallet=funding.wallet,
        promotional=funding.promotional,
        card=funding.card,
        payment_methods=funding.payment_methods,
    )
    if funding.wallet or funding.promotional:
        changes.add_ledger_transaction(
            ledger.hold_transaction(promotional=funding.promotional, wallet=funding.wallet),
            key=f"hold/{subscription.id}/{key}",
            description="Held",
            ref=subscription.id,
        )
    return statement


def agreed_card_charge(hold: Hold | None) -> CardCharge | None:
    """Return the card charge that was agreed with a hold; None if credit alone pays."""
    if hold is None or not hold.card:
        return None
    return CardCharge(amount=hold.card, payment_methods=hold.payment_methods)


async def release_hold(session: AsyncSession, changes: ChangeSet, subscription: LockedSubscription) -> Hold | None:
    """Release the open hold to its sources and return it; None if there is no hold."""
    held = await invoices.close_open_hold(session, subscription.id, "released")
    if held is not None and held.credit:
        changes.add_ledger_transaction(
            ledger.release_transaction(promotional=held.promotional, wallet=held.wallet),
            key=f"release/{subscription.id}/{held.key}",
            description="Hold released",
            ref=subscription.id,
        )
    return held


async def capture_hold(session: AsyncSession, subscription: LockedSubscription) -> Hold | None:
    """Mark the open hold as captured and return it. The caller posts the ledger transaction."""
    return await invoices.close_open_hold(session, subscription.id, "captured")


def held_credit(hold: Hold | None, currency: str) -> Money:
    return hold.credit if hold is not None else zero_money(currency)


def with_released(subscription: LockedSubscription, released: Hold | None) -> LockedSubscription:
    """Return the subscription with the funds of a released hold that is not written yet."""
    if released is None:
        return subscription
    funds = replace(
        subscription.funds,
        wallet=subscription.funds.wallet + released.wallet,
        promotional=subscription.funds.promotional + released.promotional,
    )
    return replace(subscription, funds=funds)
