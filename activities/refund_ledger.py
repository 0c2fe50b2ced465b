"""Moves the money of a refund: from invoices and the wallet when it is reserved, and back when it fails."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from activities.attempt_time import scheduled_at
from activities.subscription_transitions import run_id
from db.models.ledger import LedgerTransactionRow
from db.models.payments import Payment, Refund
from db.queries import invoice_allocations as allocations
from db.queries import ledger
from db.queries.change_set import ChangeSet
from workflows.ports.payments import Purpose
from workflows.ports.refunds import RefundDestination
from workflows.rules import ledger as accounts
from workflows.rules.allocations import AllocationSource, InvoiceBalance, RefundParts, SourcePart
from workflows.rules.errors import RETRYABLE, ErrorCode, RuleViolation
from workflows.rules.ids import derive_id
from workflows.rules.ledger import LedgerAccount, TransactionKind, build_transaction, clearing_account
from workflows.rules.money import Money, zero_money
from workflows.rules.payment import RefundStatus


async def load_invoices(session: AsyncSession, payment: Payment) -> dict[str, InvoiceBalance]:
    """Lock and return the invoices that the payment has paid, the newest first."""
    invoice_ids = await allocations.list_invoices_of_payment(session, payment.id)
    return {invoice_id: await allocations.get_invoice_balance(session, invoice_id) for invoice_id in invoice_ids}


def remaining_in_wallet(payment: Payment, invoices: Mapping[str, InvoiceBalance]) -> Money:
    """Return what of a payment went to the wallet and was not refunded.

    Raises:
        RuleViolation: ``CONFLICT`` while the payment waits for its invoice.
    """
    if not invoices and payment.purpose != Purpose.TOP_UP and not payment.credited_to_wallet:
        raise RuleViolation(
            ErrorCode.CONFLICT,
            "The payment has not been applied to its invoice yet. Retry when the invoice is paid.",
            RETRYABLE,
        )
    remaining = Money(amount_minor=payment.captured_minor - payment.refunded_minor, currency=payment.currency)
    for invoice in invoices.values():
        for allocation in invoice.allocations:
            if allocation.payment_id == payment.id:
                remaining -= allocation.amount
    return remaining


async def take_refund(
    session: AsyncSession, refund: Refund, payment: Payment, parts: RefundParts, now: datetime
) -> None:
    """Take a refund from the invoices and the wallet.

    The invoices lose their part when the refund is reserved: a plan change must not credit it meanwhile. The part of
    the wallet is held until the gateway has answered: it must not be spent meanwhile.
    """
    zero = zero_money(refund.currency)
    changes = _new_change_set(refund, payment, now)
    if parts.from_invoices:
        transaction_id = changes.add_ledger_transaction(
            accounts.wallet_refund_transaction(parts.from_invoices)
            if refund.destination == RefundDestination.WALLET
            else accounts.charge_refund_transaction(payment.gateway, parts.from_invoices),
            key=_invoice_key(refund.id),
            description="Refund",
            ref=refund.payment_id,
        )
        for invoice_id, reversals in parts.reversals.items():
            changes.reverse(invoice_id, reversals, transaction_id=transaction_id)
            refunded = sum((reversal.amount for reversal in reversals), start=zero)
            await allocations.add_refunded_amount(session, invoice_id, refunded)
    if parts.from_wallet:
        hold = accounts.hold_transaction(promotional=zero, wallet=parts.from_wallet)
        key = f"refund/{refund.id}/hold"
        changes.add_ledger_transaction(hold, key=key, description="Held for the refund", ref=refund.payment_id)
    await changes.write(session)


async def return_refund(session: AsyncSession, refund: Refund, payment: Payment, now: datetime) -> None:
    """Return a failed refund to the invoices and the wallet; the part of an invoice that is void goes to the wallet."""
    zero = zero_money(refund.currency)
    changes = _new_change_set(refund, payment, now)
    taken = await allocations.list_reversals_of_transaction(session, derive_id("tx", _invoice_key(refund.id)))
    for number, part in enumerate(taken):
        posting = (
            accounts.top_up_transaction(payment.gateway, part.amount)
            if part.is_invoice_void
            else accounts.charge_refund_transaction(payment.gateway, -part.amount)
        )
        transaction_id = changes.add_ledger_transaction(
            posting,
            key=f"{_invoice_key(refund.id)}/return/{number}",
            description="Refund failed: hold released",
            ref=payment.id,
        )
        if not part.is_invoice_void:
            source = SourcePart(source=AllocationSource.PAYMENT, amount=part.amount, payment_id=payment.id)
            changes.allocate(part.invoice_id, [source], transaction_id=transaction_id)
            await allocations.add_refunded_amount(session, part.invoice_id, -part.amount)
    if refund.from_wallet_minor:
        release = accounts.release_transaction(promotional=zero, wallet=_from_wallet(refund))
        key = f"refund/{refund.id}/release"
        changes.add_ledger_transaction(release, key=key, description="Refund failed: hold released", ref=payment.id)
    await changes.write(session)


async def credit_rejected_refund(session: AsyncSession, refund: Refund, payment: Payment, now: datetime) -> None:
    """Credit a refund that its bank has rejected to the wallet, also the part that invoices lost.

    What the invoices have refunded stays refunded: the customer is owed it, and has it in the wallet.
    """
    changes = _new_change_set(refund, payment, now)
    amount = Money(amount_minor=refund.amount_minor, currency=refund.currency)
    changes.add_ledger_transaction(
        accounts.returned_refund_transaction(payment.gateway, amount),
        key=rejection_key(refund.id),
        description="Refund rejected by the bank: credited to the wallet",
        ref=payment.id,
    )
    await changes.write(session)


async def pay_out_from_wallet(session: AsyncSession, refund: Refund, gateway: str, now: datetime) -> None:
    """Post the held part of a succeeded refund as paid out by the gateway. Does nothing if no part was held."""
    if not refund.from_wallet_minor:
        return
    amount = _from_wallet(refund)
    transaction = build_transaction(
        TransactionKind.REFUND, (LedgerAccount.HELD, -amount), (clearing_account(gateway), amount)
    )
    key = f"refund/{refund.id}/refund"
    await ledger.post_transaction(
        session,
        transaction,
        transaction_id=derive_id("tx", key),
        organization_id=refund.organization_id,
        at=now,
        ref=refund.payment_id,
        description="Refund",
        idempotency_key=key,
    )


async def rejected_amount(session: AsyncSession, payment: Payment) -> Money:
    """Return what of a payment its banks rejected, and the wallet received, made again or not."""
    query = select(Refund).where(Refund.payment_id == payment.id, Refund.status == RefundStatus.FAILED)
    failed = {rejection_key(refund.id): refund.amount_minor for refund in await session.scalars(query)}
    posted = await session.scalars(
        select(LedgerTransactionRow.idempotency_key).where(LedgerTransactionRow.idempotency_key.in_(failed))
    )
    return Money(amount_minor=sum(failed[key] for key in posted), currency=payment.currency)


def rejection_key(refund_id: str) -> str:
    """Return the idempotency key of the ledger transaction that credits a rejected refund to the wallet."""
    return f"refund/{refund_id}/rejected"


def _invoice_key(refund_id: str) -> str:
    """Return the idempotency key of the ledger transaction that takes a refund from the invoices."""
    return f"refund/{refund_id}/invoices"


def _new_change_set(refund: Refund, payment: Payment, now: datetime) -> ChangeSet:
    return ChangeSet(
        organization_id=refund.organization_id,
        subscription_id=payment.subscription_id or "",
        occurred_at=now,
        keyed_at=scheduled_at(now),
        actor=refund.actor,
        run_id=run_id(),
    )


def _from_wallet(refund: Refund) -> Money:
    return Money(amount_minor=refund.from_wallet_minor, currency=refund.currency)
