"""Holds: credit that is reserved during a card charge or the provisioning of an instance."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncSession

from activities.funding import FundingSplit
from db.queries import invoices
from db.queries.change_set import ChangeSet
from db.queries.invoices import OpenHold
from db.queries.locked_subscriptions import LockedSubscription
from workflows.rules import ledger
from workflows.rules.money import Money, zero_money


async def place_hold(
    session: AsyncSession, changes: ChangeSet, subscription: LockedSubscription, funding: FundingSplit, dedup_key: str
) -> None:
    """Hold what credit contributes while a card is charged the remainder."""
    if not funding.wallet and not funding.promotional:
        return
    await invoices.insert_hold(
        session,
        organization_id=subscription.organization_id,
        subscription_id=subscription.id,
        dedup_key=dedup_key,
        wallet=funding.wallet,
        promotional=funding.promotional,
    )
    changes.add_ledger_transaction(
        ledger.hold_transaction(promotional=funding.promotional, wallet=funding.wallet),
        key=f"hold/{subscription.id}/{dedup_key}",
        description="Set aside",
        ref=subscription.id,
    )


async def release_hold(session: AsyncSession, changes: ChangeSet, subscription: LockedSubscription) -> OpenHold | None:
    """Release the open hold to its sources and return it; None if there is no hold."""
    held = await invoices.lock_open_hold(session, subscription.id)
    if held is None:
        return None
    await invoices.close_hold(session, held.id, "released")
    if held.total:
        changes.add_ledger_transaction(
            ledger.release_transaction(promotional=held.promotional, wallet=held.wallet),
            key=f"release/{subscription.id}/{held.dedup_key}",
            description="Released",
            ref=subscription.id,
        )
    return held


async def capture_hold(session: AsyncSession, subscription: LockedSubscription) -> OpenHold | None:
    """Mark the open hold as captured and return it. The caller posts the ledger transaction."""
    held = await invoices.lock_open_hold(session, subscription.id)
    if held is not None:
        await invoices.close_hold(session, held.id, "captured")
    return held


def hold_total(held: OpenHold | None, currency: str) -> Money:
    return held.total if held is not None else zero_money(currency)


def with_released(subscription: LockedSubscription, released: OpenHold | None) -> LockedSubscription:
    """Return the subscription with the funds of a released hold that is not written yet."""
    if released is None:
        return subscription
    funds = replace(
        subscription.funds,
        wallet=subscription.funds.wallet + released.wallet,
        promotional=subscription.funds.promotional + released.promotional,
    )
    return replace(subscription, funds=funds)
