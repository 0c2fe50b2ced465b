"""An administrator's correction of a wallet."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from activities.attempt_time import scheduled_at
from activities.credit_arrivals import list_debtors_if_credited
from activities.notification_context import money_to_json
from activities.subscription_transitions import run_id
from db.queries import audit
from db.queries.change_set import ChangeSet
from db.queries.ledger import get_balances
from workflows.ports.billing import Adjusted, AdjustWallet
from workflows.rules import ledger


async def adjust_wallet(session: AsyncSession, command: AdjustWallet) -> Adjusted:
    changes = ChangeSet(
        organization_id=command.organization_id,
        subscription_id="",
        occurred_at=command.now,
        keyed_at=scheduled_at(command.now),
        actor=command.actor,
        run_id=run_id(),
    )
    key = f"adjustment/{command.adjustment_id}"
    posting = ledger.adjustment_transaction(command.amount)
    transaction_id = changes.add_ledger_transaction(
        posting, key=key, description=command.reason, ref=command.adjustment_id
    )
    if not await _transaction_exists(session, command, key):
        await changes.write(session)
        await _audit_adjustment(session, command, transaction_id)
    return Adjusted(
        transaction_id=transaction_id, past_due_subscription_ids=await list_debtors_if_credited(session, changes)
    )


async def _audit_adjustment(session: AsyncSession, command: AdjustWallet, transaction_id: str) -> None:
    """Record who adjusted the wallet; its row is locked by the transaction that was just posted."""
    after = (await get_balances(session, command.organization_id, command.amount.currency)).wallet
    await audit.append_audit_entry(
        session,
        organization_id=command.organization_id,
        actor=command.actor,
        action="billing.adjustment_created",
        at=command.now,
        object=transaction_id,
        before={"wallet": money_to_json(after - command.amount)},
        after={"wallet": money_to_json(after), "amount": money_to_json(command.amount)},
        reason=command.reason,
        ip=command.address,
        request_id=command.request_id or None,
    )


async def _transaction_exists(session: AsyncSession, command: AdjustWallet, key: str) -> bool:
    """Return whether an earlier attempt has posted the adjustment; one that still runs is waited for.

    Otherwise this attempt would be refused for what the other one has taken from the wallet.
    """
    lock = text(
        "SELECT FROM customer_balances WHERE organization_id = :organization AND currency = :currency FOR NO KEY UPDATE"
    )
    await session.execute(lock, {"organization": command.organization_id, "currency": command.amount.currency})
    statement = text("SELECT EXISTS (SELECT FROM ledger_transactions WHERE idempotency_key = :key)")
    return bool((await session.execute(statement, {"key": key})).scalar_one())
