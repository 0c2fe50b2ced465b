"""Collecting open invoices: from credit, by card, and what is recorded when neither pays."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from temporalio import activity

from activities import billing_steps as steps
from activities import bookkeeping as books
from activities.billing_steps import BillingSteps
from db.queries import invoices
from db.queries.journal import Journal
from workflows.ports.billing import AccountAdjustment, Bill, Collect, Settle, Unpaid
from workflows.ports.subscription import CardDue
from workflows.refusals import refusal_of
from workflows.rules import ledger
from workflows.rules.errors import RuleBroken
from workflows.rules.invoice import InvoiceStatus
from workflows.rules.money import Money, zero
from workflows.rules.subscription import INDEBTED, LIVE, State


class CollectionActivities(BillingSteps):
    @activity.defn(name="billing.collect")
    async def collect(self, command: Collect) -> Bill:
        async with self._sessions.begin() as session:
            record = await books.require(session, command.subscription_id)
            invoice = await invoices.find(session, command.invoice_id)
            if invoice is None or invoice.status is not InvoiceStatus.OPEN or record.state not in INDEBTED:
                return await self.again(session, record, invoice)
            journal = books.journal_of(record, command.now, command.actor)
            held = await invoices.open_hold(session, record.id)
            if held is not None:
                rest = CardDue(amount=invoice.due - held.total, payment_method_id=record.funds.payment_method_id or "")
                return books.bill_of(record, invoice, card=rest)
            funding = steps.fund(record, invoice.due)
            if funding.covered:
                nothing = zero(record.currency)
                post = ledger.collected(promotional=funding.promotional, wallet=funding.wallet, held=nothing)
                journal.post(post, key=f"paid/{invoice.id}", description=steps.what(record), ref=invoice.id)
                return await self.paid(session, journal, record, invoice)
            card = self.card(record, funding)
            if card is not None:
                purpose = f"{invoice.id}/{command.now.isoformat()}"
                await books.hold_beside_card(session, journal, record, funding, purpose)
            else:
                journal.tell("payment.failed", "Neither the wallet nor a card covers the invoice.", ref=invoice.id)
                if command.scheduled:
                    context = books.mail_context(
                        record,
                        amount=invoice.due,
                        invoice_id=invoice.id,
                        next_attempt=command.next_attempt,
                        status=record.state,
                    )
                    journal.notify("payment_failed", context)
            await journal.write(session)
            return books.bill_of(record, invoice, card=card)

    @activity.defn(name="billing.settle")
    async def settle(self, command: Settle) -> Bill:
        async with self._sessions.begin() as session:
            record = await books.require(session, command.subscription_id)
            invoice = await invoices.find(session, command.invoice_id)
            if await applied(session, command.payment_id):
                return await self.again(session, record, invoice)
            journal = books.journal_of(record, command.now, "platform")
            received = await received_by(session, command.payment_id)
            awaited = invoice is not None and invoice.status in (InvoiceStatus.DRAFT, InvoiceStatus.OPEN)
            if invoice is None or not awaited or record.state not in LIVE:
                await books.release_hold(session, journal, record)
                keep_in_wallet(journal, received, command.payment_id)
                await journal.write(session)
                return books.bill_of(record, invoice)
            held = await books.capture_hold(session, record)
            nothing = zero(record.currency)
            amount = received + books.held_amount(held, record.currency)
            draft = invoice.status is InvoiceStatus.DRAFT
            post = (
                ledger.charge(promotional=nothing, wallet=nothing, held=amount, tax=invoice.tax)
                if draft
                else ledger.collected(promotional=nothing, wallet=nothing, held=amount)
            )
            journal.post(post, key=applied_key(command.payment_id), description=steps.what(record), ref=invoice.id)
            return await self.paid(session, journal, record, invoice, draft=draft)

    @activity.defn(name="billing.unpaid")
    async def unpaid(self, command: Unpaid) -> Bill:
        async with self._sessions.begin() as session:
            record = await books.require(session, command.subscription_id)
            invoice = await invoices.find(session, command.invoice_id)
            journal = books.journal_of(record, command.now, "platform")
            await books.release_hold(session, journal, record)
            if invoice is None or invoice.status not in (InvoiceStatus.DRAFT, InvoiceStatus.OPEN):
                await journal.write(session)
                return steps.unpaid_bill(record)
            reason = command.decline_code or "declined"
            message = f"A card did not pay {steps.plain(invoice.total)}: {reason}."
            fact = f"payment.failed/{command.payment_id}"
            journal.tell("payment.failed", message, ref=command.payment_id, fact=fact)
            trial_over = record.state is State.TRIALING and invoice.kind == "period"
            context = books.mail_context(
                record,
                amount=invoice.due,
                invoice_id=invoice.id,
                decline_code=command.decline_code,
                next_attempt=command.next_attempt,
                status=State.PAUSED if trial_over else record.state,
            )
            if invoice.status is InvoiceStatus.DRAFT:
                await invoices.mark_void(session, invoice.id, command.now)
                if trial_over:
                    journal.notify("payment_failed", context, fact=fact)
                    record = self.pause_after_trial(journal, record)
                await journal.write(session)
                return steps.unpaid_bill(record)
            if record.state is State.ACTIVE:
                why = "the invoice was not paid"
                record = self.fall_behind(journal, record, invoice.period_start, why)
            if record.state in INDEBTED:
                journal.notify("payment_failed", context, fact=fact)
            await journal.write(session)
            return books.bill_of(record, invoice)

    @activity.defn(name="billing.adjust")
    async def adjust(self, command: AccountAdjustment) -> str:
        journal = Journal(
            organization_id=command.organization_id,
            subscription_id="",
            at=command.now,
            actor=command.actor,
            run_id=books.run_id(),
        )
        key = f"adjustment/{command.adjustment_id}"
        posting = ledger.adjustment(command.amount)
        transaction_id = journal.post(posting, key=key, description=command.reason, ref=command.adjustment_id)
        try:
            async with self._sessions.begin() as session:
                if not await _posted(session, key):
                    await journal.write(session)
        except RuleBroken as broken:
            raise refusal_of(broken) from broken
        return transaction_id


def applied_key(payment_id: str) -> str:
    return f"applied/{payment_id}"


async def applied(session: AsyncSession, payment_id: str) -> bool:
    """Tell whether a payment's money has left ``held`` for its invoice or the wallet."""
    return await _posted(session, applied_key(payment_id))


