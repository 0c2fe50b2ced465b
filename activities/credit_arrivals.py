"""Which subscriptions collect their debt when credit or a payment method arrives.

Each activity that adds to the wallet, to promotional credit or to the saved payment methods returns one of these lists.
Its workflow sends the signals (``workflows/past_due_signals.py``). A repeated activity returns the list again, because
its first result may be lost.
"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from db.queries import invoices, payments
from db.queries.change_set import ChangeSet


async def list_debtors(session: AsyncSession, organization_id: str) -> list[str]:
    """Return the past-due and suspended subscriptions of the organization, oldest debt first."""
    return await payments.list_past_due_subscriptions(session, organization_id)


async def list_debtors_if_credited(session: AsyncSession, changes: ChangeSet) -> list[str]:
    """Return the debtors when ``changes`` added to the wallet or to promotional credit, else nothing."""
    return await list_debtors(session, changes.organization_id) if changes.credited else []


async def list_debtors_after_failure(session: AsyncSession, changes: ChangeSet, invoice_id: str) -> list[str]:
    """Return the debtors that credit which a failed card payment released may pay; nothing if no credit was held.

    The subscription itself is left out: its card has just failed and must not be charged again at once.

    Args:
        changes: The subscription's changes, with the release of the hold. The first run of a repeated activity has
            released it, so that a released hold of the invoice counts too.
        invoice_id: The invoice that the card did not pay.
    """
    if not changes.credited and not await invoices.has_released_hold(session, changes.subscription_id, invoice_id):
        return []
    return [other for other in await list_debtors(session, changes.organization_id) if other != changes.subscription_id]