async def received_by(session: AsyncSession, payment_id: str) -> Money:
    """Return what a succeeded payment brought."""
    row = (
        await session.execute(text("SELECT captured_minor, currency FROM payments WHERE id = :id"), {"id": payment_id})
    ).one()
    return Money(amount_minor=row.captured_minor, currency=row.currency)


def keep_in_wallet(journal: Journal, received: Money, payment_id: str) -> None:
    """Money that has nothing left to pay stays the customer's."""
    posting = ledger.release(promotional=zero(received.currency), wallet=received)
    journal.post(posting, key=applied_key(payment_id), description="Kept in the wallet", ref=payment_id)
    message = f"A card paid {steps.plain(received)}; it is kept in the wallet."
    journal.tell("payment.succeeded", message, ref=payment_id, fact=f"payment.succeeded/{payment_id}")


async def posted_amount(session: AsyncSession, key: str, currency: str) -> Money:
    """Return what a transaction brought the customer; nothing when there is none."""
    statement = text("SELECT effect_minor FROM ledger_transactions WHERE idempotency_key = :key")
    return Money(amount_minor=(await session.scalar(statement, {"key": key})) or 0, currency=currency)


async def _posted(session: AsyncSession, key: str) -> bool:
    statement = text("SELECT EXISTS (SELECT FROM ledger_transactions WHERE idempotency_key = :key)")
    return bool((await session.execute(statement, {"key": key})).scalar_one())
